"""A lock that is waited for, but not for ever. On the launch path, so it imports next to nothing."""

from __future__ import annotations

import fcntl
import time

_PAUSE = 0.005


def flock_within(fd: int, seconds: float) -> None:
    """Take flock(2) exclusively as soon as it can be had. Raises BlockingIOError after `seconds`, OSError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
