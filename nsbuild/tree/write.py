"""Making a tree out of names that others have chosen: an archive's members, a git tree's entries."""

import errno
import os
import stat
from collections.abc import Iterable
from types import TracebackType

from nsbuild.tree.beneath import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    open_beneath,
    openat2,
    os_error,
)

_LATEST = 1 << 33
"""A time, in seconds, that every filesystem has (ext4 ends in 2446)."""


class NameRefused(ValueError):
    """A name, or a link, that has no place in a tree. The text says which and why."""


class TreeWriter:
    """Writes files, directories and links below one directory, through no symbolic link and never outside it.

    Names are paths with `/`, relative; `.` and empty components are dropped. A later entry replaces an earlier one
    of its name, as `tar` has it, but no directory is replaced by something else. Modes lose setuid, setgid and
    sticky bits, and keep their owner able to read. Times are whole seconds. For root everything goes to `owner`.

    Every method raises NameRefused and OSError (ENOSPC ...) with the name.
    """

    def __init__(self, directory: str, owner: tuple[int, int] | None = None) -> None:
        """`directory` does not exist, or is an empty one of ours. Raises OSError."""
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            pass
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._owner = owner
        self._directories: dict[str, tuple[int, int | None]] = {}
        self._inward: list[str] = []
        self._parent = ("", os.dup(self._root))
        self._give(self._root)

    def __enter__(self) -> "TreeWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            os.close(self._parent[1])
            os.close(self._root)

    def directory(self, name: str, mode: int = 0o755, mtime: float | None = None) -> None:
        """A directory; the tree's own for a `name` like `.`. Mode and time are set at the end."""
        parts = _parts(name)
        path = "/".join(parts)
        if parts:
            parent, last = self._open_parent(name, parts)
            try:
                os.mkdir(last, 0o755, dir_fd=parent)
                self._give(last, parent)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(last, dir_fd=parent, follow_symlinks=False).st_mode):
                    raise NameRefused(f"{name!r} is there twice, once as a directory") from None
            except OSError as error:
                raise os_error(error.errno or 0, name) from None
        self._directories[path] = (mode & 0o777 | 0o500, _seconds(mtime))

    def file(self, name: str, mode: int, mtime: float | None, content: Iterable[bytes]) -> int:
        """A regular file; returns its size in bytes."""
        parent, last = self._clear(name)
        size = 0
        try:
            fd = os.open(
                last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
            )
        except OSError as error:
            raise os_error(error.errno or 0, name) from None
        try:
            for block in content:
                rest = memoryview(block)
                while rest:
                    rest = rest[_written(fd, rest, name) :]
                size += len(block)
            self._give(fd)
            os.fchmod(fd, mode & 0o777 | 0o400)
            if (seconds := _seconds(mtime)) is not None:
                os.utime(fd, (seconds, seconds))
        finally:
            os.close(fd)
        return size

    def symlink(self, name: str, target: str, mtime: float | None = None, *, outward: bool = True) -> None:
        """A symbolic link, as it is. Without `outward` one that leads out of the tree is refused, at the latest
        when the tree is complete: `d/e -> ..` is harmless, and `f -> d/e/..` is not once that is there.
        """
        if not target or "\0" in target or len(os.fsencode(target)) > 4095:
            raise NameRefused(f"{name!r} is a symbolic link to no possible name")
        if not outward and _leads_out(_parts(name), target):
            raise NameRefused(f"{name!r} is a symbolic link that leads out of the tree, to {target!r}")
        if not outward:
            self._inward.append(name)
        parent, last = self._clear(name)
        try:
            os.symlink(target, last, dir_fd=parent)
        except OSError as error:
            raise os_error(error.errno or 0, name) from None
        self._give(last, parent)
        if (seconds := _seconds(mtime)) is not None:
            os.utime(last, (seconds, seconds), dir_fd=parent, follow_symlinks=False)

    def hard_link(self, name: str, target: str) -> None:
        """Another name of the regular file `target`, which has been written before."""
        try:
            fd = open_beneath(self._root, "/".join(_parts(target)) or ".", os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            raise NameRefused(f"{name!r} is a hard link to {target!r}: {error.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise NameRefused(f"{name!r} is a hard link to {target!r}, which is no regular file")
            if _parts(name) == _parts(target):
                return
            parent, last = self._clear(name)
            try:
                os.link(f"/proc/self/fd/{fd}", last, dst_dir_fd=parent, follow_symlinks=True)
            except OSError as error:
                raise os_error(error.errno or 0, name) from None
        finally:
            os.close(fd)

    def _clear(self, name: str) -> tuple[int, str]:
        """The directory and last component of `name`, where nothing is any more."""
        parts = _parts(name)
        if not parts:
            raise NameRefused(f"{name!r} is no name for a file")
        parent, last = self._open_parent(name, parts)
        try:
            os.unlink(last, dir_fd=parent)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            raise NameRefused(f"{name!r} is there twice, once as a directory") from None
        except OSError as error:
            raise os_error(error.errno or 0, name) from None
        return parent, last

    def _open_parent(self, name: str, parts: list[str]) -> tuple[int, str]:
        path = "/".join(parts[:-1])
        if path != self._parent[0]:
            fd = self._make(name, parts[:-1])
            os.close(self._parent[1])
            self._parent = (path, fd)
        return self._parent[1], parts[-1]

    def _make(self, name: str, parts: list[str]) -> int:
        """An O_PATH descriptor of a directory of the tree, made with those on the way where they are missing."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return open_beneath(self._root, "/".join(parts) or ".", flags)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _astray(error, name) from None
        here = os.dup(self._root)
        for part in parts:
            try:
                try:
                    os.mkdir(part, 0o755, dir_fd=here)
                    self._give(part, here)
                except FileExistsError:
                    pass
                below = os.open(part, flags, dir_fd=here)
            except OSError as error:
                raise _astray(error, name) from None
            finally:
                os.close(here)
            here = below
        return here

    def _give(self, what: int | str, dir_fd: int | None = None) -> None:
        if self._owner is not None:
            os.chown(what, *self._owner, dir_fd=dir_fd, follow_symlinks=isinstance(what, int))

    def _check_inward(self, path: str) -> None:
        try:
            os.close(openat2(self._root, path, os.O_PATH, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS))
        except OSError as error:
            # One that leads to nothing, or round in a circle, leads nowhere else either.
            if error.errno == errno.EXDEV:
                raise NameRefused(f"{path!r} is a symbolic link that leads out of the tree") from None

    def _finish(self) -> None:
        """Modes and times of directories: a closed one could not be filled, and filling one changes its time."""
        for name in self._inward:
            self._check_inward("/".join(_parts(name)))
        for path in sorted(self._directories, key=lambda path: path.count("/"), reverse=True):
            mode, seconds = self._directories[path]
            fd = open_beneath(self._root, path or ".", os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fchmod(fd, mode)
                if seconds is not None:
                    os.utime(fd, (seconds, seconds))
            finally:
                os.close(fd)


def _astray(error: OSError, name: str) -> Exception:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return NameRefused(f"{name!r} is below a symbolic link or a file")
    return os_error(error.errno or 0, name)


def _parts(name: str) -> list[str]:
    if name.startswith("/"):
        raise NameRefused(f"{name!r} is an absolute name")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise NameRefused(f"{name!r} leads out of the tree by `..`")
    if "\0" in name:
        raise NameRefused(f"{name!r} has a NUL in its name")
    return parts


def _leads_out(parts: list[str], target: str) -> bool:
    """By what is written alone: what the kernel says of the complete tree is better, where it has openat2(2)."""
    depth = len(parts) - 1
    for part in target.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return True
    return target.startswith("/")


def _seconds(mtime: float | None) -> int | None:
    return None if mtime is None or mtime != mtime else int(min(max(mtime, 0), _LATEST))


def _written(fd: int, block: memoryview, name: str) -> int:
    try:
        return os.write(fd, block)
    except OSError as error:
        raise os_error(error.errno or 0, name) from None
