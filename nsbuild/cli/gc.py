"""nsbuild gc"""

from __future__ import annotations

from pathlib import Path

import click
import platformdirs

from nsbuild.workspace import collect_orphans


@click.command()
@click.argument("directories", nargs=-1, metavar="[WORKSPACE_DIR]...")
def gc(directories: tuple[str, ...]) -> int:
    """Remove the workspaces that killed builds have left. Those of running builds are not touched."""
    default = platformdirs.user_cache_path("nsbuild") / "apps" / ".workspaces"
    for directory in [Path(name) for name in directories] or [default]:
        for removed in collect_orphans(directory):
            click.echo(f"removed {removed}")
    return 0
