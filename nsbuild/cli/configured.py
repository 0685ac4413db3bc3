"""Commands that take what is not given as an option from `nsbuild.toml`, and the list of what may be in it.

The settings are the options of `build`, by their names, as click knows them. Those that are no AppOption are the
user's only: an app is anybody's, and its file must not widen what a build can see or write.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import click

from nsbuild.buildpack.reference import without_secrets
from nsbuild.config import ConfigFile, outside, placed, read_app_file, read_user_file, user_file
from nsbuild.errors import UsageError

_META = "nsbuild.config"
TABLES = {"env": True, "registry": False, "rollout": False, "stacks": False}
"""Settings that map names to values, and whether an app's file may have them. The names of both files count."""
_NAMES_BUILDPACK = ("env", "BUILDPACK_URL")
"""The one config var that `build` itself obeys."""


class AppOption(click.Option):
    """An option that an app's own `nsbuild.toml` may set too. `place`: its values may be paths, of the app only."""

    def __init__(self, *args: Any, place: bool = False, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.place = place


@dataclass(frozen=True)
class Setting:
    """A value (as TOML has it, its paths made absolute) and the file that it is from."""

    value: Any
    file: ConfigFile


@dataclass(frozen=True)
class Settings:
    """What the files say: `options` by the option's name, `tables` by the table's and the name in it."""

    options: Mapping[str, Setting] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)

    def table(self, name: str) -> dict[str, str]:
        return {key: setting.value for key, setting in self.tables.get(name, {}).items()}

    def sentences(self) -> Iterator[str]:
        """One a file, for people: what it sets. No values: some are secret."""
        keys: dict[str, list[str]] = {}
        for name, setting in self.options.items():
            keys.setdefault(setting.file.path, []).append(name)
        for table, settings in self.tables.items():
            for key, setting in settings.items():
                keys.setdefault(setting.file.path, []).append(f"{table}.{key}")
        for path, names in keys.items():
            yield f"{path} sets {', '.join(sorted(names))}."


def setting_name(option: click.Option) -> str:
    """`--pass-env` is `pass-env`."""
    return max(option.opts, key=len).lstrip("-")


def options_of_build() -> dict[str, click.Option]:
    """Every option that a file may set, by its name there."""
    from nsbuild.cli.build import build

    return {setting_name(found): found for found in build.params if isinstance(found, click.Option)}


def read_settings(source: str | None) -> Settings:
    """What the user's file and, over it, that of the app in `source` say. Raises UsageError naming file and key."""
    known = options_of_build()
    options: dict[str, Setting] = {}
    tables: dict[str, dict[str, Setting]] = {}
    for file in (read_user_file(), read_app_file(source) if source is not None else None):
        for key, value in file.values.items() if file is not None else ():
            assert file is not None
            _check_key(file, key, known)
            if key in TABLES:
                tables.setdefault(key, {}).update(_table(file, key, value))
            else:
                options[key] = Setting(_checked(file, key, value, known[key]), file)
    return Settings(options, tables)


def configured(context: click.Context) -> Settings:
    """What the files said to the command that is running."""
    found = context.meta.get(_META)
    return found if isinstance(found, Settings) else Settings()


class Configured(click.Command):
    """A command on a SOURCE. Option, then the app's file, then the user's, then the default."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        if not ctx.resilient_parsing and not given.get("help"):
            source = given.get("source")
            settings = read_settings(source if isinstance(source, str) else None)
            own = {setting_name(option): option.name for option in self.params if isinstance(option, click.Option)}
            # What only other commands take is not said to be set for this one.
            taken = {name: setting for name, setting in settings.options.items() if name in own}
            ctx.meta[_META] = replace(settings, options=taken)
            ctx.default_map = {str(own[name]): setting.value for name, setting in taken.items()}
        return super().parse_args(ctx, args)


def _check_key(file: ConfigFile, key: str, known: Mapping[str, click.Option]) -> None:
    names = {*known, *TABLES}
    if key not in names:
        near = difflib.get_close_matches(key, sorted(names), 1)
        fix = f"Did you mean `{near[0]}`?" if near else "`nsbuild config` lists the settings."
        raise UsageError(f"{file.path}: there is no setting `{key}`.", fix)
    if file.of_app and not (TABLES[key] if key in TABLES else isinstance(known[key], AppOption)):
        raise UsageError(
            f"{file.path}: `{key}` is nothing that an app may set, for the app may be anybody's.",
            f"Give it as an option, or in {user_file() or 'a file of yours'}.",
        )


def _table(file: ConfigFile, key: str, value: object) -> dict[str, Setting]:
    if not isinstance(value, dict):
        raise UsageError(f"{file.path}: `{key}` is not a table of names and texts.", f"Write [{key}], then lines.")
    made = {}
    for name, text in value.items():
        if not isinstance(text, str):
            # The value may be a secret: it is not repeated.
            raise UsageError(f"{file.path}: `{key}.{name}` is not a text.", "Put it between quotes.")
        if file.of_app and (key, name) == _NAMES_BUILDPACK:
            text = _of_app(file, f"{key}.{name}", text)
        made[name] = Setting(text if key == "env" else placed(text, file.directory), file)
    return made


def _of_app(file: ConfigFile, key: str, text: str) -> str:
    """A path in the app, absolute; a URL or a name as it is, unless it would be taken for a path of the user's."""
    inner = os.path.normpath(os.path.join(file.directory, text))
    if outside(text, file.directory) or (os.path.exists(text) and not os.path.lexists(inner)):
        named = without_secrets(text)
        raise UsageError(f"{file.path}: `{key}` names {named}, which is not in the app.", "Give it as an option.")
    return inner if os.path.lexists(inner) else text


def _checked(file: ConfigFile, key: str, value: object, option: click.Option) -> Any:
    def wrong(what: str) -> UsageError:
        return UsageError(f"{file.path}: `{key}` is not {what}.")

    if option.is_flag:
        if not isinstance(value, bool):
            raise wrong("true or false")
        return value
    numbers = not isinstance(option.type, click.types.StringParamType | click.Choice | click.Path)
    kinds = (str, int, float) if numbers else (str,)
    items = value if option.multiple else [value]
    if not isinstance(items, list) or not all(type(item) in kinds for item in items):
        one = "text or number" if numbers else "text"
        raise wrong(f"a list of {one}s" if option.multiple else f"a {one}")
    if file.of_app and isinstance(option, AppOption) and option.place:
        items = [_of_app(file, key, str(item)) for item in items]
    items = [placed(str(item), file.directory) for item in items]
    made = items if option.multiple else items[0]
    try:
        option.type_cast_value(click.Context(click.Command(key)), made)
    except click.BadParameter as error:
        raise UsageError(f"{file.path}: `{key}`: {error.message}") from None
    return made
