"""nsbuild exec"""

from __future__ import annotations

import sys

import click

from nsbuild.build.wrap import ExecOptions, exec_in_view, explain_view
from nsbuild.cli.options import BindSpec, Duration


@click.command("exec")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--build-dir", required=True, metavar="DIR", help="What is at the run path inside.")
@click.option("--run-path", default="/app", show_default=True)
@click.option("--explain", is_flag=True, help="Print the view instead of running anything in it.")
@click.option("--network", type=click.Choice(["host", "none"]), default="host", show_default=True)
@click.option("--no-userns", is_flag=True, help="Forbid user namespaces inside.")
@click.option("--bind", "binds", type=BindSpec(), multiple=True, help="Show a file or directory, read-only.")
@click.option("--timeout", type=Duration(), help="Then TERM, and KILL 10 seconds later; exit status 124.")
@click.option("--workspace-dir", metavar="DIR", help="Where the private directory is made.")
@click.option("--user", help="As root: whom to run as, a name or UID:GID.")
def exec_(command: tuple[str, ...], build_dir: str, explain: bool, no_userns: bool, **options: object) -> int:
    """Run COMMAND (after --) where DIR is at the run path, with your environment.

    The exit status is the command's own, 128+n when signal n killed it, 125 when nsbuild refused or failed.
    """
    chosen = ExecOptions(user_namespaces=not no_userns, **options)  # type: ignore[arg-type]
    if explain:
        click.echo(explain_view(build_dir, chosen))
        return 0
    if not command:
        raise click.UsageError("No command was given; put it after --.")
    outcome = exec_in_view(build_dir, command, chosen)
    if outcome.error:
        print(f"nsbuild: {command[0]}: {outcome.error}.", file=sys.stderr)
    return outcome.exit_code
