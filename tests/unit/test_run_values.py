"""Formations and prefixed lines as values."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbuild.errors import UsageError
from nsbuild.runtime.formation import members
from nsbuild.runtime.lines import Lines, Output
from nsbuild.runtime.slug import SlugInfo

INFO = SlugInfo(process_types={"worker": "w", "release": "r", "web": "x", "cron": "c"})


def ports(formation: dict[str, int] | None, port: int = 5000) -> dict[str, int]:
    return {member.name: member.port for member in members(INFO, formation, port)}


def test_ports() -> None:
    assert ports(None) == {"web.1": 5000, "worker.1": 5100, "cron.1": 5200}
    assert ports({"cron": 2, "web": 2}) == {"web.1": 5000, "web.2": 5001, "cron.1": 5100, "cron.2": 5101}
    assert ports({"cron": 1, "release": 1}, 80) == {"cron.1": 80, "release.1": 180}
    assert ports({"web": 1}, 65535) == {"web.1": 65535}


@pytest.mark.parametrize(
    ("formation", "port"), [({"web": 0}, 5000), ({"web": 101}, 5000), ({"web": 2}, 65535), ({"x": 1}, 5000)]
)
def test_what_cannot_run(formation: dict[str, int], port: int) -> None:
    with pytest.raises(UsageError):
        members(INFO, formation, port)


@given(st.lists(st.binary(max_size=20)), st.integers(1, 8))
def test_no_byte_is_lost_whatever_the_chunks(chunks: list[bytes], longest: int) -> None:
    lines = Lines(b"p|", longest)
    shown = b"".join(map(lines.feed, chunks)) + lines.rest()
    text = b"".join(chunks)
    pieces = [piece.removeprefix(b"p|") for piece in shown.split(b"\n")[:-1]] if shown else []
    assert all(len(piece) <= longest for piece in pieces)
    assert b"".join(pieces) == text.replace(b"\n", b"")
    assert shown.count(b"\np|") + bool(shown) == len(pieces)


@given(st.lists(st.binary(max_size=20)))
def test_lines_are_whole(chunks: list[bytes]) -> None:
    lines = Lines(b"", 10_000)
    shown = [lines.feed(chunk) for chunk in chunks]
    assert all(part == b"" or part.endswith(b"\n") for part in shown)
    text, rest = b"".join(chunks), lines.rest()
    assert b"".join(shown) + rest == text + (b"\n" if text and not text.endswith(b"\n") else b"")
    assert lines.rest() == b""


def test_output_never_waits() -> None:
    reader, writer = os.pipe()
    output = Output(writer)
    output.add(b"x" * 10_000)
    output.write()
    assert output.waiting and not output.full and os.read(reader, 20_000) == b"x" * 4096
    output.add(b"y" * 300_000)
    assert output.full
    os.close(reader)
    output.write()
    assert isinstance(output.failure, BrokenPipeError) and not output.waiting
    output.add(b"z")
    assert not output.waiting
    os.close(writer)
