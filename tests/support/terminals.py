"""The terminal that a person sits at: a pty whose master the test holds."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import termios
import time
from collections.abc import Callable
from typing import Any

import pyte

from support.processes import eventually
from support.rooms import Output

RAW_OFF = termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN


def at_a_terminal(slave: str) -> Callable[[], None]:
    """Make it the controlling terminal and all three descriptors, as a login does."""

    def before() -> None:
        os.setsid()
        fd = os.open(slave, os.O_RDWR)
        fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
        for number in (0, 1, 2):
            os.dup2(fd, number)
        os.close(fd)

    return before


class Terminal:
    """A pty. The other end stays open until `started`, or else there would be nothing to read from."""

    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        self.master, self.slave = os.openpty()
        self.name = os.ttyname(self.slave)
        self.output = Output(self.master)
        self.resize(rows, columns)

    def started(self) -> None:
        os.close(self.slave)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.master)

    def change(self, flag: int, value: int) -> None:
        """Set one of the four words of flags."""
        modes = self.modes()
        modes[flag] = value
        termios.tcsetattr(self.master, termios.TCSANOW, modes)

    def raw(self) -> bool:
        modes = self.modes()
        return not modes[3] & RAW_OFF and not modes[1] & termios.OPOST

    def becomes_raw(self) -> None:
        assert eventually(self.raw), self.modes()

    def type(self, data: bytes, timeout: float = 50) -> None:
        """Everything, reading meanwhile what comes: a terminal never waits for its keys to be taken."""
        deadline = time.monotonic() + timeout
        os.set_blocking(self.master, False)
        while data:
            assert time.monotonic() < deadline, f"{len(data)} bytes were never taken"
            readable, writable, _ = select.select([self.master], [self.master], [], 1)
            if readable:
                self.output.data += os.read(self.master, 65536)
            if writable:
                try:
                    data = data[os.write(self.master, data[:4096]) :]
                except BlockingIOError:
                    continue
        os.set_blocking(self.master, True)

    def runs_cat(self) -> None:
        """Have the shell there run cat, and wait until it has the foreground and answers."""
        self.type(b"sh -c 'echo u''p; exec cat'\r")
        self.says(b"up\r\n")
        self.answers()

    def answers(self) -> None:
        """Wait until what cat is given comes back, after the echo."""
        self.type(b"word\r")
        self.says(b"word\r\nword\r\n")

    def says(self, text: bytes, timeout: float = 50) -> None:
        """Wait until it has been shown, and forget everything up to there."""
        self.output.wait_for(text, timeout)
        self.output.data = self.output.data.partition(text)[2]


class Screen(Terminal):
    """What a person sees on it: pyte obeys what it is sent."""

    def __init__(self, rows: int = 40, columns: int = 80) -> None:
        super().__init__(rows, columns)
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._fed = 0

    def resize(self, rows: int, columns: int) -> None:
        super().resize(rows, columns)
        if hasattr(self, "screen"):
            self.screen.resize(rows, columns)

    def lines(self) -> list[str]:
        """Down to the last one that is not empty."""
        self._stream.feed(self.output.data[self._fed :])
        self._fed = len(self.output.data)
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")

    def shows(self, text: str | re.Pattern[str], timeout: float = 50) -> list[str]:
        """Wait until a line has it; the screen as it is then."""
        pattern = re.compile(re.escape(text)) if isinstance(text, str) else text
        deadline = time.monotonic() + timeout
        while not any(pattern.search(line) for line in self.lines()):
            shown = f"{text!r} is not on the screen:\n" + "\n".join(self.lines())
            assert select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0], shown
            assert self.output.more(deadline), shown
        return self.lines()

    def ends(self, timeout: float = 50) -> list[str]:
        """The screen once nobody can write to it any more."""
        self.output.rest(timeout)
        return self.lines()
