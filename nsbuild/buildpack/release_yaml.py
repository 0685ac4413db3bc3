"""What `bin/release` prints: default process types, addons, legacy config vars."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class ReleaseError(ValueError):
    """The output is not the YAML that the API asks for. The message says what is wrong."""


@dataclass(frozen=True)
class Release:
    default_process_types: dict[str, str] = field(default_factory=dict)
    addons: list[str] = field(default_factory=list)
    config_vars: dict[str, str] = field(default_factory=dict)


def parse_release(text: bytes) -> Release:
    """Read `bin/release`'s output; nothing at all is legal. Raises ReleaseError."""
    import yaml

    try:
        # Every scalar a string: a process type called `on`, or a command `yes`, is no boolean.
        document = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ReleaseError(f"it is not YAML ({str(error).splitlines()[0]})") from error
    if document in (None, ""):
        return Release()
    if not isinstance(document, dict):
        raise ReleaseError("it is not a mapping")
    addons = document.get("addons") or []
    if not isinstance(addons, list):
        raise ReleaseError("addons is not a list")
    return Release(
        _strings(document, "default_process_types"), [str(item) for item in addons], _strings(document, "config_vars")
    )


def _strings(document: dict[Any, Any], name: str) -> dict[str, str]:
    found = document.get(name) or {}
    if not isinstance(found, dict):
        raise ReleaseError(f"{name} is not a mapping")
    for key, value in found.items():
        if isinstance(value, dict | list):
            raise ReleaseError(f"{name}: {key} is not a string")
    return {str(key): "" if value is None else str(value) for key, value in found.items()}
