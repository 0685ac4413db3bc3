"""The table of cases, and what is said of what happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from compat.cases import STEPS, Case, Outcome, Result, Verdict, missing, read_cases
from compat.errors import CompatError

HERE = Path(__file__).parent
CASE = """
[clones]
pack = "https://example.org/pack"
[[case]]
name = "one"
source = "pack:fixtures/one"
buildpacks = ["pack", "later"]
run = "true"
run_prints = []
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "cases.toml"
    file.write_text(text)
    return file


def test_the_table_is_one_and_everything_of_ours_in_it_is_there() -> None:
    cases, clones = read_cases(HERE / "cases.toml")
    assert {"pip_basic", "pip_editable", "pipenv_editable", "poetry_editable", "uv_editable"} <= {
        case.name for case in cases
    }
    assert {name for case in cases for name in case.clones()} == clones.keys()
    for case in cases:
        _, colon, path = case.source.partition(":")
        if not colon:
            assert (HERE / "apps" / case.source).is_dir() or (HERE.parent / "apps" / case.source).is_dir()
        assert bool(path) == bool(colon)
        for pack in set(case.buildpacks) - case.clones():
            assert (HERE / "buildpacks" / pack / "bin/compile").is_file()
        if "later" in case.buildpacks:
            assert case.config["LATER"] and case.later, f"{case.name}: the later buildpack shows nothing"


def test_a_case_is_read(tmp_path: Path) -> None:
    edits = 'mirror_edits = [{ file = "a", pattern = "b", replacement = "c" }]\nclassic_fails = ["run"]\n'
    (case,), clones = read_cases(written(tmp_path, CASE + edits))
    assert (case.name, case.buildpacks, case.classic_fails) == ("one", ("pack", "later"), frozenset({"run"}))
    assert case.mirror_edits[0].replacement == "c"
    assert case.clones() == {"pack"} and clones == {"pack": "https://example.org/pack"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CASE + 'wrong = "x"', "case one: there is no key wrong"),
        (CASE.replace('run = "true"', ""), "case one: run is missing"),
        (CASE + 'classic_fails = ["walk"]', "there is no step walk; the steps are build"),
        (CASE + 'mirror_edits = [{ file = "a" }]', "case one: mirror_edits"),
        (CASE.replace('"pack", "later"', '"other"'), "case one: other is not among the clones"),
        (CASE + CASE.partition("[[case]]")[2].join(["[[case]]", ""]), "more than one case called one"),
        ("[[case]", "is not a table of cases"),
        ("[clones]", "is not a table of cases"),
    ],
)
def test_a_table_that_is_wrong_is_refused_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CompatError) as refusal:
        read_cases(written(tmp_path, text))
    assert words in str(refusal.value) and str(tmp_path) in str(refusal.value)


def test_what_must_appear_is_looked_for_without_colours() -> None:
    output = "\x1b[1;33m-----> Restoring\x1b[0m cache\n       done\n"
    assert missing(output, ["-----> Restoring cache", "done"]) == []
    assert missing(output, ["Restoring  cache", "done", "x"]) == ["Restoring  cache", "x"]


@pytest.mark.parametrize(
    ("layout", "passed", "verdict", "fault"),
    [
        ("app", True, "pass", ""),
        ("app", False, "FAIL", "one, app, run: why"),
        ("app", None, "not reached", ""),
        ("classic", False, "fails as expected", ""),
        ("classic", True, "PASSES, said to fail", "one, classic, run: it should have failed in the classic layout"),
    ],
)
def test_a_verdict(layout: str, passed: bool | None, verdict: Verdict, fault: str) -> None:
    case = Case("one", "one", (), "true", (), classic_fails=frozenset({"run"}))
    outcome = Outcome("run", passed, "why" if passed is False else "")
    result = Result(case, "app" if layout == "app" else "classic", [outcome], 0)
    assert result.verdict(outcome) == verdict
    assert result.faults == ([fault] if fault else [])


def test_a_slug_that_names_its_build_is_a_fault_in_the_app_layout_only() -> None:
    case = Case("one", "one", (), "true", ())
    passed = [Outcome(step, True) for step in STEPS]
    assert Result(case, "classic", passed, 3).faults == []
    assert Result(case, "app", passed, 3).faults == ["one, app: 3 files of the slug name the build's place"]
