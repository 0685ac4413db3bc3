"""The probe under restrictions that can really be made here, started by root and by an ordinary user.

Each condition is made in a process of its own (this file, run as a program), mostly inside an outer user namespace:
the limits user.max_* belong to it, so nothing of the host is touched.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import prctl
import pyseccomp
import pytest
from support.processes import ROOT
from support.rooms import Room

from nsbuild.sandbox import Launcher, fixes, kernel, privileges, seccomp
from nsbuild.sandbox.evidence import collect
from nsbuild.sandbox.outcome import LaunchError
from nsbuild.sandbox.probe import diagnose, explain, probe
from nsbuild.sandbox.steps import Step

USER = 61234
"""A uid without processes of its own."""
NS = kernel.CLONE_NEWNS
NAMESPACE_FLAGS = 0x7E020000


# ---- what is made, in a process of its own


def outer(flags: int) -> None:
    """Continue in a child that is in a new user namespace with the same ids, with all capabilities over it."""
    uid, gid = os.geteuid(), os.getegid()
    made_r, made_w = os.pipe()
    mapped_r, mapped_w = os.pipe()
    pid = os.fork()
    if pid:
        os.read(made_r, 1)
        if uid == 0:
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{name}").write_text("0 0 4294967295")
        os.write(mapped_w, b"x")
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    kernel.unshare(kernel.CLONE_NEWUSER | flags)
    os.write(made_w, b"x")
    os.read(mapped_r, 1)
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def limit(kind: str) -> None:
    outer(0)
    Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("0")


def chroot(with_proc: bool) -> None:
    outer(NS)
    kernel.mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777")
    os.makedirs("/tmp/root/proc")
    if with_proc:
        kernel.mount("/proc", "/tmp/root/proc", "", kernel.MS_BIND | kernel.MS_REC)
    os.chroot("/tmp/root")
    os.chdir("/")


def masked_proc() -> None:
    outer(NS)
    kernel.mount("/dev/null", "/proc/version", "", kernel.MS_BIND)


def not_dumpable() -> None:
    prctl.set_dumpable(0)


def few_processes() -> None:
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


def noexec() -> None:
    outer(NS)
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.MS_NOEXEC, "mode=1777")


def refuse(**calls: int) -> None:
    """A seccomp filter that gives each of these calls that errno."""
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for call, number in calls.items():
        rules.add_rule(pyseccomp.ERRNO(number), call)
    rules.load()


def docker() -> None:
    """What Docker's default filter does to a process without CAP_SYS_ADMIN."""
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    names = "unshare mount umount2 pivot_root open_tree move_mount mount_setattr fsopen fsconfig fsmount setns"
    for call in names.split():
        rules.add_rule(pyseccomp.ERRNO(errno.EPERM), call)
    for bit in range(32):
        if NAMESPACE_FLAGS >> bit & 1:
            flag = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, 1 << bit, 1 << bit)
            rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", flag)
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    rules.load()


def shipped_profile() -> None:
    """The profile that `doctor` names, as a container runtime would compile it without any capability."""
    profile = json.loads(Path(fixes.CONTAINER_PROFILE).read_text())
    operators = {
        "SCMP_CMP_LT": pyseccomp.LT,
        "SCMP_CMP_EQ": pyseccomp.EQ,
        "SCMP_CMP_GT": pyseccomp.GT,
        "SCMP_CMP_MASKED_EQ": pyseccomp.MASKED_EQ,
    }
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(profile["defaultErrnoRet"]))
    for rule in profile["syscalls"]:
        wanted = rule.get("includes", {})
        if "caps" in wanted or machine not in wanted.get("arches", [machine]):
            continue
        arguments = [
            pyseccomp.Arg(arg["index"], operators[arg["op"]], arg["value"], arg.get("valueTwo", 0))
            for arg in rule.get("args", [])
        ]
        assert rule["action"] == "SCMP_ACT_ALLOW", rule
        for name in rule["names"]:
            try:
                rules.add_rule(pyseccomp.ALLOW, name, *arguments)
            except (ValueError, OSError):
                continue  # younger than this libseccomp, or of another architecture
    rules.load()


def nested() -> None:
    """What a command in one of our sandboxes is: our filter, no privileges, process 1 an nsbuild."""
    outer(NS | kernel.CLONE_NEWPID)
    first = os.fork()
    if first:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]))
    kernel.mount("proc", "/proc", "proc", 0)
    privileges.hide_command_line()
    command = os.fork()
    if command:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
    privileges.drop_all()
    kernel.seccomp_set_filter(seccomp.load(os.uname().machine, True))


CONDITIONS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    **{f"limit-{kind}": partial(limit, kind) for kind in ("user", "mnt", "pid", "ipc", "uts", "net")},
    "chroot": lambda: chroot(True),
    "no-proc": lambda: chroot(False),
    "masked-proc": masked_proc,
    "not-dumpable": not_dumpable,
    "few-processes": few_processes,
    "noexec": noexec,
    "docker": docker,
    "shipped-profile": shipped_profile,
    "no-mount_setattr": lambda: refuse(mount_setattr=errno.ENOSYS),
    "mount-max": lambda: refuse(move_mount=errno.ENOSPC),
    "initramfs": lambda: refuse(pivot_root=errno.EINVAL),
    "other-filter": lambda: refuse(fsopen=errno.EPERM),
    "odd": lambda: refuse(move_mount=errno.EIO),
    "nested": nested,
}


def child(condition: str, start: str, workspace: str, error: Sequence[Any]) -> None:
    if start == "user" and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        prctl.set_dumpable(1)
    CONDITIONS[condition]()
    report = probe(USER, USER, workspace)
    said = explain(LaunchError(*error), USER, USER) if error else None
    answer = {**report.as_dict(), "exit": report.exit_code, "text": report.as_text()}
    answer["explained"] = [said.sentence, said.fix] if said else None
    print(json.dumps(answer), flush=True)
    os._exit(0)


# ---- the tests


class Under:
    """Probes under a condition, started by root or by an ordinary user."""

    def __init__(self, start: str) -> None:
        self.start = start

    def __call__(self, condition: str, *, workspace: str = "", error: Sequence[Any] = ()) -> dict[str, Any]:
        words = [condition, self.start, workspace, json.dumps(error)]
        env = {**os.environ, "PYTHONPATH": ":".join([str(Path.cwd()), *filter(None, sys.path)])}
        done = subprocess.run(
            [sys.executable, "-W", "error", __file__, *words], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture(params=["root", "user"])
def under(request: pytest.FixtureRequest) -> Under:
    """Root first drops to the build's uid in every probing child; both must come to the same."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("only root can start nsbuild as root")
    return Under(request.param)


@pytest.fixture
def as_user() -> Under:
    return Under("user")


def codes(report: dict[str, Any], *, notes: bool = False) -> list[str]:
    return [found["code"] for found in report["findings"] if notes or found["severity"] != "note"]


def finding(report: dict[str, Any], code: str) -> dict[str, Any]:
    (found,) = [found for found in report["findings"] if found["code"] == code]
    return dict(found)


def failed(report: dict[str, Any]) -> list[str]:
    return [step["name"] for step in report["steps"] if not step["ok"]]


def test_all_is_well(under: Under) -> None:
    report = under("nothing", workspace="/var/tmp")
    assert failed(report) == []
    assert (codes(report), report["exit"]) == ([], 0)
    order = [step["name"] for step in report["steps"]]
    assert order.index("NEWUSER") < order.index("uid_map") < order.index("NEWNS") < order.index("tmpfs")
    assert order.index("bind") < order.index("mount_setattr") < order.index("proc") < order.index("overlay")
    assert order.index("overlay") < order.index("pivot_root") < order.index("NEWNET")
    assert ("take the mounts" in order) == (under.start == "root")


@pytest.mark.parametrize(
    ("kind", "step"), [("user", "NEWUSER"), ("mnt", "NEWNS"), ("pid", "NEWPID"), ("ipc", "NEWIPC"), ("uts", "NEWUTS")]
)
def test_no_namespace_of_a_kind(under: Under, kind: str, step: str) -> None:
    report = under(f"limit-{kind}", error=["clone", "clone", "", errno.ENOSPC, "No space left on device"])
    assert codes(report) == [f"max-{kind}-namespaces"]
    assert report["exit"] == 2
    found = finding(report, f"max-{kind}-namespaces")
    # root takes mounts in a namespace of its own, before there is a user namespace
    assert found["step"] == ("take the mounts" if kind == "mnt" and under.start == "root" else step)
    assert f"/proc/sys/user/max_{kind}_namespaces is 0" in found["evidence"]
    assert f"user.max_{kind}_namespaces = 15000" in found["fix"] and "/etc/sysctl.d/" in found["fix"]
    sentence, fix = report["explained"]
    assert f"user.max_{kind}_namespaces" in sentence and "No space" not in sentence
    assert "/etc/sysctl.d/" in fix


def test_no_network_namespace_is_a_degradation(under: Under) -> None:
    report = under("limit-net", error=["clone", "clone", "", errno.ENOSPC, "No space left on device"])
    assert (codes(report), report["exit"]) == (["max-net-namespaces"], 1)
    assert finding(report, "max-net-namespaces")["severity"] == "degraded"
    # and yet it is what stopped a launch that asked for one
    assert "user.max_net_namespaces" in report["explained"][0]


def test_chroot(under: Under) -> None:
    report = under("chroot", error=["clone", "clone", "", errno.EPERM, "Operation not permitted"])
    assert (codes(report), report["exit"]) == (["chroot"], 2)
    assert failed(report) == (["take the mounts", "NEWUSER"] if under.start == "root" else ["NEWUSER"])
    assert "not the root of its mount" in finding(report, "chroot")["evidence"]
    assert "chroot" in report["explained"][0]


def test_no_proc(under: Under) -> None:
    report = under("no-proc")
    assert (codes(report), report["exit"]) == (["no-proc"], 2)


def test_masked_proc(under: Under) -> None:
    report = under("masked-proc")
    assert (codes(report), report["exit"]) == (["masked-proc"], 1)
    assert failed(report) == ["proc"]
    assert "/proc/version" in finding(report, "masked-proc")["evidence"]


def test_not_dumpable(as_user: Under) -> None:
    report = as_user("not-dumpable", error=["uid_map", "PermissionError", "/proc/self/uid_map", errno.EACCES, "x"])
    assert (codes(report), report["exit"]) == (["not-dumpable"], 2)
    assert failed(report) == ["setgroups"]
    assert "not dumpable" in report["explained"][0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start nsbuild as root")
def test_root_makes_the_build_user_dumpable() -> None:
    assert codes(Under("root")("not-dumpable")) == []


def test_few_processes(under: Under) -> None:
    report = under("few-processes", error=["clone", "clone", "", errno.EAGAIN, "x"])
    assert (codes(report), report["exit"]) == (["rlimit-nproc"], 2)
    assert "RLIMIT_NPROC is 1" in finding(report, "rlimit-nproc")["evidence"]
    assert "RLIMIT_NPROC" in report["explained"][0]


def test_noexec(under: Under) -> None:
    report = under("noexec", workspace="/tmp", error=["exec", "execve", "/tmp", errno.EACCES, "Permission denied"])
    assert codes(report) == ["noexec"]
    assert failed(report) == ["exec"]
    assert "noexec" in report["explained"][0] and "/tmp" in report["explained"][0]


def test_docker(under: Under) -> None:
    report = under("docker", error=["clone", "clone", "", errno.EPERM, "Operation not permitted"])
    assert (codes(report), report["exit"]) == (["seccomp"], 2)
    assert report["evidence"]["filtered"] == ["unshare", "clone", "mount", "open_tree", "mount_setattr"]
    assert "Seccomp: 2" in finding(report, "seccomp")["evidence"]
    assert "container.json" in finding(report, "seccomp")["fix"]
    assert "seccomp" in report["explained"][0]


def test_the_shipped_profile_is_enough(as_user: Under) -> None:
    report = as_user("shipped-profile")
    assert report["evidence"]["seccomp"] == 2
    assert (failed(report), report["exit"]) == ([], 0)


def test_filter_of_one_call(under: Under) -> None:
    report = under("other-filter", error=["bind /x", "fsopen", "tmpfs", errno.EPERM, "x"])
    assert codes(report) == ["seccomp"]
    assert failed(report) == ["tmpfs", "proc"]
    assert "seccomp" in report["explained"][0]


def test_no_mount_setattr(under: Under) -> None:
    report = under("no-mount_setattr")
    assert (codes(report), report["exit"]) == (["mount-setattr"], 1)
    assert "filter is older" in finding(report, "mount-setattr")["evidence"]


def test_mount_max(under: Under) -> None:
    # fs.mount-max is one for the whole host, so a filter answers in its place.
    report = under("mount-max", error=["attach the root", "move_mount", "/", errno.ENOSPC, "No space left on device"])
    assert (codes(report), report["exit"]) == (["mount-max"], 2)
    assert "fs.mount-max" in report["explained"][0] and "fs.mount-max" in report["explained"][1]


def test_what_root_owns_where_nothing_can_be_mapped(ground: str) -> None:
    if not ROOT:
        pytest.skip("needs root")
    # As on any filesystem before Linux 5.12, which is what the variant root@5.10 of vm/matrix is.
    subprocess.run(["mount", "-t", "ramfs", "ramfs", ground], check=True)
    try:
        os.chmod(ground, 0o755)
        room = Room(ground, "root-owned")

        def action(launcher: Launcher) -> tuple[str, str]:
            try:
                room.seen(launcher, "true")
            except LaunchError as error:
                return error.call, str(explain(error))
            return "", "it ran"

        call, said = room.run(action)
        assert call == "mount_setattr"
        assert "What root owns" in said and "chown -R" in said
        assert sorted(os.listdir(room.workspace)) == ["app", "cache", "env", "tmp", "var-tmp"]
    finally:
        subprocess.run(["umount", ground], check=True)


def test_initramfs(under: Under) -> None:
    # Only the VM's initramfs is a real one: here a filter gives pivot_root's answer.
    report = under("initramfs")
    assert (codes(report, notes=True), report["exit"]) == (["initramfs"], 0)


def test_nested(as_user: Under) -> None:
    report = as_user("nested", error=["open the workspace", "open_tree", "/w", errno.EPERM, "x"])
    assert (codes(report), report["exit"]) == (["nested"], 2)
    assert "inside a build that nsbuild runs" in report["explained"][0]


def test_what_cannot_be_told(under: Under) -> None:
    report = under("odd", error=["attach the root", "move_mount", "/", errno.EIO, "Input/output error"])
    assert codes(report)[0] == "unknown-tmpfs"
    sentence, _ = report["explained"]
    assert "attach the root" in sentence and "move_mount /" in sentence and "Input/output error" in sentence


@pytest.fixture
def with_a_thread() -> Iterator[None]:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


def test_unshare_beside_a_thread(with_a_thread: None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(kernel.CLONE_NEWUSER) == -1
    step = Step("NEWUSER", False, ctypes.get_errno(), "unshare")
    assert step.errno == errno.EINVAL
    (found, *_) = diagnose([step], collect(os.geteuid(), os.getegid()))
    assert found.code == "threads"
    # This one has those of other tests as well, which come and go.
    assert re.search(r"Threads: ([2-9]|\d\d+)\b", found.evidence), found.evidence


def test_a_caller_with_threads_is_not_forked(with_a_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> int:
        raise AssertionError("forked beside a thread")

    monkeypatch.setattr(os, "fork", forbidden)
    report = probe()
    assert report.exit_code == 0, report.as_text()
    assert report.evidence.threads > 1
    assert [step for step in report.steps if step.name == "clone" and step.ok]


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
