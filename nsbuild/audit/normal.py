"""Two files that differ: in what? Each step takes away one thing that may differ without meaning anything."""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from nsbuild.audit import decode
from nsbuild.audit.members import Budget, NotRead, members
from nsbuild.audit.needles import Needle

_TOKEN = b"<BUILD>"
PYC_HEADER = 16
"""Magic, flags and, if it is so flagged, the source's time and size: PEP 552."""


class Difference(StrEnum):
    """Why two contents are not the same, from what means least to what means most."""

    PATH = "path only"
    TIMESTAMP = "timestamp"
    BYTECODE = "bytecode only"
    ORDER = "order only"
    REAL = "real"


SEVEREST = list(Difference)


@dataclass(frozen=True)
class Rule:
    """Text that `pattern` matches counts as equal. `name` is for the reader of a difference."""

    name: str
    pattern: re.Pattern[bytes]


_DAY = r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_CLOCK = r"[0-2]\d:[0-5]\d:[0-5]\d"
_DATE = r"20\d\d-[01]\d-[0-3]\d"
TIMES = tuple(
    Rule(name, re.compile(pattern.encode()))
    for name, pattern in (
        ("ISO 8601", rf"\b{_DATE}([T ][0-2]\d:[0-5]\d(:[0-5]\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?"),
        ("RFC 5322", rf"{_DAY},? [^\n]{{0,12}}20\d\d {_CLOCK}( [A-Z]{{3}}| [+-]\d{{4}})?"),
        ("ctime", rf"{_DAY} [A-Z][a-z]{{2}} [ \d]\d {_CLOCK}( [A-Z]{{3,4}})? 20\d\d"),
        ("C's __DATE__ and __TIME__", rf"\b[A-Z][a-z]{{2}} [ \d]\d 20\d\d\b|\b{_CLOCK}\b"),
        ("seconds since 1970", r"\b1[4-9]\d{8}(\.\d+)?\b"),
    )
)
"""Times of this century as programs write them. Data: a new shape is a new line."""


CONSEQUENCES = (
    ("*.dist-info/RECORD", Rule("hashes of files that are compared themselves", re.compile(rb"sha256=[\w-]*,\d+"))),
)
"""What differs in a file of a name because another file differs."""


class Paths:
    """Replaces every place of a build, and the run path, by one token."""

    def __init__(self, needles: Iterable[Needle], patterns: Iterable[str], run_paths: Iterable[str]) -> None:
        words = sorted({needle.text for needle in needles}, key=len, reverse=True)
        alternatives = [re.escape(word) for word in words] + [pattern.encode() for pattern in patterns]
        # A run path is a word of every other text: /app, but neither /application nor x/app.
        alternatives += [rb"(?<![\w.%-])" + re.escape(path.encode()) + rb"(?![\w.-])" for path in run_paths]
        self._pattern = re.compile(b"|".join(alternatives)) if alternatives else None

    def __call__(self, data: bytes) -> bytes:
        return self._pattern.sub(_TOKEN, data) if self._pattern is not None else data

    def in_bytecode(self, data: bytes) -> bytes:
        """The same in marshalled strings, whose lengths go with them."""
        out, done = bytearray(), 0
        for match in self._pattern.finditer(data) if self._pattern is not None else ():
            if match.start() < done:
                continue
            found = decode.marshalled_string(data, match.start())
            if found is None:
                continue
            head, start, end = found
            if head < done:
                continue
            out += data[done:head] + _TOKEN + self(data[start:end])
            done = end
        return bytes(out + data[done:])


def classify(name: str, a: bytes, b: bytes, paths: Paths, *, same_source: bool = False, depth: int = 0) -> Difference:
    """What two different contents of one name differ in.

    `same_source` says that the .py of a .pyc is the same on both sides: then whatever differs in the bytecode was
    made by the compiler.
    """
    if decode.is_bytecode(name):
        return _bytecode(a, b, paths, same_source)
    shape = decode.container(a)
    if shape and shape == decode.container(b) and depth < 3:
        return _archives(shape, name, a, b, paths, depth)
    for glob, rule in CONSEQUENCES:
        if fnmatchcase(name, glob):
            a, b = rule.pattern.sub(b"<HASH>", a), rule.pattern.sub(b"<HASH>", b)
    steps = ((Difference.PATH, paths), (Difference.TIMESTAMP, without_times))
    for reason, normal in steps:
        a, b = normal(a), normal(b)
        if a == b:
            return reason
    return Difference.ORDER if _same_but_for_order(a, b) else Difference.REAL


def without_times(data: bytes) -> bytes:
    for rule in TIMES:
        data = rule.pattern.sub(b"<TIME>", data)
    return data


def _bytecode(a: bytes, b: bytes, paths: Paths, same_source: bool) -> Difference:
    if a[:4] != b[:4]:
        return Difference.REAL  # another Python
    if paths.in_bytecode(a) == paths.in_bytecode(b):
        return Difference.PATH
    if a[PYC_HEADER:] == b[PYC_HEADER:] or paths.in_bytecode(a[PYC_HEADER:]) == paths.in_bytecode(b[PYC_HEADER:]):
        return Difference.TIMESTAMP
    return Difference.BYTECODE if same_source else Difference.REAL


def _archives(shape: str, name: str, a: bytes, b: bytes, paths: Paths, depth: int) -> Difference:
    """The worst of what their members differ in; the same members in another order, or at another time, mean less."""
    try:
        left, right = _contents(shape, name, a), _contents(shape, name, b)
    except NotRead:
        return Difference.REAL
    if sorted(left) != sorted(right):
        return Difference.REAL
    worst = Difference.TIMESTAMP if list(left) == list(right) else Difference.ORDER
    for member, content in left.items():
        if content != right[member]:
            inner = classify(member, content, right[member], paths, depth=depth + 1)
            worst = max(worst, inner, key=SEVEREST.index)
    if worst is Difference.TIMESTAMP and _headers(shape, a) == _headers(shape, b):
        return Difference.PATH if any(left[member] != right[member] for member in left) else Difference.TIMESTAMP
    return worst


def _contents(shape: str, name: str, data: bytes) -> dict[str, bytes]:
    budget = Budget(size=256 << 20, members=50_000)
    return {member: b"".join(blocks) for member, blocks in members(shape, data, name, budget)}


def _headers(shape: str, data: bytes) -> object:
    """When an archive says that its members were made."""
    if shape == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [info.date_time for info in archive.infolist()]
    if shape == "tar":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            return [member.mtime for member in archive]
    return data[4:8] if shape == "gzip" else b""


def _same_but_for_order(a: bytes, b: bytes) -> bool:
    if sorted(a.split(b"\n")) == sorted(b.split(b"\n")):
        return True
    try:
        return _text(_unordered(json.loads(a))) == _text(_unordered(json.loads(b)))
    except (ValueError, RecursionError):
        return False


def _unordered(value: object) -> object:
    """JSON in which the order of objects' keys and of lists does not count."""
    if isinstance(value, dict):
        return {key: _unordered(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted(map(_unordered, value), key=_text)  # texts in texts would double with every level
    return value


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)
