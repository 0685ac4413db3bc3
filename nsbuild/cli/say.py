"""Our own lines, on stderr."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """Print a line on stderr. That nobody reads it, or that it is on a full disk, is nothing to fail for."""
    if sys.stderr is None:
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = None  # the interpreter would try again, and fail, at its end
