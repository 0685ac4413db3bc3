"""Where a build's source comes from: a directory, a git work tree, an archive."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nsbuild.build.checkout import differences, find_checkout, work_tree_files
from nsbuild.build.git import Checkout
from nsbuild.build.head import head_file, write_head
from nsbuild.build.slugignore import NAME, SlugIgnore, parse_slugignore
from nsbuild.errors import Refused, UsageError
from nsbuild.tree import LeftOut, TreeWriter, copy_tree, read_beneath, remove_tree

_SUFFIXES = (".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2", ".tgz", ".tar", ".zip")
_SLUGIGNORE_LIMIT = 1 << 20

Skip = Callable[[str, bool], bool]
"""Whether a path from the source's root (and: is it a directory) is no part of the app."""


@dataclass(frozen=True)
class Source:
    """`path` is what was named, resolved; `kind` is `directory`, `git` or `archive`; `version` is SOURCE_VERSION: the
    commit, or empty; `name` is that of the app, from the path.
    """

    path: Path
    kind: str
    name: str
    version: str = ""
    checkout: Checkout | None = None
    dirty: bool = False


@dataclass(frozen=True)
class Staged:
    """What `stage` has written: how many files and symbolic links. `left_out` could not be copied; `ignored` are the
    paths that .slugignore took away, without what was below them. `notes` and `warnings` are sentences.
    """

    files: int
    symlinks: int
    left_out: tuple[LeftOut, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def open_source(reference: str | Path, *, dirty: bool = False) -> Source:
    """What `reference` names. `dirty`: of a git work tree, what is there instead of what HEAD has.

    Raises UsageError for what is no source, or a repository without a commit; Refused when git refuses.
    """
    path = Path(reference)
    fix = "Give the directory of an app, or an archive of one."
    if not str(reference) or not path.exists():
        raise UsageError(f"The source {reference or '(no name)'} does not exist.", fix)
    path = path.resolve()
    if path.is_file():
        suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)
        if suffix is None:
            raise UsageError(f"The source {reference} is neither a directory nor an archive.", fix)
        return Source(path, "archive", path.name.removesuffix(suffix))
    if not path.is_dir():
        raise UsageError(f"The source {reference} is not a directory.", fix)
    try:
        checkout = find_checkout(path)
    except PermissionError as error:
        raise Refused(
            f"{error.filename} cannot be read: {error.strerror}.", "Make the repository readable."
        ) from None
    if checkout is None:
        return Source(path, "directory", path.name)
    if not checkout.commit and not dirty:
        raise UsageError(
            f"The source {reference} is a git work tree without a commit: a push would have nothing to send.",
            "Commit first, or build what is there with --dirty.",
        )
    return Source(path, "git", path.name, checkout.commit, checkout, dirty)


def stage(source: Source, destination: str, owner: tuple[int, int] | None, skip: Skip) -> Staged:
    """Write the source to `destination`, an empty directory of ours or none, without anything called `.git`, what
    `skip` says and what `.slugignore` names. What it writes beside `destination` meanwhile, it removes.

    Raises UsageError and Refused for a source that cannot be read, OSError.
    """
    if source.kind == "archive":
        unpacked = f"{destination}.unpacked"
        try:
            root, notes = _unpack(source.path, unpacked, owner)
            return _copied(root, destination, owner, _Chosen(skip, _slugignore_of(root)), notes)
        finally:
            remove_tree(unpacked)
    if source.checkout is None:
        return _copied(source.path, destination, owner, _Chosen(skip, _slugignore_of(source.path)))
    if source.dirty:
        there = _Chosen(skip, _slugignore_of(source.path), work_tree_files(source.checkout))
        return _copied(source.path, destination, owner, there)
    return _head(source.checkout, destination, owner, skip)


class _Chosen:
    """What is no part of the app: `.git`, what `skip` says, what .slugignore names, what is not among `files`."""

    def __init__(self, skip: Skip, ignore: SlugIgnore, files: set[str] | None = None) -> None:
        self.ignore = ignore
        self.ignored: list[str] = []
        self._skip = skip
        self._files = files
        self._above = {path[:place] for path in files or () for place, at in enumerate(path) if at == "/"}
        self._whole = {path.rstrip("/") for path in files or () if path.endswith("/")}

    def __call__(self, path: str, directory: bool) -> bool:
        if path.rpartition("/")[2] == ".git" or self._skip(path, directory):
            return True
        if self._files is not None and not self._has(self._files, path, directory):
            return True
        if self.ignore.ignores(path, directory):
            self.ignored.append(path)
            return True
        return False

    def _has(self, files: set[str], path: str, directory: bool) -> bool:
        if path in (self._above if directory else files):
            return True
        return any(path[:place] in self._whole for place, at in enumerate(f"{path}/") if at == "/")


def _copied(
    root: Path, destination: str, owner: tuple[int, int] | None, chosen: _Chosen, notes: tuple[str, ...] = ()
) -> Staged:
    found = copy_tree(str(root), destination, skip=chosen, owner=owner)
    return Staged(
        found.files, found.symlinks, tuple(found.left_out), tuple(chosen.ignored), notes, chosen.ignore.warnings
    )


def _head(checkout: Checkout, destination: str, owner: tuple[int, int] | None, skip: Skip) -> Staged:
    notes = [f"The app is the commit {checkout.commit[:12]}, as a push would send it."]
    if checkout.prefix:
        notes = [f"The app is {checkout.prefix} of the commit {checkout.commit[:12]}, as a push would send it."]
    chosen = _Chosen(skip, _parsed(head_file(checkout, NAME)))
    differing = [path for path in differences(checkout) if not skip(path, False)]
    with TreeWriter(destination, owner) as writer:
        files, links = write_head(checkout, writer, chosen)
    warnings = chosen.ignore.warnings
    if differing:
        some = "1 file differs" if len(differing) == 1 else f"{len(differing)} files differ"
        warnings += (f"{some} from HEAD, {differing[0]} for one; --dirty includes what is there.",)
    return Staged(files, links, (), tuple(chosen.ignored), tuple(notes), warnings)


def _unpack(archive: Path, directory: str, owner: tuple[int, int] | None) -> tuple[Path, tuple[str, ...]]:
    """Where in `directory` the app then is: an archive made by GitHub, or of a directory, has one directory at its
    root, and nothing else.
    """
    from nsbuild.tree.unpack import ArchiveError, unpack

    try:
        unpack(archive, directory, outward_links=True, owner=owner)
    except ArchiveError as error:
        raise UsageError(f"The source cannot be unpacked: {error}") from None
    except PermissionError as error:
        if error.filename != str(archive):
            raise
        raise Refused(f"{archive} cannot be read: {error.strerror}.") from None
    names = os.listdir(directory)
    top = Path(directory, names[0]) if len(names) == 1 else None
    if top is not None and top.is_dir() and not top.is_symlink():
        return top, (f"The app is {top.name}/ of the archive, which has nothing else.",)
    return Path(directory), ()


def _slugignore_of(directory: Path) -> SlugIgnore:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _parsed(read_beneath(fd, NAME, _SLUGIGNORE_LIMIT) or b"")
    except OSError as error:
        raise UsageError(f"{directory / NAME} cannot be read: {error.strerror}.", "Make it a plain file.") from None
    finally:
        os.close(fd)


def _parsed(data: bytes) -> SlugIgnore:
    return parse_slugignore(os.fsdecode(data))
