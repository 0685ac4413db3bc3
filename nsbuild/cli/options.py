"""What several commands parse in the same way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click

from nsbuild.cli.wrappers import Misused, bytes_of, seconds_of


class Duration(click.ParamType):  # type: ignore[type-arg]
    """Seconds, or a number with s, m or h."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return seconds_of(str(value))
        except Misused as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType):  # type: ignore[type-arg]
    """Bytes, or a number with K, M, G or T; at least one megabyte."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            found = bytes_of(str(value))
        except Misused as error:
            self.fail(str(error), param, ctx)
        if not 1 << 20 <= found < 1 << 63:
            self.fail(f"{value} is less than 1M, or more than any disk has.", param, ctx)
        return found


class KeyValue(click.ParamType):  # type: ignore[type-arg]
    """NAME=VALUE."""

    name = "name=value"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, rest = str(value).partition("=")
        if not equals or not name:
            # The value may be a secret: it is not repeated.
            self.fail(f"it is not {getattr(param, 'metavar', None) or 'NAME=VALUE'}.", param, ctx)
        return name, rest


class BindSpec(click.ParamType):  # type: ignore[type-arg]
    """SRC[:DST]; a source that exists as written, colons and all, is taken whole."""

    name = "src[:dst]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        source, destination = str(value), str(value)
        if not os.path.exists(source) and ":" in source:
            source, _, destination = source.rpartition(":")
        if not destination.startswith("/"):
            self.fail(f"{destination!r} is not an absolute path.", param, ctx)
        return os.path.abspath(source), os.path.normpath(destination)


def config_vars(
    pairs: tuple[tuple[str, str], ...],
    env_dir: str | None,
    env_file: str | None,
    configured: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Config vars of a file's [env], --env-dir, --env-file and --env; the later one wins.

    Raises click.UsageError naming the place of what is malformed.
    """
    found = dict(configured or {})
    if env_dir is not None:
        for path in sorted(Path(env_dir).iterdir()):
            if path.is_file():
                found[path.name] = os.fsdecode(path.read_bytes())
    if env_file is not None:
        for number, line in enumerate(os.fsdecode(Path(env_file).read_bytes()).split("\n"), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name, equals, value = line.strip().removeprefix("export ").partition("=")
            if not equals or not name.strip():
                raise click.UsageError(f"{env_file} line {number} is not NAME=VALUE.")
            if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            found[name.strip()] = value
    found.update(dict(pairs))
    return found
