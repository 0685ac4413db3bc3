"""`nsbuild doctor`."""

from __future__ import annotations

import click


@click.command(short_help="Say what this kernel allows, why not, and the fix.")
@click.option("--json", "as_json", is_flag=True, help="Everything that was tried and read, for machines.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Say what this kernel and its policies allow, why not, and the fix.

    Exits 0 when all is well, 1 when builds do without something, 2 when they are refused.
    """
    from nsbuild.sandbox.probe import probe

    report = probe()
    if as_json:
        import json

        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        click.echo(report.as_text().encode(errors="surrogateescape"))
    context.exit(report.exit_code)
