"""nsbuild shell"""

from __future__ import annotations

import click

from nsbuild.cli.dynos import Dynos, dyno_options
from nsbuild.runtime import run as run_process


@click.command(short_help="Open a bash in SLUG, at your terminal.")
@click.argument("slug")
@dyno_options
def shell(slug: str, dynos: Dynos) -> int:
    """A bash in SLUG, at your terminal: nsbuild run --tty SLUG -- bash.

    As `heroku run bash`: .profile.d and .profile have been sourced. What is written is thrown away when it ends.
    """
    return run_process(slug, ["bash"], dynos.options(tty=True), env=dynos.env)
