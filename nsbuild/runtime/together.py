"""Processes that live and end together.

One loop, no threads: the end of each shows on its descriptor, its output on its pipe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from nsbuild.errors import AfterCommand
from nsbuild.runtime.dyno import could_not_overlay
from nsbuild.runtime.lines import Lines, Output
from nsbuild.sandbox import AfterCommandError, Launcher, LaunchError, Outcome, View
from nsbuild.sandbox.init import FORWARDED
from nsbuild.sandbox.kernel import signalfd

if TYPE_CHECKING:
    from nsbuild.sandbox.remote import RemoteRunning
    from nsbuild.sandbox.running import Running

GRACE = 10.0
"""Seconds from SIGTERM to SIGKILL. Heroku gives 30: https://devcenter.heroku.com/articles/dynos"""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """They are read from a descriptor: a handler that raised would lose what has been started."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@dataclass
class Process:
    """One of them. `pipe` brings what it prints, and is -1 when that has ended."""

    name: str
    launcher: Launcher
    views: Iterator[View]
    argv: Sequence[str]
    env: Mapping[str, str]
    lines: Lines
    pipe: int = field(default=-1, init=False)
    running: Running | RemoteRunning = field(init=False)

    def start(self) -> None:
        self.pipe, theirs = os.pipe()
        os.set_blocking(self.pipe, False)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            view = next(self.views)
            stdio = (null, theirs, theirs)
            self.running = self.launcher.start(view, self.argv, env=self.env, cwd=self.env["HOME"], stdio=stdio)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(theirs)
            os.close(null)

    def pump(self, output: Output) -> bool:
        """Pass on what is there; False when that is nothing."""
        if self.pipe < 0:
            return False
        try:
            data = os.read(self.pipe, 65536)
        except BlockingIOError:
            return False
        output.add(self.lines.feed(data))
        if not data:
            self.close()
        return True

    def drain(self, output: Output) -> None:
        """What is left. Every writer is dead, unless the pipe was passed out of the sandbox."""
        while self.pump(output):
            continue
        output.add(self.lines.rest())
        self.close()

    def close(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1


class Together:
    """A context: whatever still runs at its end is killed. Signals must be blocked (`signals_blocked`)."""

    def __init__(self, processes: Sequence[Process], output: Output, tell: Callable[[str], None]) -> None:
        self._processes = processes
        self._output = output
        self._tell = tell
        self._told: list[str] = []
        """What is to be told once the output before it is out."""
        self._alive: list[Process] = []
        self._status: int | None = None
        self._error: Exception | None = None
        self._deadline: float | None = None
        """When they are to have ended, once they have been asked to."""
        self._killed = self._signalled = False
        self._signals = signalfd(FORWARDED)

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._alive:
            process.running.abandon()
            process.close()
        os.close(self._signals)

    def run(self) -> int:
        """Until all have ended: the exit status of the first, or 128+n of the signal that came before.

        Raises what starting or ending one raised, and AfterCommand when the output cannot be written.
        """
        for process in self._processes:
            process.start()
            self._alive.append(process)
        while self._alive or (self._output.waiting and not (self._signalled and self._overdue())):
            self._turn()
        self._say_what_is_told()
        if self._error is not None:
            raise self._error
        assert self._status is not None
        return self._status

    def _turn(self) -> None:
        actions: dict[int, Callable[[], object]] = {self._signals: self._take_signal}
        for process in self._alive:
            actions[process.running.fd] = partial(self._attend, process)
            if process.pipe >= 0 and not self._output.full:
                actions[process.pipe] = partial(process.pump, self._output)
        poll = select.poll()
        for fd in actions:
            poll.register(fd, select.POLLIN)
        if self._output.waiting:
            actions[self._output.fd] = self._write
            poll.register(self._output.fd, select.POLLOUT)
        wait = None if self._deadline is None or self._killed else max(0.0, self._deadline - time.monotonic()) * 1000
        for fd, _ in poll.poll(wait):
            actions[fd]()
        if self._overdue() and not self._killed:
            self._kill()
        if not self._output.waiting:
            self._say_what_is_told()

    def _attend(self, process: Process) -> None:
        if process.running.read():
            return
        self._alive.remove(process)
        try:
            outcome = process.running.finish()
        except LaunchError as error:
            process.close()
            if could_not_overlay(error):
                if self._deadline is None:
                    process.start()
                    self._alive.append(process)
                return
            self._fail(error)
            return
        except (AfterCommandError, OSError) as error:
            process.drain(self._output)
            self._fail(error)
            return
        process.drain(self._output)
        others = "; ending the others" if self._alive and self._deadline is None else ""
        self._told.append(f"{process.name} {_ended(outcome)}{others}.")
        self._end(outcome.exit_code)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._end(1)

    def _end(self, status: int) -> None:
        """Ask all to end, and keep the first status."""
        if self._status is None:
            self._status = status
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE
            for process in self._alive:
                process.running.kill(signal.SIGTERM)

    def _overdue(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _kill(self) -> None:
        self._killed = True
        for process in self._alive:
            self._told.append(f"{process.name} has not ended {GRACE:g} seconds after SIGTERM: it is killed.")
            process.running.kill(signal.SIGKILL)

    def _take_signal(self) -> None:
        (number,) = struct.unpack_from("<I", os.read(self._signals, 128))
        if signal.getsignal(number) == signal.SIG_IGN:
            return  # nohup: blocked as it is, it arrives all the same
        if number not in _ENDING:
            for process in self._alive:
                process.running.kill(number)
            return
        if self._deadline is None:
            self._told.append(f"{signal.Signals(number).name}: ending all.")
        self._signalled = True
        self._end(128 + number)

    def _write(self) -> None:
        self._output.write()
        failure = self._output.failure
        if failure is None:
            return
        if failure.errno not in (errno.EPIPE, errno.EIO):
            self._error = self._error or AfterCommand(f"stdout cannot be written: {failure.strerror}.")
        self._end(128 + signal.SIGPIPE)

    def _say_what_is_told(self) -> None:
        for sentence in self._told:
            self._tell(sentence)
        self._told.clear()


def _ended(outcome: Outcome) -> str:
    if outcome.signal is not None:
        return f"was ended by {_name(outcome.signal)}"
    if outcome.status is not None:
        return f"ended with status {outcome.status}"
    return f"could not be started: /bin/bash: {outcome.error}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time one
