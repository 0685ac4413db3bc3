"""What is said of a build at its end."""

from __future__ import annotations

import pytest

from nsbuild.build import Event
from nsbuild.cli.summary import line_of, summarize
from nsbuild.record import Phase, Record, Slug, Step


def record(**fields: object) -> Record:
    return Record(id="1", source="/s", layout="app", run_path="/app", stack="s", **fields)  # type: ignore[arg-type]


def test_the_largest_directories_and_the_slowest_steps() -> None:
    sizes = {f"d{number}": number * 1_000_000 for number in range(8)}
    first = Phase("compile", "one", 9.0, steps=[Step("a", 0.0, 1.0), Step("b", 1.0, 5.0), Step("c", 6.0, 3.0)])
    second = Phase("compile", "two", 4.0, steps=[Step("d", 0.0, 4.0)])
    slug = Slug("/x.tgz", "tgz", 1_500_000, sizes=sizes)
    found = summarize(record(phases=[first, second], slug=slug, seconds=13.04, warnings=["w"], cache_hit=True))
    assert found.phases == (("compile", "one", "9.0 s"), ("compile", "two", "4.0 s"))
    assert dict(found.facts) == {
        "slowest": ("b (5.0 s)", "d (4.0 s)", "c (3.0 s)"),
        "contents": ("7.0 MB d7", "6.0 MB d6", "5.0 MB d5", "4.0 MB d4", "3.0 MB d3", "3.0 MB in 3 others"),
        "cache": ("used",),
        "warnings": ("1",),
    }
    assert found.result == "built /x.tgz (1.5 MB) in 13.0 s"
    small = summarize(record(slug=Slug("/x", "directory", 99_999)))
    assert small.result == "built /x (100.0 kB) in 0.0 s"


def test_without_a_slug_there_is_only_how_it_ended() -> None:
    found = summarize(record(result="succeeded", seconds=1.0))
    assert (found.facts, found.result) == ((), "succeeded in 1.0 s")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Event("started", "stage"), None),
        (Event("started", "compile", "pack"), "nsbuild: compile pack ..."),
        (Event("ended", "stage", seconds=0.12), "nsbuild: stage (0.1 s)"),
        (Event("line", text=" !     no"), " !     no"),
        (Event("line", text="-----> \x1b[2Jx"), "-----> \\x1b[2Jx"),
        (Event("note", text="a\nb\udcff"), "nsbuild: a\\nb\\udcff"),
        (Event("warning", text="café"), "nsbuild: warning: café"),
        (Event("download", text="x", done=1, total=2), None),
        (Event("download", text="x", done=2_000_000, total=2_000_000), "nsbuild: downloaded x (2.0 MB)"),
        (Event("a kind to come", text="x"), None),
    ],
)
def test_the_line_of_an_event(event: Event, line: str | None) -> None:
    assert line_of(event) == line
