"""How the builder's directories get into the view: adopted by rename, or bind-mounted."""

from __future__ import annotations

import os
import stat

from nsbuild.sandbox.mounts import mount_points
from nsbuild.sandbox.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Facts(Value):
    """What decides for one directory. `path` is its real path, `mount` the id of the mount it is on."""

    path: str
    mount: int
    uid: int
    mode: int
    parent_uid: int
    parent_mode: int
    parent_writable: bool
    writable: bool = True
    mount_point: bool = False
    mounts_inside: bool = False


class Choice(Value):
    """`how` is `adopt` or `bind`; `why` a clause for a person."""

    how: str
    why: str


def read_facts(path: str, mounts: Iterable[str] | None = None) -> Facts:
    """Look at a directory and its parent. `mounts` are the mount points of this process. Raises OSError."""
    real = os.path.realpath(path)
    info = os.stat(real)
    parent = os.path.dirname(real)
    above = os.stat(parent)
    points = [point for point, _ in mount_points()] if mounts is None else list(mounts)
    return Facts(
        real,
        mount_id(real),
        info.st_uid,
        stat.S_IMODE(info.st_mode),
        above.st_uid,
        stat.S_IMODE(above.st_mode),
        os.access(parent, os.W_OK | os.X_OK),
        os.access(real, os.W_OK | os.X_OK),
        real in points,
        any(point.startswith(f"{real}/") for point in points),
    )


def mount_id(path: str) -> int:
    """Which mount of this process a path is on. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:  # noqa: PTH123
            return int(file.read().split(b"mnt_id:")[1].split()[0])
    finally:
        os.close(fd)


def choose(facts: Facts, uid: int, *, mount: int | None = None, wanted: str = "auto") -> Choice:
    """Adopt where rename(2) can take the directory away and bring it back, else bind.

    `mount` is the workspace's, when that is decided already: rename(2) goes nowhere else. `wanted` `bind` is
    obeyed; for `adopt` the caller looks at what is chosen.
    """
    if wanted == "bind":
        return Choice("bind", "it was asked for")
    if facts.mount_point:
        return Choice("bind", f"{facts.path} is a mount point, which cannot be renamed")
    if facts.mounts_inside:
        return Choice("bind", f"something is mounted below {facts.path}")
    if mount is not None and facts.mount != mount:
        return Choice("bind", f"{facts.path} is on another file system, or mount of one, than the workspace")
    if not facts.parent_writable:
        return Choice("bind", f"{os.path.dirname(facts.path)} cannot be written, so nothing in it can be renamed")
    if uid != 0 and facts.parent_mode & stat.S_ISVTX and uid not in (facts.uid, facts.parent_uid):
        return Choice("bind", f"{os.path.dirname(facts.path)} is sticky, and {facts.path} is not yours")
    if not facts.writable:
        # A directory that changes parents is written to: its ".." changes.
        return Choice("bind", f"{facts.path} has no write permission of its own")
    return Choice("adopt", "it can be renamed")
