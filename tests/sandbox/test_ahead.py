"""A view that was made before it was asked for is used only where making it now would give just the same."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from support.processes import private_mounts
from support.rooms import Room, reason_against

from nsbuild.sandbox import Bind, Launcher, LaunchError, kernel
from nsbuild.sandbox.ahead import MountTable, can_be_made_ahead
from nsbuild.sandbox.limits import Limits

T = TypeVar("T")


@pytest.fixture
def room(ground: str) -> Room:
    if reason := reason_against("user-isolated", ground):
        pytest.skip(reason)
    return Room(ground, "user-isolated")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def waiting(launcher: Launcher) -> int:
    """The process that holds a view made ahead, once it is there."""
    assert launcher._remote is not None
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = children(launcher._remote._pid)
        if found and "pipe" not in Path(f"/proc/{found[0]}/wchan").read_text() and _sleeps(found[0]):
            return found[0]
        time.sleep(0.01)
    raise AssertionError("nothing was made ahead")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _sleeps(pid: int) -> bool:
    return _state(pid) == "S"


def gone(pid: int) -> bool:
    """Whether it ends soon; its parent may still have to take note of it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists() or _state(pid) == "Z":
            return True
        time.sleep(0.01)
    return False


def third(
    room: Room, command: str, between: Callable[[Launcher, int], T], first: str = "true", **options: object
) -> str:
    """What the third launch into one view says, of which the waiting process was made after the second."""

    def action(launcher: Launcher) -> str:
        for _ in range(2):
            room.seen(launcher, first, **options)  # type: ignore[arg-type]
        between(launcher, waiting(launcher))
        return room.seen(launcher, command, **options).text  # type: ignore[arg-type]

    return room.run(action)


def nothing(launcher: Launcher, pid: int) -> None:
    return None


def test_it_is_what_the_command_runs_in(room: Room) -> None:
    """Process 1 of the third launch is the very process that was waiting."""

    def action(launcher: Launcher) -> tuple[str, str]:
        for _ in range(2):
            room.seen(launcher, "true")
        pid = waiting(launcher)
        namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        return namespace, room.seen(launcher, "readlink /proc/self/ns/mnt").text

    # Whatever others mount on this host meanwhile: what was made before a mount is not used.
    before, after = room.run(action, before=private_mounts)
    assert before == after


def test_a_first_launch_makes_nothing_ahead(room: Room) -> None:
    def action(launcher: Launcher) -> list[int]:
        room.seen(launcher, "true")
        time.sleep(0.3)
        assert launcher._remote is not None
        return children(launcher._remote._pid)

    assert room.run(action) == []


def test_nothing_of_the_launch_before(room: Room) -> None:
    first = "touch /left; mkdir -p /etc2; echo x >/dev/shm/left; sleep 100 & true"
    assert third(
        room, "ls -d /left /etc2 /dev/shm/left 2>&1 | grep -c cannot; ps -e 2>&1 | grep -c sleep", nothing, first
    )


def test_everything_a_command_is_given(room: Room) -> None:
    def action(launcher: Launcher) -> str:
        for _ in range(2):
            room.seen(launcher, "true")
        waiting(launcher)
        return room.seen(
            launcher,
            "pwd; echo $#; echo ${#LARGE}; umask; id -u; grep -c . /proc/self/fd/0 || echo no input",
            env={"PATH": "/usr/bin:/bin", "LARGE": "x" * 100_000},
            cwd="/tmp/cache",
        ).text

    lines = room.run(action).splitlines()
    assert lines[:5] == ["/tmp/cache", "0", "100000", "0022", str(room.uid)]


def test_a_directory_that_was_replaced(room: Room) -> None:
    for name in ("shared", "other"):
        os.mkdir(f"{room.base}/{name}")
        Path(f"{room.base}/{name}/name").write_text(name)
    room.own(room.base)

    def replace(launcher: Launcher, pid: int) -> None:
        os.rename(f"{room.base}/shared", f"{room.base}/old")
        os.rename(f"{room.base}/other", f"{room.base}/shared")

    binds = [Bind("/shared", f"{room.base}/shared")]
    assert third(room, "cat /shared/name", replace, binds=binds) == "other"
    assert third(room, "cat /shared/name", nothing, binds=binds) == "other"


def test_a_skeleton_that_was_changed(room: Room) -> None:
    """Between two launches anybody of the same user may."""
    first = "touch /left"
    assert "left" not in third(room, "ls /", nothing, first)


def test_a_waiting_process_that_was_killed(room: Room) -> None:
    def kill(launcher: Launcher, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)

    assert third(room, "echo well", kill) == "well"


def test_a_directory_that_is_gone(room: Room) -> None:
    """The launch fails, and what was waiting for it is not left behind."""

    def action(launcher: Launcher) -> tuple[list[int], str]:
        for _ in range(2):
            room.seen(launcher, "true")
        waiting(launcher)
        os.rename(room.host("app"), room.host("away"))
        with pytest.raises(FileNotFoundError):
            room.seen(launcher, "true")
        assert launcher._remote is not None
        left = children(launcher._remote._pid)
        os.rename(room.host("away"), room.host("app"))
        return left, room.seen(launcher, "echo well").text

    assert room.run(action) == ([], "well")


def test_another_view(room: Room) -> None:
    def action(launcher: Launcher) -> list[str]:
        said = []
        for network in ("host", "host", "none", "none", "none", "host"):
            said.append(room.seen(launcher, "ls /sys/class/net | wc -l; ls /app | wc -l", network=network).text)
            time.sleep(0.1)
        return said

    said = room.run(action)
    assert said[0] == said[1] == said[5] and said[2] == said[3] == said[4]
    assert Path("/sys/class/net").exists()


def test_limits_and_what_was_placed(room: Room) -> None:
    def action(launcher: Launcher) -> tuple[int | None, int, tuple[str, ...]]:
        for _ in range(2):
            room.seen(launcher, "echo $RANDOM >>/app/lines")
        waiting(launcher)
        outcome = launcher.launch(
            room.view(), ["bash", "-c", "ulimit -v; echo x >>/app/lines"], limits=Limits(memory=1 << 30)
        )
        return outcome.status, len(Path(room.host("app/lines")).read_text().split()), outcome.limited

    status, lines, limited = room.run(action)
    assert (status, lines) == (0, 3) and limited


def test_it_ends_with_the_launcher(room: Room) -> None:
    def action(launcher: Launcher) -> int:
        for _ in range(2):
            room.seen(launcher, "true")
        return waiting(launcher)

    pid = room.run(action)
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(room.host("root")).exists()


def test_it_ends_with_a_launcher_that_is_killed(room: Room) -> None:
    def action(launcher: Launcher) -> int:
        for _ in range(2):
            room.seen(launcher, "true")
        pid = waiting(launcher)
        assert launcher._remote is not None
        os.kill(launcher._remote._pid, signal.SIGKILL)
        with pytest.raises(LaunchError):
            room.seen(launcher, "true")
        return pid

    room.keeps_root = True
    assert gone(room.run(action))


def test_which_views(room: Room) -> None:
    def action(launcher: Launcher) -> tuple[bool, bool]:
        plain = room.view()
        beneath = room.view(binds=[Bind("/app/mounted", "/usr")])
        return can_be_made_ahead(plain), can_be_made_ahead(beneath)

    assert room.run(action) == (True, False)


def test_the_mount_table(room: Room) -> None:
    def action(launcher: Launcher) -> list[bool]:
        private_mounts()
        table = MountTable()
        said = [table.changed()]
        kernel.mount("none", room.host("cache"), "tmpfs", 0)
        said += [table.changed(), table.changed()]
        table.close()
        return said

    # in a process of its own: the launcher of `run` is another
    assert room.run(action) == [False, True, False]


def test_a_limit_of_descriptors_is_no_trouble(room: Room) -> None:
    def before() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    def action(launcher: Launcher) -> list[int]:
        return [room.seen(launcher, "true").code for _ in range(20)]

    assert room.run(action, before=before) == [0] * 20
