"""Two invocations with one CACHE_DIR take turns: while one has adopted it, it is not there for the other.

The lock is a file of its own: builders may hold a flock on the directory itself around the call.
"""

from __future__ import annotations

import fcntl
import os
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Turn:
    """Held until `end`, or until this process and its guardian are gone. `waited`: somebody else had it before."""

    def __init__(self, path: str, fd: int, waited: bool) -> None:
        self.waited = waited
        self._path = path
        self._fd = fd

    def end(self) -> None:
        os.unlink(self._path)
        os.close(self._fd)


def take(locks: str, directory: str, say: Callable[[str], None]) -> Turn:
    """Wait for the turn on `directory`, which need not exist. Raises OSError."""
    os.makedirs(locks, 0o700, exist_ok=True)
    name = os.fsencode(os.path.realpath(directory))
    path = f"{locks}/{zlib.crc32(name):08x}{zlib.adler32(name):08x}"
    waited = False
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waited:
                say(f"{directory} is in use by another nsbuild; waiting for it to end.")
            waited = True
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return Turn(path, fd, waited)
        except FileNotFoundError:
            pass  # whoever had it has removed it
        os.close(fd)
