"""nsbuild gc"""

from __future__ import annotations

from pathlib import Path

import click

from nsbuild.workspace import collect_orphans, user_cache


@click.command()
@click.argument("directories", nargs=-1, metavar="[WORKSPACE_DIR]...")
def gc(directories: tuple[str, ...]) -> int:
    """Remove the workspaces that killed builds have left. Those of running builds are not touched."""
    for directory in [Path(name) for name in directories] or [user_cache() / "apps" / ".workspaces"]:
        for removed in collect_orphans(directory):
            click.echo(f"removed {removed}")
    return 0
