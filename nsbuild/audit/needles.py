"""What is looked for: the places of a build, in every form in which a file may remember them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

_NAME = re.compile(rb"[A-Za-z0-9_]")
_PARENT = re.compile(rb"/[A-Za-z0-9_.+@~-]{1,255}\Z")
"""What makes an absolute path the end of another one: /app/tmp/cache is not /tmp/cache, and -I/tmp/cache is."""
_PARENT_LONGEST = 256
_DISTINCTIVE = re.compile(r"(?=.*[0-9])(?=.*[a-z])[A-Za-z0-9._-]{10,}")
LONGEST_PATTERN = 256
"""Bytes that a match of a pattern may have, where it is to be found across the edge of a buffer."""


@dataclass(frozen=True)
class Needle:
    """One text to look for. `place` is the path that it stands for, which findings name."""

    text: bytes
    place: str


def needles_for(paths: Iterable[str]) -> tuple[Needle, ...]:
    """For each absolute path: itself, its real path, both percent-encoded as in a URL, and its last component when
    that is distinctive (`build_4f2a9c3d`, not `app`).

    Raises ValueError for a path that is relative, or so short that it is in every file (`/`, `/tmp`).
    """
    found: dict[bytes, Needle] = {}
    for path in paths:
        place = os.path.normpath(path)
        if not path.startswith("/") or place.count("/") < 2:
            raise ValueError(f"{path!r} is not an absolute path of two components or more")
        for known in dict.fromkeys((place, os.path.realpath(place))):
            raw = os.fsencode(known)
            for text in (raw, quote(raw).encode(), quote(raw, safe="").encode()):
                found.setdefault(text, Needle(text, place))
        last = os.path.basename(place)
        if _DISTINCTIVE.fullmatch(last):
            found.setdefault(os.fsencode(last), Needle(os.fsencode(last), place))
    return tuple(found.values())


@dataclass(frozen=True)
class Match:
    """`offset` is in the data searched; `place` as in `Needle`, or what a pattern matched."""

    offset: int
    place: str


class Matcher:
    """Finds needles and patterns in bytes.

    `patterns` are regular expressions of bytes for slugs whose build path is not known: `/tmp/build_[0-9a-f]+`. Of
    needles that contain another one only the inner one is searched for.
    """

    def __init__(self, needles: Iterable[Needle], patterns: Iterable[str] = ()) -> None:
        from ahocorasick_rs import BytesAhoCorasick, MatchKind

        patterns = list(patterns)
        self.needles = tuple(sorted(needles, key=lambda needle: len(needle.text), reverse=True))
        texts = {needle.text for needle in self.needles}
        self._searched = [text for text in texts if not any(other != text and other in text for other in texts)]
        self._patterns = [re.compile(pattern.encode()) for pattern in patterns]
        literals = [literal_of(pattern) for pattern in patterns]
        # One pass for all of them, where each pattern has something that can be looked for.
        sought = [*self._searched, *literals]
        self._any = BytesAhoCorasick(sought, matchkind=MatchKind.LeftmostFirst) if sought and all(sought) else None
        longest = max((len(text) for text in texts), default=0)
        self.overlap = 1 + max(longest + _PARENT_LONGEST, LONGEST_PATTERN if self._patterns else 0)
        """Bytes around a match that must be seen together with it."""

    def anywhere(self, data: bytes) -> bool:
        """Whether there is any match: the question that nearly every file answers with no."""
        if self._any is not None and not self._any.find_matches_as_indexes(data):
            return False
        if any(text in data for text in self._searched):
            return True
        return any(pattern.search(data) for pattern in self._patterns)

    def matches(self, data: bytes, low: int, high: int, *, text: bool = True) -> Iterator[Match]:
        """Every match that begins, or whose innermost needle begins, at an offset of [low, high): so that buffers
        that overlap by `overlap` on either side find each once.

        In `text` a name that merely begins or ends as a needle does is another name: neither /tmp/cached nor
        /app/tmp/cache is /tmp/cache. In other data nothing tells where a string begins and ends.
        """
        for inner in self._searched:
            at = data.find(inner, low)
            while 0 <= at < high:
                found = self._widest(data, at, inner, text)
                if found is not None:
                    yield found
                at = data.find(inner, at + len(inner))
        for pattern in self._patterns:
            # From the beginning: what begins before `low` is a match then, of which the rest is none.
            for match in pattern.finditer(data):
                if match.start() >= high:
                    break
                if match.start() >= low:
                    yield Match(match.start(), os.fsdecode(match[0][:LONGEST_PATTERN]))

    def _widest(self, data: bytes, at: int, inner: bytes, text: bool) -> Match | None:
        """The longest needle around an inner one."""
        for needle in self.needles:
            where = needle.text.find(inner)
            start = at - where
            end = start + len(needle.text)
            if where < 0 or start < 0 or data[start:end] != needle.text:
                continue
            if text and (
                _NAME.match(data, end)
                or (start > 0 and _NAME.match(needle.text) and _NAME.match(data, start - 1))
                or (needle.text[:1] == b"/" and _PARENT.search(data[max(start - _PARENT_LONGEST, 0) : start]))
            ):
                continue
            return Match(start, needle.place)
        return None


def literal_of(pattern: str) -> bytes:
    """A text that is in whatever a regular expression matches, the longest; empty where that is not plain to see."""
    if re.search(r"[|()]|\\[^.]", pattern):
        return b""
    plain = re.sub(r"\[\^?\]?[^]]*\]", "\n", re.sub(r"\{[^}]*\}", "*", pattern))
    runs = re.findall(r"(?:(?:[\w/%-]|\\\.)(?![*?]))+", plain, re.ASCII)
    return max((run.replace("\\.", ".").encode() for run in runs), key=len, default=b"")
