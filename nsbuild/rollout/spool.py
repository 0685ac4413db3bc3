"""Where records wait that the ledger could not take: a line of JSON each, appended under a lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nsbuild.tree.flock import flock_within

NAME = "spool.jsonl"
REJECTED = "spool.rejected"
WAIT = 2.0
"""Seconds for a lock: whoever holds it may have been stopped, and a build waits."""


def append(directory: Path, table: str, row: dict[str, Any]) -> None:
    """Add one line. Raises OSError, and has added nothing then."""
    line = json.dumps({"table": table, "row": row}).encode() + b"\n"
    fd = _locked(directory / NAME)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line  # a writer was killed in the middle of its own
        try:
            if os.write(fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory / NAME))
        except OSError:
            os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)


def waiting(directory: Path) -> bool:
    """Whether there is anything to ingest."""
    return any(_size(path) for path in directory.glob("spool*.jsonl"))


Line = tuple[bytes, str, dict[str, Any]]
"""As it was written, its table, its row."""


def ingest(directory: Path, take: Callable[[list[Line]], list[bytes]]) -> tuple[int, int]:
    """Hand all lines to `take`, which makes them durable or raises; (how many, how many could not be used).

    `take` returns the lines that it has no use for; they are kept in `spool.rejected`, with those that are no JSON.
    A spool whose lock is held is left to whoever holds it. Raises OSError, and whatever `take` raises.
    """
    taken = rejected = 0
    for path in sorted(directory.glob("spool*.jsonl")):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # taken in, and removed, by somebody else
        try:
            if not _is_free(fd):
                continue
            lines, torn = _read(fd)
            useless = take(lines)
            broken = torn + useless
            if broken:
                _reject(directory, broken)
            if path.name != NAME:
                path.unlink()
            os.ftruncate(fd, 0)
            rejected += len(broken)
            taken += len(lines) - len(useless)
        finally:
            os.close(fd)
    return taken, rejected


def _is_free(fd: int) -> bool:
    """Whether we have the lock now, and it is still there: under its name there may be its writer's next one."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(fd).st_nlink > 0


def _locked(path: Path) -> int:
    """The spool, locked; one of this process's own where the lock cannot be had in time."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    end = time.monotonic() + WAIT
    while True:
        try:
            flock_within(fd, end - time.monotonic())
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)  # it was ingested, and removed, before we had the lock
            fd = os.open(path, flags, 0o600)
        except BlockingIOError:
            os.close(fd)
            return _locked(path.with_name(f"spool-{os.getpid()}-{os.urandom(4).hex()}.jsonl"))
        except OSError:
            os.close(fd)
            raise


def _read(fd: int) -> tuple[list[Line], list[bytes]]:
    with open(fd, "rb", closefd=False) as file:
        written = [line for line in file.read().split(b"\n") if line]
    lines: list[Line] = []
    broken: list[bytes] = []
    for line in written:
        try:
            entry = json.loads(line)
            lines.append((line, str(entry["table"]), dict(entry["row"])))
        except (ValueError, KeyError, TypeError):
            broken.append(line)
    return lines, broken


def _reject(directory: Path, lines: list[bytes]) -> None:
    fd = os.open(directory / REJECTED, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, b"\n".join(lines) + b"\n")
    finally:
        os.close(fd)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
