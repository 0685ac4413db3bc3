"""Does a slug work where nothing of its build is there, and it cannot be written? By running what is in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from nsbuild.errors import UsageError
from nsbuild.refusals import Refusals
from nsbuild.runtime.boot import command_of, environment
from nsbuild.runtime.booting import boot_once, free_port
from nsbuild.runtime.crash import crashed, telling_line
from nsbuild.runtime.dyno import Dyno
from nsbuild.runtime.opened import RunOptions, Slug, network_needs, new_workspace, opened
from nsbuild.runtime.process import slug_path
from nsbuild.sandbox import Launcher, Outcome, View
from nsbuild.slug import boot

TIMEOUT = 60.0
"""Seconds for one command or import."""
_KEPT = 1 << 20
_MOST = 2000


class Verdict(StrEnum):
    """What a run has shown."""

    WORKS = "works"
    UNCLEAR = "unclear"
    """It starts, but has not done what was asked: a program without `--version`, for one."""
    FAILS = "fails"
    """It must work, and does not."""


@dataclass(frozen=True)
class Proof:
    """`kind` is `command`, `import`, `process` or `given` (by the caller), `name` which one. `status` is the exit
    status, 128+n when signal n killed it, None when it was still running and nothing else was wanted. `said` is the
    line of its output that tells most, `file` what of the slug to look at, from its top: the
    program, the Python that imports, the `.pth`, the Procfile; empty for `given`.
    """

    kind: str
    name: str
    verdict: Verdict
    status: int | None
    said: str
    file: str = ""


@dataclass(frozen=True)
class ProveOptions:
    """`commands` are run by bash, and must end with 0. `absent` are paths that must not be there. `env` are config
    vars. `run` is how the dynos are; its slug is read-only all the same.
    """

    commands: Sequence[str] = ()
    absent: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    run: RunOptions = field(default_factory=RunOptions)


def prove(
    slug: str | Path, options: ProveOptions | None = None, *, tell: Callable[[Proof], None] = lambda proof: None
) -> list[Proof]:
    """Run every command of the slug that is on the PATH of its dynos (`--version`, else `--help`), import what its
    Python has installed, run `commands`, and start each process type but `release` until it listens (`web`) or has
    lived for a while. `tell` gets each result as it comes.

    Raises UsageError for no slug, or where one of `absent` is there, so that nothing would be proved; NsbuildError.
    """
    options = options or ProveOptions()
    run = replace(options.run, read_only=True)
    found: list[Proof] = []
    with Refusals() as refusals, opened(slug_path(slug), run) as unpacked:
        with new_workspace(unpacked.user, run) as work, Launcher.for_caller() as launcher:
            (view,) = Dyno(unpacked, run, work).views()
            dynos = _Dynos(launcher, view, unpacked, run, options.env)
            _check_absent(dynos, options.absent)
            for proof in _proofs(dynos, options.commands):
                found.append(proof)
                tell(proof)
        refusals.ran = True
    return found


@dataclass(frozen=True)
class _Ended:
    """`data` is what was printed, both streams."""

    outcome: Outcome
    data: bytes

    @property
    def said(self) -> str:
        return telling_line(self.data)

    @property
    def line(self) -> bytes:
        """What comes after the last newline: an answer, after whatever profile scripts have printed."""
        return self.data.rpartition(b"\n")[2]


@dataclass(frozen=True)
class _Dynos:
    """One read-only view of the slug, in which one process after the other is run."""

    launcher: Launcher
    view: View
    slug: Slug
    options: RunOptions
    config_vars: Mapping[str, str]

    def environment(self, name: str, port: int | None = None) -> dict[str, str]:
        base = network_needs(self.options).variables
        return environment(self.slug.info, f"{name}.1", base=base, config_vars=self.config_vars, port=port)

    def run(self, *argv: str) -> _Ended:
        """Run a command as `nsbuild run SLUG -- COMMAND` does, with nothing on stdin."""
        printed = bytearray()

        def keep(data: bytes) -> None:
            printed.extend(data)
            del printed[:-_KEPT]

        with open(os.devnull, "rb") as null:  # noqa: PTH123
            outcome = self.launcher.launch(
                self.view,
                boot(argv),
                env=self.environment("run"),
                cwd=self.slug.info.run_path,
                stdin=null.fileno(),
                on_output=keep,
                timeout=TIMEOUT,
                interrupt_grace=1.0,
            )
        return _Ended(outcome, bytes(printed))


def _check_absent(dynos: _Dynos, paths: Sequence[str]) -> None:
    for path in paths:
        if dynos.run("test", "-e", path).outcome.exit_code == 0:
            raise UsageError(f"{path} is there at run time as well: nothing would be proved.", "Remove it first.")


def _proofs(dynos: _Dynos, commands: Sequence[str]) -> Iterator[Proof]:
    for path in _on_path(dynos):
        yield _command(dynos, path)
    yield from _imports(dynos)
    for line in commands:
        ended = dynos.run("bash", "-c", line)
        verdict = Verdict.WORKS if ended.outcome.exit_code == 0 else Verdict.FAILS
        yield Proof("given", line, verdict, ended.outcome.exit_code, ended.said)
    for name in dynos.slug.info.process_types:
        if name != "release":  # it changes databases
            yield _process(dynos, name)


def _process(dynos: _Dynos, name: str) -> Proof:
    port = free_port()
    argv = boot(command_of(dynos.slug.info, name))
    web = port if name == "web" else None
    booted = boot_once(dynos.launcher, dynos.view, argv, dynos.environment(name, port), web)
    said = telling_line(booted.said)
    if not booted.well and booted.status is None:
        said = f"it does not listen on PORT; {said}"
    verdict = Verdict.WORKS if booted.well else Verdict.FAILS
    return Proof("process", name, verdict, booted.status, said, "Procfile")


_LIST = r"""
printf '\0'
IFS=:
for directory in $PATH; do
    case $directory in "$HOME"/*)
        for file in "$directory"/*; do
            if [ -f "$file" ] && [ -x "$file" ]; then printf '%s\0' "$file"; fi
        done
    esac
done
"""


def _on_path(dynos: _Dynos) -> list[str]:
    """The slug's own programs that a dyno finds by name. Raises UsageError where no dyno can be booted."""
    ended = dynos.run("bash", "-c", _LIST)
    if ended.outcome.exit_code != 0:
        raise UsageError(
            f"The slug does not boot: its profile scripts end with {ended.outcome.exit_code} ({ended.said})."
        )
    # What profile scripts print comes before the first NUL.
    paths = [os.fsdecode(path) for path in ended.data.split(b"\0")]
    home = dynos.slug.info.run_path
    return list(dict.fromkeys(path for path in paths if path.startswith(f"{home}/")))[:_MOST]


def _command(dynos: _Dynos, path: str) -> Proof:
    name = os.path.relpath(path, dynos.slug.info.run_path)
    for option in ("--version", "--help"):
        ended = dynos.run(path, option)
        if ended.outcome.exit_code == 0:
            return Proof("command", f"{name} {option}", Verdict.WORKS, 0, ended.said, name)
    return Proof("command", name, _started(ended), ended.outcome.exit_code, ended.said, name)


def _started(ended: _Ended) -> Verdict:
    """Of a program that has failed: whether it was the program that said so."""
    killed = ended.outcome.signal is not None and not ended.outcome.timed_out
    # A program that takes any word for a file's name falls over the option, not over anything of ours.
    by_itself = crashed(ended.data) and "--help" not in ended.said
    broken = ended.outcome.exit_code in (126, 127) or killed or by_itself
    return Verdict.FAILS if broken else Verdict.UNCLEAR


_INSTALLED = r"""
import importlib.metadata, importlib.util, json, os, sys
home = os.path.join(os.path.realpath(os.environ["HOME"]), "")
inside = lambda path: os.path.join(os.path.realpath(path), "").startswith(home)
lost = []
for directory in filter(inside, sys.path):
    for file in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        if file.endswith((".pth", ".egg-link")):
            with open(os.path.join(directory, file), errors="replace") as lines:
                paths = [line.strip() for line in lines if not line.startswith(("import ", "import\t", "#"))]
            lost += [(directory, file, path) for path in paths if path[:1] == "/" and not os.path.exists(path)]
found = []
for one in importlib.metadata.distributions():
    if not inside(str(one.locate_file(""))):
        continue
    name = str(one.metadata["Name"])
    files = [str(path) for path in one.files or ()]
    tops = (one.read_text("top_level.txt") or "").split()
    if not tops:
        tops = [path.split("/")[0] for path in files if path.count("/") == 1 and path.endswith("/__init__.py")]
        tops += [path[:-3] for path in files if "/" not in path and path.endswith(".py") and path[0] != "_"]
    if not tops and importlib.util.find_spec(name.replace("-", "_")):
        tops = [name.replace("-", "_")]
    found.append((name, sorted({top for top in tops if top.isidentifier()})))
sys.stdout.write("\n" + json.dumps([sorted(found), lost]))
"""
"""The slug's distributions and their modules, and the places that its .pth files name and that are not there. For any
Python from 3.8 on.
"""


def _answer(line: bytes) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str, str]]]:
    """What `_INSTALLED` has printed, by a Python that may be anything.

    Raises ValueError, TypeError, RecursionError for what it cannot have.
    """
    distributions, lost = json.loads(line)
    installed = [(str(name), [str(top) for top in tops]) for name, tops in distributions]
    broken = [(str(directory), str(file), str(path)) for directory, file, path in lost]
    for text in (*(name for name, _ in installed), *(text for texts in broken for text in texts)):
        os.fsencode(text)  # JSON may hold what no name of a file does
    if not all(top.isidentifier() for _, tops in installed for top in tops):
        raise ValueError("a module has a name that cannot be imported")
    return installed, broken


def _imports(dynos: _Dynos) -> Iterator[Proof]:
    """The .pth files of the slug's own Python, and its distributions, each in a process of its own."""
    found = dynos.run("bash", "-c", r'printf "\n%s" "$(command -v python3 || command -v python)"')
    python = os.fsdecode(found.line)
    if not python.startswith(f"{dynos.slug.info.run_path}/") or "\0" in python:
        return
    own = os.path.relpath(python, dynos.slug.info.run_path)
    ended = dynos.run(python, "-c", _INSTALLED)
    try:
        installed, broken = _answer(ended.line)
    except (ValueError, TypeError, RecursionError):
        yield Proof("import", python, Verdict.FAILS, ended.outcome.exit_code, ended.said, own)
        return
    for directory, file, path in broken:
        where = os.path.relpath(f"{directory}/{file}", dynos.slug.info.run_path)
        yield Proof("import", file, Verdict.FAILS, None, f"{path}, which it names, is not there", where)
    for name, tops in installed:
        if tops:
            ended = dynos.run(python, "-c", f"import {', '.join(tops)}")
            verdict = Verdict.WORKS if ended.outcome.exit_code == 0 else Verdict.FAILS
            yield Proof("import", name, verdict, ended.outcome.exit_code, ended.said, own)
