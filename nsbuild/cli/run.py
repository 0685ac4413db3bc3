"""nsbuild run"""

from __future__ import annotations

import click

from nsbuild.cli.options import KeyValue, config_vars
from nsbuild.runtime import RunOptions, list_processes
from nsbuild.runtime import run as run_process


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("slug")
@click.argument("process", required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--list", "listing", is_flag=True, help="Show the process types and their commands.")
@click.option("--env", "pairs", type=KeyValue(), multiple=True, help="A config var, repeatable.")
@click.option("--env-file", type=click.Path(exists=True, dir_okay=False), help="Config vars, NAME=VALUE a line.")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="PORT of web.")
@click.option("--read-only", is_flag=True, help="Show the slug read-only. Else what is written is thrown away.")
@click.option("--network", type=click.Choice(["host", "none"]), default="host", show_default=True)
@click.option("--workspace-dir", metavar="DIR", help="Where the private directory is made.")
@click.option("--user", help="As root: whom to run as, a name or UID:GID.")
@click.pass_context
def run(
    context: click.Context,
    /,
    slug: str,
    process: str | None,
    command: tuple[str, ...],
    listing: bool,
    pairs: tuple[tuple[str, str], ...],
    env_file: str | None,
    **options: object,
) -> int:
    """Run a process type of SLUG (default web), or, after --, a command.

    A terminal on stdin becomes /dev/null. The exit status is the command's own, 128+n when signal n killed it, 125
    when nsbuild refused or failed.
    """
    chosen = RunOptions(**options)  # type: ignore[arg-type]
    if listing:
        for name, line in list_processes(slug, chosen).items():
            click.echo(f"{name}: {line}")
        return 0
    wanted: str | tuple[str, ...] = process or "web"
    if "--" in context.obj:
        if process is None:
            raise click.UsageError("There is no command after --.")
        wanted = (process or "", *command)
    elif command:
        raise click.UsageError(f"{command[0]!r} is one word too many; put -- before a command.")
    return run_process(slug, wanted, chosen, env=config_vars(pairs, None, env_file))
