"""What a build tells while it runs. It prints nothing; terminal and plain lines are consumers of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """`kind` is one of

    `started` and `ended` (of the phase `name`; `text` is the buildpack, `seconds` how long it took),
    `output` (`data`: the buildpack's own bytes), `line` (`text`: what a platform prints here of its own, in its
    shape), `note` and `warning` (`text`: one sentence),
    `download` (`text`: what; `done` and `total`: bytes, `total` 0 where nobody knows).
    """

    kind: str
    name: str = ""
    text: str = ""
    data: bytes = b""
    seconds: float = 0.0
    done: int = 0
    total: int = 0


Monitor = Callable[[Event], None]
