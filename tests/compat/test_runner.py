"""Cases through every step, with buildpacks of the tests' own in place of clones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.sites import Site

from compat.cases import LAYOUTS, STEPS, Case, Edit, Result, Verdict
from compat.errors import CompatError
from compat.runner import Bench, Clone, environment, open_clone, run_case

pytest_plugins = ("support.site_fixtures",)


def through(site: Site, case: Case) -> tuple[list[Result], list[str]]:
    """A case in both layouts, with directories of the site as clones; and what was said meanwhile."""
    said: list[str] = []
    clones = {name: Clone(site.path / name, "r") for name in ("first", "second", "apps")}
    work = site.path / "work"
    work.mkdir()
    nsbuild = Path(sys.executable).with_name("nsbuild")
    bench = Bench(nsbuild, clones, work, environment(site.home, {}), said.append, site.path / "logs", "3.13.0")
    return [run_case(bench, case, layout) for layout in LAYOUTS], said


def verdicts(result: Result) -> list[Verdict]:
    assert [outcome.step for outcome in result.outcomes] == list(STEPS)
    return [result.verdict(outcome) for outcome in result.outcomes]


def test_every_step_of_a_case(site: Site) -> None:
    """The first buildpack writes its path down, and a boot script that corrects it, as heroku/python does."""
    site.write("apps/one/Procfile", "web: true\n")
    site.write("apps/one/asks", "python 3.99\n")
    first = """
        echo "-----> First, cached: $(cat "$2/made" 2>/dev/null)"; echo yes >"$2/made"
        cat "$1/.python-version" "$1/asks"
        printf '%s' "$1" >"$1/where"; mkdir -p "$1/.profile.d"
        echo "sed -i 's#/tmp/buil[d]_.*#/app#' where" >"$1/.profile.d/first.sh"
        echo "export FIRST=seen" >>"$(dirname "$0")/../export"
    """
    site.buildpack(first, "first")
    site.buildpack('echo "later: $FIRST, $(cat "$3/VAR"), $(cat "$1/where")"', "second")
    case = Case(
        "one",
        "apps:one",
        ("first", "second"),
        'cd "$(cat where)" && ls where && echo "$VAR"',
        ("where", "of-{node}"),
        build=("-----> First, cached: ", "3.13.0", "python >=3"),
        later=("later: seen, of-{node}, /",),
        rebuild=("-----> First, cached: yes",),
        python=True,
        mirror_edits=(Edit("asks", r"3\.\d+$", ">=3"),),
        config={"VAR": "of-{{node}}"},
        classic_fails=frozenset({"run --read-only"}),
    )
    (app, classic), said = through(site, case)
    assert verdicts(app) == ["pass"] * 5 and app.named == 0 and not app.faults, app.outcomes
    assert verdicts(classic) == ["pass"] * 4 + ["fails as expected"] and not classic.faults, classic.outcomes
    assert classic.named == 1, "where"
    assert (site.path / "apps/one/asks").read_text() == "python 3.99\n", "the clone was changed"
    assert any("which asks for nothing" in line for line in said) and any(">=3" in line for line in said)
    assert "-----> First" in (site.path / "logs/one-app-slug-1.log").read_text()


@pytest.mark.parametrize(
    ("first", "second", "expected", "why"),
    [
        ("echo ready; echo 'some error'; exit 3", "", ["FAIL"] + ["not reached"] * 4, "build: exit 11: "),
        ("echo nothing", "", ["FAIL"] + ["not reached"] * 2 + ["FAIL"] * 2, "build: the output lacks 'ready'"),
        ("echo ready", "exit 4", ["pass", "FAIL"] + ["not reached"] * 3, "later buildpack: exit 11: "),
        (
            'echo ready; test ! -e "$2/made"; touch "$2/made"',
            "touch there",
            ["pass", "pass", "FAIL", "FAIL", "FAIL"],
            "",
        ),
    ],
)
def test_what_fails_is_told_apart(site: Site, first: str, second: str, expected: list[Verdict], why: str) -> None:
    site.app("apps/one")
    site.buildpack(f"set -e\n{first}", "first")
    site.buildpack(second, "second")
    case = Case("one", "apps:one", ("first", "second"), "cat there", (), build=("ready",))
    (app, classic), _ = through(site, case)
    assert verdicts(app) == expected, app.outcomes
    assert any(why in fault for fault in app.faults) and classic.faults


def test_an_edit_that_matches_nothing_is_refused(site: Site) -> None:
    site.app("apps/one")
    case = Case("one", "apps:one", (), "true", (), python=True, mirror_edits=(Edit("Procfile", "^never$", ""),))
    with pytest.raises(CompatError, match=r"one: nothing in .*apps/one/Procfile matches '\^never\$'"):
        through(site, case)


def test_a_clone_may_be_bare_and_changed_and_must_be_one(tmp_path: Path) -> None:
    def git(*words: str | Path) -> str:
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        return subprocess.run(
            ["git", *identity, *words], check=True, capture_output=True, text=True, env=environ
        ).stdout.strip()

    plain, bare = tmp_path / "plain", tmp_path / "bare"
    git("init", "-q", plain)
    (plain / "file").write_text("committed")
    git("-C", plain, "add", ".")
    git("-C", plain, "commit", "-q", "-m", "one")
    head = git("-C", plain, "rev-parse", "HEAD")
    git("clone", "-q", "--bare", plain, bare)
    assert open_clone(plain, "url", tmp_path) == Clone(plain, head)
    (plain / "file").write_text("changed")
    assert open_clone(plain, "url", tmp_path).revision == f"{head}-modified"
    opened = open_clone(bare, "url", tmp_path)
    assert opened.revision == head and (opened.path / "file").read_text() == "committed"
    with pytest.raises(CompatError, match=f"git clone https://example.org/x {tmp_path}/none$"):
        open_clone(tmp_path / "none", "https://example.org/x", tmp_path)
