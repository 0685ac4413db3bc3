"""nsbuild audit"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from nsbuild.audit import Severity, as_dict, as_sarif, as_text
from nsbuild.audit.audit import AuditOptions
from nsbuild.audit.audit import audit as audit_path
from nsbuild.cli.options import KeyValue, config_vars
from nsbuild.cli.say import say
from nsbuild.errors import ExitCode
from nsbuild.printable import printable

if TYPE_CHECKING:
    from nsbuild.runtime import Proof, ProveOptions


@click.command(short_help="Tell what in PATH remembers where it was built.")
@click.argument("path")
@click.option("--path", "paths", multiple=True, metavar="DIR", help="A place that nothing may remember, repeatable.")
@click.option("--pattern", "patterns", multiple=True, metavar="REGEX", help="The same, as a regular expression.")
@click.option("--run-path", metavar="DIR", help="Where the slug runs. Default: where it says, or /app.")
@click.option(
    "--stack-root", metavar="REF", help="What it runs on. Default: the image it was built on, else this host."
)
@click.option("--record", metavar="FILE", help="The record of its build: which buildpack wrote what.")
@click.option("--waivers", metavar="FILE", help="Findings that are known, and until when: TOML, docs/audit.md.")
@click.option(
    "--prove", "proving", is_flag=True, help="Also run what is in the slug: its commands, imports, processes."
)
@click.option("--prove-command", "commands", multiple=True, metavar="CMD", help="The same, and CMD must end with 0.")
@click.option("--env", "pairs", type=KeyValue(), multiple=True, help="With --prove: a config var, repeatable.")
@click.option("--env-file", type=click.Path(exists=True, dir_okay=False), help="The same, NAME=VALUE a line.")
@click.option("--workspace-dir", metavar="DIR", help="Where a slug is unpacked.")
@click.option("--all", "everything", is_flag=True, help="Show every finding, not the first 20 of a kind.")
@click.option("--json", "shape", flag_value="json", help="Print JSON.")
@click.option("--sarif", "shape", flag_value="sarif", help="Print SARIF 2.1.0.")
def audit(
    path: str,
    proving: bool,
    commands: tuple[str, ...],
    pairs: tuple[tuple[str, str], ...],
    env_file: str | None,
    shape: str | None,
    everything: bool,
    **options: object,
) -> int:
    """Does anything in PATH, a slug of any format or a directory, remember where it was built?

    Without --path and --pattern: the places where nsbuild and the platforms build. Exits 14 when something would
    break at run time. With --prove the slug is also run, read-only and where none of those places is: then it exits
    14 too when something in it does not work.
    """
    proving = proving or bool(commands)
    env = config_vars(pairs, None, env_file)
    if env and not proving:
        raise click.UsageError("--env and --env-file are for --prove.")
    report = audit_path(path, AuditOptions(**options))  # type: ignore[arg-type]
    if shape is None:
        for line in as_text(report, everything=everything):
            click.echo(line)
    proofs = []
    if proving:
        from nsbuild.runtime import ProveOptions, RunOptions

        own = {name: options[name] for name in ("workspace_dir", "stack_root")}
        run = RunOptions(**own, warn=lambda text: say(f"nsbuild: warning: {text}"))  # type: ignore[arg-type]
        proofs = _prove(path, ProveOptions(commands, options["paths"], env, run), quiet=shape is not None)  # type: ignore[arg-type]
    if shape == "json":
        told = as_dict(report) | ({"proofs": [asdict(proof) for proof in proofs]} if proving else {})
        click.echo(json.dumps(told, indent=2))
    fails = [proof for proof in proofs if proof.verdict == "fails"]
    if shape == "sarif":
        click.echo(as_sarif(report, [(proof.file, _sentence(proof)) for proof in fails]))
    return int(ExitCode.AUDIT if fails or report.counts()[Severity.BREAKS] else ExitCode.OK)


def _prove(path: str, options: ProveOptions, *, quiet: bool) -> list[Proof]:
    from nsbuild.runtime import prove

    def tell(proof: Proof) -> None:
        if not quiet:
            click.echo(_line(proof))

    proofs = prove(path, options, tell=tell)
    if not quiet:
        click.echo(
            f"run, read-only and where it was not built: {', '.join(_counts(proofs)) or 'there is nothing to run'}"
        )
    return proofs


def _sentence(proof: Proof) -> str:
    status = "" if proof.status is None else f" (exit {proof.status})"
    return f"The {proof.kind} {proof.name!r} fails{status}: {proof.said or 'it says nothing'}"


def _line(proof: Proof) -> str:
    status = f" [{proof.status}]" if proof.status else ""
    return f"{proof.verdict:7} {proof.kind:7} {printable(proof.name)}{status}: {printable(proof.said)}".rstrip(": ")


def _counts(proofs: list[Proof]) -> Iterator[str]:
    from nsbuild.runtime import Verdict

    for verdict in Verdict:
        if count := sum(proof.verdict is verdict for proof in proofs):
            yield f"{count} {verdict}"
