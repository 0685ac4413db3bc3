"""Plain lines: for logs, pipes and whoever asks for them."""

from __future__ import annotations

import time

from nsbuild.build import Event, Record
from nsbuild.cli.progress import write_out
from nsbuild.cli.say import say
from nsbuild.cli.summary import line_of, ours, summarize
from nsbuild.errors import NsbuildError


class PlainProgress:
    """A line when a compile begins and when any phase has ended; warnings and notes as they come."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        if event.kind == "output":
            write_out(event.data)
        elif (line := line_of(event)) is not None:
            say(line)

    def finished(self, record: Record) -> None:
        """The last line is what was built."""
        summary = summarize(record)
        for label, texts in summary.facts:
            say(ours(f"{label}: {', '.join(texts)}"))
        say(ours(summary.result))

    def failed(self, error: NsbuildError) -> None:
        if getattr(error, "record", None) is not None:  # it had begun
            say(ours(f"failed after {time.monotonic() - self._began:.1f} s"))

    def close(self) -> None:
        return
