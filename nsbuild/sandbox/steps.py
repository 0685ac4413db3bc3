"""What a launch asks of the kernel, one step at a time, each in a forked child of its own."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from nsbuild.sandbox import kernel, privileges

EXISTS = "user namespaces exist"
TAKE_MOUNTS = "take the mounts"
BECOME = "become the build's user"
PRIVATE = "private /"


@dataclass(frozen=True)
class Step:
    """How one step went. `call` is the system call that failed, or `killed by signal N`."""

    name: str
    ok: bool
    errno: int = 0
    call: str = ""
    path: str = ""


def try_all(uid: int, gid: int, workspace: str = "") -> tuple[Step, ...]:
    """Every step of a launch, in order; those that need a failed one are left out.

    As root, all but the first two are tried as `uid` and `gid`. With `workspace`, also whether a program there can
    be executed. Forks: for a process with one thread only.
    """
    root = os.geteuid() == 0
    done: list[Step] = []
    passed = set() if root else {TAKE_MOUNTS, BECOME}
    for name, needs, action in _STEPS:
        if (name in (TAKE_MOUNTS, BECOME) and not root) or not passed.issuperset(needs):
            continue
        become = root and name not in (EXISTS, TAKE_MOUNTS)
        done.append(_in_child(name, action, (uid, gid) if become else None))
        if done[-1].ok:
            passed.add(name)
    if workspace:
        done.append(_in_child("exec", lambda: _execute_in(workspace), None))
    return tuple(done)


def _in_child(name: str, action: Callable[[], None], user: tuple[int, int] | None) -> Step:
    answer_r, answer_w = os.pipe()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(answer_r)
        os.close(answer_w)
        return Step(name, False, error.errno or 0, "fork")
    if pid == 0:
        try:
            answer = json.dumps(_attempt(action, user))
            os.write(answer_w, answer.encode())
        finally:
            os._exit(0)
    os.close(answer_w)
    with open(answer_r, "rb") as file:  # noqa: PTH123
        message = file.read()
    _, status = os.waitpid(pid, 0)
    if message:
        return Step(name, *json.loads(message))
    return Step(name, False, 0, f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no answer")


def _attempt(action: Callable[[], None], user: tuple[int, int] | None) -> tuple[bool, int, str, str]:
    try:
        if user is not None:
            _become(*user)
        action()
    except OSError as error:
        path = getattr(error, "path", "") or error.filename or ""
        return False, error.errno or 0, getattr(error, "call", "open"), str(path)
    except Exception as error:
        return False, 0, repr(error), ""
    return True, 0, "", ""


def _become(uid: int, gid: int) -> None:
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise kernel.KernelError(error.errno or 0, "setresuid", str(uid)) from None
    privileges.set_dumpable(True)  # as a launch does: the change of uid has made our /proc entries root's


def _exists() -> None:
    if not os.path.lexists("/proc/self/ns/user"):
        raise kernel.KernelError(errno.ENOENT, "lstat", "/proc/self/ns/user")


def _take_mounts() -> None:
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)


def _new_user() -> None:
    kernel.unshare(kernel.CLONE_NEWUSER)


def _write_own(name: str, text: str) -> None:
    path = f"/proc/self/{name}"
    try:
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise kernel.KernelError(error.errno or 0, "write", path) from None


def _map(last: str) -> None:
    # Read before: in a namespace without a map everybody is 65534.
    uid, gid = os.geteuid(), os.getegid()
    _new_user()
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        _write_own(name, text)
        if name == last:
            return


def _unshare(flag: int) -> None:
    _map("gid_map")
    kernel.unshare(flag)


def _private() -> None:
    _unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)


def _mount_tmpfs() -> int:
    """A tmpfs on `/`, as a launch does it; a descriptor of it."""
    _unshare(kernel.CLONE_NEWNS)
    attributes = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
    tmpfs = kernel.fsmount("tmpfs", (("mode", "755"),), attributes)
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    kernel.move_mount(tmpfs, root, "/")
    return tmpfs


def _tmpfs() -> None:
    _mount_tmpfs()


def _bind() -> None:
    _unshare(kernel.CLONE_NEWNS)
    tree = kernel.open_tree(kernel.AT_FDCWD, "/", kernel.OPEN_TREE_CLONE | kernel.AT_RECURSIVE)
    root = kernel.openat2(kernel.AT_FDCWD, "/", os.O_PATH | os.O_DIRECTORY, kernel.RESOLVE_NO_SYMLINKS)
    kernel.move_mount(tree, root, "/")


def _mount_setattr() -> None:
    _unshare(kernel.CLONE_NEWNS)
    read_only = kernel.MOUNT_ATTR_RDONLY
    kernel.mount_setattr(kernel.AT_FDCWD, "/", kernel.AT_RECURSIVE, attr_set=read_only, propagation=kernel.MS_PRIVATE)


def _proc() -> None:
    _unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWPID)
    # The new pid namespace begins with our next child, and only in there its /proc can be mounted.
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        os._exit(0)
    attributes = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC
    kernel.fsmount("proc", (), attributes)


def _overlay() -> None:
    tmpfs = _mount_tmpfs()
    directories = {}
    for name in ("lowerdir", "upperdir", "workdir"):
        os.mkdir(name, dir_fd=tmpfs)
        directories[name] = os.open(name, os.O_PATH | os.O_DIRECTORY, dir_fd=tmpfs)
    options: list[tuple[str, str | None]] = [(name, f"/proc/self/fd/{fd}") for name, fd in directories.items()]
    kernel.fsmount("overlay", [*options, ("userxattr", None)], kernel.MOUNT_ATTR_NOSUID)


def _pivot_root() -> None:
    os.fchdir(_mount_tmpfs())
    kernel.pivot_root(".", ".")
    kernel.umount2(".", kernel.MNT_DETACH)


def _clone() -> None:
    """All at once, as a launch does: a policy may look at clone(2) otherwise than at unshare(2)."""
    flags = (
        kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    )
    pid = kernel.clone(flags)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _execute_in(directory: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=directory, prefix=".nsbuild-", delete=False) as file:
        file.write("#!/bin/sh\n")
    try:
        os.chmod(file.name, 0o700)
        os.waitpid(os.posix_spawn(file.name, [file.name], {}), 0)
    except OSError as error:
        raise kernel.KernelError(error.errno or 0, "execve", directory) from None
    finally:
        os.unlink(file.name)


_STEPS: tuple[tuple[str, tuple[str, ...], Callable[[], None]], ...] = (
    (EXISTS, (), _exists),
    (TAKE_MOUNTS, (), _take_mounts),
    (BECOME, (), lambda: None),
    ("NEWUSER", (EXISTS, BECOME), _new_user),
    ("setgroups", ("NEWUSER",), lambda: _map("setgroups")),
    ("uid_map", ("setgroups",), lambda: _map("uid_map")),
    ("gid_map", ("uid_map",), lambda: _map("gid_map")),
    ("NEWNS", ("gid_map",), lambda: _unshare(kernel.CLONE_NEWNS)),
    (PRIVATE, ("NEWNS",), _private),
    ("tmpfs", ("NEWNS",), _tmpfs),
    ("bind", ("NEWNS",), _bind),
    ("mount_setattr", ("NEWNS",), _mount_setattr),
    ("NEWPID", ("gid_map",), lambda: _unshare(kernel.CLONE_NEWPID)),
    ("proc", ("NEWNS", "NEWPID"), _proc),
    ("overlay", ("tmpfs",), _overlay),
    ("pivot_root", ("tmpfs",), _pivot_root),
    ("NEWIPC", ("gid_map",), lambda: _unshare(kernel.CLONE_NEWIPC)),
    ("NEWUTS", ("gid_map",), lambda: _unshare(kernel.CLONE_NEWUTS)),
    ("NEWNET", ("gid_map",), lambda: _unshare(kernel.CLONE_NEWNET)),
    ("clone", ("NEWNS", "NEWPID", "NEWIPC", "NEWUTS"), _clone),
)
