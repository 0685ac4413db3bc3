"""What a view needs to know of the host: the few listings that decide where a mount point must be made."""

from __future__ import annotations

import os
import stat

from nsbuild.sandbox.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SYSTEM_DIRECTORIES = frozenset({"usr", "bin", "sbin", "etc", "opt", "var", "srv"})
"""What is shown of the host, with every `lib*`. Never every top-level entry: hosts keep secrets there."""


GENERATED = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf")
_ALWAYS = (*GENERATED, "/var/tmp")
"""What every view mounts something over."""
_NETWORK = ("/etc/resolv.conf", "/etc/hosts")
"""What a stack root has empty, or not at all: it is the host's."""


class Entry(Value):
    """One name in a directory: kind is `directory`, `symlink` or `file` (anything else)."""

    name: str
    kind: str
    target: str = ""
    mode: int = 0o755


class Host(Value):
    """What `read_host` saw: listings by directory, the resolver's file, the accounts.

    `root` is where the system directories come from: `/` or a stack root. `resolver` is (path in the view, file
    on the host) when /etc/resolv.conf leads to a place that would be hidden, or is a stack root's, and `hosts` when
    /etc/hosts is a stack root's. `known` are single paths that were looked up.
    """

    root: str
    listings: Mapping[str, tuple[Entry, ...]]
    resolver: tuple[str, str] | None = None
    hosts: tuple[str, str] | None = None
    passwd: str = ""
    group: str = ""
    known: Mapping[str, Entry] = {}

    def entry(self, path: str) -> Entry | None:
        """What is at an absolute path, when it or the listing of its directory was taken."""
        if path in self.known:
            return self.known[path]
        directory, _, name = path.rpartition("/")
        return next((entry for entry in self.listings.get(directory or "/", ()) if entry.name == name), None)


def read_host(root: str = "/", mount_points: Iterable[str] = ()) -> Host:
    """Take the listings that `compose` needs to place these mount points.

    Raises OSError when `root` cannot be listed.
    """
    wanted = {"/"}
    known = {}
    if root == "/":
        resolver, hosts = _hidden_resolver(), None
        passwd, group = _read_text("/etc/passwd"), _read_text("/etc/group")
    else:
        from nsbuild.sandbox import stack_root

        resolver, hosts = (stack_root.from_host(root, path) for path in _NETWORK)
        passwd, group = (stack_root.read_text(root, path) for path in ("etc/passwd", "etc/group"))
    network = [path for path, _ in filter(None, (resolver, hosts)) if is_system(path.split("/")[1])]
    for path in (*_ALWAYS, *network):
        # Nearly every host has these, and /etc is long: looked up, not listed.
        try:
            mode = os.lstat(join(root, path)).st_mode
        except OSError:
            wanted.update(ancestors(path))
            continue
        kind = "directory" if stat.S_ISDIR(mode) else "symlink" if stat.S_ISLNK(mode) else "file"
        if kind == "symlink" and path in GENERATED:
            wanted.update(ancestors(path))
        known[path] = Entry(path.rpartition("/")[2], kind, "", stat.S_IMODE(mode))
    for path in mount_points:
        wanted.update(ancestors(path))
    listings = {}
    for directory in sorted(wanted):
        try:
            with os.scandir(join(root, directory)) as found:
                listings[directory] = tuple(sorted((_entry(item) for item in found), key=lambda e: e.name))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            if directory == "/":
                raise
    return Host(
        root=root,
        listings=listings,
        resolver=resolver,
        hosts=hosts,
        passwd=passwd,
        group=group,
        known=known,
    )


def _entry(item: os.DirEntry[str]) -> Entry:
    mode = stat.S_IMODE(item.stat(follow_symlinks=False).st_mode)
    if item.is_symlink():
        return Entry(item.name, "symlink", os.readlink(item.path), mode)
    return Entry(item.name, "directory" if item.is_dir(follow_symlinks=False) else "file", "", mode)


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""


def _hidden_resolver() -> tuple[str, str] | None:
    """The first path behind /etc/resolv.conf that lies outside what the view shows.

    systemd-resolved, NetworkManager and resolvconf all keep the file under /run and leave a link.
    """
    final = os.path.realpath("/etc/resolv.conf")
    place = leads_to("/", "/etc/resolv.conf")
    if place is None or is_system(place.split("/")[1]) or not os.path.isfile(final):
        return None
    return place, final


def leads_to(root: str, path: str) -> str | None:
    """Where links below `root` lead from `path`: the first place without a link in it, or that a view does not show.

    None when they go round in circles.
    """
    for _ in range(40):
        done, rest = "", path.split("/")[1:]
        while rest:
            done = f"{done}/{rest.pop(0)}"
            if not is_system(done.split("/")[1]):
                return "/".join((done, *rest))
            try:
                target = os.path.join(os.path.dirname(done), os.readlink(join(root, done)))
            except OSError:
                continue
            path = "/" + os.path.normpath("/".join((target, *rest))).lstrip("/")
            break
        else:
            return path
    return None


def is_system(name: str) -> bool:
    """Whether this top-level directory is shown."""
    return name in SYSTEM_DIRECTORIES or name.startswith("lib")


def join(root: str, path: str) -> str:
    return path if root == "/" else root + path


def ancestors(path: str) -> list[str]:
    """`/`, `/opt`, `/opt/a` for `/opt/a/b`."""
    parts = path.split("/")[1:-1]
    return ["/", *("/" + "/".join(parts[: i + 1]) for i in range(len(parts)))]
