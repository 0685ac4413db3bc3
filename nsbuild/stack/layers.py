"""The layers of an image, applied one over the other to a directory, as an ordinary user."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from typing import BinaryIO

from nsbuild.tree import remove_tree
from nsbuild.tree.beneath import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from nsbuild.tree.descent import Descent, Identity, identity
from nsbuild.tree.walk import Event, walk

_BLOCK = 1 << 20
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."
"""Prefix of what aufs keeps for itself."""
_LATEST = 1 << 33
"""Seconds since 1970 that every filesystem can hold."""


class Malformed(ValueError):
    """What was given is no image, or is damaged. The message goes on from `the image ...`."""


class RootFileSystem:
    """A root file system that is put together beneath the directory `root`, a descriptor.

    Everything belongs to the caller; setuid and setgid bits, extended attributes, devices, FIFOs and sockets are left
    out; directories can always be entered by their owner. Paths of members are resolved as in a chroot
    (RESOLVE_IN_ROOT), so that `/var/run/x` goes through the image's own link, and no link leads out.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._times: dict[Identity, int] = {}

    def apply(self, layer: BinaryIO) -> None:
        """Apply one layer, an uncompressed tar, as opencontainers/image-spec layer.md has it.

        Raises Malformed, OSError.
        """
        made: set[tuple[Identity, str]] = set()
        try:
            with tarfile.open(
                fileobj=layer, mode="r|", bufsize=_BLOCK, encoding="utf-8", errors="surrogateescape"
            ) as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # of all that it has seen
                    self._add(archive, member, made)
        except tarfile.TarError as error:
            raise Malformed(f"has a damaged layer ({error})") from error

    def finish(self) -> None:
        """Give directories their times, which change with all that is put into them. Raises OSError."""
        with Descent("", os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)) as descent:
            for event, name, info in walk(descent):
                when = self._times.get(identity(info))
                if event is Event.LEAVE and when is not None:
                    os.utime(name, ns=(when, when), dir_fd=descent.fd, follow_symlinks=False)

    def _add(self, archive: tarfile.TarFile, member: tarfile.TarInfo, made: set[tuple[Identity, str]]) -> None:
        *above, name = _parts(member.name) or [""]
        if not name:
            return  # the root itself
        try:
            parent = self._directory(above)
            try:
                if name == _OPAQUE:
                    _remove_lower(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent), made)
                elif name.startswith(_AUFS):
                    return
                elif name.startswith(_WHITEOUT):
                    _white_out(parent, name.removeprefix(_WHITEOUT), made)
                else:
                    made.add((identity(os.fstat(parent)), name))
                    self._make(archive, member, parent, name)
            finally:
                os.close(parent)
        except OSError as error:
            if error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.ENOSYS):
                raise  # None: gzip's own
            raise Malformed(f"has a member that cannot be made: {member.name}: {error.strerror}") from error
        except ValueError as error:  # a NUL in a name
            raise error if isinstance(error, Malformed) else Malformed(f"has a member {member.name!r}") from error

    def _make(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
        if member.isdir():
            self._make_directory(member, parent, name)
            return
        if member.islnk():
            self._link(member, parent, name)
            return
        _clear(parent, name)
        times = (_when(member), _when(member))
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
            os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)
        elif member.isreg():
            content = archive.extractfile(member)
            assert content is not None
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=parent)
            with open(fd, "wb", buffering=0) as file:  # noqa: PTH123
                shutil.copyfileobj(content, file, _BLOCK)
                os.fchmod(fd, member.mode & 0o777)
                os.utime(fd, ns=times)

    def _make_directory(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            os.fchmod(fd, member.mode & 0o1777 | stat.S_IRWXU)
            self._times[identity(os.fstat(fd))] = _when(member)
        finally:
            os.close(fd)

    def _link(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        *above, target = _parts(member.linkname) or [""]
        other = self._open(above)
        try:
            if target == name and os.path.samestat(os.fstat(other), os.fstat(parent)):
                return
            os.stat(target, dir_fd=other, follow_symlinks=False)
            _clear(parent, name)
            os.link(target, name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(other)

    def _directory(self, parts: list[str]) -> int:
        """An O_PATH descriptor of a directory of the image; what is missing on the way is made."""
        try:
            return self._open(parts)
        except FileNotFoundError:
            here = self._open([])
        for depth, name in enumerate(parts, 1):
            try:
                below = self._open(parts[:depth])
            except FileNotFoundError:
                os.mkdir(name, 0o755, dir_fd=here)
                below = self._open(parts[:depth])
            finally:
                os.close(here)
            here = below
        return here

    def _open(self, parts: list[str]) -> int:
        return open_in_root(self._root, "/".join(parts) or ".", os.O_PATH | os.O_DIRECTORY)


def open_in_root(root: int, path: str, flags: int) -> int:
    """Open a path with the directory `root` as `/`, links and `..` included: what a process there would get.

    Raises OSError.
    """
    while True:
        try:
            return openat2(root, path, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        except BlockingIOError:
            continue  # `..` while somebody, anywhere, renames something: the kernel cannot be sure, and says so


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Malformed(f"has a member that leads out of it: {path}")
    return parts


def _when(member: tarfile.TarInfo) -> int:
    """The time of last modification in nanoseconds; whole seconds, which is what a layer has."""
    try:
        return min(max(int(member.mtime), 0), _LATEST) * 1_000_000_000
    except (ValueError, OverflowError):  # a pax header may say nan
        return 0


def _clear(parent: int, name: str) -> None:
    """Never written through: what is there may be a link, or have other names."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        remove_tree(name, dir_fd=parent)


def _white_out(parent: int, name: str, made: set[tuple[Identity, str]]) -> None:
    if name in ("", ".", ".."):
        raise Malformed(f"has a whiteout of {name!r}")
    kept = (identity(os.fstat(parent)), name) in made
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        if not kept:
            os.unlink(name, dir_fd=parent)
        return
    _remove_lower(fd, made)
    if not kept:
        _remove_if_empty(parent, name)


def _remove_lower(fd: int, made: set[tuple[Identity, str]]) -> None:
    """Empty the directory `fd`, which is owned from here on, of all but what the layer itself has `made`: its
    members come in any order.
    """
    with Descent("", fd) as descent:
        for event, name, _ in walk(descent):
            if event is Event.ENTER or (identity(os.fstat(descent.fd)), name) in made:
                continue
            if event is Event.LEAVE:
                _remove_if_empty(descent.fd, name)
            else:
                os.unlink(name, dir_fd=descent.fd)


def _remove_if_empty(parent: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
