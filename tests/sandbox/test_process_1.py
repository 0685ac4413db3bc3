"""The first process of a view: reaps, forwards, ends; and how an end is told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from support.processes import eventually, write
from support.rooms import ENV, Output, Room, Seen

from nsbuild.sandbox import Launcher, LaunchError, privileges
from nsbuild.sandbox import launcher as launcher_module

COUNTING = """
for s in TERM INT HUP QUIT USR1 ALRM; do trap "echo got-$s" $s; done
trap 'echo ended; exit 7' USR2
echo ready
while :; do sleep 0.02; done
"""


def test_orphans_are_reaped(room: Room) -> None:
    text = room.text("""
for i in $(seq 20); do (sleep 0.01 & ) ; done
for i in $(seq 100); do
    sleep 0.02
    zombies=$(grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l)
    others=$(grep -l '^Name:.sleep' /proc/[0-9]*/status 2>/dev/null | wc -l)
    [ $zombies-$others = 0-0 ] && break
done
echo $zombies $others
""")
    assert text == "0 0"


def test_a_daemon_is_dead_when_the_launch_returns(room: Room) -> None:
    """It has left its session, ignores what can be ignored and still holds the output."""
    child, output = room.begin("(trap '' TERM HUP INT; exec setsid sleep 1000) & (sleep 1000 &); echo done; exit 3")
    assert output.rest() == b"done\n"
    assert child.result().exit_code == 3


def test_output_of_a_daemon_does_not_hold_the_launch_up(room: Room) -> None:
    assert room.text("(setsid sleep 1000 &) ; echo done") == "done"


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "ALRM"])
def test_a_signal_reaches_the_command_exactly_once(launched: Room, name: str) -> None:
    _signal_once(launched, name)


def test_a_signal_to_root_reaches_the_command_exactly_once(room: Room) -> None:
    _signal_once(room, "TERM")


def _signal_once(room: Room, name: str, *, group: bool = False) -> None:
    child, output = room.begin(COUNTING, before=os.setsid)
    output.wait_for(b"ready\n")
    number = getattr(signal, f"SIG{name}")
    if group:
        os.killpg(child.pid, number)
    else:
        child.signal(number)
    output.wait_for(b"got")
    time.sleep(0.15)
    child.signal(signal.SIGUSR2)
    told = output.rest().decode().split()
    assert [word for word in told if word != "Quit"] == ["ready", f"got-{name}", "ended"]  # bash tells of its child
    outcome = child.result()
    assert outcome.exit_code == 7
    assert outcome.forwarded == (number, signal.SIGUSR2)


def test_interrupting_the_whole_group_reaches_the_command_exactly_once(room: Room) -> None:
    """Ctrl-C goes to every process of the foreground group: none of ours may be in it but the launcher."""
    _signal_once(room, "INT", group=True)


def test_an_interrupt_reaches_what_the_shell_waits_for(launched: Room) -> None:
    """As a terminal's would; a shell alone lets its child finish."""
    child, output = launched.begin("trap : INT; sh -c 'echo ready; exec sleep 1000'; echo after; exit 6")
    output.wait_for(b"ready")
    child.signal(signal.SIGINT)
    assert output.rest().split() == [b"ready", b"after"]
    assert child.result().exit_code == 6


def test_a_signal_sent_while_the_view_is_being_made_is_not_lost(simple: Room) -> None:
    reached_r, reached_w = os.pipe()
    go_r, go_w = os.pipe()

    def before() -> None:
        real = privileges.drop_all

        def slow() -> None:
            os.write(reached_w, b"reached")
            os.read(go_r, 1)
            real()

        privileges.drop_all = slow

    child, output = simple.begin("echo ran; sleep 1000", before=before)
    os.close(reached_w)
    reached = Output(reached_r)
    reached.wait_for(b"reached")
    child.signal(signal.SIGTERM)
    time.sleep(0.2)  # the launcher has it, most likely
    os.write(go_w, b"g")
    output.rest()
    assert child.result().exit_code == 143
    reached.rest()
    os.close(go_r)
    os.close(go_w)


def test_signals_from_inside_are_not_forwarded(either: Room) -> None:
    assert either.text("trap 'echo got' TERM USR1; kill -TERM 1; kill -USR1 1; sleep 0.1; echo end") == "end"


def test_process_1_cannot_be_killed_from_inside(simple: Room) -> None:
    assert simple.text("for s in KILL STOP ABRT SEGV; do kill -$s 1; done; echo alive") == "alive"


def test_kill_9_of_the_launcher_leaves_no_process(room: Room) -> None:
    """No mount either: nobody is left in the namespace. (The fixtures count processes and mounts.)"""
    room.keeps_root = not room.isolated
    script = "trap '' HUP TERM INT; (trap '' HUP; exec setsid sleep 1000) & echo ready; sleep 1000; sleep 1000"
    child, output = room.begin(script)
    output.wait_for(b"ready")
    child.signal(signal.SIGKILL)
    output.rest()
    assert os.WTERMSIG(child.ended()) == signal.SIGKILL


def test_kill_9_of_the_caller_gives_everything_back_through_its_launcher(ground: str) -> None:
    room = Room(ground, "root-isolated" if os.geteuid() == 0 else "user-isolated")
    child, output = room.begin("echo kept >/app/f; echo ready; sleep 1000", before=os.setsid)
    output.wait_for(b"ready")
    os.killpg(child.pid, signal.SIGKILL)  # the launcher's process is in none of the caller's groups
    output.rest()
    child.ended()
    assert eventually(lambda: not os.path.exists(room.host("root")))
    assert sorted(os.listdir(room.workspace)) == ["app", "cache", "env", "tmp", "var-tmp"]
    assert Path(room.host("app/f")).read_text() == "kept\n"


def test_kill_9_of_an_isolated_launcher_ends_the_command_and_is_told(ground: str) -> None:
    room = Room(ground, "root-isolated" if os.geteuid() == 0 else "user-isolated")
    room.keeps_root = True

    def action(launcher: Launcher) -> list[str]:
        assert launcher._remote is not None
        server = launcher._remote._pid
        told = []
        for _ in range(2):
            try:
                launcher.launch(
                    room.view(),
                    ["bash", "-c", "echo ready; sleep 1000"],
                    env=ENV,
                    on_output=lambda _: os.kill(server, signal.SIGKILL),
                )
            except LaunchError as error:
                told.append(error.step)
        return told

    assert room.run(action) == ["launcher", "launcher"]


def test_a_launcher_that_dies_before_the_death_signal_is_set(ground: str) -> None:
    """A pipe tells what PR_SET_PDEATHSIG, set too late, does not."""
    room = Room(ground, "user")
    room.keeps_root = True
    reader, writer = os.pipe()
    dead_r, dead_w = os.pipe()

    def before() -> None:
        real = privileges.die_with_parent

        def late() -> None:
            os.write(writer, b"reached")
            os.read(dead_r, 1)
            real()

        def next_step() -> None:
            os.write(writer, b"went on")

        privileges.die_with_parent = late
        privileges.hide_command_line = next_step

    child, output = room.begin("echo ran; sleep 1000", before=before)
    os.close(writer)
    steps = Output(reader)
    steps.wait_for(b"reached")
    child.signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    os.write(dead_w, b"d")
    child.ended()
    assert output.rest() == b""
    assert steps.rest() == b"reached"
    os.close(dead_r)
    os.close(dead_w)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 17", 17),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("kill -SEGV $$", 139),
        ("nonexistent", 127),
        ("/etc/passwd", 126),
    ],
)
def test_exit_codes(launched: Room, script: str, code: int) -> None:
    seen = launched.launch(script)
    assert seen.code == code
    assert seen.outcome.signal == (code - 128 if code in (137, 139, 143) else None)


def test_commands_that_cannot_be_started(room: Room) -> None:
    app = room.host("app")
    write(f"{app}/plain", "echo plain $1 $0")
    write(f"{app}/closed", "#!/bin/sh\necho closed")
    write(f"{app}/lost", "#!/nonexistent/interpreter\n")
    write(f"{app}/ours", "#!/bin/sh\necho ours $1")
    os.mkdir(f"{app}/bin")
    write(f"{app}/bin/ours", "#!/bin/sh\n")
    for name in ("plain", "lost", "ours"):
        os.chmod(f"{app}/{name}", 0o755)
    room.own(room.workspace)
    env = {**ENV, "PATH": "/app/bin:/nonexistent:/app:/usr/bin:/bin"}

    def action(launcher: Launcher) -> dict[str, tuple[int, str, str]]:
        found = {}
        for word in (
            "/app/plain",
            "/app/closed",
            "/app/lost",
            "/app",
            "/nonexistent",
            "nonexistent",
            "ours",
            "plain",
            "./ours",
            "/etc/passwd/x",
            "",
        ):
            seen = room.seen(launcher, [word, "a b"], env=env)
            found[word] = (seen.code, seen.outcome.error, seen.text)
        seen = room.seen(launcher, ["true"], cwd="/nonexistent")
        found["no cwd"] = (seen.code, seen.outcome.error, seen.text)
        return found

    assert room.run(action) == {
        "/app/plain": (0, "", "plain a b /app/plain"),  # without #!, as a shell would
        "/app/closed": (126, "cannot execute", ""),
        "/app/lost": (127, "not found", ""),
        "/app": (126, "cannot execute", ""),
        "/nonexistent": (127, "not found", ""),
        "nonexistent": (127, "not found", ""),
        "ours": (0, "", "ours a b"),  # past one on PATH that is not executable
        "plain": (0, "", "plain a b /app/plain"),
        "./ours": (0, "", "ours a b"),
        "/etc/passwd/x": (127, "not found", ""),
        "": (127, "not found", ""),
        "no cwd": (126, "no working directory", ""),
    }


def test_a_command_that_is_too_long_is_told(simple: Room) -> None:
    seen = simple.launch(["true", "x" * 200_000])
    assert (seen.code, seen.outcome.error, seen.outcome.error_number) == (126, "cannot execute", 7)


def test_a_large_environment_and_many_arguments(room: Room) -> None:
    env = {**ENV, **{f"V{i}": "x" * 100_000 for i in range(10)}}
    words = ["y" * 1000] * 300
    code = "print(json.dumps([sum(map(len, os.environ.values())) >= 1000000, len(sys.argv)]))"
    assert room.python(code, env=env) == [True, 1]
    assert room.text(["bash", "-c", "echo $#", "bash", *words], env=env) == "300"


def ended_when_ready(room: Room, script: str, *, grace: float) -> tuple[Seen, float]:
    """A launch whose time limit passes when the script says `ready`, and the seconds that it took from then on."""

    def action(launcher: Launcher) -> tuple[Seen, float]:
        chunks: list[bytes] = []
        moments: list[float] = []

        class Clock:
            @staticmethod
            def monotonic() -> float:
                return time.monotonic() + (3600 if moments else 0)

        def told(data: bytes) -> None:
            chunks.append(data)
            if b"ready" in b"".join(chunks) and not moments:
                moments.append(time.monotonic())

        vars(launcher_module)["time"] = Clock
        argv = ["bash", "-c", script]
        outcome = launcher.launch(room.view(), argv, env=ENV, cwd="/app", on_output=told, timeout=3600, grace=grace)
        return Seen(outcome, b"".join(chunks)), time.monotonic() - moments[0]

    return room.run(action)


def test_the_time_limit_asks_first(launched: Room) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.02; done"
    seen, _ = ended_when_ready(launched, script, grace=1000)
    assert (seen.code, seen.text) == (124, "ready\nbye")
    assert (seen.outcome.status, seen.outcome.timed_out) == (3, True)


def test_the_time_limit_then_kills(room: Room) -> None:
    script = "trap '' TERM; (trap '' TERM; sleep 1000) & echo ready; sleep 1000; sleep 1000"
    seen, seconds = ended_when_ready(room, script, grace=0.2)
    assert (seen.code, seen.text, seen.outcome.timed_out) == (124, "ready", True)
    assert seen.outcome.signal == signal.SIGKILL
    assert seconds >= 0.2


def test_the_time_limit_is_in_seconds(launched: Room) -> None:
    began = time.monotonic()
    assert launched.launch("sleep 1000", timeout=0.3).outcome.timed_out
    assert time.monotonic() - began >= 0.3


def test_a_command_within_its_time_limit(launched: Room) -> None:
    seen = launched.launch("exit 4", timeout=30)
    assert (seen.code, seen.outcome.timed_out) == (4, False)


def test_resources_are_counted(launched: Room) -> None:
    """Of everything that ran inside: pid 1 has waited for it."""
    script = "i=0; while [ $i -lt 50000 ]; do i=$((i + 1)); done"
    outcome = launched.launch(f"({script})").outcome
    assert outcome.user_seconds > 0.02
    assert outcome.max_rss_kib > 1000
    assert set(outcome.timings) == {"prepare", "start", "run", "give back"}
