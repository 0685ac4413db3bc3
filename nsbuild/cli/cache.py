"""nsbuild cache"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict

import click

from nsbuild.build.cache import Kept, list_caches, remove_cache
from nsbuild.cli.summary import size
from nsbuild.errors import UsageError
from nsbuild.workspace import app_caches

_STORE = click.option("--cache", "directory", metavar="DIR", help="Where they are kept. Default: the user's cache.")


@click.group()
def cache() -> None:
    """Show and remove the caches that builds keep."""


@cache.command("ls", short_help="List caches: key, size, when it was saved, layout, stack, app.")
@_STORE
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def list_(directory: str | None, as_json: bool) -> None:
    """One cache a line: its key, size, when it was saved, layout, stack, and the app."""
    found = list_caches(app_caches(directory))
    if as_json:
        click.echo(json.dumps([asdict(kept) for kept in found], indent=2))
        return
    width = max((len(kept.key) for kept in found), default=0)
    for kept in found:
        saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(kept.saved))
        click.echo(f"{kept.key:{width}}  {size(kept.bytes):>11}  {saved}  {_use(kept)}")


@cache.command("rm", short_help="Remove caches by key, app or age.")
@click.argument("names", nargs=-1, metavar="[KEY|APP]...")
@_STORE
@click.option("--all", "everything", is_flag=True, help="Every cache.")
@click.option(
    "--older-than", "days", type=click.FloatRange(min=0), metavar="DAYS", help="Only what was saved before."
)
def remove(names: tuple[str, ...], directory: str | None, everything: bool, days: float | None) -> None:
    """Remove caches by key or by app (as --app says, or its directory), or by age. It waits for builds that use one.

    The next build of that app begins without a cache.
    """
    if everything and names:
        raise click.UsageError("--all goes without the names of caches.")
    if not (everything or names or days is not None):
        raise click.UsageError("Name a cache or an app, or give --all or --older-than.")
    store = app_caches(directory)
    found = list_caches(store)
    for name in names:
        if not any(_is_called(kept, name) for kept in found):
            raise UsageError(f"There is no cache {name} in {store}.", "`nsbuild cache ls` shows what there is.")
    for kept in found:
        wanted = not names or any(_is_called(kept, name) for name in names)
        if wanted and (days is None or kept.saved < time.time() - days * 86400):
            remove_cache(store, kept.key)
            click.echo(f"removed {kept.key}")


def _is_called(kept: Kept, name: str) -> bool:
    return name == kept.key or (kept.use is not None and kept.use.app in (name, os.path.realpath(name)))


def _use(kept: Kept) -> str:
    if kept.use is None:
        return "(saved by an older nsbuild)"
    purpose = "" if kept.use.purpose == "build" else f" ({kept.use.purpose})"
    return f"{kept.use.layout}  {kept.use.stack}  {kept.use.app}{purpose}"
