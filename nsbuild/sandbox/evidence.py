"""What can be read about the kernel's and the policies' settings: the evidence that tells restrictions apart.

An `Evidence` is a value. Its defaults are a host on which everything works, so a test states only what differs.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import importlib.metadata
import os
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nsbuild.sandbox import kernel

SYSCTLS = (
    *(f"user.max_{name}_namespaces" for name in ("user", "mnt", "pid", "ipc", "uts", "net")),
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
    "fs.mount-max",
)
_PR_GET_DUMPABLE = 3
_CLONE_FS = 0x200
_NAMESPACES = kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET


@dataclass(frozen=True)
class Evidence:
    """What was read, where; None where the kernel has no such thing. Sources: proc(5), mountinfo, cgroups(7)."""

    uid: int = 1000
    """The user a build would have."""
    root: bool = False
    """Started as root."""
    groups: tuple[str, ...] = ()
    """Supplementary groups that a build would keep, as `name(gid)`."""
    unmapped_ids: bool = False
    """Started as root of a user namespace in which the build's uid or gid does not exist."""
    cap_eff: int = 0
    cap_bnd: int = 0
    proc_mounted: bool = True
    user_ns: bool = True
    sysctls: Mapping[str, int | None] = field(default_factory=dict)
    kernel: tuple[int, int] = (6, 12)
    machine: str = "x86_64"
    version: str = ""
    """/proc/version."""
    threads: int = 1
    dumpable: bool = True
    apparmor: str | None = None
    """The label of this process: `unconfined`, or `name (mode)`."""
    apparmor_inside: str | None = None
    """The label after unshare(NEWUSER): Ubuntu changes it."""
    selinux: str | None = None
    selinux_enforcing: bool = False
    seccomp: int = 0
    no_new_privs: bool = False
    filtered: tuple[str, ...] = ()
    """Calls that a seccomp filter refuses: they failed otherwise than with the arguments' own error."""
    chroot: str = ""
    """Why `/` is known not to be the root of the mount namespace."""
    root_fstype: str = ""
    proc_mounts: tuple[str, ...] = ()
    """Mount points below /proc."""
    mounts: int = 0
    init_is_ours: bool = False
    """Process 1 is an nsbuild that has hidden its command line."""
    container: str = ""
    ci: str = ""
    nproc: int | None = None
    pids_max: int | None = None
    pids_current: int = 0
    pids_file: str = ""
    executable: str = ""
    """The interpreter, resolved."""
    script: str = ""
    """The file that was exec'd when the `nsbuild` script was used, resolved; else empty."""
    path: str = ""
    noexec: bool = False
    """`path` is on a noexec mount."""
    unread: tuple[str, ...] = ()
    """What exists and could not be read."""

    @property
    def nested(self) -> bool:
        """Inside one of our own sandboxes."""
        return self.init_is_ours and self.seccomp == 2 and self.no_new_privs and self.cap_bnd == 0


def collect(uid: int, gid: int, path: str = "", *, experiments: bool = True) -> Evidence:
    """Read everything there is. Never raises for what is missing. `experiments` forks, once or twice."""
    read = _Reader()
    status = dict(line.split(":\t", 1) for line in read("/proc/self/status").splitlines() if ":\t" in line)
    own_mounts = read("/proc/self/mountinfo")
    root = os.geteuid() == 0
    root_fstype, proc_mounts = _of_mounts(own_mounts)
    pids_file, pids_max, pids_current = _pids(read)
    nproc = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    seccomp = int(status.get("Seccomp", "0"))
    apparmor = _label(read("/proc/self/attr/apparmor/current"))
    enforce = read("/sys/fs/selinux/enforce")
    try:
        noexec = bool(path) and bool(os.statvfs(path).f_flag & os.ST_NOEXEC)
    except OSError:
        noexec = False
    return Evidence(
        uid=uid,
        root=root,
        groups=() if root else _groups(gid),
        unmapped_ids=root
        and not all(_mapped(read(f"/proc/self/{n}_map"), i) for n, i in (("uid", uid), ("gid", gid))),
        cap_eff=int(status.get("CapEff", "0"), 16),
        cap_bnd=int(status.get("CapBnd", "0"), 16),
        proc_mounted=os.path.lexists("/proc/self"),
        user_ns=os.path.lexists("/proc/self/ns/user"),
        sysctls={name: _number(read(f"/proc/sys/{name.replace('.', '/')}")) for name in SYSCTLS},
        kernel=_kernel(),
        machine=os.uname().machine,
        version=read("/proc/version").strip(),
        threads=int(status.get("Threads", "1")),
        dumpable=kernel.prctl(_PR_GET_DUMPABLE) == 1,
        apparmor=apparmor,
        apparmor_inside=_asked_of_a_child(_label_inside) if apparmor and experiments else None,
        selinux=_label(read("/proc/self/attr/current")) if enforce else None,
        selinux_enforcing=enforce.strip() == "1",
        seccomp=seccomp,
        no_new_privs=status.get("NoNewPrivs", "0") == "1",
        filtered=tuple((_asked_of_a_child(_filtered) or "").split()) if seccomp and experiments else (),
        chroot=chrooted(own_mounts, read("/proc/1/mountinfo")),
        root_fstype=root_fstype,
        proc_mounts=proc_mounts,
        mounts=len(own_mounts.splitlines()),
        init_is_ours=read("/proc/1/cmdline").rstrip("\0") == "nsbuild",
        container=_container(read),
        ci="GitHub Actions" if os.environ.get("GITHUB_ACTIONS") else "CI" if os.environ.get("CI") else "",
        nproc=None if nproc == resource.RLIM_INFINITY else nproc,
        pids_max=pids_max,
        pids_current=pids_current,
        pids_file=pids_file,
        executable=os.path.realpath("/proc/self/exe"),
        script=_script(read),
        path=path,
        noexec=noexec,
        unread=tuple(read.refused),
    )


class _Reader:
    """Reads small files; remembers those that exist and are closed to us."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def __call__(self, path: str) -> str:
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                return os.fsdecode(file.read(1 << 20))
        except OSError as error:
            # EINVAL: what /proc/self/attr answers when no security module is behind it.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
                self.refused.append(path)
            return ""


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(character for character in minor if character.isdigit()) or 0)


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _label(text: str) -> str | None:
    return text.strip("\0\n ") or None


def _groups(gid: int) -> tuple[str, ...]:
    names = []
    for group in sorted(set(os.getgroups()) - {gid}):
        try:
            names.append(f"{grp.getgrgid(group).gr_name}({group})")
        except KeyError:
            names.append(str(group))
    return tuple(names)


def _mapped(text: str, number: int) -> bool:
    """Whether an id exists in our user namespace; True where its map cannot be read."""
    ranges = [[int(word) for word in line.split()] for line in text.splitlines()]
    return not ranges or any(first <= number < first + count for first, _, count in ranges)


def chrooted(own: str, first: str) -> str:
    """Why a process with the mountinfo `own` is in a chroot; "" when it is not, or it does not show.

    `first` is process 1's. The kernel refuses NEWUSER wherever `/` is not the root of the mount namespace, and each
    process sees only mounts below its own root: `/` of a chroot is not listed, or listed elsewhere by process 1.
    """
    roots = [row[0] for row in map(str.split, own.splitlines()) if len(row) > 5 and row[4] == "/"]
    if not own:
        return ""
    if not roots:
        return "/ is not the root of its mount: /proc/self/mountinfo does not list it"
    for row in map(str.split, first.splitlines()):
        if len(row) > 5 and row[0] == roots[-1] and row[4] != "/":
            return f"/ is what process 1 sees at {row[4]}: /proc/1/mountinfo"
    return ""


def _of_mounts(text: str) -> tuple[str, tuple[str, ...]]:
    """The type of `/`, and what hides parts of /proc."""
    fstype, below = "", []
    for row in map(str.split, text.splitlines()):
        if row[4] == "/":
            fstype = row[row.index("-") + 1]
        # binfmt_misc is mounted on a directory that is always empty, so it hides nothing.
        elif row[4].startswith("/proc/") and not row[4].startswith("/proc/sys/fs/binfmt_misc"):
            below.append(row[4])
    return fstype, tuple(below)


def _pids(read: Callable[[str], str]) -> tuple[str, int | None, int]:
    """The cgroup above us with the fewest processes left: its file, limit and count."""
    tightest: tuple[str, int | None, int] = ("", None, 0)
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "pids"):
            continue
        top = "/sys/fs/cgroup/pids" if controllers else "/sys/fs/cgroup"
        while path not in ("", "/"):
            limit = _number(read(f"{top}{path}/pids.max"))
            current = _number(read(f"{top}{path}/pids.current")) or 0
            if limit is not None and (tightest[1] is None or limit - current < tightest[1] - tightest[2]):
                tightest = (f"{top}{path}/pids.max", limit, current)
            path = path.rpartition("/")[0]
    return tightest


def _container(read: Callable[[str], str]) -> str:
    if os.environ.get("KUBERNETES_SERVICE_HOST") or os.path.exists("/var/run/secrets/kubernetes.io"):
        return "kubernetes"
    for path, name in (("/run/.containerenv", "podman"), ("/.dockerenv", "docker")):
        if os.path.exists(path):
            return name
    return read("/run/systemd/container").strip()


def _script(read: Callable[[str], str]) -> str:
    """The `nsbuild` script that started this process: what a policy that goes by path has seen exec'd.

    `python -m nsbuild` never ran it. The script leaves a mark in the environment that it starts the interpreter
    with (NSBUILD_CALLER_), which stays in /proc/self/environ whatever we remove later.
    """
    if "NSBUILD_CALLER_=1" not in read("/proc/self/environ").split("\0"):
        return ""
    candidates = [os.path.join(os.path.dirname(sys.executable), "nsbuild")]
    try:
        files = importlib.metadata.distribution("nsbuild").files or []
        candidates += [str(file.locate()) for file in files if file.name == "nsbuild"]
    except importlib.metadata.PackageNotFoundError:
        candidates = candidates[:1]
    return next((os.path.realpath(path) for path in candidates if os.path.isfile(path)), "")


def _asked_of_a_child(question: Callable[[], str]) -> str | None:
    """The answer of a forked child, which may change what it likes of itself; None when it has none."""
    answer_r, answer_w = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(answer_r)
        os.close(answer_w)
        return None
    if pid == 0:
        try:
            os.write(answer_w, question().encode())
        finally:
            os._exit(0)
    os.close(answer_w)
    with open(answer_r, "rb") as file:  # noqa: PTH123
        answer = file.read().decode()
    os.waitpid(pid, 0)
    return answer or None


def _label_inside() -> str:
    kernel.unshare(kernel.CLONE_NEWUSER)
    return _label(_Reader()("/proc/self/attr/apparmor/current")) or ""


def _filtered() -> str:
    """Calls that are refused although the kernel would have complained of their arguments before all else.

    A filter sees the namespace flags and answers EPERM or ENOSYS; the kernel looks at privileges and policies only
    after the combination of flags (EINVAL) or a pointer (EFAULT) was found good.
    """
    tries: tuple[tuple[str, Callable[[], object], int], ...] = (
        ("unshare", lambda: kernel.unshare(_NAMESPACES | 1), errno.EINVAL),
        ("clone", lambda: kernel.clone(_NAMESPACES | _CLONE_FS) or os._exit(0), errno.EINVAL),
        ("mount", _mount_nothing, errno.EFAULT),
        ("open_tree", lambda: kernel.open_tree(-1, "", 1 << 30), errno.EINVAL),
        ("mount_setattr", lambda: kernel.mount_setattr(-1, "", 1 << 30), errno.EINVAL),
    )
    absent = ("mount_setattr",) if _kernel() < (5, 12) else ()
    found = []
    for name, call, expected in tries:
        try:
            call()
        except OSError as error:
            if error.errno not in (expected, errno.ENOSYS if name in absent else expected):
                found.append(name)
    return " ".join(found)


def _mount_nothing() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, None, ctypes.c_void_p(1), ctypes.c_ulong(0), None) < 0:
        raise OSError(ctypes.get_errno(), "mount")
