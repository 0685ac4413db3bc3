"""What a person sees of a build: steps with their times on stderr, the buildpacks' bytes on stdout."""

from __future__ import annotations

import os
import sys
import time

from nsbuild.build import Event, Record
from nsbuild.errors import NsbuildError


class Progress:
    """A monitor. Colours only where a terminal watches and NO_COLOR is unset; plain lines elsewhere."""

    def __init__(self) -> None:
        self._colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        about = f"{event.name} {event.text}".rstrip()
        if event.kind == "output":
            self._output(event.data)
        elif event.kind == "ended":
            self._line(f"{about} ({event.seconds:.1f} s)", "2")
        elif event.kind == "started" and event.name == "compile":
            self._line(f"{about} ...", "1")
        elif event.kind == "warning":
            self._line(f"warning: {event.text}", "33")
        elif event.kind == "note":
            self._line(event.text, "")

    def finished(self, record: Record) -> None:
        """The last line of a build that succeeded."""
        assert record.slug is not None
        size = f"{record.slug.bytes / 1e6:.1f} MB"
        cached = ", cached" if record.cache_hit else ""
        self._line(f"built {record.slug.path} ({size}{cached}) in {record.seconds:.1f} s", "32")

    def failed(self, error: NsbuildError) -> None:
        """Before the error itself is shown: how far it got."""
        self._line(f"failed after {time.monotonic() - self._began:.1f} s", "31")

    def _output(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(1, rest) :]

    def _line(self, text: str, colour: str) -> None:
        if self._colours and colour:
            text = f"\x1b[{colour}m{text}\x1b[0m"
        print(f"nsbuild: {text}", file=sys.stderr, flush=True)
