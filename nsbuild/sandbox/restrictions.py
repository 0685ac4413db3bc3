"""What kernels and policies refuse, as data: where it shows, what tells it apart, and the narrowest fix.

A row matches a failed step by name and errno, and then only if something that was read tells it from the others
with that errno. Rows are tried in order, the surest first.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from nsbuild.sandbox import fixes
from nsbuild.sandbox.evidence import Evidence
from nsbuild.sandbox.steps import BECOME, EXISTS, PRIVATE, TAKE_MOUNTS, Step

REFUSED, DEGRADED, NOTE = "refused", "degraded", "note"
CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN = 6, 7, 21

USER = ("NEWUSER", "clone")
MAPS = ("setgroups", "uid_map", "gid_map")
MOUNTS = (PRIVATE, "tmpfs", "bind", "mount_setattr", "proc", "overlay", "pivot_root")
NAMESPACES = ("NEWNS", "NEWPID", "NEWIPC", "NEWUTS", "NEWNET")

Told = Callable[[Evidence, Step], str]


@dataclass(frozen=True)
class Finding:
    """One restriction that was met.

    `severity` is `refused` (no launch), `degraded` (a launch does without something) or `note`. `restriction` is one
    sentence, `evidence` what was read, `fix` what to do here (may be empty), `snippet` a file's text for it.
    """

    code: str
    severity: str
    restriction: str
    evidence: str
    fix: str = ""
    snippet: str = ""
    step: str = ""


@dataclass(frozen=True)
class Restriction:
    """A row of the table. `steps` and `errnos`: empty for any. `told_by` gives the evidence, "" if it is not this."""

    code: str
    severity: str
    steps: tuple[str, ...]
    errnos: tuple[int, ...]
    told_by: Told
    sentence: str
    fix: Callable[[Evidence], str]
    snippet: Callable[[Evidence], str] = lambda evidence: ""

    def match(self, evidence: Evidence, step: Step) -> Finding | None:
        """The finding, if this is what `step` failed of."""
        if (self.steps and step.name not in self.steps) or (self.errnos and step.errno not in self.errnos):
            return None
        if not (told := self.told_by(evidence, step)):
            return None
        severity = self.severity
        if severity == REFUSED and step.name in MISSED:
            severity = DEGRADED
        return Finding(
            self.code, severity, self.sentence, told, self.fix(evidence), self.snippet(evidence), step.name
        )


MISSED = {
    "overlay": "Slugs and caches are copied where an overlay would do.",
    "NEWNET": "`--network none` and slugs in archives are refused; builds with the host's network work.",
}
"""What a launch can do without."""


def _limit(kind: str) -> Told:
    name = f"user.max_{kind}_namespaces"

    def told(evidence: Evidence, step: Step) -> str:
        value = evidence.sysctls.get(name)
        if value is None or (step.name == "clone" and value > 0):
            return ""
        text = f"/proc/sys/user/max_{kind}_namespaces is {value}"
        if value == 0:
            return text
        return f"{text}: all are in use, a namespace around this one allows fewer, or 32 are nested already"

    return told


def _limit_row(kind: str, step: str, thing: str) -> Restriction:
    name = f"user.max_{kind}_namespaces"
    return Restriction(
        f"max-{kind}-namespaces",
        REFUSED,
        (step, "clone", *((TAKE_MOUNTS,) if kind == "mnt" else ())),
        (errno.ENOSPC,),
        _limit(kind),
        f"The limit {name} leaves no {thing} namespace for this user.",
        fixes.sysctl(name, 15000),
    )


def _all_limits(evidence: Evidence, step: Step) -> str:
    values = {name: value for name, value in evidence.sysctls.items() if name.startswith("user.max_")}
    return ", ".join(f"{name} is {value}" for name, value in values.items())


def _nested(evidence: Evidence, step: Step) -> str:
    if not evidence.nested:
        return ""
    return "Seccomp: 2, NoNewPrivs: 1 and CapBnd: 0 in /proc/self/status, and process 1 is nsbuild"


_TRIED = ("unshare", "clone", "mount", "open_tree", "mount_setattr")
_UNTRIED = ("umount2", "pivot_root", "move_mount", "fsopen", "fsconfig", "fsmount", "openat2")


def _seccomp(evidence: Evidence, step: Step) -> str:
    call = step.call.split(" ")[0]
    if step.call == "killed by signal 31":
        return "the step was killed by SIGSYS"
    if evidence.seccomp != 2:
        return ""
    told = "Seccomp: 2 in /proc/self/status"
    if call in evidence.filtered:
        return f"{told}, and {call} is refused before the kernel looks at its arguments"
    return told if call in _UNTRIED else ""


def _masked(evidence: Evidence, step: Step) -> str:
    # The kernel compares what would be seen when the mount is made; a filter would refuse the call before.
    if step.call == "fsopen" or not evidence.proc_mounts:
        return ""
    return f"mounted below /proc: {', '.join(evidence.proc_mounts)}"


def _unconfined(label: str | None) -> bool:
    return label is None or label == "unconfined" or label.endswith("(unconfined)")


def _ubuntu(evidence: Evidence, step: Step) -> str:
    name = "kernel.apparmor_restrict_unprivileged_userns"
    if evidence.sysctls.get(name) != 1 and not (evidence.apparmor_inside or "").startswith("unprivileged_userns"):
        return ""
    told = f"{name} is {evidence.sysctls.get(name)}, the AppArmor label is {evidence.apparmor or 'not readable'}"
    inside = evidence.apparmor_inside
    return f"{told}, in a new user namespace {inside}" if inside and inside != evidence.apparmor else told


def _container_label(evidence: Evidence, step: Step) -> str:
    label = evidence.apparmor or ""
    known = any(name in label for name in ("docker-default", "cri-containerd", "containers-default", "lxc-"))
    return f"/proc/self/attr/apparmor/current is {label}" if known and not _unconfined(label) else ""


def _label(evidence: Evidence, step: Step) -> str:
    return "" if _unconfined(evidence.apparmor) else f"/proc/self/attr/apparmor/current is {evidence.apparmor}"


def _selinux(evidence: Evidence, step: Step) -> str:
    if not evidence.selinux_enforcing:
        return ""
    return f"/sys/fs/selinux/enforce is 1, the context is {evidence.selinux or 'not readable'}"


def _kernel_before(major: int, minor: int) -> Told:
    def told(evidence: Evidence, step: Step) -> str:
        return f"this is Linux {'.'.join(map(str, evidence.kernel))}" if evidence.kernel < (major, minor) else ""

    return told


def _hidden_setattr(evidence: Evidence, step: Step) -> str:
    old = _kernel_before(5, 12)(evidence, step)
    hidden = _seccomp(evidence, step)
    return old or (hidden and f"{hidden}: the filter is older than the call")


def _gvisor(evidence: Evidence, step: Step) -> str:
    # Its version file has carried this build date ever since; newer ones say gvisor as well.
    if "gvisor" in evidence.version.lower() or "Sun Jan 10 15:06:54 PST 2016" in evidence.version:
        return f"/proc/version is: {evidence.version}"
    return ""


def _wsl1(evidence: Evidence, step: Step) -> str:
    return f"/proc/version is: {evidence.version}" if "Microsoft" in evidence.version else ""


def _root_lacks(evidence: Evidence, step: Step) -> str:
    names = {CAP_SYS_ADMIN: "CAP_SYS_ADMIN", CAP_SETUID: "CAP_SETUID", CAP_SETGID: "CAP_SETGID"}
    if step.name == TAKE_MOUNTS:
        names = {CAP_SYS_ADMIN: "CAP_SYS_ADMIN"}
    lacking = [name for bit, name in names.items() if not evidence.cap_eff >> bit & 1]
    return f"CapEff in /proc/self/status is {evidence.cap_eff:x}, without {' and '.join(lacking)}" if lacking else ""


def _pids(evidence: Evidence, step: Step) -> str:
    if evidence.pids_max is None or evidence.pids_current < evidence.pids_max - 20:
        return ""
    return f"{evidence.pids_file} is {evidence.pids_max}, and {evidence.pids_current} are there"


def _nproc(evidence: Evidence, step: Step) -> str:
    return "" if evidence.nproc is None else f"RLIMIT_NPROC is {evidence.nproc} (`ulimit -u`)"


def _userns_clone(evidence: Evidence, step: Step) -> str:
    zero = evidence.sysctls.get("kernel.unprivileged_userns_clone") == 0
    return "/proc/sys/kernel/unprivileged_userns_clone is 0" if zero else ""


def _mount_max(evidence: Evidence, step: Step) -> str:
    value = evidence.sysctls.get("fs.mount-max")
    call = step.call.split(" ")[0]
    if value is None or call not in ("mount", "move_mount", "open_tree", "fsmount"):
        return ""
    return f"/proc/sys/fs/mount-max is {value}, and {evidence.mounts} mounts are visible here"


def _unmapped_mount(evidence: Evidence, step: Step) -> str:
    if step.call.split(" ")[0] != "mount_setattr":
        return ""
    return f"mount_setattr with MOUNT_ATTR_IDMAP, on Linux {evidence.kernel[0]}.{evidence.kernel[1]}"


TABLE: tuple[Restriction, ...] = (
    Restriction(
        "no-proc", REFUSED, (), (), lambda e, s: "" if e.proc_mounted else "/proc/self does not exist",
        "/proc is not mounted here, and every step of a launch goes through it.",
        fixes.say("mount -t proc proc /proc"),
    ),
    Restriction(
        "architecture", REFUSED, (), (errno.ENOSYS,),
        lambda e, s: "" if e.machine in ("x86_64", "aarch64") else f"uname -m is {e.machine}",
        "nsbuild does not know this machine's system call numbers.", fixes.say("Build on x86_64 or aarch64."),
    ),
    Restriction(
        "gvisor", REFUSED, (), (), _gvisor,
        "This is gVisor, whose mount namespaces lack what a build needs.",
        fixes.say("Use the direct path (--fallback direct), or a runtime class other than gVisor's."),
    ),
    Restriction(
        "wsl1", REFUSED, (EXISTS,), (), _wsl1, "This is WSL 1, which has no user namespaces.",
        fixes.say("Use WSL 2: wsl --set-version DISTRIBUTION 2"),
    ),
    Restriction(
        "no-user-namespaces", REFUSED, (EXISTS,), (),
        lambda e, s: "" if e.user_ns else "/proc/self/ns/user does not exist",
        "This kernel was built without user namespaces (CONFIG_USER_NS).",
        fixes.say("Boot another kernel: every distribution's own has them."),
    ),
    Restriction(
        "nested", REFUSED, (), (errno.EPERM, errno.ENOSYS), _nested,
        "This is inside a build that nsbuild runs, and its seccomp filter refuses mounts to everything in there.",
        fixes.say("Run the inner build outside, or directly (--fallback direct): it is in a sandbox already."),
    ),
    Restriction(
        "pids-max", REFUSED, (), (errno.EAGAIN,), _pids,
        "The cgroup's limit of processes leaves none for the sandbox.",
        lambda e: f"As root: echo max > {e.pids_file} (systemd: TasksMax=infinity; docker: --pids-limit=-1)",
    ),
    Restriction(
        "rlimit-nproc", REFUSED, (), (errno.EAGAIN,), _nproc,
        "The limit of processes of this user (RLIMIT_NPROC) leaves none for the sandbox.",
        fixes.say(
            "Raise it: `nproc` in /etc/security/limits.d/nsbuild.conf, LimitNPROC= in a systemd unit, "
            "docker --ulimit nproc=-1."
        ),
    ),
    Restriction(
        "unmapped-user", REFUSED, (BECOME,), (errno.EINVAL,),
        lambda e, s: f"/proc/self/uid_map and gid_map do not hold {e.uid}" if e.unmapped_ids else "",
        "The build's user does not exist in this user namespace.",
        fixes.say("Name one that does with --user, or give the container a range of ids (/etc/subuid, /etc/subgid)."),
    ),
    _limit_row("user", "NEWUSER", "user"),
    _limit_row("mnt", "NEWNS", "mount"),
    _limit_row("pid", "NEWPID", "pid"),
    _limit_row("ipc", "NEWIPC", "ipc"),
    _limit_row("uts", "NEWUTS", "uts"),
    _limit_row("net", "NEWNET", "network"),
    Restriction(
        "namespaces-used-up", REFUSED, ("clone",), (errno.ENOSPC,), _all_limits,
        "One of the limits user.max_*_namespaces was used up at that moment.",
        fixes.say("Run fewer builds at a time, or raise them in /etc/sysctl.d."),
    ),
    Restriction(
        "threads", REFUSED, USER, (errno.EINVAL,),
        lambda e, s: f"Threads: {e.threads} in /proc/self/status" if e.threads > 1 else "",
        "The process that starts the sandbox has other threads, and no such process gets a user namespace.",
        fixes.say("This is a mistake in nsbuild, or of a caller that uses Launcher(isolated=False): use Launcher()."),
    ),
    Restriction(
        "masked-proc", DEGRADED, ("proc",), (errno.EPERM,),
        _masked,
        "Parts of /proc are masked here, so the kernel allows no new one: builds see this one, and its processes.",
        fixes.say(
            "Nothing needs fixing. For a /proc of their own: docker --security-opt systempaths=unconfined, "
            "Kubernetes procMount: Unmasked."
        ),
    ),
    Restriction(
        "overlay-kernel", DEGRADED, ("overlay",), (errno.EPERM,), _kernel_before(5, 11),
        "Before Linux 5.11 only root can mount an overlay: slugs are copied where one would do.",
        fixes.say("Nothing needs fixing; a newer kernel is faster."),
    ),
    Restriction(
        "seccomp", REFUSED, (), (errno.EPERM, errno.EACCES, errno.ENOSYS, 0),
        lambda e, s: "" if s.name == "mount_setattr" and s.errno == errno.ENOSYS else _seccomp(e, s),
        "A seccomp filter, as containers have, refuses the namespaces or mounts of the sandbox.",
        fixes.seccomp_fix, fixes.seccomp_snippet,
    ),
    Restriction(
        "root-without-capabilities", REFUSED, (TAKE_MOUNTS, BECOME), (errno.EPERM,), _root_lacks,
        "root lacks privileges here, as in a container, and cannot prepare a sandbox for another user.",
        fixes.say("Start nsbuild as an ordinary user (docker: --user, Kubernetes: runAsUser)."),
    ),
    Restriction(
        "unprivileged-userns-clone", REFUSED, USER, (errno.EPERM,), _userns_clone,
        "This kernel allows user namespaces to root only (kernel.unprivileged_userns_clone, Debian's).",
        fixes.sysctl("kernel.unprivileged_userns_clone", 1),
    ),
    Restriction(
        # root is stopped before: a `/` that is no mount's root cannot be made private
        "chroot", REFUSED, (*USER, TAKE_MOUNTS), (errno.EPERM, errno.EINVAL), lambda e, s: e.chroot,
        "This process is in a chroot, where the kernel allows no user namespace.",
        fixes.say("Run nsbuild outside it, or enter it with pivot_root: `bwrap --bind DIR / ...`, systemd-nspawn."),
    ),
    Restriction(
        "not-dumpable", REFUSED, MAPS, (errno.EACCES,), lambda e, s: "" if e.dumpable else "PR_GET_DUMPABLE is not 1",
        "The process that starts the sandbox is not dumpable, so its /proc/self/uid_map belongs to root.",
        fixes.say(
            "Let the user that runs it read the interpreter, start it without file capabilities, or call "
            "prctl(PR_SET_DUMPABLE, 1) first."
        ),
    ),
    Restriction(
        "apparmor-container", REFUSED, (*USER, *MAPS, "NEWNS", TAKE_MOUNTS, *MOUNTS), (errno.EACCES,),
        _container_label,
        "The container's AppArmor profile refuses the sandbox's mounts.",
        fixes.container_apparmor_fix,
        fixes.container_apparmor_snippet,
    ),
    Restriction(
        "apparmor-userns-restricted", REFUSED, (*USER, *MAPS, *NAMESPACES, *MOUNTS), (errno.EACCES, errno.EPERM),
        lambda e, s: _ubuntu(e, s) if _unconfined(e.apparmor) else "",
        "AppArmor takes the privileges of new user namespaces from programs without a profile of their own (Ubuntu).",
        fixes.apparmor_fix, fixes.apparmor_snippet,
    ),
    Restriction(
        "apparmor-profile", REFUSED, (*USER, *MAPS, *NAMESPACES, *MOUNTS), (errno.EACCES,), _label,
        "The AppArmor profile that this process runs under refuses the sandbox.",
        lambda e: f"Allow `userns,` and `mount,` in that profile, or: {fixes.apparmor_fix(e)}",
        fixes.apparmor_snippet,
    ),
    Restriction(
        "selinux", REFUSED, USER, (errno.EACCES,), _selinux,
        "SELinux refuses this domain to create a user namespace.",
        fixes.say("As root: save this rule as nsbuild.cil, then semodule -i nsbuild.cil"), fixes.selinux_snippet,
    ),
    Restriction(
        "initramfs", NOTE, ("pivot_root",), (errno.EINVAL,),
        lambda e, s: f"/ is {e.root_fstype}",
        "The root cannot be pivoted away, as an initramfs never can: nsbuild moves its own on top of it instead.",
        fixes.say("Nothing needs fixing."),
    ),
    Restriction(
        "overlay-missing", DEGRADED, ("overlay",), (errno.ENODEV,),
        lambda e, s: "the kernel knows no such filesystem",
        "The overlay module is not loaded: slugs are copied where one would do.",
        lambda e: f"As root{fixes.on_host(e)}: echo overlay > /etc/modules-load.d/nsbuild.conf && modprobe overlay",
    ),
    Restriction(
        "mount-setattr", DEGRADED, ("mount_setattr",), (errno.ENOSYS,), _hidden_setattr,
        "There is no mount_setattr (Linux 5.12): mounts become read-only one by one, what root owns cannot be lent.",
        fixes.say("Nothing needs fixing; a newer kernel, or container runtime, is faster."),
    ),
    Restriction(
        "root-owned", REFUSED, (TAKE_MOUNTS,), (errno.EINVAL, errno.ENOSYS), _unmapped_mount,
        "What root owns cannot be lent to the build's user: this kernel or this filesystem has no idmapped mounts.",
        fixes.say("Give BUILD_DIR and CACHE_DIR to an ordinary user, chown -R USER DIR: the build runs as that one."),
    ),
    Restriction(
        "mount-max", REFUSED, (*MOUNTS, TAKE_MOUNTS), (errno.ENOSPC,), _mount_max,
        "The limit fs.mount-max leaves too few mounts for the sandbox.", fixes.sysctl("fs.mount-max", 100000),
    ),
    Restriction(
        "noexec", REFUSED, ("exec",), (errno.EACCES,),
        lambda e, s: f"{e.path} is on a mount with the flag noexec" if e.noexec else "",
        "Nothing can be executed in the build's directory: its mount forbids it (noexec).",
        fixes.say("Use a directory on another mount: --workspace-dir, or another BUILD_DIR."),
    ),
    Restriction(
        "unknown", REFUSED, (), (),
        lambda e, s: f"{s.call}{' ' + s.path if s.path else ''}: {os.strerror(s.errno) if s.errno else 'no errno'}",
        "A step of the launch fails for a reason that nsbuild cannot tell.",
        fixes.say("Show the output of `nsbuild doctor --json` to whoever runs this machine, or report it."),
    ),
)  # fmt: skip
