"""nsbuild audit"""

from __future__ import annotations

import click

from nsbuild.audit import Severity, as_json, as_sarif, as_text
from nsbuild.audit.audit import AuditOptions
from nsbuild.audit.audit import audit as audit_path
from nsbuild.errors import ExitCode


@click.command()
@click.argument("path")
@click.option("--path", "paths", multiple=True, metavar="DIR", help="A place that nothing may remember, repeatable.")
@click.option("--pattern", "patterns", multiple=True, metavar="REGEX", help="The same, as a regular expression.")
@click.option("--run-path", metavar="DIR", help="Where the slug runs. Default: where it says, or /app.")
@click.option("--record", metavar="FILE", help="The record of its build: which buildpack wrote what.")
@click.option("--waivers", metavar="FILE", help="Findings that are known, and until when: TOML, docs/audit.md.")
@click.option("--workspace-dir", metavar="DIR", help="Where a slug is unpacked.")
@click.option("--all", "everything", is_flag=True, help="Show every finding, not the first 20 of a kind.")
@click.option("--json", "shape", flag_value="json", help="Print JSON.")
@click.option("--sarif", "shape", flag_value="sarif", help="Print SARIF 2.1.0.")
def audit(path: str, shape: str | None, everything: bool, **options: object) -> int:
    """Does anything in PATH, a slug of any format or a directory, remember where it was built?

    Without --path and --pattern: the places where nsbuild and the platforms build. Exits 14 when something would
    break at run time.
    """
    report = audit_path(path, AuditOptions(**options))  # type: ignore[arg-type]
    if shape == "json":
        click.echo(as_json(report))
    elif shape == "sarif":
        click.echo(as_sarif(report))
    else:
        for line in as_text(report, everything=everything):
            click.echo(line)
    return int(ExitCode.AUDIT if report.counts()[Severity.BREAKS] else ExitCode.OK)
