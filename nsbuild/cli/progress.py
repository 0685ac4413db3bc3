"""What is told of a build while it runs, and at its end: three consumers of its events."""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import Protocol

from nsbuild.build import Event, Record
from nsbuild.cli.say import coloured
from nsbuild.errors import NsbuildError, Refused


class Progress(Protocol):
    """A monitor. The buildpacks' bytes go to stdout as they are, our own lines to stderr; or all of it as JSON."""

    def __call__(self, event: Event) -> None: ...

    def finished(self, record: Record) -> None:
        """It has succeeded."""

    def failed(self, error: NsbuildError) -> None:
        """Before the error itself is shown: how far it got."""

    def close(self) -> None:
        """Leave the terminal as it was found; whatever happened, and more than once."""


def progress(*, as_json: bool) -> Progress:
    """JSON where a machine reads, a live line and tables where a person watches, plain lines elsewhere."""
    if as_json:
        from nsbuild.cli.progress_json import JsonProgress

        return JsonProgress()
    if sys.stderr is None or not coloured(2):
        from nsbuild.cli.progress_plain import PlainProgress

        return PlainProgress()
    from nsbuild.cli.progress_terminal import TerminalProgress

    return TerminalProgress(live=not _piped())


def _piped() -> bool:
    """`nsbuild build | tee log`: whoever reads the pipe may write to our terminal, over a line that we keep there."""
    try:
        kind = os.fstat(1).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)


def write_out(data: bytes) -> None:
    """All of it to stdout, past Python's buffer. Raises Refused when nobody takes it."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(1, rest) :]
        except BlockingIOError:
            select.select([], [1], [])  # somebody who shares our stdout has made it so
        except OSError as error:
            raise Refused(f"stdout cannot be written: {error.strerror}.", "Keep its reader running.") from error
