"""Waivers cover what they name until they expire."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from nsbuild.audit.audit import AuditOptions, audit
from nsbuild.errors import UsageError

TODAY = datetime.date(2026, 6, 15)


@pytest.fixture
def slug(tmp_path: Path) -> Path:
    directory = tmp_path / "slug"
    (directory / "a").mkdir(parents=True)
    (directory / "a/x.pth").write_text("/tmp/build_x1")
    (directory / "a/y.txt").write_text("/tmp/build_x1")
    return directory


def outcome(slug: Path, waivers: str) -> tuple[set[tuple[str, str]], set[str]]:
    file = slug.parent / "waivers.toml"
    file.write_text(waivers)
    report = audit(slug, AuditOptions(paths=["/tmp/build_x1"], waivers=str(file), today=TODAY))
    return {(one.file, one.kind) for one in report.findings}, {f"{one.file}: {why}" for one, why in report.waived}


def waiver(**values: str) -> str:
    return "[[waiver]]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())


def test_a_waiver_covers(slug: Path) -> None:
    text = waiver(file="'a/*'", kind="'pth'", reason="'known'", expires="2026-06-15")
    assert outcome(slug, text) == ({("a/y.txt", "text")}, {"a/x.pth: known"})


def test_every_kind(slug: Path) -> None:
    assert outcome(slug, waiver(file="'*'", reason="'known'", expires="2027-01-01"))[0] == set()


def test_an_expired_one_is_a_finding(slug: Path) -> None:
    text = waiver(file="'a/*'", kind="'pth'", reason="'known'", expires="2026-06-14")
    assert outcome(slug, text)[0] == {("a/x.pth", "pth"), ("a/y.txt", "text"), ("a/*", "waiver-expired")}


def test_an_expired_one_that_covers_nothing_is_not(slug: Path) -> None:
    text = waiver(file="'gone/*'", reason="'known'", expires="2020-01-01")
    assert outcome(slug, text)[0] == {("a/x.pth", "pth"), ("a/y.txt", "text")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[waiver", "no TOML"),
        ("waivers = 1", "only [[waiver]] tables"),
        (waiver(reason="'x'", expires="2027-01-01"), "waiver 1: file is missing"),
        (waiver(file="'x'", expires="2027-01-01"), "waiver 1: reason is missing"),
        (waiver(file="'x'", reason="'y'"), "expires is not a date"),
        (waiver(file="'x'", reason="'y'", expires="'soon'"), "expires is not a date"),
        (waiver(file="'x'", reason="'y'", expires="2027-01-01", kind="'pht'"), "no kind 'pht'"),
        (waiver(file="'x'", reason="'y'", expires="2027-01-01", until="1"), "and nothing else"),
    ],
)
def test_a_malformed_file(slug: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        outcome(slug, text)
    assert said in str(caught.value) and "waivers.toml" in str(caught.value)


def test_no_such_file(slug: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml cannot be read"):
        audit(slug, AuditOptions(waivers=str(slug / "nowhere.toml")))
