"""Copying a tree so that no write to the copy can reach the original."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from nsbuild.tree.beneath import open_beneath, open_parent, open_root, os_error
from nsbuild.tree.descent import Descent, Identity, identity
from nsbuild.tree.walk import Event, open_unlocked, walk

_FICLONE = 0x40049409

# One read and one write cost less than setting up copy_file_range.
_SMALL = 64 * 1024
_BLOCK = 1024 * 1024
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
# copy_file_range cannot be interrupted in the middle of a range: this much may pass before Ctrl-C is heard.
_RANGE = 64 * 1024 * 1024


class LeftOut(NamedTuple):
    """Something `copy_tree` does not copy: its path from the source, and why (`a FIFO`, `a socket` ...)."""

    path: str
    reason: str


@dataclass
class CopyReport:
    """What `copy_tree` did: entries below the source, and `bytes` of apparent size, each inode once."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    bytes: int = 0
    reflinked: int = 0
    left_out: list[LeftOut] = field(default_factory=list)


def copy_tree(
    source: str,
    destination: str,
    *,
    skip: Callable[[str, bool], bool] | None = None,
    owner: tuple[int, int] | None = None,
    unlock: bool = False,
    src_dir_fd: int | None = None,
    dst_dir_fd: int | None = None,
) -> CopyReport:
    """Copy the contents of the directory `source` to `destination`, which does not exist or is an empty
    directory of ours. Neither may be a link to a directory: resolve first what a user has named.

    Kept: contents, holes, modes, modification times, symbolic links as they are, hard links within the
    source (where the first name is not beyond PATH_MAX). Files share blocks with the original where the
    filesystem can (reflink), inodes never. Not kept: setuid, setgid and sticky bits of files, extended
    attributes, ACLs and file capabilities (no archive of a slug carries them), owners: everything belongs
    to the caller, or, for root, to `owner` (uid, gid).

    Left out and reported: sockets, FIFOs, devices, and the destination where it lies within the source.
    Left out in silence: what `skip(path from the source, is it a directory)` says, with all that is in it,
    and what vanishes meanwhile. Mounts below the source are copied like directories.

    `unlock` is for a source of our own: what its mode closes to us is opened all the same, and copied closed.

    A path given with `src_dir_fd` or `dst_dir_fd` is beneath it and goes through no symbolic link at all.

    Raises OSError with the path in the source that cannot be read, or the one in the destination that cannot
    be written (ENOSPC, or ENOTEMPTY for the destination itself); the middle of a path beyond PATH_MAX is
    shown as `...`. What was copied until then stays: the caller removes it.
    """
    report = CopyReport()
    with (
        Descent(source, open_root(source, src_dir_fd)) as origin,
        Descent(destination, _open_destination(destination, dst_dir_fd)) as target,
    ):
        copier = _Copier(origin, target, owner, report, unlock)

        def prune(name: str, info: os.stat_result) -> bool:
            directory = stat.S_ISDIR(info.st_mode)
            if skip is not None and skip(origin.relative(name), directory):
                return True
            if directory and identity(info) == target.root_identity:
                report.left_out.append(LeftOut(origin.shown(name), "the copy itself"))
                return True
            return False

        root = os.fstat(origin.fd)
        for event, name, info in walk(origin, prune=prune, unlock=unlock):
            if event is Event.ENTER:
                copier.enter(name)
            elif event is Event.LEAVE:
                copier.leave(info)
            elif stat.S_ISLNK(info.st_mode):
                copier.symlink(name, info)
            elif stat.S_ISREG(info.st_mode):
                copier.file(name, info)
            else:
                report.left_out.append(LeftOut(origin.shown(name), _kind(info.st_mode)))
        copier.finish(target.fd, root, 0o7777)
    return report


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _open_destination(path: str, dir_fd: int | None) -> int:
    parent, name = open_parent(path, dir_fd)
    try:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        raise os_error(error.errno or errno.EIO, path) from None
    finally:
        os.close(parent)
    try:
        if os.listdir(fd):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        os.fchmod(fd, 0o700)
    except OSError as error:
        os.close(fd)
        raise os_error(error.errno or errno.EIO, path) from None
    return fd


class _Copier:
    def __init__(
        self, origin: Descent, target: Descent, owner: tuple[int, int] | None, report: CopyReport, unlock: bool
    ) -> None:
        self._origin = origin
        self._target = target
        self._owner = owner
        self._report = report
        self._unlock = unlock
        self._links: dict[Identity, tuple[str, Identity]] = {}
        self._clone = True

    def enter(self, name: str) -> None:
        target = self._target
        try:
            os.mkdir(name, 0o700, dir_fd=target.fd)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=target.fd)
        except OSError as error:
            raise target.named(error, name) from None
        target.enter(name, fd)
        self._report.directories += 1

    def leave(self, info: os.stat_result) -> None:
        # The mode comes last: without write and search permission there is no filling it, nor `..` out of it.
        name, fd = self._target.leave()
        try:
            self.finish(fd, info, 0o7777)
        except OSError as error:
            raise self._target.named(error, name) from None
        finally:
            os.close(fd)

    def finish(self, fd: int, info: os.stat_result, mask: int) -> None:
        if self._owner is not None:
            os.fchown(fd, *self._owner)
        os.fchmod(fd, info.st_mode & mask)
        os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))

    def symlink(self, name: str, info: os.stat_result) -> None:
        try:
            link = os.readlink(name, dir_fd=self._origin.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._origin.named(error, name) from None
        dir_fd = self._target.fd
        try:
            os.symlink(link, name, dir_fd=dir_fd)
            if self._owner is not None:
                os.chown(name, *self._owner, dir_fd=dir_fd, follow_symlinks=False)
            times = (info.st_atime_ns, info.st_mtime_ns)
            os.utime(name, ns=times, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            raise self._target.named(error, name) from None
        self._report.symlinks += 1

    def file(self, name: str, info: os.stat_result) -> None:
        first = self._links.get(identity(info))
        if first is not None and link_again(self._target, first, name):
            self._report.files += 1
            return
        try:
            source = open_regular(self._origin.fd, name, unlock=self._unlock)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._origin.named(error, name) from None
        try:
            self._file(source, name)
        finally:
            os.close(source)

    def _file(self, source: int, name: str) -> None:
        info = os.fstat(source)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            target = os.open(name, flags, 0o600, dir_fd=self._target.fd)
        except OSError as error:
            raise self._target.named(error, name) from None
        try:
            if self._cloned(source, target, info):
                self._report.reflinked += 1
            else:
                copy_contents(source, target, info)
            self.finish(target, info, 0o777)
            copied = identity(os.fstat(target))
        except _ReadError as error:
            raise self._origin.named(error, name) from None
        except OSError as error:
            raise self._target.named(error, name) from None
        finally:
            os.close(target)
        self._report.files += 1
        self._report.bytes += info.st_size
        if info.st_nlink > 1 and (path := self._target.reachable(name)) is not None:
            self._links[identity(info)] = path, copied

    def _cloned(self, source: int, target: int, info: os.stat_result) -> bool:
        if not self._clone or info.st_size == 0:
            return False
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as error:
            # These hold for the two filesystems, anything else for this one file.
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV):
                self._clone = False
            return False
        return True


class _ReadError(OSError):
    """Reading the source failed, not writing the copy."""


def open_regular(dir_fd: int, name: str, *, unlock: bool = False) -> int:
    """Open the regular file `name` for reading; `unlock` opens one of ours that its mode closes.

    Raises OSError, ESTALE when something else has been put in its place; then nothing blocks.
    """
    fd = open_whatever(dir_fd, name, unlock=unlock)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ESTALE, "File was replaced while it was copied")
    return fd


def open_whatever(dir_fd: int, name: str, *, unlock: bool = False) -> int:
    """As `open_regular`, but whatever is there now, if not a link. A FIFO blocks neither this nor a read.

    Raises OSError.
    """
    try:
        return os.open(name, _READ | os.O_NOFOLLOW, dir_fd=dir_fd)
    except PermissionError:
        if not unlock:
            raise
        mode = stat.S_IMODE(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
        fd = open_unlocked(dir_fd, name, _READ, 0o400)
        os.fchmod(fd, mode)
        return fd


def copy_contents(source: int, target: int, info: os.stat_result) -> None:
    """Fill the empty file `target` with what `source` holds, holes left out, up to the size in `info`.

    A file that grows is cut there, one that shrinks ends where it ends. Raises OSError.
    """
    # A build can leave a file of a petabyte that is all hole.
    sparse = info.st_blocks * 512 < info.st_size
    for start, end in extents(source, info.st_size) if sparse else [(0, info.st_size)]:
        _copy_range(source, target, start, end)
    if sparse:
        os.ftruncate(target, min(info.st_size, os.fstat(source).st_size))


def extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: nothing but hole up to the end
                yield end, size
            return
        if start < end:
            yield start, min(end, size)


def _copy_range(source: int, target: int, offset: int, end: int) -> None:
    if end - offset > _SMALL:
        # Refused between filesystems and by some of them. Whatever the error is, the loop below meets it
        # again and knows whether reading or writing failed. Some kernels return 0 too early.
        with suppress(OSError):
            while count := os.copy_file_range(source, target, min(end - offset, _RANGE), offset, offset):
                offset += count
    while offset < end:
        try:
            block = os.pread(source, min(end - offset, _BLOCK), offset)
        except OSError as error:
            raise _ReadError(error.errno, error.strerror) from None
        if not block:
            return
        while block:
            count = os.pwrite(target, block, offset)
            offset += count
            block = block[count:]


def link_again(target: Descent, first: tuple[str, Identity], name: str) -> bool:
    """Make `name`, where `target` is, a hard link to the copy `first` (path from the root, identity).

    False when that cannot be done (too many links, none on this filesystem, another file is there now).
    """
    path, known = first
    try:
        fd = open_beneath(target.root, path, os.O_PATH)
    except OSError:
        return False
    try:
        if identity(os.fstat(fd)) != known:
            return False
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=target.fd, follow_symlinks=True)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
