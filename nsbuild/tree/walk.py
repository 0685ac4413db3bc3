"""Walking a tree of any depth with few descriptors, no recursion and no paths."""

import enum
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from nsbuild.tree.beneath import open_root, os_error

# Descriptors one descent holds at most (two more for its root and the listing under way):
# a copy has two descents, and RLIMIT_NOFILE may be as low as 64.
WINDOW = 16

# What one system call takes, the final NUL included; also as much of a path as an error should show.
PATH_MAX = 4096

Identity = tuple[int, int]


def identity(info: os.stat_result) -> Identity:
    """Device and inode number: which file this is, whatever it is called."""
    return info.st_dev, info.st_ino


@dataclass(slots=True)
class _Level:
    name: str
    identity: Identity
    fd: int
    length: int


class Descent:
    """A stack of open directories from a root down to where the walk is: `fd`.

    Only the root and the deepest `WINDOW` levels are kept open. A level that was closed is opened again as
    `..` of the one below, and refused unless it is the very directory that was left.
    """

    def __init__(self, base: str, fd: int) -> None:
        """`base` names the root in errors; the descriptor `fd` of the root is owned from here on."""
        self._base = base
        self._levels = [_Level("", identity(os.fstat(fd)), fd, 0)]
        self._first_open = 1

    def __enter__(self) -> "Descent":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for level in self._levels:
            if level.fd >= 0:
                os.close(level.fd)
        self._levels.clear()

    @property
    def fd(self) -> int:
        """The directory the walk is in."""
        return self._levels[-1].fd

    @property
    def root(self) -> int:
        """The directory the walk started in."""
        return self._levels[0].fd

    @property
    def root_identity(self) -> Identity:
        """Which directory the walk started in."""
        return self._levels[0].identity

    def enter(self, name: str, fd: int) -> None:
        """Go down into `name`, just opened as `fd`, which is owned from here on."""
        length = self._levels[-1].length + len(os.fsencode(name)) + 1
        self._levels.append(_Level(name, identity(os.fstat(fd)), fd, length))
        if len(self._levels) - self._first_open > WINDOW:
            oldest = self._levels[self._first_open]
            os.close(oldest.fd)
            oldest.fd = -1
            self._first_open += 1

    def leave(self) -> tuple[str, int]:
        """Go up; returns the name and the descriptor of the directory left, which the caller now owns.

        Raises OSError, ESTALE when somebody has moved that directory meanwhile.
        """
        left = self._levels.pop()
        above = self._levels[-1]
        if above.fd < 0:
            try:
                above.fd = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=left.fd)
                self._first_open = len(self._levels) - 1
                if identity(os.fstat(above.fd)) != above.identity:
                    raise OSError(errno.ESTALE, "Directory was moved while it was walked")
            except OSError as error:
                os.close(left.fd)
                raise self.named(error, left.name) from None
        return left.name, left.fd

    def relative(self, name: str = "") -> str:
        """The path of `name` from the root. Long when the tree is deep: do not keep many."""
        parts = [level.name for level in self._levels[1:]]
        return "/".join([*parts, name] if name else parts)

    def reachable(self, name: str) -> str | None:
        """The path of `name` from the root, or None when it is too long for one system call."""
        if self._levels[-1].length + len(os.fsencode(name)) >= PATH_MAX:
            return None
        return self.relative(name)

    def shown(self, name: str = "") -> str:
        """As `relative`, with `...` for the middle of a path beyond PATH_MAX."""
        if self._levels[-1].length < PATH_MAX:
            return self.relative(name)
        parts = [level.name for level in self._levels[1:]] + [name]
        return "/".join([*parts[:4], "...", *parts[-4:]])

    def named(self, error: OSError, name: str = "") -> OSError:
        """`error` with the path of `name` (default the directory the walk is in), the base in front."""
        path = self.shown(name)
        return os_error(
            error.errno or errno.EIO, os.path.join(self._base, path) if path else self._base, error.strerror
        )


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
    naming what cannot be read; when `tolerant`, a directory that may not be read comes as OTHER instead.

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
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descent.fd)
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


def _readable(info: os.stat_result) -> bool:
    return info.st_mode & 0o500 == 0o500


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
    return sorted(os.listdir(fd), reverse=True)


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
