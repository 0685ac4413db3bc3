"""nsbuild diff"""

from __future__ import annotations

import json

import click

from nsbuild.audit.diff import DiffOptions
from nsbuild.audit.diff import diff as diff_paths


@click.command(short_help="Compare two slugs, and tell which differences are real.")
@click.argument("a")
@click.argument("b")
@click.option("--path", "paths", multiple=True, metavar="DIR", help="Where one of them was built, repeatable.")
@click.option("--pattern", "patterns", multiple=True, metavar="REGEX", help="The same, as a regular expression.")
@click.option(
    "--run-path", "run_paths", multiple=True, metavar="DIR", help="Where they run. Default: where they say."
)
@click.option("--ignore", "globs", multiple=True, metavar="GLOB", help="Paths whose differences do not count.")
@click.option("--workspace-dir", metavar="DIR", help="Where slugs are unpacked.")
@click.option("--all", "everything", is_flag=True, help="Show every difference, not the first 15 of a kind.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(a: str, b: str, globs: tuple[str, ...], everything: bool, as_json: bool, **options: object) -> int:
    """Compare two slugs or directories, and tell differences of the path, of time and of order from real ones.

    Exits 0 when they are the same, 1 when they differ, 2 in trouble.
    """
    ignored = tuple((glob, "--ignore") for glob in globs)
    result = diff_paths(a, b, DiffOptions(ignored=ignored, **options))  # type: ignore[arg-type]
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        for line in result.as_text(everything=everything):
            click.echo(line)
    return 1 if result.counted else 0
