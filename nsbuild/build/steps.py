"""The `----->` steps in what a compile prints, with their times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nsbuild.record import Step

_END = re.compile(rb"[\r\n]")
_COLOUR = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
_STEP = re.compile(rb"\A-----> ?(.*)\Z", re.DOTALL)
_LONGEST = 4096
_SHOWN = 400
_MOST = 1000
_SHORTEST_SECRET = 4


@dataclass
class _Line:
    """A line that has not ended yet, and when it began."""

    text: bytes
    at: float


class StepClock:
    """Fed with each chunk of output and the time of its arrival, knows which step took how long.

    A step begins with its line, whose end may come much later (`echo -n "-----> Installing... "`), and lasts until
    the next one. Times are seconds on any clock; a step's `at` counts from `began`. Of endless output 1000 steps are
    kept.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._line: _Line | None = None
        self._found: list[_Line] = []

    def feed(self, data: bytes, now: float) -> None:
        """The next chunk, which may end anywhere."""
        position = 0
        while position < len(data):
            end = _END.search(data, position)
            if self._line is None:
                self._line = _Line(b"", now)
            stop = len(data) if end is None else end.start()
            self._line.text += data[position : min(stop, position + _LONGEST - len(self._line.text))]
            if end is None:
                return
            self._take()
            position = end.end()

    def steps(self, ended: float) -> list[Step]:
        """What there was until `ended`."""
        self._take()
        found = self._found
        ends = [*(line.at for line in found), ended][1:]
        return [
            Step(_text(line.text), round(line.at - self._began, 3), round(end - line.at, 3))
            for line, end in zip(found, ends, strict=True)
        ]

    def _take(self) -> None:
        line, self._line = self._line, None
        if line is not None and len(self._found) < _MOST and _STEP.match(_plain(line.text)):
            self._found.append(line)


def _plain(line: bytes) -> bytes:
    return _COLOUR.sub(b"", line)


def _text(line: bytes) -> str:
    match = _STEP.match(_plain(line))
    return match[1].decode("utf-8", "replace").strip() if match else ""


def without_values(steps: list[Step], hidden: Mapping[str, str]) -> list[Step]:
    """A buildpack may print a config var's value, or a line of it; the record has the var's name in its place.

    What is shorter than four characters is no secret, and would be found everywhere. Texts are cut only then: half a
    value would not be found.
    """
    lines = [(name, line.strip()) for name, value in hidden.items() for line in value.splitlines()]
    for step in steps:
        for name, line in sorted(lines, key=lambda found: -len(found[1])):
            if len(line) >= _SHORTEST_SECRET:
                step.text = step.text.replace(line, f"[{name}]")
        step.text = step.text[:_SHOWN]
    return steps
