"""What the output of a program says of how it ended."""

from __future__ import annotations

import re

_CRASHES = tuple(
    (re.compile(crash, re.MULTILINE), re.compile(message, re.MULTILINE) if message else None)
    for crash, message in (
        (rb"^Traceback \(most recent call last\):", b""),  # Python, whose last line is the message
        (rb"^Node\.js v\d", rb"^(?:Uncaught )?\w*Error\b.*"),  # from 17 on, after what was thrown
        (rb"^(?:Error|.*throw err): Cannot find module", rb"^Error: .*"),
        (rb"^\S+:\d+:in [`'].*\((?:\w+::)*[A-Z]\w*\)$", rb"^\S+:\d+:in [`'].*"),  # Ruby
        (rb"^(?:Can't locate \S+ in @INC|BEGIN failed--)", rb"^Can't locate .*"),  # Perl
        (rb"^(?:Exception in thread |Error: Could not find or load main class )", rb"^(?:Exception|Error).*"),  # Java
        (rb"^(?:PHP )?Fatal error: ", rb"^(?:PHP )?Fatal error: .*"),
        (rb"^goroutine \d+ \[", rb"^panic: .*"),  # Go
    )
)
"""What an interpreter prints of a program that has failed without a word of its own, and the line that says why.
Data: another language is another line.
"""


def crashed(data: bytes) -> bool:
    """Whether a program that has failed was ended by what it runs in, by what both its streams have printed."""
    return any(crash.search(data) for crash, _ in _CRASHES)


def telling_line(data: bytes) -> str:
    """The line that says why a program has crashed, else the last one with anything in it."""
    for crash, message in _CRASHES:
        if message is not None and crash.search(data) and (found := message.search(data)):
            return _shown(found[0])
    lines = [line for line in data.splitlines() if line.strip()]
    return _shown(lines[-1]) if lines else ""


def _shown(line: bytes) -> str:
    return line.decode("utf-8", "replace").strip()[:300]
