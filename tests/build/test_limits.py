"""What a platform would refuse: a warning here, an error with --enforce-limits. The limits themselves are lowered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.sites import Site, snapshot

from nsbuild.build import BuildError, BuildOptions, Event, Record, build, limits

pytest_plugins = ["support.site_fixtures"]

LARGE = 'head -c 3000000 /dev/urandom > "$1/large"'


@pytest.fixture
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detect has no longer, and may need it on a busy host: not for a buildpack with one that is to match."""
    monkeypatch.setattr(limits, "COMPILE_SECONDS", 0.4)


@pytest.fixture
def little_slug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SLUG_BYTES", 1 << 20)


def built(site: Site, pack: Path, output: Path, **options: bool | float | None) -> tuple[Record, list[str]]:
    """In this process, where the limits can be lowered."""
    said: list[str] = []

    def watch(event: Event) -> None:
        if event.kind in ("line", "warning"):
            said.append(event.text)

    given = BuildOptions(output=str(output), cache_dir=str(site.home / "caches"), **options)  # type: ignore[arg-type]
    try:
        return build(site.app(), [pack], given, monitor=watch), said
    except BuildError as error:
        return error.record, said  # type: ignore[attr-defined]


@pytest.mark.usefixtures("little_time")
def test_a_slow_compile_is_warned_about(site: Site) -> None:
    record, said = built(site, site.buildpack("sleep 0.6", detect=None), site.out)
    assert record.exit_code == 0
    assert [text for text in said if "a platform ends it after" in text] == record.warnings
    assert "bin/compile" in record.warnings[0]


@pytest.mark.usefixtures("little_time")
def test_an_enforced_limit_ends_a_compile(site: Site) -> None:
    record, _ = built(site, site.buildpack("sleep 60", detect=None), site.out, enforce_limits=True)
    assert record.exit_code == 13
    assert "took longer than 0.4 seconds" in record.result
    assert not site.out.exists()


@pytest.mark.usefixtures("little_time")
def test_a_limit_of_ones_own_is_kept_and_not_warned_about(site: Site) -> None:
    record, _ = built(site, site.buildpack("sleep 0.6"), site.out, timeout=30.0)
    assert (record.exit_code, record.warnings) == (0, [])


@pytest.mark.usefixtures("little_time")
def test_what_only_answers_never_has_longer_than_a_compile(site: Site) -> None:
    record, _ = built(site, site.buildpack(detect="sleep 60"), site.out)
    assert (record.exit_code, "bin/detect" in record.result) == (13, True)


@pytest.mark.usefixtures("little_slug")
def test_a_large_slug_is_warned_about(site: Site) -> None:
    output = site.path / "slug.tgz"
    record, said = built(site, site.buildpack(LARGE), output)
    assert record.exit_code == 0
    assert record.slug is not None and record.slug.bytes == output.stat().st_size
    assert said[-3:] == [
        "-----> Compressing...",
        "       Done: 2.9M",
        " !     Compiled slug size: 2.9M is too large (max is 1M).",
    ]
    assert record.warnings == ["Compiled slug size: 2.9M is too large (max is 1M)."]


def test_of_a_directory_it_is_said_that_its_size_was_not_looked_at(site: Site) -> None:
    record, _ = built(site, site.buildpack(), site.out, enforce_limits=True)
    assert record.exit_code == 0
    assert ["directory" in text for text in record.warnings] == [True]


@pytest.mark.usefixtures("little_slug")
def test_an_enforced_limit_replaces_nothing(site: Site) -> None:
    output = site.path / "slug.tgz"
    assert built(site, site.buildpack('echo 1 > "$2/kept"', "small"), output)[0].exit_code == 0
    caches = site.home / "caches"
    before = output.read_bytes(), snapshot(caches, times=False)
    record, _ = built(site, site.buildpack(f'echo 2 > "$2/kept"; {LARGE}'), output, enforce_limits=True)
    assert record.exit_code == 13
    assert record.result == "Compiled slug size: 2.9M is too large (max is 1M)."
    assert (output.read_bytes(), snapshot(caches, times=False)) == before
    assert sorted(os.listdir(site.path)) == ["app", "home", "pack", "slug.tgz", "small"]


def test_the_sentence_is_the_platforms() -> None:
    assert limits.too_large(500 << 20) == ""
    assert limits.too_large(537183846) == "Compiled slug size: 512.3M is too large (max is 500M)."
