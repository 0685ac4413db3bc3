"""What is looked for: the places of a build, in every form in which a file may remember them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

_NAME = re.compile(rb"[A-Za-z0-9_]")
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
        self.needles = tuple(sorted(needles, key=lambda needle: len(needle.text), reverse=True))
        texts = {needle.text for needle in self.needles}
        self._searched = [text for text in texts if not any(other != text and other in text for other in texts)]
        self._shared = list(shared_texts(self._searched))
        self._patterns = [re.compile(pattern.encode()) for pattern in patterns]
        longest = max((len(text) for text in texts), default=0)
        self.overlap = 1 + max(longest, LONGEST_PATTERN if self._patterns else 0)
        """Bytes around a match that must be seen together with it."""

    def anywhere(self, data: bytes) -> bool:
        """Whether there is any match: the question that nearly every file answers with no."""
        for text, group in self._shared:  # not any(): a generator costs more than most searches
            if text in data and any(one in data for one in group):
                return True
        return any(pattern.search(data) for pattern in self._patterns)

    def matches(self, data: bytes, low: int, high: int, *, text: bool = True) -> Iterator[Match]:
        """Every match that begins, or whose innermost needle begins, at an offset of [low, high): so that buffers
        that overlap by `overlap` on either side find each once.

        In `text` a name that merely begins as a needle does is another name: /tmp/cached is not /tmp/cache. In other
        data nothing tells where a string ends.
        """
        for inner in self._searched:
            at = data.find(inner, low)
            while 0 <= at < high:
                found = self._widest(data, at, inner, text)
                if found is not None:
                    yield found
                at = data.find(inner, at + len(inner))
        for pattern in self._patterns:
            for match in pattern.finditer(data, low):
                if match.start() >= high:
                    break
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
                _NAME.match(data, end) or (start > 0 and _NAME.match(needle.text) and _NAME.match(data, start - 1))
            ):
                continue
            return Match(start, needle.place)
        return None


def shared_texts(texts: Iterable[bytes]) -> Iterator[tuple[bytes, list[bytes]]]:
    """(what they share, the texts) for groups that are as large as can be: /tmp/cache and /tmp/env are first looked
    for as /tmp/, once. What a group shares has three bytes or more, where its texts have.
    """
    left = sorted(texts)
    while left:
        shared = max(_parts(left), key=lambda part: (sum(part in text for text in left), len(part), part))
        yield shared, [text for text in left if shared in text]
        left = [text for text in left if shared not in text]


def _parts(texts: list[bytes]) -> set[bytes]:
    """Every part of 3 to 16 bytes of any of them, and those that are shorter."""
    found = {text[low:high] for text in texts for low in range(len(text)) for high in range(low + 3, low + 17)}
    return {part for part in found if len(part) >= 3} | {text for text in texts if len(text) < 3}
