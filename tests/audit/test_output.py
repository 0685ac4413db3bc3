"""Text, JSON and SARIF."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import jsonschema
import pytest
from support.sarif import check_sarif

from nsbuild.audit.audit import AuditOptions, audit
from nsbuild.audit.finding import Problem, Report
from nsbuild.audit.output import as_dict, as_json, as_sarif, as_text
from nsbuild.audit.waivers import Waiver, apply_waivers


@pytest.fixture
def report(tmp_path: Path) -> Report:
    slug = tmp_path / "slug"
    (slug / "bin").mkdir(parents=True)
    (slug / "bin/tool").write_text("#!/tmp/build_x1/python\n")
    (slug / "bin/tool").chmod(0o755)
    (slug / "pkg.pth").write_text("/tmp/build_x1/src\n/tmp/build_x1/lib\n")
    (slug / "notes\n\x1b[31m.txt").write_text("/tmp/build_x1")
    (slug / "odd\udcff.txt").write_text("/tmp/build_x1")
    (slug / "broken.zip").write_bytes(b"PK\x03\x04nothing")
    return audit(slug, AuditOptions(paths=["/tmp/build_x1"]))


def test_text(report: Report) -> None:
    lines = list(as_text(report))
    assert lines[0] == "breaks (2)"
    assert "    bin/tool: /tmp/build_x1 (at byte 2)" in lines
    assert "    pkg.pth: /tmp/build_x1 (at byte 0, 2 times)" in lines
    assert lines[-1] == "2 breaks, 2 stale in 4 of 5 files"
    assert any("broken.zip is a broken zip file" in line for line in lines)
    assert not any("\x1b" in line or "\n" in line for line in lines), "a file's name rewrites the terminal"


def test_what_is_waived_or_was_not_looked_into_is_no_clean_slug(report: Report) -> None:
    found = len(report.findings)
    apply_waivers(report, [Waiver("*", "known", datetime.date(2030, 1, 1))], datetime.date(2029, 1, 1))
    assert len(report.waived) == found and report.line() == "nothing but what is waived in 5 files, 1 not looked into"
    assert Report("x", files=5).line() == "no trace of the build's paths in 5 files"
    assert Report("x", problems=report.problems, files=5).line().endswith("paths in 5 files, 1 not looked into")


def test_long_lists_are_cut_unless_asked(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text("/tmp/build_x1")
    report = audit(tmp_path, AuditOptions(paths=["/tmp/build_x1"]))
    assert "    ... and 10 more (--all shows them)" in list(as_text(report))
    broken = Report("x", problems=[Problem(f"{number:02}", "cannot be read") for number in range(21)])
    assert list(as_text(broken))[-2:] == ["    ... and 1 more (--all shows them)", broken.line()]
    assert len(list(as_text(broken, everything=True))) == 21 + 2
    assert len([line for line in as_text(report, everything=True) if ".txt" in line]) == 30


def test_json(report: Report) -> None:
    content = json.loads(as_json(report))
    assert content == as_dict(report)
    assert content["schema"] == 1 and content["counts"] == {"breaks": 2, "stale": 2, "cosmetic": 0}
    assert {finding["kind"] for finding in content["findings"]} == {"shebang", "pth", "text"}


def test_sarif_is_valid(report: Report) -> None:
    log = json.loads(as_sarif(report))
    check_sarif(log)
    log["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        check_sarif(log)


def test_sarif_says_where(report: Report) -> None:
    results = json.loads(as_sarif(report))["runs"][0]["results"]
    places = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in results}
    assert places == {"bin/tool", "pkg.pth", "notes%0A%1B%5B31m.txt", "odd%FF.txt"}
    assert {(result["ruleId"], result["level"]) for result in results} == {
        ("shebang", "error"),
        ("pth", "error"),
        ("text", "warning"),
    }
