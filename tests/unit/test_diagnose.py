"""What failed steps and evidence come to: every row of the table of restrictions, and the words for each.

The rows that can be made on this machine have their real test in tests/sandbox/test_probe.py (REAL); others are
shown by a virtual machine of vm/matrix (IN_A_VM).
"""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nsbuild.cli.doctor import doctor
from nsbuild.errors import ExitCode
from nsbuild.sandbox import probe as module
from nsbuild.sandbox.evidence import SYSCTLS, Evidence, chrooted
from nsbuild.sandbox.fixes import apparmor_profile
from nsbuild.sandbox.outcome import LaunchError
from nsbuild.sandbox.probe import Report, diagnose, explain
from nsbuild.sandbox.restrictions import TABLE, Finding
from nsbuild.sandbox.steps import Step
from vm.variants import load

WELL = Evidence(
    sysctls={**dict.fromkeys(SYSCTLS, 90000), "kernel.unprivileged_userns_clone": 1, SYSCTLS[7]: None},
    executable="/usr/bin/python3.11",
    root_fstype="ext4",
)
assert SYSCTLS[7] == "kernel.apparmor_restrict_unprivileged_userns"
WRAPPER = "/opt/nsbuild/bin/nsbuild"
GVISOR = "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016"
WSL1 = "Linux version 4.4.0-19041-Microsoft (Microsoft@Microsoft.com)"
FILTER: dict[str, Any] = {"seccomp": 2, "filtered": ("unshare", "clone", "mount", "open_tree")}
UBUNTU = {"kernel.apparmor_restrict_unprivileged_userns": 1}
SELINUX = "system_u:system_r:builder_t:s0"


def having(sysctls: dict[str, int] | None = None, **changes: Any) -> Evidence:
    return replace(WELL, sysctls={**WELL.sysctls, **(sysctls or {})}, **changes)


def fails(name: str, number: int, call: str = "unshare", path: str = "") -> Step:
    return Step(name, False, number, call, path)


def one(step: Step, evidence: Evidence) -> Finding:
    (found,) = diagnose([Step("user namespaces exist", True), step], evidence)
    return found


# step, evidence, code, severity, words of the sentence, of the evidence, of the fix and snippet
ROWS: list[tuple[str, Step, Evidence, str, tuple[str, str, str]]] = [
    *(
        (
            f"max-{kind}-namespaces",
            fails(step, errno.ENOSPC),
            having({f"user.max_{kind}_namespaces": 0}),
            "degraded" if kind == "net" else "refused",
            (f"user.max_{kind}_namespaces", "is 0", f"user.max_{kind}_namespaces = 15000"),
        )
        for kind, step in (
            ("user", "NEWUSER"),
            ("mnt", "NEWNS"),
            ("pid", "NEWPID"),
            ("ipc", "NEWIPC"),
            ("uts", "NEWUTS"),
            ("net", "NEWNET"),
        )
    ),
    (
        "max-user-namespaces",
        fails("NEWUSER", errno.ENOSPC),
        WELL,
        "refused",
        ("user.max_user_namespaces", "is 90000: all are in use", "/etc/sysctl.d/90-nsbuild.conf"),
    ),
    (
        "namespaces-used-up",
        fails("clone", errno.ENOSPC, "clone"),
        WELL,
        "refused",
        ("used up", "user.max_net_namespaces is 90000", "fewer builds"),
    ),
    (
        "unprivileged-userns-clone",
        fails("NEWUSER", errno.EPERM),
        having({"kernel.unprivileged_userns_clone": 0}),
        "refused",
        ("root only", "is 0", "kernel.unprivileged_userns_clone = 1"),
    ),
    (
        "chroot",
        fails("NEWUSER", errno.EPERM),
        having(chroot="/ is what process 1 sees at /srv/chroot"),
        "refused",
        ("chroot", "/srv/chroot", "outside"),
    ),
    (
        "chroot",
        fails("take the mounts", errno.EINVAL, "mount", "/"),
        having(root=True, chroot="/ is not the root of its mount"),
        "refused",
        ("chroot", "not the root", "outside"),
    ),
    (
        "threads",
        fails("NEWUSER", errno.EINVAL),
        having(threads=3),
        "refused",
        ("other threads", "Threads: 3", "Launcher"),
    ),
    (
        "not-dumpable",
        fails("setgroups", errno.EACCES, "write", "/proc/self/setgroups"),
        having(dumpable=False),
        "refused",
        ("not dumpable", "PR_GET_DUMPABLE", "PR_SET_DUMPABLE"),
    ),
    (
        "apparmor-profile",
        fails("NEWUSER", errno.EACCES),
        having(apparmor="builder (enforce)", script=WRAPPER),
        "refused",
        ("AppArmor", "builder (enforce)", f'profile nsbuild "{WRAPPER}"'),
    ),
    *(
        (
            "apparmor-userns-restricted",
            fails(step, number, call),
            having(UBUNTU, apparmor="unconfined", apparmor_inside="unprivileged_userns (enforce)", script=WRAPPER),
            "refused",
            ("AppArmor", "apparmor_restrict_unprivileged_userns is 1", f'profile nsbuild "{WRAPPER}"'),
        )
        for step, number, call in (
            ("uid_map", errno.EPERM, "write"),
            ("setgroups", errno.EACCES, "write"),
            ("NEWNS", errno.EPERM, "unshare"),
            ("tmpfs", errno.EACCES, "fsopen"),
            ("private /", errno.EACCES, "mount"),
        )
    ),
    (
        "apparmor-container",
        fails("private /", errno.EACCES, "mount", "/"),
        having(apparmor="docker-default (enforce)", container="docker"),
        "refused",
        ("container's AppArmor", "docker-default", "--security-opt apparmor=nsbuild-container"),
    ),
    (
        "apparmor-container",
        fails("private /", errno.EACCES, "mount", "/"),
        having(apparmor="cri-containerd.apparmor.d (enforce)", container="kubernetes"),
        "refused",
        ("container's AppArmor", "cri-containerd", "localhostProfile: nsbuild-container"),
    ),
    (
        "seccomp",
        fails("NEWUSER", errno.EPERM),
        having(container="docker", **FILTER),
        "refused",
        ("seccomp filter", "Seccomp: 2", "--security-opt seccomp="),
    ),
    (
        "seccomp",
        fails("NEWUSER", errno.EPERM),
        having(container="kubernetes", **FILTER),
        "refused",
        ("seccomp filter", "unshare is refused", "hostUsers: false"),
    ),
    (
        "seccomp",
        fails("take the mounts", errno.EPERM),
        having(root=True, **FILTER),
        "refused",
        ("seccomp filter", "Seccomp: 2", "RestrictNamespaces=no"),
    ),
    (
        "seccomp",
        Step("NEWUSER", False, 0, "killed by signal 31"),
        having(seccomp=2),
        "refused",
        ("seccomp filter", "SIGSYS", "unshare"),
    ),
    (
        "nested",
        fails("tmpfs", errno.EPERM, "fsopen", "tmpfs"),
        having(seccomp=2, no_new_privs=True, cap_bnd=0, init_is_ours=True),
        "refused",
        ("inside a build that nsbuild runs", "CapBnd: 0", "--fallback direct"),
    ),
    (
        "masked-proc",
        fails("proc", errno.EPERM, "fsmount", "proc"),
        # also behind a filter that allows mounts, such as the one we ship
        having(proc_mounts=("/proc/kcore", "/proc/acpi"), seccomp=2),
        "degraded",
        ("masked", "/proc/kcore, /proc/acpi", "Nothing needs fixing"),
    ),
    (
        "initramfs",
        fails("pivot_root", errno.EINVAL, "pivot_root", "."),
        having(root_fstype="rootfs"),
        "note",
        ("initramfs", "/ is rootfs", "Nothing needs fixing"),
    ),
    (
        "overlay-kernel",
        fails("overlay", errno.EPERM, "fsconfig", "overlay"),
        having(kernel=(5, 10), seccomp=2),
        "degraded",
        ("5.11", "Linux 5.10", "newer kernel"),
    ),
    (
        "overlay-missing",
        fails("overlay", errno.ENODEV, "fsopen", "overlay"),
        WELL,
        "degraded",
        ("module", "no such filesystem", "modprobe overlay"),
    ),
    (
        "mount-setattr",
        fails("mount_setattr", errno.ENOSYS, "mount_setattr", "/"),
        having(kernel=(5, 10)),
        "degraded",
        ("5.12", "Linux 5.10", "newer kernel"),
    ),
    (
        "root-owned",
        fails("take the mounts", errno.ENOSYS, "mount_setattr"),
        having(kernel=(5, 10), root=True),
        "refused",
        ("root owns", "Linux 5.10", "chown"),
    ),
    (
        "mount-max",
        fails("bind", errno.ENOSPC, "move_mount", "/"),
        having({"fs.mount-max": 50}, mounts=48),
        "refused",
        ("fs.mount-max", "48 mounts", "fs.mount-max = 100000"),
    ),
    (
        "pids-max",
        fails("NEWUSER", errno.EAGAIN, "fork"),
        having(pids_max=100, pids_current=100, pids_file="/sys/fs/cgroup/ci/pids.max", nproc=9000),
        "refused",
        ("cgroup", "100", "/sys/fs/cgroup/ci/pids.max"),
    ),
    (
        "rlimit-nproc",
        fails("clone", errno.EAGAIN, "clone"),
        having(nproc=64, pids_max=1000, pids_current=10),
        "refused",
        ("RLIMIT_NPROC", "is 64", "limits.d"),
    ),
    (
        "noexec",
        fails("exec", errno.EACCES, "execve", "/data"),
        having(path="/data/build", noexec=True, seccomp=2),
        "refused",
        ("noexec", "/data/build", "another mount"),
    ),
    (
        "selinux",
        fails("NEWUSER", errno.EACCES),
        having(selinux=SELINUX, selinux_enforcing=True),
        "refused",
        ("SELinux", SELINUX, "(allow builder_t self (user_namespace (create)))"),
    ),
    (
        "gvisor",
        fails("tmpfs", errno.ENOSYS, "fsopen"),
        having(version=GVISOR),
        "refused",
        ("gVisor", "/proc/version", "--fallback direct"),
    ),
    (
        "no-user-namespaces",
        fails("user namespaces exist", errno.ENOENT, "lstat"),
        having(user_ns=False),
        "refused",
        ("CONFIG_USER_NS", "/proc/self/ns/user", "another kernel"),
    ),
    (
        "wsl1",
        fails("user namespaces exist", errno.ENOENT, "lstat"),
        having(user_ns=False, version=WSL1),
        "refused",
        ("WSL 1", "Microsoft", "WSL 2"),
    ),
    (
        "no-proc",
        fails("user namespaces exist", errno.ENOENT, "lstat"),
        having(user_ns=False, proc_mounted=False),
        "refused",
        ("/proc is not mounted", "/proc/self", "mount -t proc"),
    ),
    (
        "architecture",
        fails("tmpfs", errno.ENOSYS, "clone", "on riscv64"),
        having(machine="riscv64"),
        "refused",
        ("system call numbers", "riscv64", "x86_64"),
    ),
    (
        "root-without-capabilities",
        fails("take the mounts", errno.EPERM),
        having(root=True, cap_eff=0xA80425FB),
        "refused",
        ("root lacks", "without CAP_SYS_ADMIN", "ordinary user"),
    ),
    (
        "unmapped-user",
        fails("become the build's user", errno.EINVAL, "setresuid"),
        having(root=True, uid=5000, unmapped_ids=True),
        "refused",
        ("does not exist", "5000", "--user"),
    ),
]


@pytest.mark.parametrize(("code", "step", "evidence", "severity", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_row(code: str, step: Step, evidence: Evidence, severity: str, words: tuple[str, str, str]) -> None:
    found = one(step, evidence)
    assert (found.code, found.severity, found.step) == (code, severity, step.name)
    sentence, told, fix = words
    assert sentence in found.restriction
    assert told in found.evidence
    assert fix in found.fix + found.snippet
    # one sentence that names the restriction, not the errno
    assert found.restriction.endswith(".") and ". " not in found.restriction
    assert "errno" not in found.restriction and "not permitted" not in found.restriction


def test_every_row_of_the_table_is_tested() -> None:
    assert {row.code for row in TABLE} - {row[0] for row in ROWS} == {"unknown"}


@pytest.mark.parametrize(
    ("step", "evidence"),
    [
        # Docker filters, but not this call: the chroot is the cause
        (fails("NEWUSER", errno.EPERM), having(seccomp=2, filtered=("mount",))),
        (fails("NEWUSER", errno.EPERM), WELL),
        (fails("NEWUSER", errno.EACCES), having(apparmor="unconfined")),
        (fails("NEWUSER", errno.EACCES), having(selinux=SELINUX)),
        (fails("NEWUSER", errno.EINVAL), WELL),
        (fails("uid_map", errno.EACCES, "write"), having(**FILTER)),
        (fails("uid_map", errno.EPERM, "write"), having({"kernel.unprivileged_userns_clone": 0})),
        (fails("proc", errno.EPERM, "fsmount"), WELL),
        (fails("exec", errno.EACCES, "execve"), having(**FILTER)),
        (fails("tmpfs", errno.EPERM, "fsopen"), having(no_new_privs=True, init_is_ours=True)),
        (fails("tmpfs", errno.ENOSPC, "mkdir"), WELL),
        (fails("mount_setattr", errno.ENOSYS, "mount_setattr"), WELL),
        (fails("take the mounts", errno.EPERM), having(root=True, cap_eff=1 << 21)),
    ],
)
def test_errno_alone_is_not_enough(step: Step, evidence: Evidence) -> None:
    found = one(step, evidence)
    assert found.code.startswith("unknown-")
    assert step.name in found.restriction
    assert "cannot tell" in found.restriction


def test_a_masked_proc_behind_a_filter_that_refuses_mounts() -> None:
    evidence = having(seccomp=2, proc_mounts=("/proc/kcore",))
    assert one(fails("proc", errno.EPERM, "fsopen", "proc"), evidence).code == "seccomp"


@pytest.mark.parametrize(("step", "severity"), [("overlay", "degraded"), ("NEWNET", "degraded"), ("bind", "refused")])
def test_what_a_launch_can_do_without(step: str, severity: str) -> None:
    assert one(fails(step, errno.EPERM, "fsopen"), having(seccomp=2)).severity == severity


def test_one_cause_is_said_once_and_at_its_worst() -> None:
    steps = [fails(name, errno.EPERM, "fsopen") for name in ("overlay", "tmpfs", "proc")]
    (found,) = diagnose(steps, having(seccomp=2))
    assert (found.code, found.severity, found.step) == ("seccomp", "refused", "tmpfs")


def test_notes() -> None:
    notes = diagnose([], having(groups=("docker(998)",), unread=("/proc/self/environ",)))
    assert [(note.code, note.severity) for note in notes] == [("supplementary-groups", "note"), ("unread", "note")]
    assert "docker(998)" in notes[0].evidence
    assert "/proc/self/environ" in notes[1].evidence
    assert Report((), WELL, tuple(notes)).exit_code == 0


def test_sysctls_are_set_on_the_host_of_a_container() -> None:
    step = fails("NEWUSER", errno.ENOSPC)
    assert "on the host of this docker container" in one(step, having(container="docker")).fix


def test_profile_is_for_what_was_execd() -> None:
    step = fails("uid_map", errno.EPERM, "write")
    shared = one(step, having(UBUNTU))
    # /usr/bin/python3.11 is everybody's: a profile for it would lift the restriction for every Python program
    assert shared.snippet == ""
    assert "/usr/bin/python3.11" in shared.fix and "`nsbuild` script" in shared.fix
    private = one(step, having(UBUNTU, executable="/opt/frozen/nsbuild"))
    assert 'profile nsbuild "/opt/frozen/nsbuild"' in private.snippet
    assert "userns," in private.snippet
    for found in (shared, private):
        assert "sysctl" not in found.fix
    assert "step before the build" in one(step, having(UBUNTU, script=WRAPPER, ci="GitHub Actions")).fix


def test_unconfined_container_on_ubuntu() -> None:
    # apparmor=unconfined alone is what the host restricts
    found = one(fails("uid_map", errno.EPERM, "write"), having(UBUNTU, apparmor="unconfined", container="docker"))
    assert found.code == "apparmor-userns-restricted"
    assert "--security-opt apparmor=nsbuild-container" in found.fix
    assert "profile nsbuild-container" in found.snippet


def test_profile_of_an_odd_path() -> None:
    assert 'profile nsbuild "/opt/a b\\[1\\]\\*/nsbuild"' in apparmor_profile("/opt/a b[1]*/nsbuild")


PLAIN = "27 1 254:0 / / rw - ext4 /dev/vda rw\n22 27 0:21 / /proc rw - proc proc rw\n"


@pytest.mark.parametrize(
    ("own", "first", "told"),
    [
        (PLAIN, PLAIN, ""),
        # a plain directory: its mount is not listed
        ("22 27 0:21 / /proc rw - proc proc rw\n", PLAIN, "does not list it"),
        # a mount, as schroot makes them: process 1 sees the same one elsewhere
        (
            "40 27 8:1 / / rw - ext4 /dev/sdb rw\n",
            PLAIN + "40 27 8:1 / /srv/chroot rw - ext4 /dev/sdb rw\n",
            "/srv/chroot",
        ),
        # another mount namespace, as in a container that shares the host's pids
        ("540 500 8:1 / / rw - overlay overlay rw\n", PLAIN, ""),
        # the real root lies on top of the initramfs
        ("1 1 0:2 / / rw - rootfs rootfs rw\n" + PLAIN, "1 1 0:2 / / rw - rootfs rootfs rw\n" + PLAIN, ""),
        ("540 500 8:1 / / rw - overlay overlay rw\n", "", ""),
        ("", "", ""),
    ],
)
def test_chroot_shows_in_mountinfo(own: str, first: str, told: str) -> None:
    assert (told in chrooted(own, first)) if told else chrooted(own, first) == ""


def report_of(evidence: Evidence, *steps: Step) -> Report:
    return Report(steps, evidence, tuple(diagnose(steps, evidence)))


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Any:
    def give(report: Report) -> None:
        monkeypatch.setattr(module, "probe", lambda *_: report)

    return give


def test_explain_a_refused_clone_by_the_probe(probed: Any) -> None:
    probed(report_of(having({"user.max_uts_namespaces": 0}), fails("NEWUTS", errno.ENOSPC)))
    refused = explain(LaunchError("clone", "clone", "", errno.ENOSPC, "clone: No space left on device"))
    assert refused.code == ExitCode.REFUSED
    assert str(refused).startswith("The limit user.max_uts_namespaces leaves no uts namespace for this user (/proc/")
    assert "sysctl" in refused.fix


def test_explain_a_clone_that_works_again(probed: Any) -> None:
    probed(report_of(WELL))
    refused = explain(LaunchError("clone", "clone", "", errno.ENOSPC, "clone: No space left on device"))
    assert "used up at that moment" in refused.sentence


def test_explain_by_the_error_itself(probed: Any) -> None:
    probed(report_of(having(dumpable=False)))
    refused = explain(LaunchError("uid_map", "PermissionError", "/proc/self/uid_map", errno.EACCES, "x"))
    assert "not dumpable" in refused.sentence


def test_explain_a_step_within_the_view(probed: Any) -> None:
    probed(report_of(having({"fs.mount-max": 60}, mounts=40)))
    refused = explain(LaunchError("bind /usr at /usr", "move_mount", "/usr", errno.ENOSPC, "x"))
    assert "fs.mount-max" in refused.sentence


def test_explain_points_at_the_profile(probed: Any) -> None:
    probed(report_of(having(UBUNTU, script=WRAPPER), fails("uid_map", errno.EPERM, "write")))
    refused = explain(LaunchError("uid_map", "PermissionError", "/proc/self/uid_map", errno.EPERM, "x"))
    assert "\n" not in str(refused)
    assert "`nsbuild doctor` prints the text" in refused.fix


def test_explain_honestly(probed: Any) -> None:
    probed(report_of(WELL))
    refused = explain(LaunchError("bind /data at /data", "open_tree", "/data", errno.ENOENT, "x"))
    for word in ("bind /data at /data", "open_tree /data", "No such file or directory"):
        assert word in refused.sentence
    silent = explain(LaunchError("start", "clone", "", 0, "the sandbox's first process ended without a word"))
    assert "ended without a word" in silent.sentence


@pytest.mark.parametrize(
    ("report", "code", "verdict"),
    [
        (report_of(WELL, Step("NEWUSER", True)), 0, "Well:"),
        (report_of(having(kernel=(5, 10)), fails("overlay", errno.EPERM, "fsconfig")), 1, "Degraded:"),
        (report_of(having(**FILTER), fails("NEWUSER", errno.EPERM)), 2, "Refused:"),
    ],
)
def test_doctor(monkeypatch: pytest.MonkeyPatch, report: Report, code: int, verdict: str) -> None:
    monkeypatch.setattr(module, "probe", lambda: report)
    text = CliRunner().invoke(doctor, [])
    assert (text.exit_code, text.output.splitlines()[-1].split(" ")[0]) == (code, verdict)
    for found in report.findings:
        assert found.restriction in text.output and found.fix in text.output
    machine = CliRunner().invoke(doctor, ["--json"])
    parsed = json.loads(machine.output)
    assert machine.exit_code == code
    assert parsed["schema"] == 1
    assert [found["code"] for found in parsed["findings"]] == [found.code for found in report.findings]
    assert [step["name"] for step in parsed["steps"]] == [step.name for step in report.steps]


def test_the_launch_path_does_not_import_the_probe() -> None:
    import subprocess
    import sys

    code = "import sys; sys.path[:] = sys.argv[1:]; import nsbuild.sandbox; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code, *sys.path], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "nsbuild.sandbox.launcher" in loaded
    assert not {f"nsbuild.sandbox.{name}" for name in ("probe", "evidence", "steps", "restrictions", "fixes")} & {
        *loaded
    }


PROBE = "tests/sandbox/test_probe.py"
REAL = {
    "no-proc": "test_no_proc",
    "nested": "test_nested",
    "rlimit-nproc": "test_few_processes",
    "max-user-namespaces": "test_no_namespace_of_a_kind",
    "max-mnt-namespaces": "test_no_namespace_of_a_kind",
    "max-pid-namespaces": "test_no_namespace_of_a_kind",
    "max-ipc-namespaces": "test_no_namespace_of_a_kind",
    "max-uts-namespaces": "test_no_namespace_of_a_kind",
    "max-net-namespaces": "test_no_network_namespace_is_a_degradation",
    "threads": "test_unshare_beside_a_thread",
    "masked-proc": "test_masked_proc",
    "seccomp": "test_docker",
    "chroot": "test_chroot",
    "not-dumpable": "test_not_dumpable",
    "initramfs": "test_initramfs",
    "mount-setattr": "test_no_mount_setattr",
    "root-owned": "test_what_root_owns_where_nothing_can_be_mapped",
    "mount-max": "test_mount_max",
    "noexec": "test_noexec",
    "unknown": "test_what_cannot_be_told",
}
"""Rows that this machine can be made to show, and the test in which it does."""

IN_A_VM = {
    "unprivileged-userns-clone": "userns-for-root-only",
    "overlay-kernel": "plain",
    "overlay-missing": "no-overlay-module",
    "pids-max": "pids-max",
    "apparmor-profile": "apparmor-denies-userns",
    "apparmor-container": "docker-with-our-seccomp",
}
"""Rows that a virtual machine shows, and the variant in which it does: `vm/matrix --only VARIANT`."""

NOWHERE = {
    "apparmor-userns-restricted",
    "architecture",
    "gvisor",
    "wsl1",
    "no-user-namespaces",
    "unmapped-user",
    "namespaces-used-up",
    "root-without-capabilities",
    "selinux",
}
"""Rows that nothing here shows: what is said of them is tested, that it is so is not."""


def test_every_row_is_shown_for_real_or_is_known_not_to_be() -> None:
    assert {row.code for row in TABLE} == set(REAL) | set(IN_A_VM) | NOWHERE
    source = (Path(__file__).parents[2] / PROBE).read_text()
    assert [test for test in REAL.values() if f"def {test}(" not in source] == []
    variants = load()
    for code, name in IN_A_VM.items():
        assert code in {found.code for variant in variants[name] for found in variant.doctor}
