"""Walking a tree whose entries cannot be trusted."""

import enum
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nsbuild.tree.beneath import open_root
from nsbuild.tree.descent import Descent, Identity, identity


class Event(enum.Enum):
    """What a step of a walk found."""

    ENTER = "enter"  # a directory, in which the walk is from now on
    LEAVE = "leave"  # that directory, out of which the walk has just come
    OTHER = "other"  # anything else


Prune = Callable[[str, os.stat_result], bool]


def walk(
    descent: Descent, *, prune: Prune | None = None, tolerant: bool = False, unlock: bool = False
) -> Iterator[tuple[Event, str, os.stat_result]]:
    """Every entry below the descent's root, in the order of names, as event, name and lstat.

    `prune(name, info)` true passes an entry over. What vanishes meanwhile is passed over. Raises OSError
    naming what cannot be read; when `tolerant`, a directory that may not be read, or only its names, comes as OTHER
    instead.

    `unlock` is for trees of our own: a directory that forbids it is made readable while the walk is in it.
    """
    try:
        pending = [(_names(descent.fd), os.fstat(descent.fd))]
    except OSError as error:
        raise descent.named(error) from None
    while True:
        names, info = pending[-1]
        if not names:
            pending.pop()
            if not pending:
                return
            name, fd = descent.leave()
            if unlock and not _readable(info):
                os.fchmod(fd, stat.S_IMODE(info.st_mode))
            os.close(fd)
            yield Event.LEAVE, name, info
            continue
        name = names.pop()
        try:
            info = os.stat(name, dir_fd=descent.fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            if tolerant and isinstance(error, PermissionError):
                continue
            raise descent.named(error, name) from None
        if prune is not None and prune(name, info):
            continue
        if not stat.S_ISDIR(info.st_mode):
            yield Event.OTHER, name, info
            continue
        try:
            if unlock and not _readable(info):
                fd = open_unlocked(descent.fd, name, os.O_RDONLY | os.O_DIRECTORY, 0o500)
            else:
                fd = _opened(descent.fd, name, whole=tolerant)
        except FileNotFoundError:
            continue
        except OSError as error:
            if tolerant and isinstance(error, PermissionError):
                yield Event.OTHER, name, info
                continue
            raise descent.named(error, name) from None
        descent.enter(name, fd)
        try:
            pending.append((_names(fd), info if unlock else os.fstat(fd)))
        except OSError as error:
            raise descent.named(error) from None
        yield Event.ENTER, name, pending[-1][1]


class Listing(NamedTuple):
    """Names in a directory, sorted: its regular `files`, and `others`, which are neither files nor directories that
    can be read. `closed` is one that was made readable, and is closed again after it.
    """

    files: list[str]
    others: list[str]
    closed: bool


def listings(descent: Descent, *, unlock: bool = False) -> Iterator[Listing]:
    """Each directory, the descent's root first, while the descent is in it: what `walk` tells when tolerant, by the
    types that directories hold, so that nothing else is looked at. A directory has a further one for each in it that
    may not be read, or is no directory any more. `unlock` is as in `walk`. Raises OSError naming what cannot be read.
    """
    mode: int | None = None
    pending: list[tuple[list[str], int | None]] = []
    while True:
        try:
            listing, below = _listed(descent.fd, mode is not None)
        except OSError as error:
            raise descent.named(error) from None
        yield listing
        pending.append((below, mode))
        while True:
            names, mode = pending[-1]
            if not names:
                pending.pop()
                if not pending:
                    return
                _, fd = descent.leave()
                if mode is not None:
                    os.fchmod(fd, mode)
                os.close(fd)
                continue
            name = names.pop()
            try:
                fd, changed = _unlocked(descent.fd, name) if unlock else (_opened(descent.fd, name, whole=True), None)
            except FileNotFoundError:
                continue
            except (PermissionError, NotADirectoryError):
                yield Listing([], [name], mode is not None)
                continue
            except OSError as error:
                raise descent.named(error, name) from None
            mode = changed
            descent.enter(name, fd)
            break


def _listed(fd: int, closed: bool) -> tuple[Listing, list[str]]:
    """A directory, and the names of those in it, the last first."""
    files, others, below = [], [], []
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    files.append(entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                else:
                    others.append(entry.name)
    except FileNotFoundError:
        pass  # the directory was removed after it was opened
    return Listing(sorted(files), sorted(others), closed), sorted(below, reverse=True)


def _unlocked(dir_fd: int, name: str) -> tuple[int, int | None]:
    """A directory of ours, and the mode to give back to it, if it has been changed. Raises OSError."""
    info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if _readable(info) or not stat.S_ISDIR(info.st_mode):
        return _opened(dir_fd, name, whole=True), None
    return open_unlocked(dir_fd, name, os.O_RDONLY | os.O_DIRECTORY, 0o500), stat.S_IMODE(info.st_mode)


def _readable(info: os.stat_result) -> bool:
    return info.st_mode & 0o500 == 0o500


def _opened(dir_fd: int, name: str, *, whole: bool) -> int:
    """A directory. Raises OSError; when `whole`, for one whose names can be read and nothing else as well."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        if whole:
            os.stat(".", dir_fd=fd)  # asks for the x, as anything in it does
    except OSError:
        os.close(fd)
        raise
    return fd


def open_unlocked(dir_fd: int, name: str, flags: int, add: int) -> int:
    """Open a file or directory of ours after adding `add` to its mode, which the caller restores.

    By an O_PATH descriptor, which asks nothing of the mode and cannot be led astray by a link put in its place.
    Raises OSError.
    """
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        os.chmod(f"/proc/self/fd/{handle}", stat.S_IMODE(os.fstat(handle).st_mode) | add)
        return os.open(f"/proc/self/fd/{handle}", flags)
    finally:
        os.close(handle)


def _names(fd: int) -> list[str]:
    try:
        return sorted(os.listdir(fd), reverse=True)
    except FileNotFoundError:
        return []  # the directory was removed after it was opened


def tree_size(path: str, *, dir_fd: int | None = None) -> tuple[int, int]:
    """Bytes in the regular files below the directory `path`, and how many entries there are.

    Bytes are apparent (a hole counts), each inode once; the directory itself is no entry. A directory that
    may not be read counts as one entry, its contents as none. `path` is no link to a directory; with `dir_fd`
    it is beneath that, through no link at all. Raises OSError.
    """
    size = entries = 0
    seen: set[Identity] = set()
    with Descent(path, open_root(path, dir_fd)) as descent:
        for event, _, info in walk(descent, tolerant=True):
            if event is Event.LEAVE:
                continue
            entries += 1
            if stat.S_ISREG(info.st_mode) and identity(info) not in seen:
                size += info.st_size
                if info.st_nlink > 1:
                    seen.add(identity(info))
    return size, entries


_CHANGED = (errno.ESTALE, errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def disk_usage(path: str) -> dict[str, int]:
    """Bytes of disk that everything below the directory `path` takes, by the name in `path` that it is below.

    Each inode counts once, a hole not at all, blocks shared with other files in full. The tree may change meanwhile:
    where a directory is moved away in the middle of the walk, what was found until then is the answer.
    Raises OSError.
    """
    used: dict[str, int] = {}
    seen: set[Identity] = set()
    with Descent(path, open_root(path, None)) as descent:
        try:
            for event, name, info in walk(descent, tolerant=True):
                if event is Event.LEAVE:
                    continue
                if event is Event.OTHER and info.st_nlink > 1:
                    if identity(info) in seen:
                        continue
                    seen.add(identity(info))
                top = descent.top or name
                used[top] = used.get(top, 0) + info.st_blocks * 512
        except OSError as error:
            if error.errno not in _CHANGED:
                raise
    return used
