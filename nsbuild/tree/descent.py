"""Where a walk is: a stack of open directories, of any depth with few descriptors, no recursion and no paths.

On the launch path (a skeleton is removed with it), so it imports next to nothing.
"""

from __future__ import annotations

import errno
import os

from nsbuild.tree.beneath import os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

# Descriptors one descent holds at most (two more for its root and the listing under way):
# a copy has two descents, and RLIMIT_NOFILE may be as low as 64.
WINDOW = 16

# What one system call takes, the final NUL included; also as much of a path as an error should show.
PATH_MAX = 4096

Identity = tuple[int, int]


def identity(info: os.stat_result) -> Identity:
    """Device and inode number: which file this is, whatever it is called."""
    return info.st_dev, info.st_ino


class _Level:
    __slots__ = ("fd", "identity", "length", "name")

    def __init__(self, name: str, identity: Identity, fd: int, length: int) -> None:
        self.name = name
        self.identity = identity
        self.fd = fd
        self.length = length


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

    def __enter__(self) -> Descent:
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

    @property
    def top(self) -> str:
        """The directory in the root that the walk is in or below; empty while it is in the root itself."""
        return self._levels[1].name if len(self._levels) > 1 else ""

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
        parts = [level.name for level in self._levels[1:]] + ([name] if name else [])
        return "/".join([*parts[:4], "...", *parts[-4:]])

    def named(self, error: OSError, name: str = "") -> OSError:
        """`error` with the path of `name` (default the directory the walk is in), the base in front."""
        path = self.shown(name)
        return os_error(
            error.errno or errno.EIO, os.path.join(self._base, path) if path else self._base, error.strerror
        )
