"""A buildpack: from what a user names to a private, writable copy."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from nsbuild.errors import UsageError
from nsbuild.tree import copy_tree, remove_tree


@dataclass(frozen=True)
class Buildpack:
    """One buildpack of a build.

    `reference` is what the user wrote, `directory` the private copy on the host, `path` where the build sees it.
    `digest` is of the sources: names, x bits, contents.
    """

    reference: str
    directory: Path
    path: str
    digest: str

    def has(self, script: str) -> bool:
        """Whether it has `bin/SCRIPT`."""
        return (self.directory / "bin" / script).is_file()


def check_buildpack(directory: Path, shown: str) -> None:
    """Raises UsageError when the directory is no classic buildpack. `shown` is what the user calls it."""
    if (directory / "bin" / "compile").is_file():
        return
    if (directory / "bin" / "build").is_file():
        raise UsageError(
            f"{shown} is a Cloud Native Buildpack: it has bin/build, and no bin/compile.",
            "Give the classic buildpack of that language.",
        )
    raise UsageError(
        f"{shown} is not a buildpack: it has no bin/compile.",
        "Give what holds bin/detect and bin/compile.",
    )


def install(source: Path, reference: str, directory: Path, path: str, owner: tuple[int, int] | None) -> Buildpack:
    """Copy a buildpack to `directory`, where it may write: buildpacks append to `export` in their own directory.

    Every bin/* is made executable, as git checkouts on Windows and some archives lose the bit. A stale `export`
    is removed. Raises OSError when the source cannot be read or the copy not be written.
    """
    copy_tree(str(source), str(directory), skip=lambda name, _: name == ".git", owner=owner)
    for script in (directory / "bin").iterdir():
        mode = script.lstat().st_mode
        if stat.S_ISREG(mode):
            script.chmod(stat.S_IMODE(mode) | 0o755)
    directory.chmod(0o755)
    digest = files_digest(directory)
    remove_tree(str(directory / "export"))
    return Buildpack(reference, directory, path, digest)


def files_digest(directory: Path) -> str:
    """The digest of a tree: names, x bits, contents, and where links point.

    Raises OSError for what cannot be read.
    """
    total = hashlib.sha256()
    for parent, directories, files in os.walk(directory, onerror=_raise):
        directories.sort()
        links = [name for name in directories if Path(parent, name).is_symlink()]
        for name in sorted((*files, *links)):
            file = Path(parent, name)
            info = file.lstat()
            total.update(os.fsencode(file.relative_to(directory)) + b"\0")
            if stat.S_ISLNK(info.st_mode):
                total.update(b"l" + os.fsencode(file.readlink()) + b"\0")
            elif stat.S_ISREG(info.st_mode):
                total.update(b"x" if info.st_mode & 0o111 else b"-")
                with file.open("rb") as content:
                    total.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def _raise(error: OSError) -> None:
    raise error
