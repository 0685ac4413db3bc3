"""Where a slug goes, and in which format."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from nsbuild.errors import UsageError
from nsbuild.slug.formats import ARCHIVES, OCI_PREFIX, is_our_image, magic
from nsbuild.slug.marker import MARKER

_FOREIGN = (
    *(".tar", ".tar.xz", ".txz", ".tar.bz2", ".tbz", ".tbz2", ".tar.lz4", ".tzst", ".zip", ".7z", ".gz", ".zst"),
    *(".sqfs", ".sqsh", ".sfs", ".img", ".iso", ".jar", ".whl"),
)
"""Who gives such a name does not want a directory."""


@dataclass(frozen=True)
class Output:
    """Where a slug goes: `format` is `directory`, `tgz`, `tar.zst`, `squashfs` or `oci`."""

    path: Path
    format: str


def check_output(output: str, source: Path) -> Output:
    """What `--output` names. Raises UsageError when it would replace something that is not a slug of ours, or
    cannot be written: that should not come out after the build.
    """
    name = output.removeprefix(OCI_PREFIX)
    path = Path(os.path.abspath(os.path.expanduser(name)))
    suffix = next((suffix for suffix in ARCHIVES if path.name.endswith(suffix)), "")
    format_ = "oci" if name != output else ARCHIVES.get(suffix, "directory")
    _check_place(output, path, source)
    _check_parent(output, path)
    if format_ in ("directory", "oci"):
        _check_directory(output, path, format_)
    else:
        _check_file(output, path, format_)
    if format_ == "squashfs" and shutil.which("mksquashfs") is None:
        raise UsageError(
            f"The output {output} needs mksquashfs, which is not installed.",
            "Install squashfs-tools, or give a name in .tgz or .tar.zst.",
        )
    return Output(path, format_)


def _check_place(output: str, path: Path, source: Path) -> None:
    real = os.path.realpath(path)
    if real == str(source):
        raise UsageError(f"The output {output} is the source.", "Give another place.")
    for what, directory in (("the directory you are in", os.getcwd()), ("your home", os.path.expanduser("~"))):
        if os.path.isdir(path) and f"{os.path.realpath(directory)}/".startswith(f"{real.rstrip('/')}/"):
            where = "is" if real == os.path.realpath(directory) else "holds"
            raise UsageError(f"The output {output} {where} {what}.", "Give the name of a new file or directory.")


def _check_parent(output: str, path: Path) -> None:
    parent = next(found for found in path.parents if os.path.lexists(found))
    if not parent.is_dir():
        raise UsageError(f"The output {output} would be in {parent}, which is a file.", "Give another place.")
    if not os.access(parent, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError(
            f"The output {output} would be in {parent}, which you may not read and write.", "Give another place."
        )


def _check_directory(output: str, path: Path, format_: str) -> None:
    foreign = next((suffix for suffix in sorted(_FOREIGN, key=len, reverse=True) if path.name.endswith(suffix)), None)
    if format_ == "directory" and foreign is not None and not path.is_dir():
        raise UsageError(
            f"The output {output} has a name in {foreign}, which nsbuild does not write.",
            f"Give a name in {', '.join(ARCHIVES)}, {OCI_PREFIX}DIR, or a directory's.",
        )
    if format_ == "oci" and ":" in str(path):
        raise UsageError(
            f"The output {output} has a colon in its path, where skopeo and others expect a tag.",
            "Give another directory.",
        )
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        kind = "a symlink" if path.is_symlink() else "a file"
        raise UsageError(f"The output {output} is {kind}.", "Give a new name, or one that ends in .tgz.")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (is_our_image(path) if format_ == "oci" else (path / MARKER).is_file()):
        raise UsageError(
            f"The output {output} is a directory with other things in it.", "Give a new name, or an empty directory."
        )


def _check_file(output: str, path: Path, format_: str) -> None:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(info.st_mode):
        raise UsageError(f"The output {output} is a directory.", "Give the name of a file.")
    if not stat.S_ISREG(info.st_mode):
        kind = "a symlink" if stat.S_ISLNK(info.st_mode) else "not a regular file"
        raise UsageError(f"The output {output} is {kind}.", "Give a new name.")
    if info.st_size == 0:
        return
    try:
        found = magic(path)
    except OSError as error:
        raise UsageError(f"The output {output} cannot be read: {error.strerror}.", "Give a new name.") from None
    if found != format_:
        raise UsageError(
            f"The output {output} is a file that is no {path.name.partition('.')[2] or format_} archive.",
            "Give a new name, or remove it.",
        )
