"""nsbuild config"""

from __future__ import annotations

import json
from typing import Any

import click

from nsbuild.buildpack.reference import without_secrets
from nsbuild.cli.configured import TABLES, Setting, options_of_build, read_settings
from nsbuild.config import user_file


@click.command(short_help="Print what `build` would take from nsbuild.toml.")
@click.argument("source", required=False, type=click.Path(exists=True))
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def config(source: str | None, as_json: bool) -> None:
    """Print what `build` would take for each option that is not given, and from which file.

    With SOURCE, the nsbuild.toml of that app counts. Secrets are not printed: values of config vars, passwords in
    URLs.
    """
    settings = read_settings(source)
    rows: dict[str, dict[str, Any]] = {}
    for name, option in options_of_build().items():
        if name in TABLES:
            continue
        setting = settings.options.get(name)
        value = setting.value if setting else option.get_default(click.Context(click.Command(name)))
        rows[name] = _row(setting, value if _is_set(value) else None)
    for table in TABLES:
        for key, setting in settings.tables.get(table, {}).items():
            rows[f"{table}.{key}"] = _row(setting, None if table == "env" else setting.value)
    if as_json:
        path = user_file()
        click.echo(json.dumps({"user_file": path and str(path), "settings": rows}, indent=2))
        return
    width = max(map(len, rows))
    for name, row in rows.items():
        shown = (
            "(not shown)" if name.startswith("env.") else "-" if row["value"] is None else json.dumps(row["value"])
        )
        click.echo(f"{name:{width}}  {shown}  ({row['from']})")
    click.echo(f"The user's file is {user_file() or 'nowhere: there is no home directory'}.")


def _is_set(value: object) -> bool:
    """Neither None nor click's own mark for an option without a default (8.3 and later)."""
    return isinstance(value, str | int | float | bool | list)


def _row(setting: Setting | None, value: object) -> dict[str, Any]:
    if isinstance(value, list):
        value = [without_secrets(item) for item in value]
    elif isinstance(value, str):
        value = without_secrets(value)
    return {"value": value, "from": "default" if setting is None else setting.file.path}
