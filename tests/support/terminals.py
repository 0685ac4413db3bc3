"""The terminal that a person sits at: a pty whose master the test holds."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Callable
from typing import Any

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

    def type(self, data: bytes, timeout: float = 20) -> None:
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

    def says(self, text: bytes, timeout: float = 20) -> None:
        """Wait until it has been shown, and forget everything up to there."""
        self.output.wait_for(text, timeout)
        self.output.data = self.output.data.partition(text)[2]
