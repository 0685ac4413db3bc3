"""What there is to say of a build at its end, and of each event: texts, which terminal and plain lines show alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nsbuild.build import Event, Record
from nsbuild.printable import printable

_SLOWEST = 3
"""How many of the steps are named."""
_LARGEST = 5
"""How many of the slug's directories are."""


@dataclass(frozen=True)
class Summary:
    """`phases` are (name, buildpack, time), `facts` (label, texts), `result` is the line that says what was made."""

    phases: tuple[tuple[str, str, str], ...]
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    result: str


def summarize(record: Record) -> Summary:
    """The summary of a build that has succeeded."""
    phases = tuple((phase.name, phase.buildpack, f"{phase.seconds:.1f} s") for phase in record.phases)
    facts: list[tuple[str, tuple[str, ...]]] = []
    steps = sorted((step for phase in record.phases for step in phase.steps), key=lambda step: -step.seconds)
    if steps:
        facts.append(("slowest", tuple(f"{step.text} ({step.seconds:.1f} s)" for step in steps[:_SLOWEST])))
    if record.slug is not None:
        if contents := tuple(_contents(record.slug.sizes)):
            facts.append(("contents", contents))
        facts.append(("cache", ("used" if record.cache_hit else "none yet",)))
    if record.warnings:
        facts.append(("warnings", (str(len(record.warnings)),)))
    took = f"{record.seconds:.1f} s"
    if record.slug is None:
        return Summary(phases, tuple(facts), f"{record.result} in {took}")
    return Summary(phases, tuple(facts), f"built {record.slug.path} ({size(record.slug.bytes)}) in {took}")


def _contents(sizes: Mapping[str, int]) -> Iterator[str]:
    """The largest top directories; `.` are the files at the top."""
    largest = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    for name, count in largest[:_LARGEST]:
        yield f"{size(count)} {name}"
    if rest := largest[_LARGEST:]:
        yield f"{size(sum(count for _, count in rest))} in {len(rest)} others"


def line_of(event: Event) -> str | None:
    """The line that tells of an event; None where there is nothing to tell."""
    about = f"{event.name} {event.text}".rstrip()
    if event.kind == "line":
        return printable(event.text)
    if event.kind == "ended":
        return ours(f"{about} ({event.seconds:.1f} s)")
    if event.kind == "started" and event.name == "compile":
        return ours(f"{about} ...")
    if event.kind == "warning":
        return ours(f"warning: {event.text}")
    if event.kind == "download" and event.done == event.total > 0:
        return ours(f"downloaded {event.text} ({size(event.total)})")
    return ours(event.text) if event.kind == "note" else None


def ours(text: str) -> str:
    """A line of nsbuild's own."""
    return f"nsbuild: {printable(text)}"


def size(count: int) -> str:
    """Bytes for people: `1.5 MB`, `1.5 kB`."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
