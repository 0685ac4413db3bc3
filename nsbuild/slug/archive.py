"""A tree as a tar stream: every file is read once, and whoever else wants to see it sees it then."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from nsbuild.slug import tar
from nsbuild.slug.bytecode import Bytecode
from nsbuild.tree.beneath import open_root
from nsbuild.tree.copy import open_whatever
from nsbuild.tree.descent import Descent, Identity, identity
from nsbuild.tree.walk import Event, Prune, walk

TIME = 315532801
"""1980-01-01T00:00:01Z, the time of every member: the first that a zip made of the unpacked files can hold, and what
buildpacks/lifecycle (archive/writer.go, NormalizedModTime) gives every file of an image.
"""

Sink = Callable[[bytes], object]
Watcher = Callable[[str, os.stat_result, bytes], object]
"""Told of every member but the root while it is archived: its path, what stat says, and a piece of what is in it. In
turn, a file's pieces of at most a MiB (b"" for an empty one, and for a further hard link), a link's target, and b""
for a directory.
"""

_PIECE = 1 << 20


@dataclass
class Contents:
    """What a tree held. `sizes` are bytes in files by top directory, each inode once; `.` is the top itself.

    `left_out` names what no archive can hold: sockets, FIFOs, devices; `bare` the files whose extended attributes
    are left out; `unread`, of a tree that is not our own, what we may not read.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


def sizes(path: str) -> dict[str, int]:
    """Bytes in the regular files below each directory of `path`, as `Contents.sizes`. Raises OSError."""
    found: dict[str, int] = {}
    with Descent(path, open_root(path, None)) as descent:
        links = _Links(descent)
        for event, name, info in walk(descent, tolerant=True):
            if event is Event.OTHER and stat.S_ISREG(info.st_mode) and links.first(name, info) is None:
                top = descent.top or "."
                found[top] = found.get(top, 0) + info.st_size
    return found


def _has_attributes(fd: int) -> bool:
    """Whether a file has extended attributes that somebody gave it: no label of the host's, nor overlayfs's own."""
    try:
        names = os.listxattr(fd)
    except OSError:
        return False  # of no such filesystem
    return any(
        name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay."))
        for name in names
    )


def write_tree(
    path: str,
    sink: Sink,
    *,
    prefix: str = "./",
    watcher: Watcher | None = None,
    own: bool = True,
    prune: Prune | None = None,
) -> Contents:
    """Hand the tree `path` to `sink` as members of a tar stream, of which the end is still to be written.

    The same tree gives the same bytes: sorted, everything root's, of one TIME (a `.py` that its bytecode knows by its
    time excepted), no setuid, no extended attributes, holes as zeros. `prefix` is where the tree is in the archive;
    with none its top is no member. What the modes of the tree close to us is opened all the same, or, where it is not
    our `own`, left out. What `prune` is true of is passed over.

    Raises OSError naming what cannot be read, or as `sink`.
    """
    contents = Contents()
    with Descent(path, open_root(path, None)) as descent:
        writer = _Writer(descent, sink, os.fsencode(prefix), watcher, contents, own)
        root = os.fstat(descent.fd)
        if prefix:
            sink(tar.member(writer.prefix, tar.DIRECTORY, stat.S_IMODE(root.st_mode) & 0o1777, TIME))
        for event, name, info in walk(descent, unlock=own, tolerant=not own, prune=prune):
            if event is Event.ENTER:
                writer.directory(info)
            elif event is Event.LEAVE:
                writer.leave()
            elif stat.S_ISREG(info.st_mode):
                writer.file(name, info)
            elif stat.S_ISLNK(info.st_mode):
                writer.symlink(name, info)
            elif stat.S_ISDIR(info.st_mode):
                contents.unread.append(descent.shown(name))
            else:
                contents.left_out.append(descent.shown(name))
    return contents


class _Links:
    """Which inodes of several names have been seen."""

    def __init__(self, descent: Descent) -> None:
        self._descent = descent
        self._seen: dict[Identity, str] = {}

    def first(self, name: str, info: os.stat_result) -> str | None:
        """The path by which this file has been seen, None when it has not."""
        if info.st_nlink == 1:
            return None
        path = self._descent.relative(name)
        found = self._seen.setdefault(identity(info), path)
        return None if found is path else found


class _Writer:
    def __init__(
        self,
        descent: Descent,
        sink: Sink,
        prefix: bytes,
        watcher: Watcher | None,
        contents: Contents,
        own: bool,
    ) -> None:
        self.prefix = prefix
        self._own = own
        self._unread = contents.unread
        self._bare = contents.bare
        self._descent = descent
        self._sink = sink
        self._watcher = watcher
        self._sizes = contents.sizes
        self._links = _Links(descent)
        self._path = ""
        self._encoded = prefix
        self._top = "."
        self._bytecode = Bytecode()
        self._above: list[Bytecode] = []

    def _here(self) -> None:
        path = self._descent.relative()
        self._path = f"{path}/" if path else ""
        self._encoded = self.prefix + os.fsencode(self._path)
        self._top = self._descent.top or "."

    def directory(self, info: os.stat_result) -> None:
        self._above.append(self._bytecode)
        self._bytecode = Bytecode()
        self._here()
        self._sink(tar.member(self._encoded, tar.DIRECTORY, stat.S_IMODE(info.st_mode) & 0o1777, TIME))
        if self._watcher is not None:
            self._watcher(self._path[:-1], info, b"")

    def leave(self) -> None:
        if self._above:
            self._bytecode = self._above.pop()
            self._here()

    def symlink(self, name: str, info: os.stat_result) -> None:
        link = os.readlink(os.fsencode(name), dir_fd=self._descent.fd)
        self._sink(tar.member(self._encoded + os.fsencode(name), tar.SYMLINK, 0o777, TIME, link=link))
        if self._watcher is not None:
            self._watcher(self._path + name, info, link)

    def file(self, name: str, info: os.stat_result) -> None:
        encoded = self._encoded + os.fsencode(name)
        first = self._links.first(name, info)
        if first is not None and first in self._unread:
            self._unread.append(self._descent.shown(name))
            return
        if first is not None:
            mode = info.st_mode & 0o777
            self._sink(tar.member(encoded, tar.HARD_LINK, mode, TIME, link=self.prefix + os.fsencode(first)))
            if self._watcher is not None:
                self._watcher(self._path + name, info, b"")
            return
        time = TIME
        if name.endswith(".py") and self._bytecode.knows(self._descent.fd, name, info):
            time = int(info.st_mtime)
        try:
            fd = open_whatever(self._descent.fd, name, unlock=self._own)
        except OSError as error:
            if isinstance(error, PermissionError) and not self._own:
                self._unread.append(self._descent.shown(name))
                return
            raise self._descent.named(error, name) from None
        try:
            if _has_attributes(fd):
                self._bare.append(self._descent.shown(name))
            self._contents(fd, name, encoded, info, time)
        finally:
            os.close(fd)
        self._sizes[self._top] = self._sizes.get(self._top, 0) + info.st_size

    def _contents(self, fd: int, name: str, encoded: bytes, info: os.stat_result, time: int) -> None:
        size = left = info.st_size
        header = tar.member(encoded, tar.FILE, info.st_mode & 0o777, time, size)
        self._sink(header)
        while True:
            piece = self._read(fd, name, left)
            if left and not piece:
                raise self._descent.named(OSError(errno.ESTALE, "File became shorter while it was read"), name)
            self._sink(piece)
            if self._watcher is not None:
                self._watcher(self._path + name, info, piece)
            left -= len(piece)
            if not left:
                break
        self._sink(tar.padding(size))

    def _read(self, fd: int, name: str, size: int) -> bytes:
        """The next piece. Its errors are the member's, and the sink's are the target's."""
        try:
            return os.read(fd, min(size, _PIECE))
        except OSError as error:
            raise self._descent.named(error, name) from None
