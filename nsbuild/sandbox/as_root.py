"""A launch by root: what must happen before the process becomes the build's user.

Root can name directories that the user cannot reach (below /root, a 0700 parent), and may own the workspace; both
are settled by taking mounts first and dropping to the user afterwards.
"""

from __future__ import annotations

import marshal
import os

from nsbuild.sandbox import kernel, privileges
from nsbuild.sandbox.mounts import mount_key, read_only_tree
from nsbuild.sandbox.skeleton import Skeleton
from nsbuild.sandbox.view import Bind, Overlay, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def drop_and_clone(
    view: View,
    skeleton: Skeleton,
    namespaces: int,
    child: Callable[[Mapping[str, int]], None],
    report: int,
) -> None:
    step = "take the mounts"
    try:
        mounts = _take_mounts(view, skeleton)
        step = "become the build's user"
        os.setgroups([])
        os.setresgid(view.user.gid, view.user.gid, view.user.gid)
        os.setresuid(view.user.uid, view.user.uid, view.user.uid)
        # Changing the uid has made our /proc entries root's.
        privileges.set_dumpable(True)
        step = "clone"
        pid = kernel.clone(namespaces | kernel.CLONE_PARENT)
    except OSError as error:
        call = getattr(error, "call", "setresuid")
        path = getattr(error, "path", "")
        os.write(report, marshal.dumps(("failed", step, call, path, error.errno or 0, str(error))))
        return
    if pid == 0:
        os.close(report)
        child(mounts)
    os.write(report, marshal.dumps(("pid", pid)))


def _take_mounts(view: View, skeleton: Skeleton) -> dict[str, int]:
    """As root: detached mounts of what the build's user may be unable to reach by path.

    From a mount namespace of our own, private first: a clone of a shared mount would carry what the child
    mounts on it back to the host.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    clone = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC
    mounts = {"root": kernel.open_tree(kernel.AT_FDCWD, skeleton.path, clone)}
    swapped = [mounts["root"]] if view.user.root_on_disk else []
    for operation in view.operations:
        if isinstance(operation, Overlay):
            fd = mounts[operation.scratch] = kernel.open_tree(kernel.AT_FDCWD, operation.scratch, clone)
            swapped += [fd] if view.user.root_on_disk else []
        elif isinstance(operation, Bind) and operation.writable and operation.source not in mounts:
            fd = kernel.open_tree(kernel.AT_FDCWD, operation.source, clone | kernel.AT_RECURSIVE)
            mounts[operation.source] = fd
            swapped += [fd] if operation.root_on_disk else []
    # Afterwards: where mount_setattr is missing, what these are taken from becomes read-only here.
    for operation in view.operations:
        if isinstance(operation, Bind) and not operation.writable and mount_key(operation) not in mounts:
            mounts[mount_key(operation)] = read_only_tree(operation.source)
    if swapped:
        swap = _swapping_namespace(view.user.uid, view.user.gid)
        for fd in swapped:
            flags = kernel.AT_EMPTY_PATH
            try:
                # What is mounted below belongs to root as well; not every filesystem can be mapped.
                kernel.mount_setattr(
                    fd, "", flags | kernel.AT_RECURSIVE, attr_set=kernel.MOUNT_ATTR_IDMAP, userns_fd=swap
                )
            except kernel.KernelError:
                kernel.mount_setattr(fd, "", flags, attr_set=kernel.MOUNT_ATTR_IDMAP, userns_fd=swap)
        os.close(swap)
    return mounts


def _swapping_namespace(uid: int, gid: int) -> int:
    """A user namespace that maps 0 to the build's ids and back, every other id to itself: for idmapped mounts."""
    ready_r, ready_w = os.pipe()
    hold_r, hold_w = os.pipe()
    pid = kernel.clone(kernel.CLONE_NEWUSER)
    if pid == 0:
        os.close(hold_w)
        os.close(ready_w)
        os.read(hold_r, 1)
        os._exit(0)
    os.close(ready_r)
    os.close(ready_w)
    os.close(hold_r)
    try:
        for name, number in (("uid_map", uid), ("gid_map", gid)):
            with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:  # noqa: PTH123
                file.write(_swap_map(number).encode())
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(hold_w)
        os.waitpid(pid, 0)


def _swap_map(number: int) -> str:
    lines = [f"0 {number} 1", f"{number} 0 1"]
    if number > 1:
        lines.append(f"1 1 {number - 1}")
    lines.append(f"{number + 1} {number + 1} {0xFFFFFFFF - number - 1}")
    return "\n".join(lines) + "\n"
