"""nsbuild gc"""

from __future__ import annotations

import os
from pathlib import Path

import click

from nsbuild.buildpack import store as buildpacks
from nsbuild.errors import Refused, UsageError
from nsbuild.rollout.scratch import default_parent
from nsbuild.stack import store as stacks
from nsbuild.workspace import collect_orphans, workspaces
from nsbuild.wrap import journal, pool, recovery


@click.command(short_help="Remove what killed builds have left, and kept workspaces.")
@click.argument("directories", nargs=-1, metavar="[WORKSPACE_DIR]...")
def gc(directories: tuple[str, ...]) -> int:
    """Remove the workspaces and copies that killed builds have left, and what `compile` and `exec` keep for the next.

    Likewise what is left of buildpacks and stacks that were being fetched or unpacked.

    What belongs to a running build is not touched; what a killed `compile` had adopted is given back first.
    """
    for name in directories:
        if not os.path.isdir(name):
            raise UsageError(f"There is no directory {name}.", "Give one that --workspace-dir has named, or none.")
    for directory in [Path(name) for name in directories] or _default():
        for removed in collect_orphans(directory):
            click.echo(f"removed {removed}")
    if not directories:
        state = journal.state_directory()
        for sentence in recovery.recover_all(state):
            click.echo(sentence)
        for removed in collect_orphans(default_parent()):
            click.echo(f"removed {removed}")
        for removed in pool.clear(f"{os.path.dirname(state)}/workspaces", lambda: journal.workspaces(state)):
            click.echo(f"removed {removed}")
        for removed in _stores():
            click.echo(f"removed {removed}")
    return 0


def _default() -> list[Path]:
    try:
        return [workspaces()]
    except Refused:
        return []  # without a home there is no build to clean up after, but there may be a compile


def _stores() -> list[str]:
    try:
        return [*buildpacks.Store().collect(), *stacks.Store().collect()]
    except Refused:
        return []
