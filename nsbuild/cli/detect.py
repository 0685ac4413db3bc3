"""nsbuild detect"""

from __future__ import annotations

from typing import Any

import click

from nsbuild.build import Event, Record, detect_app
from nsbuild.cli.build import ROLLOUT, params_without, run_build
from nsbuild.cli.configured import Configured

_NOT = (
    *ROLLOUT,
    "as_json",
    "output",
    "audit",
    "cache_dir",
    "app",
    "keep_credentials",
    "enforce_limits",
    "disk",
    "rebuild",
    "reproducible",
    "shell_on_failure",
)


@click.command(
    cls=Configured, params=params_without(*_NOT), short_help="Say whether each buildpack matches the app in SOURCE."
)
@click.pass_context
def detect(context: click.Context, /, **given: Any) -> int:
    """Say whether each buildpack matches the app in SOURCE, as a platform does: `-----> NAME app detected`.

    Exits 10 when one does not.
    """

    def entry(*args: Any, monitor: Any, **options: Any) -> Record:
        def watch(event: Event) -> None:
            if event.kind != "line":  # they are the answer, below
                monitor(event)

        return detect_app(*args, monitor=watch, **options)

    for pack in run_build(entry, context, **given).buildpacks:
        click.echo(f"-----> {pack.name} app detected")
    return 0
