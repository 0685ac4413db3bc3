"""A case through its steps: nsbuild as a user calls it, by its command line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support.sites import holding

from compat.cases import Case, Layout, Outcome, Result, Step, missing
from compat.errors import CompatError

HERE = Path(__file__).resolve().parent
TIMEOUT = 1200
"""Seconds for one call of nsbuild, which then counts as exit 124: package managers download."""


@dataclass(frozen=True)
class Clone:
    """The files of a clone, and its commit: with `-modified` behind it where the work tree is not that commit's."""

    path: Path
    revision: str


@dataclass(frozen=True)
class Bench:
    """What every case has in common. `say` is told what happens; `logs` is where whole outputs go, or None."""

    nsbuild: Path
    clones: Mapping[str, Clone]
    work: Path
    environ: Mapping[str, str]
    say: Callable[[str], None]
    logs: Path | None = None
    python: str = ""
    """The version that an app which needs one is made to ask for; empty leaves it to the app."""
    fill: Mapping[str, str] = field(default_factory=dict)
    """Names in the config vars of cases, `{NAME}`, and their values."""


def open_clone(path: Path, url: str, work: Path) -> Clone:
    """A clone, its files in `work` where it is bare. Raises CompatError where there is none."""
    git = ["git", "-c", "safe.directory=*", "-C", str(path)]
    bare = subprocess.run([*git, "rev-parse", "--is-bare-repository"], capture_output=True, text=True, check=False)
    if not path.is_dir() or bare.returncode != 0:
        raise CompatError(f"{path} is not a clone: git clone {url} {path}")
    revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    if bare.stdout.strip() == "true":
        files = work / "clones" / path.name
        files.mkdir(parents=True)
        archive = subprocess.run([*git, "archive", "HEAD"], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", files], input=archive, check=True)
        return Clone(files, revision)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True).stdout
    return Clone(path, f"{revision}-modified" if changed else revision)


def run_case(bench: Bench, case: Case, layout: Layout) -> Result:
    """Every step of a case in one layout; those after a failed one are not reached."""
    place = bench.work / f"{case.name}-{layout}"
    place.mkdir()
    app = _app(bench, case, place)
    outcomes: list[Outcome] = []
    slug = place / "slug-1"
    outcomes += _build(bench, case, layout, app, slug, case.build)
    if all(outcome.passed for outcome in outcomes):
        again = place / "slug-2"
        outcomes.append(_rebuild(bench, case, layout, app, again))
        slug = again if outcomes[-1].passed else slug
    else:
        outcomes.append(Outcome("rebuild", None))
    runs: tuple[tuple[Step, list[str]], ...] = (("run", []), ("run --read-only", ["--read-only"]))
    for step, options in runs:
        outcomes.append(_run(bench, case, layout, slug, step, options) if slug.exists() else Outcome(step, None))
    named = {name for place in ("/tmp/build_", str(bench.work)) for name in holding(slug, place.encode())}
    shutil.rmtree(place, ignore_errors=True)  # a gigabyte; what is left goes with the whole of `work`
    return Result(case, layout, outcomes, len(named) if outcomes[0].passed else None)


def _app(bench: Bench, case: Case, place: Path) -> Path:
    """A copy of the app, made to ask for a runtime that there is."""
    clone, colon, path = case.source.partition(":")
    ours = [HERE / "apps" / clone, HERE.parent / "apps" / clone]
    source = bench.clones[clone].path / path if colon else next((app for app in ours if app.is_dir()), ours[0])
    if not source.is_dir():
        raise CompatError(f"{case.name}: there is no {source}")
    app = place / "app"
    shutil.copytree(source, app, symlinks=True)
    if case.python and bench.python:
        asked = (app / ".python-version").read_text().strip() if (app / ".python-version").exists() else "nothing"
        (app / ".python-version").write_text(f"{bench.python}\n")
        bench.say(f"{case.name}: .python-version is {bench.python} in the copy of the app, which asks for {asked}")
        for edit in case.mirror_edits:
            text = (app / edit.file).read_text()
            changed, count = re.subn(edit.pattern, edit.replacement, text, flags=re.MULTILINE)
            if count == 0:
                raise CompatError(f"{case.name}: nothing in {source / edit.file} matches {edit.pattern!r}")
            (app / edit.file).write_text(changed)
            bench.say(f"{case.name}: {edit.file} says {edit.replacement!r} in the copy")
    return app


def _build(
    bench: Bench, case: Case, layout: Layout, app: Path, slug: Path, wanted: tuple[str, ...]
) -> tuple[Outcome, Outcome]:
    """One build gives two outcomes: that of the last buildpack of the chain is told apart from the others'."""
    name = f"{case.name}-{layout}-{slug.name}"
    report = slug.parent / f"{slug.name}.json"
    words = [
        *("build", str(app), *(word for pack in case.buildpacks for word in ("-b", str(_buildpack(bench, pack))))),
        *("--output", str(slug), "--cache", str(slug.parent / "cache"), "--layout", layout),
        *("--workspace-dir", str(slug.parent / f"workspaces-{slug.name}"), "--report", str(report)),
        *_config(bench, case),
        *_stack_files(case, slug.parent),
    ]
    code, output, seconds = _nsbuild(bench, name, words)
    compiles = [phase for phase in _phases(report) if phase["name"] == "compile"]
    before = compiles[: len(case.buildpacks) - 1]
    whole = len(before) == len(case.buildpacks) - 1 and all(phase["exit_code"] == 0 for phase in before)
    absent = missing(output, wanted)
    first: Step = "rebuild" if slug.name == "slug-2" else "build"
    if not whole or absent:
        why = _why(code, output) if not whole else f"the output lacks {absent[0]!r}"
        return Outcome(first, False, why, seconds), Outcome("later buildpack", None)
    absent = missing(output, case.later)
    why = _why(code, output) if code != 0 else f"the output lacks {absent[0]!r}" if absent else ""
    return Outcome(first, True, "", seconds), Outcome("later buildpack", not why, why)


def _rebuild(bench: Bench, case: Case, layout: Layout, app: Path, slug: Path) -> Outcome:
    """The same build once more, from its cache and in another workspace."""
    first, later = _build(bench, case, layout, app, slug, case.rebuild)
    return first if later.passed or not first.passed else Outcome("rebuild", False, later.detail, first.seconds)


def _run(bench: Bench, case: Case, layout: Layout, slug: Path, step: Step, options: list[str]) -> Outcome:
    words = ["run", *options, *_config(bench, case), str(slug), "--", "bash", "-c", case.run]
    code, output, seconds = _nsbuild(bench, f"{case.name}-{layout}-{step.replace(' ', '')}", words)
    absent = missing(output, case.run_prints)
    why = _why(code, output) if code != 0 else f"the output lacks {absent[0]!r}" if absent else ""
    return Outcome(step, not why, why, seconds)


def _buildpack(bench: Bench, name: str) -> Path:
    return bench.clones[name].path if name in bench.clones else HERE / "buildpacks" / name


def _config(bench: Bench, case: Case) -> list[str]:
    pairs = {name: value.format_map(bench.fill) if "{" in value else value for name, value in case.config.items()}
    return [word for name, value in pairs.items() for word in ("--env", f"{name}={value}")]


def _stack_files(case: Case, place: Path) -> list[str]:
    empty = place / "empty"
    empty.touch()
    return [word for path in case.stack_files if not Path(path).exists() for word in ("--bind", f"{empty}:{path}")]


def _nsbuild(bench: Bench, name: str, words: list[str]) -> tuple[int, str, float]:
    began = time.monotonic()
    code, printed = 124, b""
    with contextlib.suppress(subprocess.TimeoutExpired):
        ended = subprocess.run(
            [bench.nsbuild, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(bench.environ),
            timeout=TIMEOUT,
            check=False,
        )
        code, printed = ended.returncode, ended.stdout
    seconds = time.monotonic() - began
    output = printed.decode("utf-8", "replace")
    if bench.logs is not None:
        bench.logs.mkdir(parents=True, exist_ok=True)
        (bench.logs / f"{name}.log").write_text(output)
    bench.say(f"{name}: {seconds:.0f} s, exit {code}")
    return code, output, seconds


def _phases(report: Path) -> list[dict[str, object]]:
    if not report.exists():
        return []
    phases: list[dict[str, object]] = json.loads(report.read_text())["phases"]
    return phases


def _why(code: int, output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|not found|no such file|denied", line, re.IGNORECASE)]
    return f"exit {code}: {(errors or lines or ['it said nothing'])[-1]}"


def environment(home: Path, more: Mapping[str, str]) -> dict[str, str]:
    """What nsbuild is started with: the operator's own environment, but for a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PYTHON"))}
    return {**kept, "HOME": str(home), "NO_COLOR": "1", **more}
