"""The command's three descriptors: pipes and files as they are, a terminal never."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from support.processes import Child, write
from support.rooms import ENV, Output, Room
from support.terminals import at_a_terminal

from nsbuild.sandbox import Launcher, Outcome


def test_pipes_can_be_opened_again_by_name(room: Room) -> None:
    """`echo >/dev/stdout` opens the pipe by its owner's rights, and root has made it."""

    def action(launcher: Launcher) -> tuple[int, bytes, bytes]:
        out_r, out_w = os.pipe()
        err_r, err_w = os.pipe()
        script = (
            "echo one >/dev/stdout; echo two >/dev/stderr; echo three | tee /dev/stderr; echo four >/proc/self/fd/2"
        )
        try:
            outcome = launcher.launch(
                room.view(), ["bash", "-c", script], env=ENV, cwd="/app", stdout=out_w, stderr=err_w
            )
            return outcome.exit_code, os.read(out_r, 999), os.read(err_r, 999)
        finally:
            for fd in (out_r, out_w, err_r, err_w):
                os.close(fd)

    assert room.run(action) == (0, b"one\nthree\n", b"two\nthree\nfour\n")


def test_on_output_is_one_pipe_in_true_order(room: Room) -> None:
    script = "for i in $(seq 100); do echo o$i; echo e$i >&2; done; echo s >/dev/stdout"
    expected = [f"{letter}{i}" for i in range(1, 101) for letter in "oe"]
    assert room.text(script).split() == [*expected, "s"]


def test_input_from_a_pipe_passes_through(room: Room) -> None:
    def action(launcher: Launcher) -> list[bytes]:
        reader, writer = os.pipe()
        os.write(writer, b"given")
        os.close(writer)
        chunks: list[bytes] = []
        launcher.launch(room.view(), ["cat"], env=ENV, stdin=reader, on_output=chunks.append)
        os.close(reader)
        return chunks

    assert room.run(action) == [b"given"]


def test_output_to_a_file(room: Room) -> None:
    path = f"{room.base}/output"

    def action(launcher: Launcher) -> None:
        with open(path, "wb") as file:  # noqa: PTH123
            argv = ["bash", "-c", "echo out; echo err >&2"]
            launcher.launch(room.view(), argv, env=ENV, stdout=file.fileno(), stderr=file.fileno())

    write(path, "")
    os.chmod(path, 0o666)
    room.run(action)
    assert Path(path).read_text() == "out\nerr\n"


def test_much_output_arrives_whole(launched: Room) -> None:
    assert len(launched.launch("head -c 3000000 /dev/zero; exit 0").data) == 3_000_000


def test_a_reader_that_goes_away_ends_the_writer(simple: Room) -> None:
    """The launcher holds no copy of the command's pipe."""

    def action(launcher: Launcher) -> int:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 10)
            os._exit(0)
        os.close(reader)
        outcome = launcher.launch(simple.view(), ["yes"], env=ENV, stdout=writer, stderr=writer, timeout=20)
        os.close(writer)
        os.waitpid(pid, 0)
        return outcome.exit_code

    assert simple.run(action) == 128 + signal.SIGPIPE


def at_terminal(room: Room, script: str) -> tuple[Child[Outcome], Output, int]:
    master, slave = os.openpty()
    view = room.view()
    argv = ["bash", "-c", script]
    child = room.start(
        lambda launcher: launcher.launch(view, argv, env=ENV, cwd="/app"), before=at_a_terminal(os.ttyname(slave))
    )
    os.close(slave)
    return child, Output(master), master


LOOK = """
tty; [ -t 0 ] || [ -t 1 ] || [ -t 2 ] && echo terminal
read -r line && echo "read $line"
readlink /proc/self/fd/0
(exec 9<>/dev/tty) 2>/dev/null && echo controlling
ls -l /proc/*/fd 2>/dev/null | grep -q 'pts/' && echo held
for i in $(seq 30); do echo o$i; echo e$i >&2; done
stty -a </dev/stdout >/dev/null 2>&1 && echo modes
exit 5
"""


def test_a_terminal_is_never_handed_over(room: Room) -> None:
    child, output, _ = at_terminal(room, LOOK)
    lines = output.rest().decode().split("\r\n")
    assert child.result().exit_code == 5
    assert lines[:2] == ["not a tty", "/dev/null"]
    assert lines[2:] == [f"{letter}{i}" for i in range(1, 31) for letter in "oe"] + [""]


def test_only_one_output_is_a_terminal(simple: Room) -> None:
    """The other goes where it was sent."""
    path = f"{simple.base}/errors"
    write(path, "")
    os.chmod(path, 0o666)
    master, slave = os.openpty()
    name = os.ttyname(slave)

    def before() -> None:
        at_a_terminal(name)()
        os.dup2(os.open(path, os.O_WRONLY), 2)

    view = simple.view()
    argv = ["bash", "-c", "echo out; echo err >&2; [ -t 1 ] && echo terminal"]
    child = simple.start(lambda launcher: launcher.launch(view, argv, env=ENV), before=before)
    os.close(slave)
    assert Output(master).rest() == b"out\r\n"
    assert child.result().exit_code == 1
    assert Path(path).read_text() == "err\n"


def test_control_c_at_the_terminal_arrives_exactly_once(launched: Room) -> None:
    script = "trap 'echo got' INT; trap 'echo ended; exit 7' USR2; echo ready; while :; do sleep 0.02; done"
    child, output, master = at_terminal(launched, script)
    output.wait_for(b"ready\r\n")
    os.write(master, b"\x03")
    output.wait_for(b"got")
    time.sleep(0.15)
    child.signal(signal.SIGUSR2)
    assert output.rest().replace(b"^C", b"").split() == [b"ready", b"got", b"ended"]
    assert child.result().exit_code == 7


def test_control_z_does_not_stop_the_command_apart(simple: Room) -> None:
    """It has no terminal to be stopped from; nothing hangs."""
    child, output, master = at_terminal(simple, "echo ready; sleep 0.2; echo done")
    output.wait_for(b"ready")
    os.write(master, b"\x1a")
    time.sleep(0.1)
    os.killpg(child.pid, signal.SIGCONT)
    assert b"done" in output.rest()
    assert child.result().exit_code == 0
