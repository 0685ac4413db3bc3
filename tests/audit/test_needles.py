"""What is looked for, and that it is found wherever a buffer ends."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.archives import tarred, zipped

from nsbuild.audit.audit import CLASSIC, WORKSPACES, AuditOptions, audit, matcher_for
from nsbuild.audit.decode import container
from nsbuild.audit.file import FileAudit
from nsbuild.audit.needles import Matcher, Needle, literal_of, needles_for

PLACE = "/tmp/build_4f2a9c3d"


def offsets(data: bytes, cuts: list[int], matcher: Matcher) -> list[tuple[str, int | None, int]]:
    """(place, first offset, count) of what is found in data that comes in blocks, cut at `cuts`."""
    file = FileAudit(matcher, "some.txt")
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    for start, end in itertools.pairwise(edges):
        file.feed(data[start:end])
    findings, problems = file.close()
    assert problems == [] or container(data), "what begins as an archive and is none"
    return sorted((finding.place, finding.offset, finding.count) for finding in findings)


def test_every_form_of_a_path(tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.mktemp("needles")
    (top / "real place").mkdir()
    (top / "link").symlink_to("real place")
    texts = {needle.text.decode() for needle in needles_for([f"{top}/link", PLACE])}
    assert {f"{top}/link", f"{top}/real place", f"{top}/real%20place", PLACE} <= texts
    assert {"%2Ftmp%2Fbuild_4f2a9c3d", "build_4f2a9c3d"} <= texts
    assert "link" not in texts and "real place" not in texts  # in any file, by chance


@pytest.mark.parametrize("path", ["", "app", "/", "/tmp", "/app/.."])
def test_a_path_that_is_everywhere_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="two components"):
        needles_for([path])


def test_the_widest_place_is_named_once() -> None:
    matcher = Matcher(needles_for(["/w/ws-1234abcdef", "/w/ws-1234abcdef/app"]))
    data = b"/w/ws-1234abcdef/app/x /w/ws-1234abcdef/cache ws-1234abcdef"
    assert offsets(data, [], matcher) == [("/w/ws-1234abcdef", 23, 2), ("/w/ws-1234abcdef/app", 0, 1)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/tmp/cache", True),
        ("/tmp/cache/x", True),
        ("file:///tmp/cache", True),
        ("/tmp/cached", False),
        ("/tmp/cache_2", False),
        ("/app/tmp/cache/bootsnap", False),
        ("https://example.com/tmp/cache", False),
        ("/srv/releases-1.2/tmp/cache", False),
        ("-I/tmp/cache", True),
        ("PATH=/usr/bin:/tmp/cache/bin", True),
        ("$PREFIX/tmp/cache", True),
        ("//tmp/cache", True),
        ("/tmp/cache-2", True),  # a name that goes on in another way may be the path and an option
    ],
)
def test_a_longer_name_is_another_path(text: str, found: bool) -> None:
    assert bool(offsets(text.encode(), [], Matcher(needles_for(["/tmp/cache"])))) is found


def test_across_every_edge() -> None:
    matcher = Matcher(needles_for([PLACE]), [r"/srv/job-[0-9]+"])
    data = b"x" * 400 + PLACE.encode() + b"/lib " + b"y" * 300 + b" /srv/job-17 " + b"z" * 400
    whole = offsets(data, [], matcher)
    assert whole == [("/srv/job-17", 725, 1), (PLACE, 400, 1)]
    for cut in range(1, len(data)):
        assert offsets(data, [cut], matcher) == whole, cut
    for cut in range(380, 430):
        assert offsets(data, list(range(cut, len(data), 7)), matcher) == whole, cut


def test_a_pattern_across_every_edge_is_found_once() -> None:
    """The end of what it matches is matched by it as well."""
    matcher = matcher_for(AuditOptions())
    place = "/home/me/.cache/nsbuild/.workspaces/app-1f"
    data = b"x" * 700 + f" {place} ".encode() + b"y" * 700
    for cut in range(600, 1400):
        assert offsets(data, [cut], matcher) == [(place, 701, 1)], cut


@pytest.mark.parametrize(
    "before", ["", "file://", "PATH=/usr/bin:", "-I/x,", '{"a":"/x","b":"', "['/x','", "(/x):(", "-L/x=", "/é"]
)
def test_where_a_workspace_begins(before: str) -> None:
    place = "/home/me/.cache/nsbuild/.workspaces/app-1f"
    found = offsets(f"{before}{place}/app".encode(), [], matcher_for(AuditOptions()))
    assert found == [(place, len(before.encode()), 1)]


def test_a_parent_across_every_edge() -> None:
    matcher = Matcher(needles_for(["/tmp/cache"]))
    data = b"x" * 700 + b" /" + b"p" * 200 + b"/tmp/cache /tmp/cache " + b"y" * 700
    for cut in range(600, 1000):
        assert offsets(data, [cut, cut + 5], matcher) == [("/tmp/cache", 913, 1)], cut


def test_a_distinctive_name_is_found_below_any_parent() -> None:
    assert offsets(f"/private{PLACE}/x".encode(), [], Matcher(needles_for([PLACE]))) == [(PLACE, 13, 1)]


def test_across_the_edges_of_what_is_read_at_a_time(tmp_path: Path) -> None:
    """A MB, by whoever walks a directory: each offset of the place at the first edge and the second."""
    for before in range(len(PLACE) + 2):
        data = bytearray(b"x" * (2 << 20))
        for edge in (1 << 20, (2 << 20) - 1):
            start = edge - before
            data[start - 1 : start + len(PLACE) + 1] = f" {PLACE} ".encode()
        (tmp_path / f"{before:02}.txt").write_bytes(data)
    report = audit(tmp_path, AuditOptions(paths=[PLACE]))
    assert {one.file: (one.offset, one.count) for one in report.findings} == {
        f"{before:02}.txt": ((1 << 20) - before, 2) for before in range(len(PLACE) + 2)
    }


WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "zip": lambda data: zipped({"a/b": data}),
    "tar": lambda data: tarred({"first": b"x", "a/b": data}),
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
}


@given(
    before=st.binary(max_size=3000),
    after=st.binary(max_size=3000),
    name=st.sampled_from(["a", "a.pyc", "a.pth", "bin/a", "liba.so", "a.json"]),
    wrappings=st.lists(st.sampled_from(sorted(WRAPPINGS)), max_size=4),
    form=st.sampled_from([needle.text for needle in needles_for([PLACE])]),
)
def test_a_needle_planted_anywhere_in_anything_is_found(
    before: bytes, after: bytes, name: str, wrappings: list[str], form: bytes
) -> None:
    data = before + b"\n" + form + b"/" + after
    for wrapping in wrappings:
        data = WRAPPINGS[wrapping](data)
    file = FileAudit(Matcher(needles_for([PLACE])), name)
    for start in range(0, len(data), 1000):
        file.feed(data[start : start + 1000])
    findings, _ = file.close()
    assert {one.place for one in findings} == {PLACE}


@given(
    before=st.binary(max_size=600),
    after=st.binary(max_size=600),
    cuts=st.lists(st.integers(0, 1300), max_size=12),
    form=st.sampled_from([needle.text for needle in needles_for([PLACE])]),
)
def test_a_planted_needle_is_found(before: bytes, after: bytes, cuts: list[int], form: bytes) -> None:
    # Not in the middle of a longer name.
    data = before + b"\n" + form + b"/" + after
    matcher = Matcher(needles_for([PLACE]))
    whole = offsets(data, [], matcher)
    assert [place for place, _, _ in whole] == [PLACE]
    assert offsets(data, cuts, matcher) == whole


@pytest.mark.parametrize(
    ("pattern", "literal"),
    [
        (CLASSIC, b"/tmp/build_"),
        (WORKSPACES, b"/.workspaces/"),
        ("/srv/jobs/[0-9]+", b"/srv/jobs/"),
        ("/srv/jobs?/x", b"/srv/job"),
        ("/srv/jobs*", b"/srv/job"),
        ("/srv/ab{0,200}cd", b"/srv/a"),
        ("/srv/ab+cd", b"/srv/ab"),
        ("[]/srv]+/x", b"/x"),
        ("[^]/srv]+/y", b"/y"),
        ("/a.c", b"/a"),
        ("/srv|/tmp", b""),
        ("(/srv/x)?", b""),
        (r"\d+/srv", b""),
        ("(?i)/srv", b""),
        ("[0-9]+", b""),
    ],
)
def test_what_a_pattern_always_has(pattern: str, literal: bytes) -> None:
    assert literal_of(pattern) == literal


@given(
    data=st.data(),
    pattern=st.from_regex(r"[ab/]{0,4}([ab]|[ab][*?+]|[ab]\{0,2\}|\[ab\]|\\\.|\.){1,5}", fullmatch=True),
)
def test_whatever_a_pattern_matches_has_it(data: st.DataObject, pattern: str) -> None:
    text = data.draw(st.from_regex(pattern.encode(), fullmatch=True))
    assert literal_of(pattern) in text
    assert Matcher([], [pattern]).anywhere(b"x" + text + b"x")


@given(
    texts=st.sets(st.binary(min_size=1, max_size=12), min_size=1, max_size=6),
    before=st.binary(max_size=40),
    after=st.binary(max_size=40),
    planted=st.booleans(),
    data=st.data(),
)
def test_any_of_several_texts_is_found(
    texts: set[bytes], before: bytes, after: bytes, planted: bool, data: st.DataObject
) -> None:
    content = before + (data.draw(st.sampled_from(sorted(texts))) if planted else b"") + after
    matcher = Matcher([Needle(text, "/a/place") for text in texts])
    assert matcher.anywhere(content) == any(text in content for text in texts)
