"""The slug: what a build leaves, as a directory or a .tgz, put in place in one step."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import stat
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from nsbuild.errors import UsageError
from nsbuild.record import Slug
from nsbuild.tree import (
    break_hard_links,
    copy_tree,
    fsync_directory,
    open_beneath,
    remove_tree,
    replace_directory,
    tree_size,
)
from nsbuild.tree.beneath import open_root
from nsbuild.tree.copy import open_regular
from nsbuild.tree.descent import Descent, Identity, identity
from nsbuild.tree.walk import Event, walk

MARKER = ".nsbuild-slug"
RELEASE_FILE = ".release"
"""Where bin/release's output goes, as gliderlabs/herokuish include/buildpack.bash has it."""

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


def mark(app: str, run_path: str, layout: str, release: bytes | None, owner: tuple[int, int] | None) -> None:
    """Write into the slug what running it needs: where it runs, and what bin/release said."""
    marker = json.dumps({"schema": 1, "run_path": run_path, "layout": layout}) + "\n"
    directory = os.open(app, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name, content in ((MARKER, marker.encode()), (RELEASE_FILE, release)):
            if content is None:
                continue
            remove_tree(name, dir_fd=directory)
            fd = open_beneath(directory, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with open(fd, "wb") as file:  # noqa: PTH123
                file.write(content)
                os.fchmod(fd, 0o644)
                if owner is not None:
                    os.fchown(fd, *owner)
    finally:
        os.close(directory)


class Prepared:
    """A slug beside its place, whole and on disk; `commit` puts it there."""

    def __init__(self, output: Output, beside: str, slug: Slug, lock: int) -> None:
        self._output = output
        self._beside: str | None = beside
        self._lock = lock
        self.slug = slug

    def commit(self) -> None:
        """Replace the last slug. Raises OSError; the last one is then still there."""
        assert self._beside is not None
        if self._output.format == "directory":
            self._beside = replace_directory(self._beside, str(self._output.path))
        else:
            os.rename(self._beside, self._output.path)
            self._beside = None
        fsync_directory(str(self._output.path.parent))

    def discard(self) -> None:
        """Remove what is beside: the new slug before `commit`, the old one after it."""
        if self._beside is not None:
            remove_tree(self._beside)
            self._beside = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def prepare(app: str, output: Output, owner: tuple[int, int] | None) -> Prepared:
    """Make the slug of BUILD_DIR `app` beside its place. A directory is moved there where it can be; where it has
    to be copied, it belongs to `owner` all the same.

    Raises OSError, with nothing left beside.
    """
    parent = output.path.parent
    parent.mkdir(parents=True, exist_ok=True)
    _collect_leftovers(output)
    beside = f"{parent}/{_beside_prefix(output)}{os.urandom(6).hex()}"
    lock = -1
    try:
        if output.format == "tgz":
            lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            fcntl.flock(lock, fcntl.LOCK_EX)
            digest, size = _write_tgz(app, lock)
        else:
            # Buildpacks fill their caches with hard links; what is published must not change with the cache.
            break_hard_links(app)
            _clear_setuid(app)
            digest = ""
            lock = os.open(app, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                os.rename(app, beside)
            except OSError:
                os.close(lock)
                os.mkdir(beside, 0o700)
                lock = os.open(beside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(lock, fcntl.LOCK_EX)
                copy_tree(app, beside, owner=owner, unlock=True)
            size = tree_size(beside)[0]
        return Prepared(output, beside, Slug(str(output.path), output.format, size, digest), lock)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(output.path)
        remove_tree(beside)
        if lock >= 0:
            os.close(lock)
        raise


def _beside_prefix(output: Output) -> str:
    return f".{output.path.name}.nsbuild-"


def _collect_leftovers(output: Output) -> None:
    """Remove what a killed build has left beside the output. A build under way holds a lock on its own."""
    for entry in os.scandir(output.path.parent):
        if not entry.name.startswith(_beside_prefix(output)):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # A minute, for one that has been made and not locked yet.
                if time.time() - os.fstat(fd).st_ctime > 60:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(entry.path)
            finally:
                os.close(fd)


def _clear_setuid(app: str) -> None:
    with Descent(app, open_root(app, None)) as descent:
        for event, name, info in walk(descent, unlock=True):
            special = info.st_mode & (stat.S_ISUID | stat.S_ISGID)
            if event is Event.OTHER and stat.S_ISREG(info.st_mode) and special:
                os.chmod(name, stat.S_IMODE(info.st_mode) & 0o777, dir_fd=descent.fd)


def _write_tgz(app: str, target: int) -> tuple[str, int]:
    """Sorted, one owner, whole seconds: the same tree gives the same bytes. `target` stays open."""
    links: dict[Identity, str] = {}
    with open(target, "w+b", closefd=False) as raw:
        with (
            gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, errorlevel=2) as archive,
            Descent(app, open_root(app, None)) as descent,
        ):
            for event, name, info in walk(descent, unlock=True):
                if event is Event.ENTER:
                    archive.addfile(_member(descent.relative(""), info, tarfile.DIRTYPE))
                elif event is Event.OTHER:
                    _add(archive, descent, name, info, links)
        raw.flush()
        os.fsync(target)
        raw.seek(0)
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    return f"sha256:{digest}", os.fstat(target).st_size


def _member(relative: str, info: os.stat_result, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(f"./{relative}")
    member.type = kind
    member.mode = stat.S_IMODE(info.st_mode) & (0o777 if stat.S_ISREG(info.st_mode) else 0o1777)
    member.mtime = int(info.st_mtime)
    return member


def _add(
    archive: tarfile.TarFile, descent: Descent, name: str, info: os.stat_result, links: dict[Identity, str]
) -> None:
    relative = descent.relative(name)
    if stat.S_ISLNK(info.st_mode):
        member = _member(relative, info, tarfile.SYMTYPE)
        member.linkname = os.readlink(name, dir_fd=descent.fd)
        archive.addfile(member)
    elif stat.S_ISREG(info.st_mode):
        first = links.setdefault(identity(info), relative) if info.st_nlink > 1 else relative
        if first != relative:
            member = _member(relative, info, tarfile.LNKTYPE)
            member.linkname = f"./{first}"
            archive.addfile(member)
            return
        fd = open_regular(descent.fd, name, unlock=True)
        with open(fd, "rb") as file:  # noqa: PTH123
            member = _member(relative, info, tarfile.REGTYPE)
            member.size = os.fstat(fd).st_size
            archive.addfile(member, file)
