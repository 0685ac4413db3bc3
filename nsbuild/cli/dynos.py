"""What `run` and `shell` have in common: the options of a dyno."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from nsbuild.cli.options import KeyValue, config_vars
from nsbuild.cli.say import say
from nsbuild.runtime import RunOptions


@dataclass(frozen=True)
class Dynos:
    """What was given: config vars, and the fields of RunOptions."""

    env: dict[str, str]
    given: dict[str, Any]

    def options(self, **more: Any) -> RunOptions:
        return RunOptions(**self.given, **more, warn=lambda sentence: say(f"nsbuild: warning: {sentence}"))


_OPTIONS = (
    click.option("--env", "pairs", type=KeyValue(), multiple=True, help="A config var, repeatable."),
    click.option("--env-file", type=click.Path(exists=True, dir_okay=False), help="Config vars, NAME=VALUE a line."),
    click.option("--read-only", is_flag=True, help="Show the slug read-only. Else what is written is thrown away."),
    click.option("--network", type=click.Choice(["host", "none"]), default="host", show_default=True),
    click.option(
        "--stack-root", metavar="REF", help="What to run on. Default: the image it was built on, else this host."
    ),
    click.option("--workspace-dir", metavar="DIR", help="Where the private directory is made."),
    click.option("--user", help="As root: whom to run as, a name or UID:GID."),
)


def dyno_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command these options; it gets them as `dynos`."""

    @functools.wraps(command)
    def called(*words: Any, pairs: tuple[tuple[str, str], ...], env_file: str | None, **rest: Any) -> int:
        given = {name: rest.pop(name) for name in ("read_only", "network", "stack_root", "workspace_dir", "user")}
        return command(*words, dynos=Dynos(config_vars(pairs, None, env_file), given), **rest)

    for option in reversed(_OPTIONS):
        called = option(called)
    return called
