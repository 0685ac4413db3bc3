"""nsbuild run"""

from __future__ import annotations

import re

import click

from nsbuild.cli.dynos import Dynos, dyno_options
from nsbuild.cli.say import coloured, say
from nsbuild.runtime import list_processes, run_formation
from nsbuild.runtime import run as run_process

_SEVERAL = re.compile(r"^([^=]*)=([0-9]{1,9})$")


class _Run(click.Command):
    """Says where the options of a command go, when it meets one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if "--" in given:
                raise
            sentence = f"{error.message} A command, options and all, goes after --: SLUG -- COMMAND..."
            raise click.NoSuchOption(error.option_name, sentence, error.possibilities, ctx) from None


@click.command(
    cls=_Run,
    context_settings={"ignore_unknown_options": False},
    short_help="Run process types of SLUG, or a command.",
)
@click.argument("slug")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[TYPE[=N]... | -- COMMAND...]")
@click.option("--list", "listing", is_flag=True, help="Show the process types and their commands.")
@click.option("--all", "everything", is_flag=True, help="Run one of each process type but release.")
@click.option("--tty", is_flag=True, help="Give it a terminal of its own, relayed to yours.")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="PORT of web.")
@dyno_options
@click.pass_context
def run(
    context: click.Context,
    /,
    slug: str,
    words: tuple[str, ...],
    listing: bool,
    everything: bool,
    tty: bool,
    port: int,
    dynos: Dynos,
) -> int:
    """Run a process type of SLUG (default web), several at once, or, after --, a command.

    Several (--all, two names, web=2) run as heroku local does: each has a PORT, 100 apart; what they print has their
    name before it; when one ends, the others are ended. Without --tty, a terminal on stdin becomes /dev/null.

    The exit status is the command's own (of several: of the first that ended), 128+n when signal n killed it, 125
    when nsbuild refused or failed.
    """
    options = dynos.options(port=port, tty=tty)
    if listing:
        for name, line in list_processes(slug, options).items():
            click.echo(f"{name}: {line}")
        return 0
    types, command = _split(words, context.obj)
    if len([kind for kind in (types, command, everything) if kind]) > 1:
        raise click.UsageError("Name process types, or give --all, or a command after --: one of the three.")
    if "--" in context.obj and not command:
        raise click.UsageError("There is no command after --.")
    if everything or len(types) > 1 or any("=" in word for word in types):
        formation = None if everything else _formation(types)
        colours = coloured(1)
        return run_formation(
            slug, formation, options, env=dynos.env, colours=colours, tell=lambda text: say(f"nsbuild: {text}")
        )
    return run_process(slug, command or (types[0] if types else "web"), options, env=dynos.env)


def _split(words: tuple[str, ...], line: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Process types, and the command: what comes after the first -- of the whole command line."""
    if "--" not in line:
        return words, ()
    count = len(words) - (len(line) - line.index("--") - 1)
    return words[:count], words[count:]


def _formation(words: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        match = _SEVERAL.match(word if "=" in word else f"{word}=1")
        if match is None:
            raise click.UsageError(f"{word!r} is not TYPE or TYPE=N.")
        if match[1] in found:
            raise click.UsageError(f"{match[1]} is there twice; {match[1]}=2 runs two.")
        found[match[1]] = int(match[2])
    return found
