"""Output of several processes on one descriptor: whole lines, each with its process's name before it."""

from __future__ import annotations

import os

LONGEST = 65536
"""Bytes of one line; a longer one goes on in a line of its own."""
_HELD = 4 * LONGEST
_ATOM = 4096
"""PIPE_BUF: a pipe that poll(2) calls writable takes as much without waiting."""


class Lines:
    """Cuts a stream of any bytes into lines, and puts `prefix` before each."""

    def __init__(self, prefix: bytes, longest: int = LONGEST) -> None:
        self._prefix = prefix
        self._longest = longest
        self._begun = b""

    def feed(self, data: bytes) -> bytes:
        """The lines that have ended by now."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        ended = [piece for line in lines for piece in self._pieces(line)]
        while len(self._begun) >= self._longest:
            ended.append(self._begun[: self._longest])
            self._begun = self._begun[self._longest :]
        return b"".join(self._prefix + line + b"\n" for line in ended)

    def rest(self) -> bytes:
        """The last line, which has not ended."""
        return self.feed(b"\n") if self._begun else b""

    def _pieces(self, line: bytes) -> list[bytes]:
        return [line[at : at + self._longest] for at in range(0, len(line), self._longest)] or [b""]


class Output:
    """What goes to a descriptor, without ever waiting for whoever reads it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.failure: OSError | None = None
        self._pending = bytearray()

    @property
    def waiting(self) -> bool:
        """There is something to write: call `write` when poll(2) says that one can."""
        return bool(self._pending)

    @property
    def full(self) -> bool:
        """Take no more from the processes for now."""
        return len(self._pending) >= _HELD

    def add(self, data: bytes) -> None:
        if self.failure is None:
            self._pending += data

    def write(self) -> None:
        """As much as can be written at once. After a `failure` all is dropped."""
        try:
            del self._pending[: os.write(self.fd, self._pending[:_ATOM])]
        except BlockingIOError:
            return
        except OSError as error:
            self.failure = error
            self._pending.clear()
