"""A builder's CACHE_DIR belongs to the layout that has filled it: what one has left is never given to another.

`.nsbuild-layout` in it names that layout, and goes wherever the builder takes the cache. Without one it is the
builder's own: a cache that no namespace has seen is not touched at all.
"""

from __future__ import annotations

import contextlib
import os
import stat

from nsbuild.tree.beneath import read_beneath
from nsbuild.tree.remove import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

TAG = ".nsbuild-layout"
DIRECT = "direct"
NEW = ".nsbuild-new"
"""Where a namespace's first cache is made, in CACHE_DIR, while the builder's own still fills that."""
_NOBODY = "none"
"""The tag while one content replaces another: whoever is killed then leaves what nobody uses."""
_OURS = (TAG, NEW)


def layout_of(cache_dir: str) -> str:
    """The layout that has filled it: `direct`, or a name of `nsbuild.sandbox.Layout`. Raises OSError."""
    try:
        fd = _open(cache_dir)
    except FileNotFoundError:
        return DIRECT
    try:
        found = read_beneath(fd, TAG, 4096)
    except OSError:
        return _NOBODY  # a link or a directory of that name: not ours
    finally:
        os.close(fd)
    return DIRECT if found is None else os.fsdecode(found).strip() or _NOBODY


def give_direct(cache_dir: str) -> None:
    """From here on it is the builder's own, and empty unless it was that already. Raises OSError."""
    if not os.path.isdir(cache_dir):
        return
    with contextlib.suppress(FileNotFoundError):
        remove_tree(f"{cache_dir}/{NEW}")
    if layout_of(cache_dir) == DIRECT:
        return
    _tag(cache_dir, _NOBODY)
    _empty(cache_dir)
    remove_tree(f"{cache_dir}/{TAG}")


def give_namespace(cache_dir: str, layout: str, owner: tuple[int, int] | None) -> str:
    """The directory to show as CACHE_DIR: itself where it is of this layout, else an empty one in it. Raises OSError.

    `owner` is whom root gives what it makes. `keep` or `drop` comes afterwards.
    """
    if not os.path.isdir(cache_dir):
        os.makedirs(cache_dir)
        _give(cache_dir, owner)
    new = f"{cache_dir}/{NEW}"
    remove_tree(new)
    if layout_of(cache_dir) == layout:
        return cache_dir
    os.mkdir(new, 0o755)
    _give(new, _owner_of(cache_dir))
    return new


def keep(cache_dir: str, used: str, layout: str) -> None:
    """What a build has left in `used` is CACHE_DIR's content, tagged with the layout. Raises OSError."""
    if used != cache_dir:
        _tag(cache_dir, _NOBODY)
        _empty(cache_dir)
        move_all(used, cache_dir)
        remove_tree(used)
    if layout_of(cache_dir) != layout:
        _tag(cache_dir, layout)


def drop(cache_dir: str, used: str) -> None:
    """The build has failed: a first cache is thrown away, and what was there before stays. Raises OSError."""
    if used != cache_dir:
        remove_tree(used)


def move_all(source: str, target: str, *, but: tuple[str, ...] = _OURS) -> None:
    """Rename everything in one directory into another, on the same file system. Raises OSError."""
    with _opened(source) as old, _opened(target) as new:
        for name in os.listdir(old):
            if name not in but:
                _move(name, old, new)


def _move(name: str, old: int, new: int) -> None:
    try:
        os.rename(name, name, src_dir_fd=old, dst_dir_fd=new)
    except PermissionError:
        # A directory that changes parents is written to: its ".." changes.
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=old)
        try:
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            os.chmod(f"/proc/self/fd/{fd}", mode | stat.S_IRWXU)
            os.rename(name, name, src_dir_fd=old, dst_dir_fd=new)
            os.chmod(f"/proc/self/fd/{fd}", mode)
        finally:
            os.close(fd)


def _empty(directory: str) -> None:
    with _opened(directory) as fd:
        for name in os.listdir(fd):
            if name not in _OURS:
                remove_tree(name, dir_fd=fd)


def _tag(cache_dir: str, layout: str) -> None:
    path = f"{cache_dir}/{TAG}"
    if os.path.isdir(path) and not os.path.islink(path):
        remove_tree(path)
    from nsbuild.tree.replace import write_atomic

    write_atomic(path, os.fsencode(f"{layout}\n"))
    _give(path, _owner_of(cache_dir))


def _give(path: str, owner: tuple[int, int] | None) -> None:
    if owner is not None and os.geteuid() == 0:
        os.chown(path, *owner, follow_symlinks=False)


def _owner_of(path: str) -> tuple[int, int]:
    info = os.stat(path)
    return info.st_uid, info.st_gid


def _open(directory: str) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[int]:
    fd = _open(directory)
    try:
        yield fd
    finally:
        os.close(fd)
