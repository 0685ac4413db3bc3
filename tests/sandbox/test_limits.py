"""What holds a launch to its limits: rlimits on any host, a real cgroup v2 where root may make one, its controllers
where they are not in the hands of cgroup v1 (vm/ has such hosts).
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from support import hogs
from support.processes import ROOT, SOMEBODY, Child, children, eventually, read, write
from support.rooms import ENV, PYTHON, Room, filesystem

from nsbuild.sandbox import Launcher, LaunchError, Outcome, confinement, delegation
from nsbuild.sandbox.limits import Facts, Limits, Plan, oom_sentence

MIB = 1 << 20
CONTROLLERS = {"cpu", "memory", "pids"}
UNIFIED = next(
    (line.split()[4] for line in read("/proc/self/mountinfo").splitlines() if " - cgroup2 " in line), "/sys/fs/cgroup"
)


def launch(room: Room, code: str, given: Limits, before: Callable[[], None]) -> tuple[Outcome, str]:
    """A Python program under limits."""
    chunks: list[bytes] = []

    def action(launcher: Launcher) -> tuple[Outcome, str]:
        argv = [PYTHON, "-I", "-c", f"import errno, os, sys, time\n{code}"]
        outcome = launcher.launch(room.view(), argv, env=ENV, cwd="/app", on_output=chunks.append, limits=given)
        return outcome, b"".join(chunks).decode().strip()

    return room.run(action, before=before)


# rlimits


def without_cgroup() -> None:
    """In a child: a host that delegates nothing, whatever this one does. RLIMIT_NPROC is as the kernel has it."""
    facts = delegation.read_facts().replace(place="", refusal="for the test", controllers=(), on_v1=())
    confinement.__dict__["read_facts"] = lambda proc="": facts


def test_memory_of_each_process_is_bounded(room: Room) -> None:
    code = """
held = []
try:
    while len(held) < 400:
        held.append(bytearray(1 << 20))
except MemoryError:
    print(len(held))
"""
    outcome, text = launch(room, code, Limits(memory=128 * MIB), without_cgroup)
    assert outcome.exit_code == 0
    assert 64 < int(text) < 128
    assert outcome.limited == (
        "memory: 128 MiB of private memory for each process, not for all together, by RLIMIT_DATA"
        " (no cgroup: for the test)",
    )


def test_a_file_is_bounded(simple: Room) -> None:
    code = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with open("large", "wb", buffering=0) as file:
        while True:
            file.write(bytes(700_000))
except OSError as error:
    print(os.stat("large").st_size, errno.errorcode[error.errno])
"""
    outcome, text = launch(simple, code, Limits(file=2 * MIB), lambda: None)
    assert (outcome.exit_code, text) == (0, f"{2 * MIB} EFBIG")
    assert outcome.limited == ("file: 2 MiB each, by RLIMIT_FSIZE",)


def test_reserved_addresses_are_not_memory(simple: Room) -> None:
    """What node, Java and Go do at their start; RLIMIT_AS would refuse it."""
    code = "import mmap; mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0); print('fine')"
    outcome, text = launch(simple, code, Limits(memory=64 * MIB), without_cgroup)
    assert (outcome.exit_code, text) == (0, "fine")


def test_a_fork_bomb_is_bounded_whatever_else_the_user_runs(room: Room) -> None:
    """pid 1, Python and 18 more: the user's 30 processes outside are not counted."""
    if not delegation.read_facts().nproc_by_namespace:
        pytest.skip("before Linux 5.14 RLIMIT_NPROC counts everything the user runs")
    others = [subprocess.Popen(["sleep", "60"], user=room.uid if ROOT else None) for _ in range(30)]
    try:
        outcome, text = launch(room, hogs.PROCESSES, Limits(pids=20), without_cgroup)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert (outcome.exit_code, text) == (0, "18 EAGAIN")


def test_a_lower_limit_of_the_callers_stays(simple: Room) -> None:
    def before() -> None:
        without_cgroup()
        resource.setrlimit(resource.RLIMIT_DATA, (900 * MIB, 900 * MIB))

    code = "import resource; print(resource.getrlimit(resource.RLIMIT_DATA))"
    outcome, text = launch(simple, code, Limits(memory=1000 * MIB), before)
    assert (outcome.exit_code, text) == (0, str((900 * MIB, 900 * MIB)))


def test_cores_cannot_be_limited_and_that_is_said(simple: Room) -> None:
    outcome, _ = launch(simple, "", Limits(cpu=0.5), without_cgroup)
    assert outcome.limited == (
        "cpu: not limited: no rlimit can hold processes to a number of cores (no cgroup: for the test)",
    )


def test_usage_by_rusage_is_that_of_all_processes(launched: Room) -> None:
    code = """
if os.fork() == 0:
    held = b"x" * (80 << 20)
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    with open("/app/file", "wb") as file:
        file.write(held[: 8 << 20])
        os.fsync(file.fileno())
    os._exit(0)
os.wait()
"""
    outcome, _ = launch(launched, code, Limits(), without_cgroup)
    usage = outcome.usage
    assert usage is not None
    assert (usage.source, usage.memory_of, usage.oom_killed) == ("rusage", "the largest process", None)
    assert usage.memory > 80 * MIB
    assert usage.user_seconds + usage.system_seconds > 0.3
    if filesystem(launched.base) in ("ext4", "xfs"):
        assert usage.written_bytes >= 8 * MIB
    assert outcome.limited == ()


def test_without_limits_nothing_of_it_is_loaded(simple: Room) -> None:
    view = simple.view()

    def action(launcher: Launcher) -> tuple[bool, Outcome]:
        sys.modules.pop("nsbuild.sandbox.confinement")
        outcome = launcher.launch(view, ["true"], env=ENV)
        return "nsbuild.sandbox.confinement" in sys.modules, outcome

    loaded, outcome = simple.run(action)
    assert not loaded
    assert (outcome.exit_code, outcome.usage, outcome.limited) == (0, None, ())


# a real cgroup


def counting(limits: Limits, facts: Facts) -> Plan:
    """A plan that makes a cgroup though no controller is there."""
    return Plan((), place=facts.place, move=facts.move)


@dataclass
class Delegated:
    """A cgroup that is given to the rooms' launcher, which is started in a leaf of it."""

    path: str

    def enter(self) -> None:
        write(f"{self.path}/main/cgroup.procs", str(os.getpid()))

    def counting_only(self) -> None:
        """As `enter`, and a cgroup is made though no controller is there."""
        self.enter()
        confinement.__dict__["plan"] = counting

    def alone(self) -> None:
        """In the cgroup itself, so that it has to be left for a leaf."""
        write(f"{self.path}/cgroup.procs", str(os.getpid()))
        confinement.__dict__["plan"] = counting


@pytest.fixture
def delegated() -> Iterator[Delegated]:
    if not ROOT:
        pytest.skip("needs root, to delegate a cgroup")
    try:
        path = tempfile.mkdtemp(prefix="nsbuild-test-", dir=UNIFIED)
    except OSError as error:
        pytest.skip(f"no cgroup can be made in {UNIFIED}: {error.strerror}")
    os.mkdir(f"{path}/main")
    for name in ("", "cgroup.procs", "cgroup.subtree_control", "main", "main/cgroup.procs"):
        os.chown(f"{path}/{name}", SOMEBODY, SOMEBODY)
    os.setxattr(path, "user.delegate", b"1")  # as systemd does; root has no other sign
    yield Delegated(path)
    left = [name for name in os.listdir(path) if os.path.isdir(f"{path}/{name}")]
    for name in left:
        os.rmdir(f"{path}/{name}")
    os.rmdir(path)
    assert not [name for name in left if name.startswith(confinement.LAUNCH)], "a launch's cgroup was left"


def already_there() -> None:
    pass


@pytest.fixture
def controlled(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Enters a cgroup with the controllers that limits need: root makes one, others were started in one."""
    if ROOT:
        delegated: Delegated = request.getfixturevalue("delegated")
        controllers = read(f"{delegated.path}/cgroup.controllers").split()
        enter = delegated.enter
    else:
        facts = delegation.read_facts()
        if not facts.place or facts.move:
            pytest.skip(f"not started in a leaf of a delegated cgroup: {facts.refusal or facts.place}")
        controllers = list(facts.controllers)
        enter = already_there
    if missing := CONTROLLERS - set(controllers):
        pytest.skip(f"cgroup v2 has no {', '.join(sorted(missing))} here")
    return enter


def test_everything_of_a_launch_is_in_its_cgroup(room: Room, delegated: Delegated) -> None:
    code = """
print(open("/proc/1/cgroup").read().splitlines()[-1])
print(open("/proc/self/cgroup").read().splitlines()[-1])
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
"""
    outcome, text = launch(room, code, Limits(), delegated.counting_only)
    assert outcome.exit_code == 0
    one, two = text.splitlines()
    assert one == two
    assert one.startswith(f"0::{delegated.path.removeprefix(UNIFIED)}/{confinement.LAUNCH}")
    assert outcome.usage is not None
    assert outcome.usage.source == "cgroup v2"
    assert outcome.usage.user_seconds + outcome.usage.system_seconds > 0.2


def test_a_launcher_alone_in_its_cgroup_goes_into_a_leaf(room: Room, delegated: Delegated) -> None:
    """With its isolated Launcher, when it has one."""

    def action(launcher: Launcher) -> tuple[str, Outcome]:
        outcome = launcher.launch(room.view(), ["true"], env=ENV, limits=Limits())
        return read("/proc/self/cgroup").splitlines()[-1], outcome

    own, outcome = room.run(action, before=delegated.alone)
    assert own == f"0::{delegated.path.removeprefix(UNIFIED)}/{confinement.LEAF}"
    assert outcome.usage is not None
    assert outcome.usage.source == "cgroup v2"


def test_a_stranger_is_left_alone(simple: Room, delegated: Delegated) -> None:
    def action(launcher: Launcher) -> tuple[str, Outcome]:
        return delegation.read_facts().refusal, launcher.launch(simple.view(), ["true"], env=ENV, limits=Limits())

    stranger = subprocess.Popen(["sleep", "60"])
    try:
        write(f"{delegated.path}/cgroup.procs", str(stranger.pid))
        refusal, outcome = simple.run(action, before=delegated.alone)
        assert read(f"{delegated.path}/cgroup.procs").split() == [str(stranger.pid)]
    finally:
        stranger.kill()
        stranger.wait()
    assert f"not ours ({stranger.pid} sleep)" in refusal
    assert outcome.usage is not None
    assert outcome.usage.source == "rusage"
    assert os.listdir(delegated.path).count(confinement.LEAF) == 0


def test_a_cgroup_that_cannot_be_entered_stops_the_launch(either: Room) -> None:
    """Rather than a build that runs without its limits. Nothing is left of it."""

    def before() -> None:
        class Broken:
            plan = Plan(())
            directory = "/nonexistent"

            def __init__(self, given: Limits) -> None: ...

            def close(self) -> None: ...

        confinement.__dict__["Confinement"] = Broken

    def action(launcher: Launcher) -> tuple[str, list[int], bool]:
        with pytest.raises(LaunchError) as caught:
            launcher.launch(either.view(), ["touch", "/app/ran"], env=ENV, limits=Limits())
        return caught.value.step, children(), launcher.launch(either.view(), ["true"], env=ENV).exit_code == 0

    assert either.run(action, before=before) == ("limits", [], True)
    assert os.listdir(either.host("app")) == []


def test_a_killed_launchers_cgroup_is_swept_by_the_next(simple: Room, delegated: Delegated) -> None:
    simple.keeps_root = True

    def action(launcher: Launcher) -> None:
        launcher.launch(simple.view(), ["sh", "-c", "echo ready; sleep 60"], env=ENV, on_output=die, limits=Limits())

    def die(_: bytes) -> None:
        os.kill(os.getpid(), 9)

    killed: Child[None] = simple.start(action, before=delegated.counting_only)
    killed.ended()

    def left() -> list[str]:
        return [name for name in os.listdir(delegated.path) if name.startswith(confinement.LAUNCH)]

    (orphan,) = left()
    assert eventually(lambda: not read(f"{delegated.path}/{orphan}/cgroup.procs"))
    second = Room(simple.base, "user", "second")
    outcome, _ = launch(second, "", Limits(), delegated.counting_only)
    assert outcome.exit_code == 0
    assert left() == []


def test_memory_of_all_processes_together_and_the_kill_is_named(room: Room, controlled: Callable[[], None]) -> None:
    given = Limits(memory=96 * MIB)
    outcome, _ = launch(room, hogs.MEMORY, given, controlled)
    assert outcome.signal == 9
    assert oom_sentence(outcome.usage, given) == "out of memory: the kernel killed it at its limit of 96 MiB"
    assert outcome.usage is not None
    assert 90 * MIB < outcome.usage.memory <= 96 * MIB or outcome.usage.memory_of == "the largest process"
    assert outcome.limited == ("memory: 96 MiB for all processes together, none of it swap, by cgroup v2",)


def test_a_fork_bomb_is_bounded_by_its_cgroup(room: Room, controlled: Callable[[], None]) -> None:
    outcome, text = launch(room, hogs.PROCESSES, Limits(pids=20), controlled)
    assert (outcome.exit_code, text) == (0, "18 EAGAIN")
    assert outcome.usage is not None
    assert outcome.usage.pids in (20, None)
    assert outcome.usage.oom_killed is False


def test_cores_are_bounded_by_its_cgroup(launched: Room, controlled: Callable[[], None]) -> None:
    """What the loop uses, not what the interpreter takes to start: that is more, on a slow machine."""
    code = """
began, end = time.process_time(), time.monotonic() + 2
while time.monotonic() < end:
    pass
print(time.process_time() - began)
"""
    outcome, text = launch(launched, code, Limits(cpu=0.25), controlled)
    assert outcome.usage is not None
    assert float(text) < 1.3
