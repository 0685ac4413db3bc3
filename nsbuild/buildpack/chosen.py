"""Which buildpacks a build uses: those that the user names, else the app, else the first of a set that matches."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsbuild.buildpack.reference import Reference, parse_reference, without_secrets
from nsbuild.config import outside
from nsbuild.errors import UsageError
from nsbuild.tree import read_beneath

_LIMIT = 1 << 20
_CLOUD_NATIVE = ("docker://", "urn:cnb:", "cnb:", "from=")


@dataclass(frozen=True)
class Chosen:
    """The buildpacks, in order, and what said so. `detected`: only the first of them that matches is used."""

    references: tuple[Reference, ...]
    origin: str
    detected: bool = False
    warnings: tuple[str, ...] = ()


def choose(
    given: Sequence[str],
    config_vars: Mapping[str, str],
    app: str,
    *,
    defaults: str | None = None,
    registry: Mapping[str, str] | None = None,
) -> Chosen:
    """Strongest first: `given`, BUILDPACK_URL, and of the directory `app` .buildpacks, app.json and project.toml;
    then the subdirectories of `defaults`, of which the first is used whose bin/detect matches.

    Raises UsageError when nothing names one, or naming the file and its line when that is malformed.
    """
    if given:
        return Chosen(tuple(parse_reference(text, registry=registry) for text in given), "--buildpack")
    if url := config_vars.get("BUILDPACK_URL", "").strip():
        return Chosen((parse_reference(url, registry=registry),), "BUILDPACK_URL")
    for name, read in _FILES.items():
        data = _read(app, name)
        found, warnings = read(data) if data is not None else ([], [])
        if found:
            references = tuple(_of_app(name, place, text, app, registry or {}) for place, text in found)
            return Chosen(references, name, warnings=tuple(warnings))
    if defaults is not None:
        return Chosen(default_set(defaults), f"--default-buildpacks {defaults}", detected=True)
    raise UsageError(
        "No buildpack was given, and the app names none (.buildpacks, app.json, project.toml).",
        "Name one with --buildpack, or several to choose from with --default-buildpacks DIR.",
    )


def default_set(directory: str) -> tuple[Reference, ...]:
    """The buildpacks that are subdirectories of a directory, in the order of names. Raises UsageError."""
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if not entry.name.startswith("."))
    except OSError as error:
        raise UsageError(f"--default-buildpacks {directory}: {error.strerror}.", "Give a directory.") from None
    found = [path for path in (Path(directory, name).resolve() for name in names) if path.is_dir()]
    references = tuple(
        Reference("directory", str(path), str(path)) for path in found if (path / "bin/compile").is_file()
    )
    if not references:
        raise UsageError(
            f"--default-buildpacks {directory} holds no buildpack.",
            "Give the directory whose subdirectories are the buildpacks.",
        )
    return references


def _read(app: str, name: str) -> bytes | None:
    fd = os.open(app, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return read_beneath(fd, name, _LIMIT)
    except OSError as error:
        why = "it is a symbolic link" if os.path.islink(f"{app}/{name}") else error.strerror
        raise UsageError(f"{name} of the app cannot be read: {why}.", "Make it a plain file.") from None
    finally:
        os.close(fd)


def _of_app(name: str, place: str, text: str, app: str, registry: Mapping[str, str]) -> Reference:
    """An app may be anybody's: what it names is on the web, in the registry or in the app itself."""
    if not text.startswith("urn:buildpack:") and outside(text, os.path.realpath(app)):
        raise UsageError(
            f"{name} of the app, {place}: {without_secrets(text)!r} is neither on the web nor in the app.",
            "Give it with --buildpack.",
        )
    try:
        return parse_reference(text, registry=registry, base=app)
    except UsageError as error:
        raise UsageError(f"{name} of the app, {place}: {error.sentence}", error.fix) from None


Found = tuple[list[tuple[str, str]], list[str]]
"""(where in the file, reference) of each, and warnings."""


def _dot_buildpacks(data: bytes) -> Found:
    """One reference a line (heroku-buildpack-multi, bin/compile); `#` begins a comment at the start of a line."""
    lines = enumerate(_text(data, ".buildpacks").splitlines(), 1)
    return [
        (f"line {number}", line.strip()) for number, line in lines if line.strip() and line.lstrip()[0] != "#"
    ], []


def _app_json(data: bytes) -> Found:
    """`buildpacks`, a list of {"url": REFERENCE} (heroku/cli, its schema of app.json)."""
    try:
        document = json.loads(_text(data, "app.json"))
    except json.JSONDecodeError as error:
        raise UsageError(
            f"app.json of the app, line {error.lineno}: it is no JSON: {error.msg}.", "Mend it."
        ) from None
    except RecursionError:
        raise UsageError("app.json of the app is nested too deeply.", "Mend it.") from None
    if not isinstance(document, dict):
        raise UsageError("app.json of the app is no JSON object.", "Mend it.")
    items = document.get("buildpacks")
    if items is None:
        return [], []
    return [
        (f"buildpacks[{number}]", _value(item, "url", f"app.json of the app, buildpacks[{number}]"))
        for number, item in enumerate(_list(items, "app.json of the app, buildpacks"))
    ], []


def _project_toml(data: bytes) -> Found:
    """`uri` of [[io.buildpacks.group]], in schema 0.1 [[build.buildpacks]] (buildpacks/spec, project-descriptor.md).

    The format knows no classic buildpacks. So what names a Cloud Native one, by an id or an image, is passed over.
    """
    try:
        document = tomllib.loads(_text(data, "project.toml"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"project.toml of the app is no TOML: {error}.", "Mend it.") from None
    found, passed = [], []
    for name, *path in (
        ("io.buildpacks.group", "io", "buildpacks", "group"),
        ("build.buildpacks", "build", "buildpacks"),
    ):
        value: Any = document
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        for number, item in enumerate(_list(value, f"project.toml of the app, {name}") if value is not None else []):
            place = f"{name}[{number}]"
            if not isinstance(item, dict):
                raise UsageError(f"project.toml of the app, {place} is no table.", f"Write [[{name}]].")
            uri = _value(item, "uri", f"project.toml of the app, {place}") if "uri" in item else ""
            if not uri or uri.startswith(_CLOUD_NATIVE):
                passed.append(str(uri or item.get("id", place)))
            else:
                found.append((place, uri))
    if not passed:
        return found, []
    listed = ", ".join(passed)
    return found, [f"project.toml names Cloud Native Buildpacks, which are passed over: {listed}."] if found else []


_FILES = {".buildpacks": _dot_buildpacks, "app.json": _app_json, "project.toml": _project_toml}


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{name} of the app, line {line}: it is not UTF-8.", "Mend it.") from None


def _list(value: object, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{place} is no list.", "Mend it.")
    return value


def _value(item: object, key: str, place: str) -> str:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{place} has no {key}.", f'Give it one: "{key}" and a buildpack.')
    return value.strip()
