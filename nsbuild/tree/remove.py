"""Removing a tree that a build has left, whatever is in it."""

import errno
import os

from nsbuild.tree.beneath import (
    RESOLVE_NO_XDEV,
    UNAVAILABLE,
    open_parent,
    openat2,
    os_error,
)
from nsbuild.tree.descent import Descent

# Somebody else is at work in the tree: look again, but not for ever.
_RACED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)
_ATTEMPTS = 8


def remove_tree(path: str, *, dir_fd: int | None = None) -> None:
    """Remove the directory tree, file or symbolic link `path`. Where there is none, that is fine.

    Directories that forbid it are made writable first, as far as they are ours. No symbolic link is
    followed. With `dir_fd`, `path` is beneath it, and none is followed on the way there either.

    Raises OSError naming the entry that could not be removed: EXDEV for a mount point, `path` itself
    included (what comes before it is gone, what is below it is untouched).
    """
    try:
        parent, name = open_parent(path, dir_fd)
    except FileNotFoundError:
        return
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with Descent(os.path.dirname(path.rstrip("/")), os.dup(parent)) as descent:
                    _remove(descent, name)
                return
            except OSError as error:
                if error.errno not in _RACED or attempt == _ATTEMPTS:
                    raise
    finally:
        os.close(parent)


def _remove(descent: Descent, name: str) -> None:
    pending = [[name]]
    while True:
        if pending[-1]:
            name = pending[-1].pop()
            try:
                if _unlink(descent.fd, name):
                    continue
                fd = _open_writable(descent.fd, name)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise descent.named(error, name) from None
            descent.enter(name, fd)
            try:
                pending.append(os.listdir(fd))
            except OSError as error:
                raise descent.named(error) from None
        else:
            pending.pop()
            if not pending:
                return
            name, fd = descent.leave()
            os.close(fd)
            try:
                os.rmdir(name, dir_fd=descent.fd)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise descent.named(error, name) from None


def _unlink(dir_fd: int, name: str) -> bool:
    """Whether `name` was no directory, and is gone."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except IsADirectoryError:
        return False
    return True


def _open_writable(dir_fd: int, name: str) -> int:
    """Open the directory `name` so that its entries can be removed."""
    try:
        fd = _open_same_mount(dir_fd, name, os.O_RDONLY)
    except PermissionError:
        # O_PATH asks nothing of the directory's own mode, and its /proc link is the one chmod that
        # cannot be led astray by a link put in the directory's place.
        handle = _open_same_mount(dir_fd, name, os.O_PATH)
        try:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)
            return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=handle)
        finally:
            os.close(handle)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        # Not ours: its group or others may still let us.
        try:
            os.fchmod(fd, 0o700)
        except PermissionError:
            return fd
    return fd


def _open_same_mount(dir_fd: int, name: str, flags: int) -> int:
    flags |= os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        # The device number would not do: a bind mount of the same filesystem has the same one, and a btrfs
        # subvolume, which any build may create, has another without being a mount.
        return openat2(dir_fd, name, flags, 0, RESOLVE_NO_XDEV)
    except OSError as error:
        if error.errno not in UNAVAILABLE:
            raise
    fd = os.open(name, flags, dir_fd=dir_fd)
    if os.fstat(fd).st_dev != os.fstat(dir_fd).st_dev:
        os.close(fd)
        raise os_error(errno.EXDEV, name)
    return fd
