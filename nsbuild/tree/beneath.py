"""Opening what may be hostile: beneath a directory descriptor, through no symbolic link.

Paths are `str` as `os.fsdecode` makes them, so any bytes the kernel allows survive.
"""

import ctypes
import errno
import os
import stat

_SYS_OPENAT2 = 437

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# EPERM: seccomp filters older than the call (Docker before 20.10) refuse it like this instead of ENOSYS.
UNAVAILABLE = (errno.ENOSYS, errno.EPERM)

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def c_path(path: str) -> bytes:
    """`path` as the kernel gets it; raises ValueError for a NUL, where C would silently end the path."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    return raw


def os_error(number: int, path: str, reason: str | None = None) -> OSError:
    """The OSError (of the right subclass) that the system call would have raised for `path`."""
    return OSError(number, reason or os.strerror(number), path)


def openat2(dir_fd: int, path: str, flags: int, mode: int, resolve: int) -> int:
    """openat2(2), close-on-exec. Raises OSError, EINVAL for flags open(2) ignores (O_PATH | O_NONBLOCK)."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    raw = c_path(path)
    while True:
        fd = libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_long(dir_fd),
            ctypes.c_char_p(raw),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() != errno.EINTR:
            raise os_error(ctypes.get_errno(), path)


def open_beneath(dir_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` beneath the directory `dir_fd`, following no symbolic link anywhere on the way.

    `flags` and `mode` are those of open(2); the descriptor is close-on-exec. With O_PATH | O_NOFOLLOW a
    symbolic link as the last component is opened itself. The path may be longer than PATH_MAX.

    Raises OSError: ELOOP or ENOTDIR for a symbolic link, EXDEV for an absolute path or any `..`
    (also one that would stay beneath), otherwise what open(2) says.
    """
    if path.startswith("/") or ".." in path.split("/"):
        raise os_error(errno.EXDEV, path, "Path does not stay beneath the directory")
    if not flags & os.O_CREAT and flags & os.O_TMPFILE != os.O_TMPFILE:
        mode = 0  # openat2 calls a mode that has no use EINVAL
    try:
        resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
        return openat2(dir_fd, path, flags, mode, resolve)
    except OSError as error:
        if error.errno not in (*UNAVAILABLE, errno.ENAMETOOLONG):
            raise
    return _walk_beneath(dir_fd, path, flags, mode)


def _walk_beneath(dir_fd: int, path: str, flags: int, mode: int) -> int:
    c_path(path)
    if not path:
        raise os_error(errno.ENOENT, path)
    if path.endswith("/"):
        flags |= os.O_DIRECTORY
    *parents, last = [part for part in path.split("/") if part not in ("", ".")] or ["."]
    here = os.dup(dir_fd)
    try:
        for name in parents:
            below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        fd = os.open(last, flags | os.O_NOFOLLOW, mode, dir_fd=here)
    except OSError as error:
        raise os_error(error.errno or errno.EIO, path) from None
    finally:
        os.close(here)
    # With O_PATH, O_NOFOLLOW does not refuse a link: it opens the link itself.
    if flags & os.O_PATH and not flags & os.O_NOFOLLOW and stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise os_error(errno.ELOOP, path)
    return fd


def read_beneath(dir_fd: int, path: str, limit: int) -> bytes | None:
    """The bytes of the regular file `path` beneath `dir_fd`; None where nothing has that name.

    Raises OSError: EFBIG when it holds more than `limit` bytes, EINVAL when it is not a regular file
    (a FIFO does not block, a socket is ENXIO), and as `open_beneath`.
    """
    try:
        fd = open_beneath(dir_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise os_error(errno.EINVAL, path, "Not a regular file")
        data = bytearray()
        # st_size cannot be trusted alone: the file may grow while it is read.
        while info.st_size <= limit and len(data) <= limit:
            block = os.read(fd, min(limit + 1 - len(data), 1 << 20))
            if not block:
                return bytes(data)
            data += block
    finally:
        os.close(fd)
    raise os_error(errno.EFBIG, path, f"Larger than {limit} bytes")


def open_parent(path: str, dir_fd: int | None) -> tuple[int, str]:
    """An O_PATH descriptor of the directory that holds `path`, and the last component.

    Without `dir_fd` the directories on the way are the caller's own and links among them are followed;
    with it, none are. Raises OSError, EINVAL for a path whose last component is no name.
    """
    directory, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        raise os_error(errno.EINVAL, path)
    if dir_fd is None:
        return os.open(directory or ".", os.O_PATH | os.O_DIRECTORY), name
    return open_beneath(dir_fd, directory or ".", os.O_PATH | os.O_DIRECTORY), name


def open_root(path: str, dir_fd: int | None) -> int:
    """The directory `path`, opened for reading. Raises OSError, ENOTDIR for a link to one.

    Without `dir_fd` the directories on the way are the caller's own and links among them are followed;
    with it, none are.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    if dir_fd is None:
        # A final slash would have a link followed in spite of O_NOFOLLOW.
        return os.open(path.rstrip("/") or path, flags)
    return open_beneath(dir_fd, path, flags)
