"""Putting a file or a directory in place at once, or not at all."""

import ctypes
import errno
import os
import stat
from contextlib import suppress

from nsbuild.tree.beneath import c_path, libc, os_error

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def fsync_directory(path: str) -> None:
    """Make the entries of the directory `path` durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _fsync(fd)
    finally:
        os.close(fd)


def _fsync(dir_fd: int) -> None:
    try:
        os.fsync(dir_fd)
    except OSError as error:
        # Some FUSE and network filesystems cannot sync a directory, and say so like this.
        if error.errno != errno.EINVAL:
            raise


def write_atomic(path: str, data: bytes, mode: int | None = 0o644, *, mtime_ns: int | None = None) -> None:
    """Write `data` to the file `path`, which holds either all of it, durably, or what it held before.

    `mode` is exact: the umask does not apply; None is a new file's, by the umask. `mtime_ns` is the time of its last
    change, None for now. A symbolic link at `path` is replaced, not followed. Raises OSError with `path`; nothing is
    left beside it then.
    """
    directory, name = os.path.split(path)
    beside = f".nsbuild-{os.urandom(8).hex()}"
    try:
        dir_fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                _write(dir_fd, beside, data, mode, mtime_ns)
                os.rename(beside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(beside, dir_fd=dir_fd)
                raise
            _fsync(dir_fd)
        finally:
            os.close(dir_fd)
    except OSError as error:
        raise os_error(error.errno or errno.EIO, path) from None


def _write(dir_fd: int, name: str, data: bytes, mode: int | None, mtime_ns: int | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    fd = os.open(name, flags, 0o666 if mode is None else 0o600, dir_fd=dir_fd)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        if mode is not None:
            os.fchmod(fd, mode)
        if mtime_ns is not None:
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_directory(new: str, old: str) -> str | None:
    """Put the directory `new` in the place of `old`, which need not exist, in one step.

    Returns where the old one is now, for the caller to remove: usually `new`, None when there was none.
    Where the filesystem cannot exchange two names, the old one is first moved to a new name beside, which is
    returned, and moved back if the second step fails; in between `old` does not exist.

    Both must be on one mount, and have the same parent or be writable themselves (a directory's `..`
    changes with its parent). Raises OSError: NotADirectoryError when either is something else, a link to a
    directory included, EXDEV, EACCES ...; both are where they were then.
    """
    # lstat of `link/` follows the link.
    new, old = new.rstrip("/"), old.rstrip("/")
    while True:
        if not stat.S_ISDIR(os.lstat(new).st_mode):
            raise os_error(errno.ENOTDIR, new)
        try:
            if not stat.S_ISDIR(os.lstat(old).st_mode):
                raise os_error(errno.ENOTDIR, old)
        except FileNotFoundError:
            os.rename(new, old)
            return None
        try:
            _renameat2(new, old, _RENAME_EXCHANGE)
            return new
        except FileNotFoundError:
            continue  # the old one has just gone
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
        kept = f"{old}.nsbuild-{os.urandom(8).hex()}"
        os.rename(old, kept)
        try:
            os.rename(new, old)
        except BaseException:
            os.rename(kept, old)
            raise
        return kept


def _renameat2(source: str, target: str, flags: int) -> None:
    try:
        call = libc.renameat2
    except AttributeError:  # musl before 1.2.6
        raise os_error(errno.ENOSYS, source) from None
    arguments = (_AT_FDCWD, c_path(source), _AT_FDCWD, c_path(target), ctypes.c_uint(flags))
    if call(*arguments) != 0:
        raise os_error(ctypes.get_errno(), target)
