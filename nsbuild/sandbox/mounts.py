"""Everything that is mounted for a view: the small interpreter of operations, and the way to the new root.

Runs in the child, in a mount namespace of its own, with all capabilities over it.
"""

from __future__ import annotations

import errno
import os

from nsbuild.sandbox import kernel
from nsbuild.sandbox.skeleton import mount_point_kind
from nsbuild.sandbox.view import (
    Bind,
    Dev,
    Directory,
    File,
    Operation,
    Overlay,
    Place,
    Proc,
    Symlink,
    Tmpfs,
    View,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_BENEATH = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEV_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)


class Step:
    """Where we are, for the launcher's diagnosis: errno alone never identifies the cause."""

    name = "start"


def mount_key(bind: Bind) -> str:
    """Under which a mount of it is handed over: one source may be seen both writable and read-only."""
    return bind.source if bind.writable else f"read-only {bind.source}"


class HostVisible(RuntimeError):
    """The new root is not what it should be: never run anything then."""


def see(view: View, skeleton: str, given: Mapping[str, int], step: Step) -> None:
    """Make `/` what the view says, and leave the host's root behind.

    `given` holds detached mounts by `mount_key`; the skeleton's, if any, is `root`. Raises KernelError or OSError;
    `step` then tells where.
    """
    step.name = "open the workspace"
    mounts = dict(given)
    writable = {
        operation.source for operation in view.operations if isinstance(operation, Bind) and operation.writable
    }
    writable |= {operation.scratch for operation in view.operations if isinstance(operation, Overlay)}
    clone = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | kernel.AT_RECURSIVE
    # Before everything becomes read-only, and in this namespace: the kernel refuses a clone of another's mount.
    for source in writable - mounts.keys():
        mounts[source] = kernel.open_tree(kernel.AT_FDCWD, source, clone)
    root = mounts.pop("root", -1)
    if root < 0:
        root = kernel.open_tree(kernel.AT_FDCWD, skeleton, clone)

    step.name = "make / private and read-only"
    _seal_host()

    step.name = "attach the root"
    host_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # Mounts on / are invisible to absolute paths, which start below them: a place that always exists.
    kernel.move_mount(root, host_root, "/")
    os.close(host_root)

    executor = _Executor(root, mounts)
    step.name = "devices"
    executor.attach_devices(view)
    for operation in view.operations:
        step.name = operation.describe()
        executor.execute(operation)
    executor.close()

    step.name = "pivot_root"
    os.fchdir(root)
    try:
        kernel.pivot_root(".", ".")
        # The old root lies on ours now. It is the one mount that is detached: each makes the kernel wait until every
        # processor has noticed, which takes longer than all that was mounted.
        kernel.umount2(".", kernel.MNT_DETACH)
    except kernel.KernelError as error:
        if error.errno != errno.EINVAL or error.call != "pivot_root":
            raise
        # The root is an initramfs, which cannot be pivoted away; our root lies on top of it already.
        os.chroot(".")
    os.chdir("/")
    # Whatever is mounted on the root is where `/..` leads.
    if not os.path.samestat(os.stat("/.."), os.fstat(root)):
        raise HostVisible("the host's root is still mounted on the new one")
    os.close(root)


def _seal_host() -> None:
    """Everything of the host read-only, and private: no later mount arrives, none of ours leaves."""
    try:
        # In one call, submounts included. It adds flags only, so locked ones are no trouble.
        kernel.mount_setattr(
            kernel.AT_FDCWD,
            "/",
            kernel.AT_RECURSIVE,
            attr_set=kernel.MOUNT_ATTR_RDONLY,
            propagation=kernel.MS_PRIVATE,
        )
    except kernel.KernelError as error:
        if error.errno != errno.ENOSYS:
            raise
        kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
        _remount_read_only("/")


def read_only_tree(source: str) -> int:
    """A detached read-only clone of a directory or file with its submounts, taken in a namespace of our own."""
    flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | kernel.AT_RECURSIVE
    tree = kernel.open_tree(kernel.AT_FDCWD, source, flags)
    try:
        recursive = kernel.AT_EMPTY_PATH | kernel.AT_RECURSIVE
        kernel.mount_setattr(tree, "", recursive, attr_set=kernel.MOUNT_ATTR_RDONLY)
    except kernel.KernelError as error:
        os.close(tree)
        if error.errno != errno.ENOSYS:
            raise
        kernel.mount(source, source, "", kernel.MS_BIND | kernel.MS_REC)
        _remount_read_only(source)
        return kernel.open_tree(kernel.AT_FDCWD, source, flags)
    return tree


def _remount_read_only(top: str) -> None:
    """Kernels before 5.12: one remount a mount, each repeating the flags it came with (they are locked)."""
    names = {
        "ro": kernel.MS_RDONLY,
        "nosuid": kernel.MS_NOSUID,
        "nodev": kernel.MS_NODEV,
        "noexec": kernel.MS_NOEXEC,
        "noatime": kernel.MS_NOATIME,
        "nodiratime": kernel.MS_NODIRATIME,
        "relatime": kernel.MS_RELATIME,
    }
    # Of mounts on one place the last, which hides the others, is the one that a path leads to.
    for target, options in dict(mount_points()).items():
        if target != top and not target.startswith(top.rstrip("/") + "/"):
            continue
        locked = sum(names.get(option, 0) for option in options)
        if locked & kernel.MS_RDONLY:
            continue
        try:
            kernel.mount("none", target, "", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | locked)
        except kernel.KernelError as error:
            # Hidden below another mount, or in a directory closed to us: out of the build's reach as well.
            if error.errno not in (errno.EACCES, errno.ENOENT, errno.EINVAL):
                raise


def mount_points() -> list[tuple[str, list[str]]]:
    """(path, mount options) of every mount of this process, from /proc/self/mountinfo."""
    with open("/proc/self/mountinfo", "rb") as file:  # noqa: PTH123
        rows = [line.split() for line in file]
    return [(os.fsdecode(_unescape(row[4])), row[5].decode().split(",")) for row in rows]


def _unescape(field: bytes) -> bytes:
    for octal, plain in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(octal, plain)
    return field


def _generated(operation: File) -> str:
    return operation.path.replace("/", "_")


class _Executor:
    """The small interpreter of operations. `root` is the new root's mount; `mounts` are closed with it."""

    def __init__(self, root: int, mounts: Mapping[str, int]) -> None:
        self.root = root
        self.mounts = mounts
        self._attached: set[str] = set()
        self._devices = -1

    def attach_devices(self, view: View) -> None:
        """The tmpfs of /dev, first of all: generated files are made in it, bound where they belong, and unlinked."""
        for operation in view.operations:
            if isinstance(operation, Dev):
                self._devices = self._tmpfs("755")
                target = self._reach(operation.path, "directory")
                kernel.move_mount(self._devices, target, operation.path)
                os.close(target)

    def close(self) -> None:
        for fd in (*self.mounts.values(), self._devices):
            os.close(fd)

    def execute(self, operation: Operation) -> None:
        if isinstance(operation, Directory | Symlink | Place):
            return  # the skeleton holds them already
        if isinstance(operation, Dev):
            self._dev(operation.path)
            return
        target = self._reach(operation.path, mount_point_kind(operation))
        try:
            self._mount(operation, target)
        finally:
            os.close(target)

    def _mount(self, operation: Operation, target: int) -> None:
        path = operation.path
        if isinstance(operation, Bind):
            fd = self._bound(operation)
        elif isinstance(operation, Proc):
            fd = self._proc()
        elif isinstance(operation, Tmpfs):
            fd = self._tmpfs(f"{operation.mode:o}")
        elif isinstance(operation, File):
            fd = self._file(operation)
        elif isinstance(operation, Overlay):
            self._overlay(operation, target)
            return
        else:
            raise TypeError(operation)
        kernel.move_mount(fd, target, path)
        if isinstance(operation, File):
            self._close_to_changes(fd)
            os.unlink(_generated(operation), dir_fd=self._devices)
        os.close(fd)

    def _bound(self, bind: Bind) -> int:
        key = mount_key(bind)
        given = self.mounts.get(key)
        if given is None:
            return self._tree(bind.source)
        if key not in self._attached:
            self._attached.add(key)
            return os.dup(given)
        # Attaching a mount a second time would move it away from the first place.
        flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | kernel.AT_RECURSIVE | kernel.AT_EMPTY_PATH
        return kernel.open_tree(given, "", flags)

    def _tree(self, source: str) -> int:
        # Recursive: a plain bind of a tree with submounts is EINVAL, it would uncover what they hide.
        flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | kernel.AT_RECURSIVE
        return kernel.open_tree(kernel.AT_FDCWD, source, flags)

    def _reach(self, path: str, kind: str) -> int:
        """An O_PATH descriptor of a mount point, made if it is missing, never through a symlink."""
        try:
            return kernel.openat2(self.root, path[1:], os.O_PATH | os.O_NOFOLLOW, _BENEATH)
        except kernel.KernelError as error:
            if error.errno != errno.ENOENT:
                raise
        parent_path, _, name = path.rpartition("/")
        parent = self._reach(parent_path, "directory") if parent_path else os.dup(self.root)
        try:
            if kind == "directory":
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=parent))
            return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        finally:
            os.close(parent)

    def _proc(self) -> int:
        attributes = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC
        try:
            return kernel.fsmount("proc", (), attributes)
        except kernel.KernelError as error:
            masked = any(path.startswith("/proc/") for path, _ in mount_points())
            if error.errno != errno.EPERM or not masked:
                raise
            # Containers mask parts of /proc; the kernel then refuses one that would show them.
            return self._tree("/proc")

    def _tmpfs(self, mode: str) -> int:
        attributes = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
        return kernel.fsmount("tmpfs", (("mode", mode),), attributes)

    def _file(self, operation: File) -> int:
        name = _generated(operation)
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self._devices)
        with open(fd, "wb") as file:  # noqa: PTH123
            file.write(operation.content)
            os.fchmod(fd, operation.mode)
        return kernel.open_tree(self._devices, name, kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC)

    def _close_to_changes(self, mount: int) -> None:
        """Read-only, for it belongs to the build's user. `mount` is attached."""
        try:
            kernel.mount_setattr(mount, "", kernel.AT_EMPTY_PATH, attr_set=kernel.MOUNT_ATTR_RDONLY)
        except kernel.KernelError as error:
            if error.errno != errno.ENOSYS:
                raise
            flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
            kernel.mount("none", f"/proc/self/fd/{mount}", "", flags)

    def _dev(self, path: str) -> None:
        dev = self._devices
        for name in _DEVICES:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=dev))
            node = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=dev)
            tree = kernel.open_tree(
                kernel.AT_FDCWD, f"/dev/{name}", kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC
            )
            kernel.move_mount(tree, node, f"{path}/{name}")
            os.close(tree)
            os.close(node)
        for name, link in _DEV_LINKS:
            os.symlink(link, name, dir_fd=dev)
        pts = kernel.fsmount(
            "devpts",
            (("newinstance", None), ("ptmxmode", "0666"), ("mode", "0620")),
            kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC,
        )
        for name, mount in (("pts", pts), ("shm", self._tmpfs("1777"))):
            os.mkdir(name, 0o755, dir_fd=dev)
            point = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=dev)
            kernel.move_mount(mount, point, f"{path}/{name}")
            os.close(mount)
            os.close(point)

    def _overlay(self, operation: Overlay, target: int) -> None:
        # The upper directory must be on a writable, attached mount; below the overlay nobody can reach it.
        scratch = self.mounts[operation.scratch]
        kernel.move_mount(scratch, target, operation.path)
        lower = os.open(operation.lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        upper = os.open("upper", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=scratch)
        work = os.open("work", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=scratch)
        # By descriptor: in a path, overlayfs takes ':' and ',' for its own.
        options = [
            ("lowerdir", f"/proc/self/fd/{lower}"),
            ("upperdir", f"/proc/self/fd/{upper}"),
            ("workdir", f"/proc/self/fd/{work}"),
            ("userxattr", None),
        ]
        overlay = kernel.fsmount("overlay", options, kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV)
        kernel.move_mount(overlay, scratch, operation.path)
        for fd in (lower, upper, work, overlay):
            os.close(fd)
