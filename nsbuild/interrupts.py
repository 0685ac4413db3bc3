"""Steps that a signal must not cut in half."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
"""What a person or a supervisor sends to end a command."""


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Signals that would end this command wait until the block has ended."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
