"""The formats of slugs: their names, and how a file of each begins."""

from __future__ import annotations

import json
from pathlib import Path

from nsbuild.slug.marker import MARKER

OCI_PREFIX = "oci:"
ARCHIVES = {".tgz": "tgz", ".tar.gz": "tgz", ".tar.zst": "tar.zst", ".squashfs": "squashfs"}
"""Formats by the suffix of a file's name."""

ANNOTATION = "io.nsbuild.slug"
"""In the index of an image of ours: the schema of the slug's marker."""

_MAGIC = {b"\x1f\x8b": "tgz", b"\x28\xb5\x2f\xfd": "tar.zst", b"hsqs": "squashfs"}
_LIMIT = 1 << 20


def magic(path: Path) -> str | None:
    """The format of the file `path`, by its first bytes; None for one of no format of ours. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(4)
    return next((format_ for begin, format_ in _MAGIC.items() if head.startswith(begin)), None)


def format_of(path: Path) -> str | None:
    """The format of the slug `path`, whatever it is called; None when it is none. Raises OSError."""
    if not path.is_dir():
        return magic(path)
    return "oci" if (path / "oci-layout").is_file() and not (path / MARKER).exists() else "directory"


def read_json(path: Path) -> dict[str, object]:
    """A small JSON object in a file. Raises OSError, ValueError."""
    with path.open("rb") as file:
        text = file.read(_LIMIT + 1)
    if len(text) > _LIMIT:
        raise ValueError(f"{path.name} is larger than {_LIMIT} bytes")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return found


def is_our_image(path: Path) -> bool:
    """Whether the directory `path` is an OCI image layout that nsbuild has written."""
    try:
        annotations = read_json(path / "index.json").get("annotations")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(annotations, dict) and ANNOTATION in annotations
