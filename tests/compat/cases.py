"""The table of cases, and what is to be said of what happened to one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from compat.errors import CompatError

Step = Literal["build", "later buildpack", "rebuild", "run", "run --read-only"]
Layout = Literal["app", "classic"]
Verdict = Literal["pass", "FAIL", "fails as expected", "PASSES, said to fail", "not reached"]
STEPS: tuple[Step, ...] = get_args(Step)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class Edit:
    """In the copy of an app every match of a regular expression is replaced; one without a match is an error."""

    file: str
    pattern: str
    replacement: str


@dataclass(frozen=True)
class Case:
    """One app through every step.

    `source` is `CLONE:PATH`, an app of a clone's own, or the name of one of ours: `tests/compat/apps`, `tests/apps`.
    `buildpacks` are clones, or names of ours in `tests/compat/buildpacks`. `run` is what bash runs in the slug.
    `build`, `later`, `rebuild` and `run_prints` are texts that must appear, colours aside: in the output of the
    first build, in that of both builds once the last buildpack has run, of the second build, and of `run`.
    `python` says that the app gets a Python runtime; `mirror_edits` are for an app that would refuse the one that
    the mirror has. `repositories` (OWNER/NAME) are what it has from GitHub. `config` are the config vars.
    `stack_files` are what a stack has and this host may lack; an empty file is shown in their place.
    `classic_fails` are the steps that do fail in the classic layout.
    """

    name: str
    source: str
    buildpacks: tuple[str, ...]
    run: str
    run_prints: tuple[str, ...]
    build: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    rebuild: tuple[str, ...] = ()
    python: bool = False
    mirror_edits: tuple[Edit, ...] = ()
    repositories: tuple[str, ...] = ()
    config: Mapping[str, str] = field(default_factory=dict)
    stack_files: tuple[str, ...] = ()
    classic_fails: frozenset[Step] = frozenset()

    def clones(self) -> set[str]:
        """Names of the clones that it needs; those of ours are not among them."""
        clone, colon, _ = self.source.partition(":")
        ours = {path.name for path in (Path(__file__).parent / "buildpacks").iterdir()}
        return {*([clone] if colon else []), *(set(self.buildpacks) - ours)}


def read_cases(file: Path) -> tuple[list[Case], dict[str, str]]:
    """The cases, and where each clone that they name is cloned from.

    Raises CompatError, which names the case and the key, for a table that is not one of cases.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
        cases = [_case(file, table) for table in document["case"]]
        clones: dict[str, str] = document["clones"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise CompatError(f"{file} is not a table of cases: {error!r}") from None
    names = [case.name for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CompatError(f"{file} has more than one case called {', '.join(twice)}")
    for case in cases:
        if strange := sorted(case.clones() - clones.keys()):
            raise CompatError(f"{file}: case {case.name}: {strange[0]} is not among the clones")
    return cases, clones


def _case(file: Path, table: Mapping[str, Any]) -> Case:
    where = f"{file}: case {table.get('name', 'without a name')}"
    known = {each.name for each in fields(Case)}
    if unknown := sorted(table.keys() - known):
        raise CompatError(f"{where}: there is no key {unknown[0]}")
    if missing := [each.name for each in fields(Case) if each.name not in table and _needed(each)]:
        raise CompatError(f"{where}: {missing[0]} is missing")
    fails = frozenset(table.get("classic_fails", ()))
    if strange := sorted(fails - set(STEPS)):
        raise CompatError(f"{where}: there is no step {strange[0]}; the steps are {', '.join(STEPS)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    values["classic_fails"] = fails
    try:
        values["mirror_edits"] = tuple(Edit(**edit) for edit in table.get("mirror_edits", ()))
    except TypeError as error:
        raise CompatError(f"{where}: mirror_edits: {error}") from None
    return Case(**values)


def _needed(each: Any) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def missing(output: str, wanted: Iterable[str]) -> list[str]:
    """Which of the texts do not appear in an output, colours aside."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output)
    return [text for text in wanted if text not in plain]


@dataclass(frozen=True)
class Outcome:
    """What a step came to. `passed` is None where an earlier one had failed, `detail` is why it has not passed."""

    step: Step
    passed: bool | None
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """A case in one layout. `named` is how many files of the slug name the build's place; None without a slug."""

    case: Case
    layout: Layout
    outcomes: Sequence[Outcome]
    named: int | None

    def verdict(self, outcome: Outcome) -> Verdict:
        """A step that is said to fail and does not is a fault of the table, as serious as the other way round."""
        expected = self.layout == "classic" and outcome.step in self.case.classic_fails
        if outcome.passed is None:
            return "not reached"
        if outcome.passed:
            return "PASSES, said to fail" if expected else "pass"
        return "fails as expected" if expected else "FAIL"

    @property
    def faults(self) -> list[str]:
        """One sentence for everything that is not as the table says."""
        found = []
        for outcome in self.outcomes:
            verdict = self.verdict(outcome)
            if verdict in ("FAIL", "PASSES, said to fail"):
                why = outcome.detail or "it should have failed in the classic layout"
                found.append(f"{self.case.name}, {self.layout}, {outcome.step}: {why}")
        if self.layout == "app" and self.named:
            found.append(f"{self.case.name}, app: {self.named} files of the slug name the build's place")
        return found
