"""Where a slug goes, and in which format."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nsbuild.errors import UsageError
from nsbuild.slug.marker import MARKER

_ARCHIVES = (".tgz", ".tar.gz")
_LATER = (".tar.zst", ".squashfs")


@dataclass(frozen=True)
class Output:
    """Where a slug goes: `format` is `directory` or `tgz`."""

    path: Path
    format: str


def check_output(output: str, source: Path) -> Output:
    """What `--output` names. Raises UsageError when it would replace something that is not a slug of ours, or
    cannot be written: that should not come out after the build.
    """
    if output.startswith("oci:") or output.endswith(_LATER):
        raise UsageError(
            f"{output}: this version of nsbuild does not write that format.", "Give a directory or a name in .tgz."
        )
    path = Path(os.path.abspath(os.path.expanduser(output)))
    if os.path.realpath(path) == str(source):
        raise UsageError(f"The output {output} is the source.", "Give another place.")
    _check_parent(output, path)
    if output.endswith(_ARCHIVES):
        if path.is_dir():
            raise UsageError(f"The output {output} is a directory.", "Give the name of a file.")
        return Output(path, "tgz")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        kind = "a symlink" if path.is_symlink() else "a file"
        raise UsageError(f"The output {output} is {kind}.", "Give a new name, or one that ends in .tgz.")
    if path.is_dir() and any(path.iterdir()) and not (path / MARKER).is_file():
        raise UsageError(
            f"The output {output} is a directory with other things in it.", "Give a new name, or an empty directory."
        )
    return Output(path, "directory")


def _check_parent(output: str, path: Path) -> None:
    parent = next(found for found in path.parents if os.path.lexists(found))
    if not parent.is_dir():
        raise UsageError(f"The output {output} would be in {parent}, which is a file.", "Give another place.")
    if not os.access(parent, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError(
            f"The output {output} would be in {parent}, which you may not read and write.", "Give another place."
        )
