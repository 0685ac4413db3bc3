"""The command's three descriptors, and the pipes that stand between it and a terminal."""

from __future__ import annotations

import errno
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Stdio:
    """What the child gets (`child`) and what is to be read meanwhile (`pumps`). A context manager."""

    def __init__(
        self,
        stdin: int,
        stdout: int,
        stderr: int,
        on_output: Callable[[bytes], None] | None,
        on_error: Callable[[bytes], None] | None,
    ) -> None:
        self._opened: list[int] = []
        self.pumps: dict[int, Callable[[bytes], None]] = {}
        if os.isatty(stdin):
            stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            self._opened.append(stdin)
        if on_output is not None:
            stdout = self._pipe(on_output)
            stderr = stdout if on_error is None else self._pipe(on_error)
        else:
            # Whoever holds a terminal can read its keystrokes and change its modes.
            same = os.isatty(stdout) and os.isatty(stderr) and os.fstat(stdout).st_rdev == os.fstat(stderr).st_rdev
            outer_out, outer_err = stdout, stderr
            if os.isatty(outer_out):
                stdout = self._pipe(lambda data: _show(outer_out, data))
            if same:
                stderr = stdout
            elif os.isatty(outer_err):
                stderr = self._pipe(lambda data: _show(outer_err, data))
        self.child = (stdin, stdout, stderr)

    def _pipe(self, sink: Callable[[bytes], None]) -> int:
        read_end, write_end = os.pipe()
        self.pumps[read_end] = sink
        self._opened.append(write_end)
        return write_end

    def close_child_ends(self) -> None:
        for fd in self._opened:
            os.close(fd)
        self._opened = []

    def pump(self, fd: int) -> bool:
        """Pass one chunk on; False once the pipe has ended."""
        data = os.read(fd, 65536)
        try:
            if data:
                self.pumps[fd](data)
        except TerminalGone:
            data = b""  # and who writes more gets SIGPIPE
        if not data:
            os.close(fd)
            del self.pumps[fd]
        return bool(data)

    def drain(self) -> None:
        """What is left in the pipes. Every writer is dead, unless one was passed out of the sandbox."""
        for fd in list(self.pumps):
            os.set_blocking(fd, False)
            while fd in self.pumps:
                try:
                    self.pump(fd)
                except BlockingIOError:
                    break

    def __enter__(self) -> Stdio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_child_ends()
        for fd in self.pumps:
            os.close(fd)
        self.pumps = {}


class TerminalGone(Exception):
    """It was closed: that is no failure of ours, and no reason to end the command."""


def _show(terminal: int, data: bytes) -> None:
    try:
        write_all(terminal, data)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise TerminalGone from None


def write_all(fd: int, data: bytes) -> None:
    """To a terminal or pipe that may be in non-blocking mode."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
