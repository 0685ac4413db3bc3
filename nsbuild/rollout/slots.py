"""How many candidates a user's builds may have at once: they take memory and disk, however low their priority is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

NAME = "shadows"
_LEAST = 4
"""The calls of one chain have a candidate each, and the first may still be at it when the last one begins."""


class NoSlot(Exception):
    """Every slot is taken; the message is a clause."""


def most() -> int:
    """As many as there are processors, and at least 4."""
    return max(len(os.sched_getaffinity(0)), _LEAST)


def take_slot() -> int:
    """The descriptor of a lock on a free slot: as long as anybody has it open, the slot is taken.

    Raises NoSlot and OSError.
    """
    from nsbuild.wrap.journal import state_directory

    directory = Path(state_directory()).parent / NAME
    directory.mkdir(mode=0o700, exist_ok=True)
    count = most()
    for number in range(count):
        fd = os.open(directory / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            os.close(fd)
    raise NoSlot(f"{count} candidates are at work or being prepared, and no more may be at once")
