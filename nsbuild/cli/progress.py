"""What a person sees of a build: steps with their times on stderr, the buildpacks' bytes on stdout."""

from __future__ import annotations

import os
import select
import sys
import time

import click

from nsbuild.build import Event, Record
from nsbuild.cli.say import say
from nsbuild.errors import NsbuildError, Refused


class Progress:
    """A monitor. Colours only where a terminal watches and NO_COLOR is unset; plain lines elsewhere."""

    def __init__(self) -> None:
        self._colours = _watched() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        about = f"{event.name} {event.text}".rstrip()
        if event.kind == "output":
            self._output(event.data)
        elif event.kind == "ended":
            self._line(f"{about} ({event.seconds:.1f} s)", "bright_black")
        elif event.kind == "started" and event.name == "compile":
            self._line(f"{about} ...", "cyan")
        elif event.kind == "warning":
            self._line(f"warning: {event.text}", "yellow")
        elif event.kind == "line":
            say(event.text)
        elif event.kind == "note":
            self._line(event.text)

    def finished(self, record: Record) -> None:
        """The last line of a build that succeeded."""
        assert record.slug is not None
        size = f"{record.slug.bytes / 1e6:.1f} MB"
        cached = ", cached" if record.cache_hit else ""
        self._line(f"built {record.slug.path} ({size}{cached}) in {record.seconds:.1f} s", "green")

    def failed(self, error: NsbuildError) -> None:
        """Before the error itself is shown: how far it got."""
        self._line(f"failed after {time.monotonic() - self._began:.1f} s", "red")

    def _output(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(1, rest) :]
            except BlockingIOError:
                select.select([], [1], [])  # somebody who shares our stdout has made it so
            except OSError as error:
                raise Refused(f"stdout cannot be written: {error.strerror}.", "Keep its reader running.") from error

    def _line(self, text: str, colour: str | None = None) -> None:
        line = f"nsbuild: {text}"
        say(click.style(line, fg=colour) if self._colours and colour else line)


def _watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
