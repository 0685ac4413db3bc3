"""`.slugignore`: what of an app's source no build gets to see.

Every line is a glob, as Heroku takes them: Ruby's Dir.glob, says slugcmplr (cga1123/slugcmplr, slugignore.go).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass

NAME = ".slugignore"
_MOST = 1000
"""Patterns that the braces of one line may make."""

_ANY = None
"""`**`: any number of directories."""


@dataclass(frozen=True)
class _Pattern:
    parts: tuple[re.Pattern[str] | None, ...]
    directory: bool

    def matches(self, names: list[str], directory: bool) -> bool:
        if self.directory and not directory:
            return False
        reached = self._past_any({0})
        for name in names:
            after = set()
            for position in reached:
                if position == len(self.parts):
                    continue
                part = self.parts[position]
                if part is _ANY:
                    after.add(position)
                elif part.match(name):
                    after.add(position + 1)
            reached = self._past_any(after)
        return len(self.parts) in reached

    def _past_any(self, reached: set[int]) -> set[int]:
        for position in sorted(reached):
            while position < len(self.parts) and self.parts[position] is _ANY:
                position += 1
                reached.add(position)
        return reached


@dataclass(frozen=True)
class SlugIgnore:
    """The patterns of a `.slugignore`; `warnings` are sentences about lines that do nothing."""

    patterns: tuple[_Pattern, ...] = ()
    warnings: tuple[str, ...] = ()

    def ignores(self, path: str, directory: bool) -> bool:
        """Whether a pattern matches this very path, from the app's root; of a directory everything below goes too."""
        names = path.split("/")
        return any(pattern.matches(names, directory) for pattern in self.patterns)


def parse_slugignore(text: str) -> SlugIgnore:
    """One glob a line; blank lines and those that begin with `#` are nothing, and white space around one is not part
    of it.

    `*`, `?` and `[...]` match within one name and no leading dot, `**/` any number of directories, `{a,b}` either;
    a backslash takes the next character as it is. A leading `/` anchors to the root, all others match at any depth.
    With a `/` at its end only directories match. There is no `!`: such a line is warned of.
    """
    patterns, warnings = [], []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line.startswith("!"):
            warnings.append(f"{NAME} line {number} does nothing: there is no `!` in it.")
        elif line and not line.startswith("#"):
            patterns += [_pattern(glob) for glob in _alternatives(line)]
    return SlugIgnore(tuple(pattern for pattern in patterns if pattern.parts), tuple(warnings))


def _pattern(glob: str) -> _Pattern:
    names = [name for name in glob.split("/") if name not in ("", ".")]
    parts = [_ANY if name == "**" and place < len(names) - 1 else _name(name) for place, name in enumerate(names)]
    anchored = glob.startswith("/") or not parts
    return _Pattern(tuple(parts if anchored else [_ANY, *parts]), glob.endswith("/"))


def _name(glob: str) -> re.Pattern[str]:
    """fnmatch, but with a backslash, `[^` for `[!`, and names that begin with a dot hidden from wildcards."""
    escaped = re.sub(r"\\(.)", lambda found: f"[{found[1]}]" if found[1] in "*?[" else found[1], glob)
    hidden = "" if escaped.startswith(".") else r"(?!\.)"
    classes = re.sub(r"\[\^(?=.[^/]*\])", "[!", escaped)
    # fnmatch drops a range that is none, and takes a `!` that then comes first for a negation. No name holds a NUL.
    kept = re.sub(r"\[(!?\]?)([^]]*\])", lambda found: found[0] if found[1] else f"[\0{found[2]}", classes)
    return re.compile(hidden + fnmatch.translate(kept))


def _alternatives(glob: str) -> list[str]:
    """What the shell makes of braces: `{a,b}c` is ac and bc, `{a}` and `{` are themselves."""
    made: list[str] = []
    for one in _braces(glob):
        made.append(one)
        if len(made) > _MOST:
            return [glob]
    return made


def _braces(glob: str) -> Iterator[str]:
    for start, character in enumerate(glob):
        if character == "{" and (start == 0 or glob[start - 1] != "\\"):
            parts, rest = _brace(glob, start + 1)
            if len(parts) > 1:
                for part in parts:
                    yield from _braces(glob[:start] + part + rest)
                return
    yield glob


def _brace(glob: str, start: int) -> tuple[list[str], str]:
    """The alternatives of the brace that was opened before `start`, and what comes after it."""
    parts, depth, begun = [], 0, start
    for place in range(start, len(glob)):
        character = glob[place]
        if glob[place - 1] == "\\":
            continue
        if character == "{":
            depth += 1
        elif character == "}" and depth:
            depth -= 1
        elif depth == 0 and character in ",}":
            parts.append(glob[begun:place])
            begun = place + 1
            if character == "}":
                return parts, glob[begun:]
    return [], ""
