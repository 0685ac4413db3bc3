"""What `bin/report` prints: a flat mapping, in YAML or in JSON, which is YAML too."""

from __future__ import annotations

import json
import math

Scalar = str | int | float | bool | None


class ReportError(ValueError):
    """The output is not what the API asks for. The message says what is wrong."""


def parse_report(text: bytes) -> dict[str, Scalar]:
    """Read `bin/report`'s output; nothing at all is legal, what is nested is left out. Raises ReportError.

    heroku-buildpack-python and -nodejs print JSON (lib/build_data.sh), heroku-buildpack-apt YAML (bin/report).
    """
    try:
        document = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        document = _yaml(text)
    if not isinstance(document, dict):
        raise ReportError("it is not a mapping")
    return {str(key): _scalar(value) for key, value in document.items() if not isinstance(value, dict | list | set)}


def _yaml(text: bytes) -> object:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ReportError(f"it is not YAML ({str(error).splitlines()[0]})") from error


def _scalar(value: object) -> Scalar:
    """YAML has dates, bytes, and numbers that JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | None) else str(value)
