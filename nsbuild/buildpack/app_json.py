"""What app.json says about tests: `scripts`, and what its test environment has instead.

https://devcenter.heroku.com/articles/heroku-ci#customizing-your-test-environment
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


class AppJsonError(ValueError):
    """It is no JSON, or not of app.json's schema. The message names the place."""


@dataclass(frozen=True)
class TestScripts:
    """Commands for a shell: `setup` before the tests, `test` in place of `bin/test`; config vars, for tests only."""

    __test__ = False  # pytest

    setup: str | None = None
    test: str | None = None
    config_vars: dict[str, str] = field(default_factory=dict)


def parse_test_scripts(text: bytes) -> TestScripts:
    """Read app.json; nothing at all is legal. Raises AppJsonError."""
    document = _object(_parse(text), "app.json")
    environment = _object(_object(document.get("environments"), "environments").get("test"), "environments.test")
    scripts = {
        **_object(document.get("scripts"), "scripts"),
        **_object(environment.get("scripts"), "environments.test.scripts"),
    }
    for name in ("test-setup", "test"):
        if not isinstance(scripts.get(name, ""), str):
            raise AppJsonError(f"app.json: scripts: {name} is no string")
    variables = {}
    for name, value in _object(environment.get("env"), "environments.test.env").items():
        given = value.get("value") if isinstance(value, dict) else value
        if isinstance(given, str):
            variables[name] = given
        elif given is not None or not isinstance(value, dict):
            raise AppJsonError(f"app.json: environments.test.env: {name} is no string")
    return TestScripts(scripts.get("test-setup") or None, scripts.get("test") or None, variables)


def _parse(text: bytes) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise AppJsonError(f"app.json line {error.lineno} is no JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise AppJsonError(f"app.json is no JSON: {error.reason}") from None
    except RecursionError:
        raise AppJsonError("app.json is nested too deeply") from None


def _object(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AppJsonError(f"app.json: {name} is no object" if name != "app.json" else "app.json is no object")
    return value
