"""The end of what a candidate prints, for whoever has to find out why it was not built."""

from __future__ import annotations

import os
import subprocess

LARGEST = 64 * 1024
"""Bytes of it that are kept: whatever it prints, it can fill no disk."""
_WAIT = 5.0


class Output:
    """From here on stdout and stderr of this process, and of all that it starts, are read by tail(1)."""

    def __init__(self, path: str) -> None:
        """`path` is a file to make. Raises OSError."""
        self._path = path
        reader, writer = os.pipe()
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            self._tail = subprocess.Popen(["tail", "-c", str(LARGEST)], stdin=reader, stdout=file)
            for fd in (1, 2):
                os.dup2(writer, fd)
        finally:
            for fd in (reader, writer, file):
                os.close(fd)

    def end(self) -> str:
        """The last of what was printed, from its first whole line on. Raises OSError."""
        nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        for fd in (1, 2):
            os.dup2(nothing, fd)
        os.close(nothing)
        try:
            self._tail.wait(_WAIT)
        except subprocess.TimeoutExpired:  # somebody has it open still
            self._tail.kill()
            self._tail.wait()
        with open(self._path, "rb") as file:  # noqa: PTH123
            data = file.read()
        if len(data) == LARGEST:
            data = data.partition(b"\n")[2]
        return data.decode(errors="backslashreplace")
