"""Our own lines, on stderr. `compile` and `exec` import this: nothing more than they have already."""

from __future__ import annotations

import os
import sys


def coloured(fd: int) -> bool:
    """Whether what goes there is for eyes: a terminal that knows colours, and no NO_COLOR (https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")
    return not plain and os.isatty(fd)


def say(line: str) -> None:
    """Print a line on stderr. That nobody reads it, or that it is on a full disk, is nothing to fail for."""
    tell(f"{line}\n")


def tell(text: str) -> None:
    """Text for stderr as it is: what moves a terminal's cursor ends with no newline."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        sys.stderr = None  # the interpreter would try again, and fail, at its end
