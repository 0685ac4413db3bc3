"""What one process will see: `Layout`, `View` and the pure functions that make them.

Values in, values out: what they need to know of the host is a `Host`, and `init.py` executes them.
"""

from __future__ import annotations

import os

from nsbuild.sandbox.host import GENERATED, Entry, Host, ancestors, is_system, join
from nsbuild.sandbox.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class ViewError(ValueError):
    """The options cannot be made into a view. The message is one sentence for a person."""


class Layout(Value):
    """The paths a build sees, absolute and without a trailing slash."""

    name: str
    build_dir: str
    cache_dir: str
    env_dir: str
    home: str

    def __init__(self, *args: str, **kwargs: str) -> None:
        super().__init__(*args, **kwargs)
        for field in self._fields[1:]:
            path = getattr(self, field)
            if not path.startswith("/") or os.path.normpath(path) != path or path == "/" or "\0" in path:
                raise ViewError(f"The path {path!r} is not an absolute, normalised one below / ({field}).")


def app_layout(run_path: str = "/app") -> Layout:
    """BUILD_DIR is where the app will run. `run_path` for platforms that run apps elsewhere than `/app`."""
    top, *below = run_path.split("/")[1:] or [""]
    if top in ("tmp", "proc", "dev", "sys"):
        raise ViewError(f"The run path {run_path!r} lies in a directory that every launch makes afresh.")
    if not below and (is_system(top) or top in ("home", "root", "run")):
        raise ViewError(f"The run path {run_path!r} would hide a directory that the build needs.")
    name = "app" if run_path == "/app" else f"app:{run_path}"
    return Layout(name, run_path, "/tmp/cache", "/tmp/env", run_path)


def classic_layout(build_id: str) -> Layout:
    """Today's platforms: BUILD_DIR under /tmp, HOME an empty `/app`.

    Heroku's build log and gliderlabs/herokuish include/buildpack.bash show these paths.
    """
    return Layout("classic", f"/tmp/build_{build_id}", "/tmp/codon/tmp/cache", f"/tmp/env_{build_id}", "/app")


class User(Value):
    """Whom the build runs as. Never uid 0.

    `root_on_disk`: the workspace belongs to root on disk and is shown through an idmapped mount that swaps uid
    0 and this one.
    """

    uid: int
    gid: int
    name: str = "dyno"
    root_on_disk: bool = False


class Operation(Value):
    """One step that makes the view. `path` is absolute, as the process will see it."""

    path: str

    def describe(self) -> str:
        """One line for `--explain`."""
        raise NotImplementedError


class Directory(Operation):
    """A directory of the skeleton."""

    mode: int = 0o755

    def describe(self) -> str:
        return f"directory  {self.path}  (mode {self.mode:04o})"


class Symlink(Operation):
    target: str

    def describe(self) -> str:
        return f"symlink    {self.path}  -> {self.target}"


class Place(Operation):
    """The host's directory `source`, renamed to `path` for the launch and back afterwards."""

    source: str

    def describe(self) -> str:
        return f"place      {self.path}  (writable) from {self.source}"


class Bind(Operation):
    """The host's directory or file `source`, with its submounts, at `path`."""

    source: str
    directory: bool = True
    writable: bool = False
    root_on_disk: bool = False

    def describe(self) -> str:
        return f"bind       {self.path}  ({'writable' if self.writable else 'read-only'}) from {self.source}"


class Overlay(Operation):
    """The host's directory `lower` at `path`; what is written goes to `scratch` (with `upper` and `work`)."""

    lower: str
    scratch: str

    def describe(self) -> str:
        return f"overlay    {self.path}  (writes to {self.scratch}) over {self.lower}"


class Proc(Operation):
    """A procfs of the new pid namespace; the old one where the kernel refuses (masked /proc in containers)."""

    def describe(self) -> str:
        return f"proc       {self.path}"


class Dev(Operation):
    """null zero full random urandom tty, a devpts of its own, shm, the descriptor links."""

    def describe(self) -> str:
        return f"dev        {self.path}"


class Tmpfs(Operation):
    mode: int = 0o755

    def describe(self) -> str:
        return f"tmpfs      {self.path}  (mode {self.mode:04o})"


class File(Operation):
    """A generated read-only file bound over whatever is there."""

    content: bytes
    mode: int = 0o444

    def describe(self) -> str:
        return f"file       {self.path}  ({len(self.content)} bytes, generated)"


class View(Value):
    """The whole: where the skeleton is made, for whom, and what goes into it, in this order.

    `workspace` is a host directory that the user of the view owns, on a filesystem where things can be
    executed; the skeleton is made in it. `network` is `host` or `none`.
    """

    workspace: str
    user: User
    operations: tuple[Operation, ...]
    network: str = "host"
    user_namespaces: bool = True

    def explain(self) -> str:
        """The operations, a line each."""
        head = [
            f"root       {self.workspace}/root  (a skeleton, writable, verified or fresh for every launch)",
            f"user       uid {self.user.uid} gid {self.user.gid}, identity map"
            + (", on disk root" if self.user.root_on_disk else ""),
            f"network    {self.network}",
        ]
        return "\n".join([*head, *(operation.describe() for operation in self.operations)])


def compose(
    host: Host,
    *,
    workspace: str,
    user: User,
    home: str,
    places: Mapping[str, str],
    binds: Iterable[Bind] = (),
    overlays: Iterable[Overlay] = (),
    network: str = "host",
    user_namespaces: bool = True,
    var_tmp: str,
) -> View:
    """The view of a build: system directories, generated files, fresh kernel filesystems, then what is ours.

    `places` maps paths in the view to host directories on the workspace's filesystem; `var_tmp` is the host
    directory behind /var/tmp. Raises ViewError when a path cannot be placed (it leads through a symlink of the
    host, say).
    """
    binds = tuple(binds)
    overlays = tuple(overlays)
    files = (
        File("/etc/passwd", _passwd(host.passwd, user, home)),
        File("/etc/group", _group(host.group, user)),
        File("/etc/nsswitch.conf", _NSSWITCH),
    )
    must_be_plain = set(places)
    mounts = [
        *files,
        Bind("/var/tmp", var_tmp, writable=True, root_on_disk=user.root_on_disk),
        *binds,
        *overlays,
    ]
    mount_points = {operation.path for operation in mounts}
    network_files = [
        Bind(*found, directory=False)
        for found in (host.resolver if network == "host" else None, host.hosts)
        if found is not None and found[0] not in mount_points
    ]
    mount_points |= {bind.path for bind in network_files if is_system(bind.path.split("/")[1])}

    operations: list[Operation] = [*_system(host, "/", must_be_plain, mount_points)]
    operations += [Directory("/home"), Directory("/root", 0o700), Directory("/run")]
    operations += [Bind("/sys", "/sys")]
    made = {operation.path for operation in operations}
    elsewhere = {operation.path for operation in operations if not isinstance(operation, Directory)} | set(places)
    for path in sorted(must_be_plain | mount_points):
        for parent in ancestors(path)[1:]:
            if parent not in made and not _below(parent, elsewhere):
                operations.append(Directory(parent))
                made.add(parent)
    operations += [Place(path, places[path]) for path in sorted(places, key=lambda p: p.count("/"))]
    operations += [Proc("/proc"), Dev("/dev"), *network_files]
    operations += [op for op in mounts if not _is_symlink(host, op.path)]
    return View(workspace, user, tuple(operations), network, user_namespaces)


def _is_symlink(host: Host, path: str) -> bool:
    entry = host.entry(path)
    return entry is not None and entry.kind == "symlink" and path == "/var/tmp"


def _below(path: str, others: set[str]) -> bool:
    """Whether a mount, a link or a placed directory, not the skeleton, holds this path."""
    return any(path.startswith(f"{other}/") or path == other for other in others)


def _system(host: Host, directory: str, must_be_plain: set[str], mount_points: set[str]) -> Iterator[Operation]:
    """Show one directory's entries, splitting those in which something must be made that the host lacks."""
    prefix = directory.rstrip("/")
    for entry in host.listings.get(directory, ()):
        path = f"{prefix}/{entry.name}"
        if directory == "/" and not is_system(entry.name):
            continue
        if path in must_be_plain or (path in mount_points and _must_be_file(entry, path)):
            continue
        split = any(place.startswith(f"{path}/") for place in must_be_plain) or any(
            point.startswith(f"{path}/") and not _exists(host, point) for point in mount_points
        )
        if entry.kind == "symlink":
            if split:
                raise ViewError(f"{path} is a symlink to {entry.target} {_where(host)}: nothing can be put below it.")
            yield Symlink(path, entry.target)
        elif not split:
            yield Bind(path, join(host.root, path), directory=entry.kind == "directory")
        elif entry.kind == "directory":
            yield Directory(path, entry.mode | 0o700)
            yield from _system(host, path, must_be_plain, mount_points)
        else:
            raise ViewError(f"{path} is a file {_where(host)}: nothing can be put below it.")


def _where(host: Host) -> str:
    return "on this host" if host.root == "/" else f"in {host.root}"


def _exists(host: Host, path: str) -> bool:
    """Whether the host has something to mount over; an unlisted directory is taken to have it."""
    for ancestor in ancestors(path)[1:]:
        entry = host.entry(ancestor)
        if entry is None:
            return ancestor.rpartition("/")[0] not in host.listings and ancestor.count("/") > 1
        if entry.kind == "symlink":
            return True
    entry = host.entry(path)
    return entry is not None and not _must_be_file(entry, path)


def _must_be_file(entry: Entry, path: str) -> bool:
    """A link is no mount point, and where it leads, nobody looks."""
    return entry.kind == "symlink" and path in GENERATED


_NSSWITCH = b"""# Generated: accounts come from the files beside this one, so that $HOME is everybody's home.
passwd:    files
group:     files
shadow:    files
hosts:     files dns
networks:  files
protocols: files
services:  files
ethers:    files
rpc:       files
"""


def _passwd(text: str, user: User, home: str) -> bytes:
    # OpenSSH (misc.c, tilde_expand) and git read pw_dir, never $HOME.
    lines = [f"{user.name}:x:{user.uid}:{user.gid}:{user.name}:{home}:/bin/bash"]
    lines += _system_accounts(text, {user.name}, {str(user.uid)}) or ["root:x:0:0:root:/root:/bin/sh"]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _group(text: str, user: User) -> bytes:
    lines = [f"{user.name}:x:{user.gid}:"]
    lines += _system_accounts(text, {user.name}, {str(user.gid)}) or ["root:x:0:"]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _system_accounts(text: str, names: set[str], ids: set[str]) -> list[str]:
    """The lines of system accounts (apt looks for `_apt`); people's stay on the host."""
    kept = []
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) < 4 or fields[0] in names or fields[2] in ids or not fields[2].isdigit():
            continue
        if int(fields[2]) < 1000 or int(fields[2]) == 65534:
            fields[-1] = fields[-1] if len(fields) == 7 else ""
            kept.append(":".join(fields))
    return kept
