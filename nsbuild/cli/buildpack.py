"""nsbuild buildpack"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict

import click

from nsbuild.buildpack import Reference, Store, parse_reference
from nsbuild.cli.configured import read_settings
from nsbuild.cli.say import say
from nsbuild.cli.summary import size
from nsbuild.errors import UsageError


@click.group(short_help="Show, fetch, refresh and remove stored buildpacks.")
def buildpack() -> None:
    """What was fetched: list it, fetch or refresh it before a build, remove it."""


@buildpack.command(short_help="List what is stored: reference, version, size, when.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def ls(as_json: bool) -> None:
    """List what is stored: reference, commit or digest, size, when it was fetched."""
    entries = Store().entries()
    if as_json:
        click.echo(json.dumps([_row(asdict(entry)) for entry in entries], indent=2))
        return
    width = max((len(entry.reference) for entry in entries), default=0)
    for entry in entries:
        version = entry.commit[:12] or entry.archive.removeprefix("sha256:")[:12]
        click.echo(f"{entry.reference:{width}}  {version}  {size(entry.bytes):>8}  {entry.when}")


def _row(entry: dict[str, object]) -> dict[str, object]:
    """Times as in a record."""
    for name in ("fetched", "checked"):
        entry[name] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(float(str(entry[name]))))
    return {name: value for name, value in entry.items() if name not in ("validators", "complete")}


@buildpack.command()
@click.argument("references", nargs=-1, required=True, metavar="REF...")
def add(references: tuple[str, ...]) -> None:
    """Fetch buildpacks, so that a build without a network has them."""
    registry = read_settings(None).table("registry")
    for text in references:
        _fetch(parse_reference(text, registry=registry))


@buildpack.command()
@click.argument("references", nargs=-1, required=True, metavar="REF...")
def rm(references: tuple[str, ...]) -> None:
    """Remove what was fetched for a reference, as `ls` shows it. What a running build uses goes after it."""
    store = Store()
    for text in references:
        shown = text
        with contextlib.suppress(UsageError):
            shown = parse_reference(text, registry=read_settings(None).table("registry")).url
        if not store.remove(text) and not store.remove(shown):
            raise UsageError(f"Nothing is stored of the buildpack {text}.", "`nsbuild buildpack ls` lists what is.")


@buildpack.command()
@click.argument("references", nargs=-1, metavar="[REF]...")
def update(references: tuple[str, ...]) -> None:
    """Fetch what is newer now, of these or of everything that is stored."""
    registry = read_settings(None).table("registry")
    for text in references:
        _fetch(parse_reference(text, registry=registry))
    for entry in Store().entries() if not references else ():
        if not entry.complete:
            say(
                f"nsbuild: {entry.reference} needs what was not stored (a password, a token): name it with all of it."
            )
            continue
        _fetch(parse_reference(entry.reference, registry=registry))


def _fetch(reference: Reference) -> None:
    with Store().open(reference) as opened:
        if opened.warning:
            say(f"nsbuild: warning: {opened.warning}")
        what = opened.commit or opened.archive or str(opened.directory)
        click.echo(f"{reference.shown}  {what}")
