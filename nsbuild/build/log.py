"""What a build tells of itself: each thing goes to its record, and to whoever watches."""

from __future__ import annotations

import time
from collections.abc import Mapping

from nsbuild.build.events import Event, Monitor
from nsbuild.build.steps import StepClock, without_values
from nsbuild.record import Phase, Record
from nsbuild.sandbox import Outcome


class Log:
    """The record of one build, and its monitor. Values of `hidden` (by name) are kept out of the record."""

    def __init__(self, record: Record, monitor: Monitor, hidden: Mapping[str, str]) -> None:
        self.hidden = dict(hidden)
        self.record = record
        self.monitor = monitor

    def warn(self, text: str) -> None:
        self.record.warnings.append(text)
        self.monitor(Event("warning", text=text))

    def note(self, text: str) -> None:
        self.monitor(Event("note", text=text))

    def line(self, text: str) -> None:
        """What a platform prints at this place: `-----> step`, seven spaces and a detail, or ` !     error`."""
        self.monitor(Event("line", text=text))

    def download(self, text: str, done: int, total: int | None) -> None:
        self.monitor(Event("download", text=text, done=done, total=total or 0))

    def begin(self, name: str, text: str = "") -> float:
        """A phase begins; returns the time, for `end`."""
        self.monitor(Event("started", name=name, text=text))
        return time.monotonic()

    def end(
        self, name: str, began: float, text: str = "", outcome: Outcome | None = None, steps: StepClock | None = None
    ) -> Phase:
        """The phase has ended: its times, what a launch in it has used, and the steps in what it has printed."""
        now = time.monotonic()
        seconds = round(now - began, 3)
        phase = Phase(name, text, seconds, round(time.time() - (now - began), 3))
        if steps is not None:
            phase.steps = without_values(steps.steps(now), self.hidden)
        if outcome is not None:
            phase.exit_code = None if outcome.signal is not None else outcome.exit_code
            phase.signal = outcome.signal
            phase.user_seconds = round(outcome.user_seconds, 3)
            phase.system_seconds = round(outcome.system_seconds, 3)
            phase.max_rss_kib = outcome.max_rss_kib
            phase.read_bytes = outcome.read_bytes
            phase.written_bytes = outcome.written_bytes
            phase.timings = {key: round(value, 5) for key, value in outcome.timings.items()}
        self.record.phases.append(phase)
        self.monitor(Event("ended", name=name, text=text, seconds=seconds))
        return phase
