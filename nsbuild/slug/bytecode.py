"""Which Python sources must keep their time, because their bytecode knows them by it."""

from __future__ import annotations

import os
import stat
import struct

_HEADER = struct.Struct("<4xIII")
"""Of a .pyc: a magic number, flags (0: by time, else by the source's hash), the source's mtime and size. Python's
Lib/importlib/_bootstrap_external.py, _classify_pyc and _validate_timestamp_pyc.
"""


class Bytecode:
    """The bytecode of the sources in one directory.

    A source whose time is not the one in its .pyc is compiled again by every process that imports it, and where the
    slug cannot be written that is never over. Beside its source, not in __pycache__, no Python 3 looks for it.
    """

    def __init__(self) -> None:
        self._compiled: dict[str, list[str]] | None = None

    def knows(self, directory: int, name: str, info: os.stat_result) -> bool:
        """Whether a .pyc of the source `name` in the open `directory` is valid only as long as its time is kept."""
        if not 0 <= info.st_mtime < 1 << 32:
            return False
        if self._compiled is None:
            self._compiled = _compiled(directory)
        expected = int(info.st_mtime), info.st_size & 0xFFFFFFFF
        candidates = self._compiled.get(name[:-3], ())
        return any(_validity(directory, path) == (0, *expected) for path in candidates)


def _compiled(directory: int) -> dict[str, list[str]]:
    """Paths in __pycache__ by the name of their module."""
    found: dict[str, list[str]] = {}
    try:
        cache = os.open("__pycache__", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    except OSError:
        return found
    try:
        for name in os.listdir(cache):
            if name.endswith(".pyc"):
                found.setdefault(name.split(".", 1)[0], []).append(f"__pycache__/{name}")
    finally:
        os.close(cache)
    return found


def _validity(directory: int, path: str) -> tuple[int, int, int] | None:
    """Flags, time and size that a .pyc says; None when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        head = os.read(fd, _HEADER.size) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    return _HEADER.unpack(head) if len(head) == _HEADER.size else None
