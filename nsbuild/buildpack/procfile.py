"""Procfile: process types and their commands."""

from __future__ import annotations

import re

_LINE = re.compile(r"^([A-Za-z0-9_-]+):\s*(.+)$")


class ProcfileError(ValueError):
    """A line that is neither a process type, a comment nor blank. The message names it."""


def parse_procfile(text: str) -> tuple[dict[str, str], list[str]]:
    """(process types, warnings). The last of two equal types wins, with a warning. Raises ProcfileError."""
    types: dict[str, str] = {}
    warnings = []
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line.rstrip())
        if match is None:
            raise ProcfileError(f"Procfile line {number} is not `type: command`: {line.strip()[:80]!r}.")
        if match[1] in types:
            warnings.append(f"Procfile line {number}: {match[1]} is there twice; the last one counts.")
        types[match[1]] = match[2].strip()
    return types, warnings
