"""nsbuild recover"""

from __future__ import annotations

import click

from nsbuild.errors import Refused, UsageError
from nsbuild.wrap.journal import held, state_directory
from nsbuild.wrap.recovery import recover_all


@click.command(short_help="Put back what a killed `compile` or `exec` had adopted.")
@click.argument("build_dir", required=False)
def recover(build_dir: str | None) -> int:
    """Put back what a killed `compile` or `exec` had adopted: everything of yours, whatever BUILD_DIR is given.

    With BUILD_DIR, fails when that is still in use.
    """
    import os

    directory = state_directory()
    for sentence in recover_all(directory):
        click.echo(sentence)
    for entry in held(directory):
        if build_dir is not None and os.path.realpath(build_dir) in entry.places.values():
            raise Refused(f"{build_dir} is in use by process {entry.launcher}.", "Wait for it, or end it.")
    if build_dir is not None and not os.path.lexists(build_dir):
        raise UsageError(f"There is no {build_dir}, and no launch has it.", "Give the path that `compile` was given.")
    return 0
