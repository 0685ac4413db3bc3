"""nsbuild lint"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from nsbuild.buildpack import Store, parse_reference
from nsbuild.cli.configured import read_settings
from nsbuild.errors import ExitCode

_CODES = {"safe": ExitCode.OK, "needs care": ExitCode.NEEDS_CARE, "unfit": ExitCode.UNFIT}


@click.command(short_help="Say whether BUILDPACK is fit for /app; run none of it.")
@click.argument("buildpack")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def lint(buildpack: str, as_json: bool) -> int:
    """Read the scripts of BUILDPACK (any reference), run none of them, and say whether it is fit for /app.

    It names what is known to have broken other buildpacks, with file and line. Exits 0 when it is safe, 1 when it
    needs care, 3 when it is unfit.
    """
    from nsbuild.buildpack.lint import lint as look

    reference = parse_reference(buildpack, registry=read_settings(None).table("registry"))
    with Store().open(reference) as opened:
        found = look(Path(opened.directory))
    if as_json:
        document = {
            "schema": 1,
            "buildpack": reference.shown,
            "verdict": found.verdict,
            "findings": [asdict(finding) for finding in found.findings],
            "read": found.read,
        }
        click.echo(json.dumps(document, indent=2))
        return _CODES[found.verdict]
    told: set[str] = set()
    for finding in found.findings:
        click.echo(f"{finding.file}:{finding.line}: {finding.verdict}: {finding.name}: {finding.code}")
        if finding.name not in told:
            click.echo(f"    {finding.says}")
            told.add(finding.name)
    count = len(found.read)
    click.echo(f"{reference.shown}: {found.verdict} ({count} script{'' if count == 1 else 's'} read)")
    return _CODES[found.verdict]
