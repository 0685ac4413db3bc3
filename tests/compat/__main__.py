"""`scripts/compat`: the clones, the mirror and the table, put together."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from compat import archives
from compat.cases import LAYOUTS, STEPS, Case, Layout, Result, read_cases
from compat.errors import CompatError
from compat.mirror import Answer, files, mirror, reachable, repositories
from compat.runner import Bench, Clone, environment, open_clone, run_case

CASES = Path(__file__).with_name("cases.toml")
TOOLS = ("curl", "dpkg", "git", "jq", "tar", "zstd")
"""What heroku-buildpack-python calls, and this host must have."""

PYTHON_HOSTS = (
    "heroku-buildpack-python.s3.dualstack.us-east-1.amazonaws.com",
    "heroku-buildpack-python.s3.us-east-1.amazonaws.com",
)
UV_HOST, NODE_HOST, GIT_HOST = "releases.astral.sh", "nodejs.org", "github.com"


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--case", "names", multiple=True, metavar="NAME", help="Only these; repeatable.")
@click.option("--layout", "layouts", multiple=True, type=click.Choice(LAYOUTS), help="Default: both.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every step's result and time.")
@click.option("--python", "prefixes", multiple=True, metavar="PREFIX", type=click.Path(path_type=Path),
              help="An installed Python to make a runtime archive of. Default: those of pyenv and uv.")  # fmt: skip
@click.option("--archives", "packed", type=click.Path(path_type=Path),
              help="Where the archives that are made are kept. Default: DIRECTORY/archives.")  # fmt: skip
@click.option("--logs", type=click.Path(path_type=Path), help="Keep the whole output of every step.")
@click.option("--list", "only_list", is_flag=True, help="Print the cases and the clones that they need.")
def main(
    directory: Path,
    names: Sequence[str],
    layouts: Sequence[Layout],
    json_file: Path | None,
    prefixes: Sequence[Path],
    packed: Path | None,
    logs: Path | None,
    only_list: bool,
) -> None:
    """Build the apps of tests/compat/cases.toml with the real buildpacks of which DIRECTORY has clones.

    Exit 1 when something is not as the table says, 2 when a clone, tool or runtime is missing.
    """
    try:
        cases, urls = _chosen(names)
        if only_list:
            for case in cases:
                click.echo(f"{case.name}: {', '.join(sorted(case.clones()))}")
            return
        if not names:
            cases = _with_clones(cases, urls, directory)
        if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
            raise CompatError(f"missing: install it with: apt-get install {' '.join(lacking)}")
        archive_dir = packed or directory / "archives"
        with tempfile.TemporaryDirectory(prefix="nsbuild-compat-", dir="/var/tmp", ignore_cleanup_errors=True) as top:
            work = Path(top)
            work.chmod(0o755)
            needed = sorted({name for case in cases for name in case.clones()})
            clones = {name: open_clone(directory / name, urls[name], work) for name in needed}
            with _network(directory, archive_dir, prefixes, cases, work) as (environ, python, fill):
                home = work / "home"
                home.mkdir()
                nsbuild = Path(sys.executable).with_name("nsbuild")
                everything = environment(home, environ)
                bench = Bench(nsbuild, clones, work, everything, _say, logs, python, fill)
                chosen = layouts or LAYOUTS
                results = [run_case(bench, case, layout) for case in cases for layout in chosen]
    except CompatError as error:
        click.echo(f"compat: {error}", err=True)
        sys.exit(2)
    _show(results, clones)
    if json_file:
        json_file.write_text(json.dumps(_as_json(results, clones), indent=2) + "\n")
    faults = [fault for result in results for fault in result.faults]
    for fault in faults:
        click.echo(f"not as the table says: {fault}")
    click.echo(f"{len(results)} builds of {len(cases)} cases, {len(faults)} not as the table says")
    sys.exit(1 if faults else 0)


def _chosen(names: Sequence[str]) -> tuple[list[Case], dict[str, str]]:
    cases, urls = read_cases(CASES)
    known = [case.name for case in cases]
    if unknown := [name for name in names if name not in known]:
        raise CompatError(f"there is no case {unknown[0]}; there are {', '.join(known)}")
    return [case for case in cases if not names or case.name in names], urls


def _with_clones(cases: Sequence[Case], urls: Mapping[str, str], directory: Path) -> list[Case]:
    """Those whose clones are there; of the others it is said which clone they lack."""
    kept = []
    for case in cases:
        absent = [name for name in sorted(case.clones()) if not (directory / name).is_dir()]
        if absent:
            url = urls[absent[0]]
            click.echo(f"not built: {case.name} needs a clone: git clone {url} {directory / absent[0]}")
        else:
            kept.append(case)
    if not kept:
        raise CompatError(f"{directory} has no clone that a case needs")
    return kept


def _say(text: str) -> None:
    click.echo(f"compat: {text}", err=True)


# -- what stands in for the internet


@contextmanager
def _network(
    directory: Path, packed: Path, prefixes: Sequence[Path], cases: Sequence[Case], work: Path
) -> Iterator[tuple[Mapping[str, str], str, Mapping[str, str]]]:
    """The variables of a network that has everything, the Python that it has ('': any), and what fills config vars.

    A host that can be reached is left alone.
    """
    node = archives.installed_node()
    fill = {"node": node[0] if node else "v22.0.0"}
    absent = [host for host in (*PYTHON_HOSTS, UV_HOST, NODE_HOST, GIT_HOST) if not reachable(host)]
    if not absent:
        _say("every host of runtime archives can be reached: there is no mirror")
        yield {}, "", fill
        return
    hosts: dict[str, Answer] = {}
    python = ""
    if set(PYTHON_HOSTS) & set(absent) and any(case.python for case in cases):
        python, archive = _python(packed, prefixes)
        hosts |= {
            host: files(_named(rf"/python-{python}-ubuntu-[\d.]+-\w+\.tar\.zst", archive)) for host in PYTHON_HOSTS
        }
    if UV_HOST in absent:
        hosts[UV_HOST] = files(lambda path: _uv(path, packed))
    if NODE_HOST in absent and node:
        version, prefix = node
        pattern = rf"/(dist|download/release)/{version}/node-{version}-linux-\w+\.tar\.gz"
        hosts[NODE_HOST] = files(_named(pattern, archives.pack_node(version, prefix, packed)))
    if GIT_HOST in absent:
        for name in sorted({name for case in cases for name in case.repositories}):
            if _repository(directory, name) is None:
                place = directory / name.partition("/")[2]
                raise CompatError(
                    f"{GIT_HOST} cannot be reached, and {place} is no clone of {name}, which an app needs"
                )
        hosts[GIT_HOST] = repositories(lambda name: _repository(directory, name))
    _say(f"the mirror answers for {', '.join(hosts)}, which cannot be reached")
    with mirror(hosts, work) as running:
        yield running.environ, python, fill
        for line in dict.fromkeys(running.seen):
            _say(f"the mirror was asked for {line}")


def _python(packed: Path, prefixes: Sequence[Path]) -> tuple[str, Path]:
    """The newest there is, packed already or not."""
    ready = archives.packed_pythons(packed)
    found = archives.installed_pythons(prefixes or archives.usual_prefixes())
    versions = sorted({*found, *ready}, key=lambda version: [int(part) for part in version.split(".")])
    if not versions:
        raise CompatError(
            f"there is no Python to make a runtime archive of, in {packed}, pyenv or uv: name one, --python PREFIX"
        )
    newest = versions[-1]
    if newest not in ready:
        _say(f"packing Python {newest} of {found[newest]}")
        return newest, archives.pack_python(found[newest], newest, packed)
    return newest, ready[newest]


def _named(pattern: str, archive: Path) -> Any:
    return lambda path: archive if re.fullmatch(pattern, path) else None


def _uv(path: str, packed: Path) -> Path | None:
    match = re.fullmatch(r"/github/uv/releases/download/([\d.]+)/uv-\w+-unknown-linux-gnu\.tar\.gz", path)
    return archives.pack_uv(match[1], packed) if match else None


def _repository(directory: Path, name: str) -> Path | None:
    path = directory / name.partition("/")[2]
    return path if path.is_dir() else None


# -- what came of it


def _show(results: Sequence[Result], clones: Mapping[str, Clone]) -> None:
    for name, clone in clones.items():
        click.echo(f"{name} {clone.revision}")
    rows = [_row(result) for result in results]
    heads = ["case", "layout", *STEPS, "files that name the build's place"]
    if sys.stdout.isatty():
        table = Table(*heads)
        for row in rows:
            table.add_row(*(_coloured(cell) for cell in row))
        Console().print(table)
        return
    for line in ([*heads], ["---"] * len(heads), *rows):
        click.echo(f"| {' | '.join(line)} |")


def _row(result: Result) -> list[str]:
    verdicts = {outcome.step: result.verdict(outcome) for outcome in result.outcomes}
    named = "" if result.named is None else str(result.named)
    return [result.case.name, result.layout, *(verdicts[step] for step in STEPS), named]


def _coloured(cell: str) -> str:
    colours = {"pass": "green", "fails as expected": "yellow", "FAIL": "bold red", "PASSES, said to fail": "bold red"}
    return f"[{colours[cell]}]{cell}[/]" if cell in colours else cell


def _as_json(results: Sequence[Result], clones: Mapping[str, Clone]) -> dict[str, Any]:
    return {
        "uid": os.getuid(),
        "kernel": platform.release(),
        "clones": {name: clone.revision for name, clone in clones.items()},
        "results": [
            {
                "case": result.case.name,
                "layout": result.layout,
                "files_that_name_the_place": result.named,
                "steps": {
                    outcome.step: {
                        "verdict": result.verdict(outcome),
                        "detail": outcome.detail,
                        "seconds": round(outcome.seconds, 1),
                    }
                    for outcome in result.outcomes
                },
            }
            for result in results
        ],
    }


if __name__ == "__main__":
    # Whoever ends it would have gigabytes left in /var/tmp.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    main(prog_name="scripts/compat")
