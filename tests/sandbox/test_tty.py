"""`tty=True`: a terminal of the view's own, relayed to the caller's, which is never handed over."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import Child, write
from support.rooms import ENV, PYTHON, Output, Room
from support.terminals import Terminal, at_a_terminal

from nsbuild.sandbox import Launcher, Outcome

STILL = "stty raw -echo; echo ready; "
"""The command wants its bytes as they are."""


def start(
    room: Room,
    terminal: Terminal,
    command: str | list[str],
    *,
    before: Callable[[], None] | None = None,
    patch: Callable[[], None] = lambda: None,
    **options: Any,
) -> Child[Outcome]:
    """Launch at a terminal. `patch` changes the launcher that does it."""
    view = room.view()
    argv = ["bash", "-c", command] if isinstance(command, str) else command

    def action(launcher: Launcher) -> Outcome:
        patch()
        return launcher.launch(view, argv, env=ENV, cwd="/app", tty=True, **options)

    child = room.start(action, before=before or at_a_terminal(terminal.name))
    terminal.started()
    return child


def lines(terminal: Terminal) -> list[str]:
    return terminal.output.rest().decode().splitlines()


def test_it_is_the_views_own(room: Room) -> None:
    terminal = Terminal()
    callers = os.stat(terminal.name).st_dev
    child = start(
        room,
        terminal,
        """
        tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo three; ls -1 /dev/pts
        (exec 9<>/dev/tty) && echo controlling
        stat -Lc '%t %d' /proc/[0-9]*/fd/* 2>/dev/null | sort -u
        exit 5
        """,
    )
    said = lines(terminal)
    assert child.result().exit_code == 5
    assert said[:5] == ["/dev/pts/0", "three", "0", "ptmx", "controlling"]
    held = [int(line.split()[1]) for line in said[5:] if line.startswith("88 ")]  # 0x88: the other end of a pty
    assert held and callers not in held, said


def test_it_controls_the_session_of_any_command(either: Room) -> None:
    """bash opens what its stdin is, and has a controlling terminal if it had none before."""
    terminal = Terminal()
    code = "import os; print(os.tcgetpgrp(os.open('/dev/tty', os.O_RDWR)) == os.getsid(0) == os.getpid())"
    child = start(either, terminal, [PYTHON, "-I", "-c", code])
    assert lines(terminal) == ["True"]
    assert child.result().exit_code == 0


def test_a_shell_has_job_control(room: Room) -> None:
    terminal = Terminal()
    before = terminal.modes()
    child = start(room, terminal, ["bash", "--norc", "-i"])
    terminal.says(b"$ ")
    assert b"job control" not in terminal.output.data and b"process group" not in terminal.output.data
    terminal.runs_cat()
    terminal.type(b"\x1a")
    terminal.says(b"Stopped")
    terminal.type(b"fg\r")
    terminal.says(b"fg\r\n")
    terminal.says(b"exec cat'\r\n")
    terminal.answers()
    terminal.type(b"\x03")
    terminal.says(b"$ ")
    terminal.type(b"echo status $?\r")
    terminal.says(b"status 130")
    terminal.type(b"exit 7\r")
    terminal.output.rest()
    outcome = child.result()
    assert (outcome.exit_code, outcome.forwarded) == (7, ())
    assert before[3] & termios.ISIG


def test_control_c_arrives_exactly_once(launched: Room) -> None:
    terminal = Terminal()
    script = "trap 'echo got' INT; trap 'echo ended; exit 7' USR2; echo ready; while :; do sleep 0.02; done"
    child = start(launched, terminal, script)
    terminal.says(b"ready\r\n")
    terminal.type(b"\x03")
    terminal.says(b"got")
    time.sleep(0.15)
    child.signal(signal.SIGUSR2)
    assert terminal.output.rest().replace(b"^C", b"").split() == [b"ended"]
    outcome = child.result()
    assert (outcome.exit_code, outcome.forwarded) == (7, (signal.SIGUSR2,))


def test_a_signal_from_elsewhere_is_passed_on(simple: Room) -> None:
    terminal = Terminal()
    child = start(simple, terminal, "trap 'echo got; exit 3' INT; echo ready; while :; do sleep 0.02; done")
    terminal.says(b"ready")
    child.signal(signal.SIGINT)
    terminal.says(b"got")
    terminal.output.rest()
    assert child.result().exit_code == 3


def test_end_of_file(either: Room) -> None:
    terminal = Terminal()
    child = start(either, terminal, "cat; echo status $?")
    terminal.becomes_raw()
    terminal.type(b"one\r")
    terminal.says(b"one\r\none\r\n")
    terminal.type(b"\x04")
    assert lines(terminal) == ["status 0"]
    assert child.result().exit_code == 0


# -- the caller's terminal


def test_it_is_raw_meanwhile_and_given_back_as_it_was(room: Room) -> None:
    terminal = Terminal()
    before = terminal.modes()
    child = start(room, terminal, "echo ready; read -r line; exit 3")
    terminal.says(b"ready")
    assert terminal.raw()
    terminal.type(b"\r")
    assert child.result().exit_code == 3
    assert terminal.modes() == before
    terminal.output.rest()


def test_it_is_given_back_when_we_are_told_to_end(launched: Room) -> None:
    terminal = Terminal()
    before = terminal.modes()
    child = start(launched, terminal, "echo ready; exec sleep 60")
    terminal.says(b"ready")
    assert terminal.raw()
    child.signal(signal.SIGTERM)
    assert child.result().exit_code == 128 + signal.SIGTERM
    assert terminal.modes() == before
    terminal.output.rest()


def test_it_is_given_back_at_the_time_limit(launched: Room) -> None:
    terminal = Terminal()
    before = terminal.modes()
    child = start(launched, terminal, "trap '' TERM; while :; do sleep 0.1; done", timeout=0.3, grace=0.1)
    assert child.result().exit_code == 124
    assert terminal.modes() == before
    terminal.output.rest()


def test_it_is_given_back_when_we_fail(launched: Room) -> None:
    terminal = Terminal()
    before = terminal.modes()

    def patch() -> None:
        from nsbuild.sandbox import terminal as module

        def broken(fd: int, data: bytes) -> None:
            assert terminal.raw()
            raise RuntimeError("a mistake of ours")

        vars(module)["write_all"] = broken

    child = start(launched, terminal, "echo ready; sleep 60", patch=patch)
    with pytest.raises(AssertionError, match="a mistake of ours"):
        child.result()
    assert terminal.modes() == before
    terminal.output.rest()


@pytest.mark.parametrize("argv", [["/nowhere"], ["/etc/passwd"]])
def test_it_is_given_back_when_there_is_nothing_to_run(simple: Room, argv: list[str]) -> None:
    terminal = Terminal()
    before = terminal.modes()
    child = start(simple, terminal, argv)
    assert child.result().exit_code == (127 if argv == ["/nowhere"] else 126)
    assert terminal.modes() == before
    terminal.output.rest()


def test_what_was_typed_ahead_is_for_whoever_comes_next(simple: Room) -> None:
    terminal = Terminal()
    script = "echo ready; while [ ! -e go ]; do sleep 0.02; done"
    view = simple.view()

    def action(launcher: Launcher) -> bytes:
        from nsbuild.sandbox.terminal import Terminal as Relay

        # It came too late to be passed on.
        Relay._take_input = lambda self: time.sleep(0.01)  # type: ignore[method-assign]
        launcher.launch(view, ["bash", "-c", script], env=ENV, cwd="/app", tty=True)
        return os.read(0, 99)

    child = simple.start(action, before=at_a_terminal(terminal.name))
    terminal.started()
    terminal.says(b"ready")
    terminal.type(b"next\r")
    write(simple.host("root/app/go"), "")
    assert child.result() == b"next\r"
    terminal.output.rest()


def test_it_is_raw_again_after_a_stop(simple: Room) -> None:
    """The caller's shell has had the terminal meanwhile."""
    terminal = Terminal(10, 20)
    before = terminal.modes()
    child = start(simple, terminal, "echo ready; read -r line; stty size; exit 3")
    terminal.says(b"ready")
    child.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    termios.tcsetattr(terminal.master, termios.TCSANOW, before)
    assert not terminal.raw()
    child.signal(signal.SIGCONT)
    terminal.becomes_raw()
    terminal.type(b"\r")
    assert child.result().exit_code == 3
    assert terminal.modes() == before
    terminal.output.rest()


def test_in_the_background_the_modes_are_the_shells(simple: Room) -> None:
    """Changing them would stop us, and spoil what the shell has set."""
    terminal = Terminal()
    go_r, go_w = os.pipe()
    said_r, said_w = os.pipe()

    def before() -> None:
        """Be a shell, and go on in its foreground job."""
        at_a_terminal(terminal.name)()
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            os.tcsetpgrp(0, os.getpgrp())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            return
        os.read(go_r, 1)
        os.tcsetpgrp(0, os.getpgrp())
        modes = termios.tcgetattr(0)
        modes[3] = termios.ICANON
        termios.tcsetattr(0, termios.TCSANOW, modes)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.1)
        os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, os.WUNTRACED)
        os.write(said_w, b"stopped" if os.WIFSTOPPED(status) else b"ended")
        if os.WIFSTOPPED(status):
            os.kill(pid, signal.SIGKILL)
        os._exit(0)

    child = start(simple, terminal, "echo ready; exec sleep 60", before=before)
    terminal.says(b"ready")
    os.write(go_w, b"g")
    assert os.read(said_r, 99) == b"ended"
    assert child.result().exit_code == 128 + signal.SIGTERM
    assert terminal.modes()[3] == termios.ICANON
    for fd in (go_r, go_w, said_r, said_w):
        os.close(fd)
    terminal.output.rest()


def without_control(room: Room, terminal: Terminal, script: str) -> Child[Outcome]:
    """At a terminal that controls another session, or none: the kernel tells us nothing of it."""
    view = room.view()

    def action() -> Outcome:
        os.setsid()
        for number in (0, 1, 2):
            os.dup2(terminal.slave, number)
        os.close(terminal.slave)
        os.close(terminal.master)
        room.enter()
        with Launcher(isolated=room.isolated) as launcher:
            return launcher.launch(view, ["bash", "-c", script], env=ENV, tty=True)

    child = Child(action)
    terminal.started()
    return child


def test_it_need_not_control_our_session(either: Room) -> None:
    terminal = Terminal()
    before = terminal.modes()
    child = without_control(either, terminal, "echo ready; read -r line; exit 3")
    terminal.says(b"ready")
    assert terminal.raw()
    terminal.type(b"\r")
    assert child.result().exit_code == 3
    assert terminal.modes() == before
    terminal.output.rest()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("echo ready; exec sleep 60", 128 + signal.SIGHUP),
        ("echo ready; exec yes", 128 + signal.SIGHUP),
        ("trap '' HUP; echo ready; sleep 0.3; exit 4", 4),
    ],
    ids=["quiet", "writing", "ignoring it"],
)
def test_when_it_goes_away_the_command_is_told(launched: Room, script: str, code: int) -> None:
    terminal = Terminal()
    child = without_control(launched, terminal, script)
    terminal.says(b"ready")
    time.sleep(0.1)
    os.close(terminal.master)
    assert child.result().exit_code == code


def test_it_goes_away_with_keys_unread(simple: Room) -> None:
    """The end of one direction is the end of both, whichever is noticed first."""
    terminal = Terminal()
    going_r, going_w = os.pipe()

    def patch() -> None:
        from nsbuild.sandbox import terminal as module

        show = vars(module)["write_all"]

        def broken(fd: int, data: bytes) -> None:
            if b"again" in data:
                os.write(going_w, b"going")
                select.select([0], [], [])  # a key is there, and nobody will have looked
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            show(fd, data)

        vars(module)["write_all"] = broken

    script = "stty -echo; echo ready; read -r line; echo again; exec sleep 60"
    child = start(simple, terminal, script, patch=patch)
    os.close(going_w)
    terminal.says(b"ready\r\n")
    terminal.type(b"a\r")
    going = Output(going_r)
    going.wait_for(b"going")
    terminal.type(b"b")
    assert child.result().exit_code == 128 + signal.SIGHUP
    going.rest()
    terminal.output.rest()


# -- size and modes


def test_the_size_is_there_from_the_first_moment(room: Room) -> None:
    terminal = Terminal(41, 97)

    def patch() -> None:
        from nsbuild.sandbox.terminal import Terminal as Relay

        begin = Relay._begin

        def late(self: Relay) -> None:
            time.sleep(0.2)
            begin(self)

        Relay._begin = late  # type: ignore[method-assign]

    child = start(room, terminal, "stty size", patch=patch)
    assert lines(terminal) == ["41 97"]
    assert child.result().exit_code == 0


def test_a_new_size_is_passed_on(launched: Room) -> None:
    terminal = Terminal(41, 97)
    child = start(launched, terminal, "trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.02; done")
    terminal.says(b"ready")
    terminal.resize(12, 34)
    terminal.says(b"12 34\r\n")
    assert child.result().exit_code == 3
    terminal.output.rest()


def test_the_modes_are_the_callers(either: Room) -> None:
    """Whoever has another key for erase or interrupt has it inside."""
    terminal = Terminal()
    modes = terminal.modes()
    modes[6][termios.VINTR] = b"\x18"
    termios.tcsetattr(terminal.master, termios.TCSANOW, modes)
    child = start(either, terminal, "stty -a; echo ready; exec sleep 60")
    terminal.output.wait_for(b"ready")
    assert b"intr = ^X" in terminal.output.data
    terminal.type(b"\x18")
    assert child.result().exit_code == 128 + signal.SIGINT
    terminal.output.rest()


# -- bytes


def test_every_byte_passes_inwards(either: Room) -> None:
    terminal = Terminal()
    terminal.change(0, termios.IGNCR | termios.INLCR | termios.ISTRIP | termios.IXON | termios.BRKINT)
    child = start(either, terminal, STILL + "head -c 256 | od -An -v -tx1 | tr -d ' \\n'")
    terminal.says(b"ready")
    terminal.type(bytes(range(256)))
    assert terminal.output.rest().strip() == bytes(range(256)).hex().encode()
    assert child.result().exit_code == 0


def test_every_byte_passes_outwards(room: Room) -> None:
    data = os.urandom(300_000)
    Path(room.host("app"), "bytes").write_bytes(data)
    os.chmod(room.host("app/bytes"), 0o644)
    terminal = Terminal()
    child = start(room, terminal, "stty raw; cat bytes; exit 2")
    assert terminal.output.rest() == data
    assert child.result().exit_code == 2


def test_much_input_while_the_command_writes(simple: Room) -> None:
    """Whoever waited for it to take its input would wait for ever: it waits for its output to be taken."""
    terminal = Terminal()
    data = os.urandom(200_000)
    script = STILL + "sleep 0.3; head -c 300000 /dev/zero | tr '\\0' x; head -c 200000 | sha256sum"
    child = start(simple, terminal, script)
    terminal.says(b"ready\n")
    terminal.type(data)
    said = terminal.output.rest()
    assert said.count(b"x") == 300_000
    assert hashlib.sha256(data).hexdigest().encode() in said
    assert child.result().exit_code == 0


def test_what_was_not_read_at_the_end_is_not_lost(launched: Room) -> None:
    terminal = Terminal()

    def patch() -> None:
        from nsbuild.sandbox import terminal as module

        show = vars(module)["write_all"]

        def slow(fd: int, data: bytes) -> None:
            if data.startswith(b"x"):
                time.sleep(0.5)
            show(fd, data)

        vars(module).update(write_all=slow, _CHUNK=1000)

    child = start(launched, terminal, "printf x; head -c 8000 /dev/zero | tr '\\0' y; exit 6", patch=patch)
    said = terminal.output.rest()
    assert said.count(b"y") == 8000
    assert child.result().exit_code == 6


def test_errors_that_go_elsewhere_go_there(either: Room) -> None:
    path = f"{either.base}/errors"
    write(path, "")
    os.chmod(path, 0o666)
    terminal = Terminal()

    def before() -> None:
        at_a_terminal(terminal.name)()
        os.dup2(os.open(path, os.O_WRONLY), 2)

    child = start(either, terminal, "echo out; echo err >&2", before=before)
    assert terminal.output.rest() == b"out\r\n"
    assert child.result().exit_code == 0
    assert Path(path).read_text() == "err\n"


# -- the end


def test_a_process_in_the_background_holds_nothing_up(room: Room) -> None:
    terminal = Terminal()
    child = start(room, terminal, "trap '' HUP; sleep 98 & (setsid sleep 99 &); echo said; exit 3")
    assert lines(terminal) == ["said"]
    assert child.result().exit_code == 3


def test_the_terminal_passed_out_of_the_view_holds_nothing_up(simple: Room) -> None:
    terminal = Terminal()
    path = simple.host("app/socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        os.chmod(path, 0o777)
        code = (
            "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect('/app/socket');"
            "socket.send_fds(s, [b'x'], [1]); print('sent', flush=True)"
        )
        child = start(simple, terminal, [PYTHON, "-I", "-c", code])
        assert child.result().exit_code == 0
        _, fds, _, _ = socket.recv_fds(receiver, 1, 1)
        os.close(fds[0])
    assert terminal.output.rest() == b"sent\r\n"


def test_a_command_may_close_it_and_come_back(launched: Room) -> None:
    """The launcher does not take that for the end, and hang up."""
    terminal = Terminal()
    script = "echo bye; exec </dev/null >/dev/null 2>&1; sleep 0.3; echo back >/dev/tty; exit 4"
    child = start(launched, terminal, script)
    assert lines(terminal) == ["bye", "back"]
    assert child.result().exit_code == 4


@pytest.mark.parametrize("status", [0, 1, 255])
def test_the_status_is_the_commands(simple: Room, status: int) -> None:
    terminal = Terminal()
    assert start(simple, terminal, f"exit {status}").result().exit_code == status
    terminal.output.rest()


# -- not here


@pytest.mark.parametrize("number", [0, 1])
def test_it_needs_a_terminal_to_relay_to(launched: Room, number: int) -> None:
    terminal = Terminal()

    def before() -> None:
        at_a_terminal(terminal.name)()
        os.dup2(os.open("/dev/null", os.O_RDWR), number)

    child = start(launched, terminal, "touch /app/ran", before=before)
    with pytest.raises(AssertionError, match="ValueError: a terminal for the command needs terminals"):
        child.result()
    assert not os.path.exists(launched.host("app/ran"))
    terminal.output.rest()


def test_output_goes_to_one_place(simple: Room) -> None:
    terminal = Terminal()
    child = start(simple, terminal, "true", on_output=print)
    with pytest.raises(AssertionError, match="exclude each other"):
        child.result()
    terminal.output.rest()


def test_nobody_else_pays_for_it(simple: Room) -> None:
    def action(launcher: Launcher) -> bool:
        assert simple.seen(launcher, "true").code == 0
        return "nsbuild.sandbox.terminal" in sys.modules

    assert not simple.run(action)
