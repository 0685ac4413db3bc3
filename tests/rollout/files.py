"""Flags files for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VARIANTS = {"direct": "direct", "shadow": "shadow", "namespace": "namespace", "none": ""}


def flag(targeting: object = None, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"state": "ENABLED", "variants": dict(VARIANTS), "defaultVariant": "none"}
    if targeting is not None:
        made["targeting"] = targeting
    return {**made, **changes}


def members(apps: list[str], variant: str) -> dict[str, Any]:
    return {"if": [{"in": [{"var": "app"}, apps]}, variant, "none"]}


def share(namespace: int, shadow: int = 0) -> dict[str, Any]:
    """In buckets of 10,000."""
    below: Any = {"var": "bucket"}
    return {"if": [{"<": [below, namespace]}, "namespace", {"<": [below, shadow]}, "shadow", "none"]}


def document(**flags: Any) -> dict[str, Any]:
    """`deny`, `allow`, `rules` and `percentage`, each a targeting."""
    made = {f"nsbuild-{name}": flag(targeting) for name, targeting in flags.items()}
    if "deny" in flags:
        made["nsbuild-deny"]["variants"] = {"denied": "direct", "none": ""}
    return {"metadata": {"salt": "test"}, "flags": made}


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path
