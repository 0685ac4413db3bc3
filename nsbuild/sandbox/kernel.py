"""The system calls Python lacks, under the names of the kernel's headers.

Each wrapper checks errno and raises `KernelError`, which names the call and the path. `ctypes.PyDLL` keeps the
interpreter lock during a call: every call here is short, and `clone` must come back in the child as the thread
that made it.
"""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CLONE_NEWNS = 0x00020000
CLONE_PARENT = 0x00008000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_RELATIME = 1 << 21
MNT_DETACH = 2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_IDMAP = 0x00100000

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

PR_CAPBSET_DROP = 24
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SET_SECCOMP = 22
PR_SET_SECUREBITS = 28
SECCOMP_MODE_FILTER = 2

RENAME_NOREPLACE = 1

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_machine = os.uname().machine
_by_machine = {
    "x86_64": {"clone": 56, "pivot_root": 155, "renameat2": 316},
    "aarch64": {"clone": 220, "pivot_root": 41, "renameat2": 276},
}
# Numbers from 424 on are the same on every architecture.
_NR = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
    **_by_machine.get(_machine, {}),
}

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_long = ctypes.c_long


class KernelError(OSError):
    """A system call failed. `call` is its name, `path` what it was about (may be empty)."""

    def __init__(self, number: int, call: str, path: str = "") -> None:
        super().__init__(number, os.strerror(number))
        self.call = call
        self.path = path

    def __str__(self) -> str:
        about = f" {self.path}" if self.path else ""
        return f"{self.call}{about}: {self.strerror}"


def _checked(call: str, path: str | bytes, *args: object) -> int:
    number = _NR.get(call)
    if number is None:
        raise KernelError(38, call, f"on {_machine}")
    result: int = _syscall(_long(number), *args)
    if result < 0:
        raise KernelError(ctypes.get_errno(), call, os.fsdecode(path))
    return result


def clone(flags: int) -> int:
    """fork(2) with namespaces: the child's pid, or 0 in the child. For processes with one thread only.

    The raw call, since fork + unshare costs a quarter more and a child of unshare(NEWPID) is one fork further
    away. Python's own fork hooks are run around it.
    """
    ctypes.pythonapi.PyOS_BeforeFork()
    try:
        pid = _checked("clone", "", _long(flags | 17), None, None, None, None)  # 17: SIGCHLD
    except BaseException:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        raise
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return pid


def unshare(flags: int) -> None:
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        raise KernelError(ctypes.get_errno(), "unshare", f"{flags:#x}")


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    encoded = os.fsencode(target)
    if (
        _libc.mount(
            os.fsencode(source),
            encoded,
            os.fsencode(fstype),
            ctypes.c_ulong(flags),
            os.fsencode(data) or None,
        )
        < 0
    ):
        raise KernelError(ctypes.get_errno(), f"mount {fstype}".rstrip(), target)


def umount2(target: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(target), ctypes.c_int(flags)) < 0:
        raise KernelError(ctypes.get_errno(), "umount2", target)


def pivot_root(new_root: str, put_old: str) -> None:
    _checked("pivot_root", new_root, os.fsencode(new_root), os.fsencode(put_old))


def open_tree(dir_fd: int, path: str, flags: int) -> int:
    encoded = os.fsencode(path)
    return _checked("open_tree", encoded, _long(dir_fd), encoded, _long(flags))


def move_mount(mount_fd: int, target_fd: int, about: str) -> None:
    """Attach a detached mount on the directory or file that `target_fd` (O_PATH) is open on."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _checked("move_mount", about, _long(mount_fd), b"", _long(target_fd), b"", _long(flags))


def mount_setattr(
    dir_fd: int, path: str, flags: int, *, attr_set: int = 0, propagation: int = 0, userns_fd: int = 0
) -> None:
    attributes = struct.pack("QQQQ", attr_set, 0, propagation, userns_fd)
    encoded = os.fsencode(path)
    _checked("mount_setattr", encoded, _long(dir_fd), encoded, _long(flags), attributes, _long(len(attributes)))


def fsmount(fstype: str, options: Iterable[tuple[str, str | None]], attributes: int) -> int:
    """A new, detached mount of a filesystem: fsopen, fsconfig for each option, fsmount."""
    context = _checked("fsopen", fstype, fstype.encode(), _long(FSOPEN_CLOEXEC))
    try:
        for key, value in options:
            command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
            encoded = None if value is None else os.fsencode(value)
            about = f"{fstype} {key}"
            _checked("fsconfig", about, _long(context), _long(command), key.encode(), encoded, _long(0))
        _checked("fsconfig", fstype, _long(context), _long(FSCONFIG_CMD_CREATE), None, None, _long(0))
        return _checked("fsmount", fstype, _long(context), _long(FSMOUNT_CLOEXEC), _long(attributes))
    finally:
        os.close(context)


def openat2(dir_fd: int, path: str, flags: int, resolve: int) -> int:
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    encoded = os.fsencode(path)
    return _checked("openat2", encoded, _long(dir_fd), encoded, how, _long(len(how)))


def renameat2(old_dir_fd: int, old: str, new_dir_fd: int, new: str, flags: int) -> None:
    old_path, new_path = os.fsencode(old), os.fsencode(new)
    _checked("renameat2", new, _long(old_dir_fd), old_path, _long(new_dir_fd), new_path, _long(flags))


def close_range(first: int, last: int) -> None:
    """Close the descriptors from `first` to `last`; by the list in /proc before Linux 5.9."""
    if first > last:
        return
    try:
        _checked("close_range", "", _long(first), _long(last), _long(0))
    except KernelError:
        for name in os.listdir("/proc/self/fd"):
            if first <= int(name) <= last:
                try:
                    os.close(int(name))
                except OSError:
                    continue  # the listing's own


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    values = (ctypes.c_ulong(value) for value in (arg2, arg3, arg4, arg5))
    result: int = _libc.prctl(ctypes.c_int(option), *values)
    if result < 0:
        raise KernelError(ctypes.get_errno(), f"prctl({option})")
    return result


class _SockFprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def seccomp_set_filter(program: bytes) -> None:
    """Install a compiled BPF program (8 bytes an instruction). Needs no_new_privs."""
    buffer = ctypes.create_string_buffer(program, len(program))
    prog = _SockFprog(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(prog))


def overwrite(address: int, data: bytes) -> None:
    """Write into our own memory."""
    ctypes.memmove(address, data, len(data))


def signalfd(signals: Iterable[int]) -> int:
    """A descriptor that becomes readable when one of these (blocked) signals is pending; 128 bytes each."""
    mask = 0
    for number in signals:
        mask |= 1 << (number - 1)
    # glibc's sigset_t is 128 bytes
    buffer = struct.pack("Q", mask).ljust(128, b"\0")
    result: int = _libc.signalfd(ctypes.c_int(-1), buffer, ctypes.c_int(os.O_CLOEXEC | os.O_NONBLOCK))
    if result < 0:
        raise KernelError(ctypes.get_errno(), "signalfd")
    return result
