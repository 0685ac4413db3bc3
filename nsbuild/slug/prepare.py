"""The slug: what a build leaves, put in place in one step."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Sequence

from nsbuild.record import Slug
from nsbuild.slug import tar
from nsbuild.slug.archive import Contents, Watcher, sizes, write_tree
from nsbuild.slug.compress import Packed
from nsbuild.slug.oci import Image, write_image
from nsbuild.slug.output import Output
from nsbuild.slug.squashfs import write_squashfs
from nsbuild.tree import (
    break_hard_links,
    copy_tree,
    fsync_directory,
    remove_tree,
    replace_directory,
)
from nsbuild.tree.beneath import open_root
from nsbuild.tree.descent import Descent
from nsbuild.tree.walk import Event, walk


class Prepared:
    """A slug beside its place, whole and on disk; `commit` puts it there."""

    def __init__(
        self,
        output: Output,
        beside: str,
        slug: Slug,
        lock: int,
        *,
        bare: Sequence[str] = (),
        unread: Sequence[str] = (),
    ) -> None:
        self._output = output
        self._beside: str | None = beside
        self._lock = lock
        self.slug = slug
        self.bare = bare
        """Files that have extended attributes, and have none in the slug."""
        self.unread = unread
        """Of a stack root that became a layer of an image: what was left out."""

    def commit(self) -> None:
        """Replace the last slug. Raises OSError; the last one is then still there."""
        assert self._beside is not None
        if self._output.format in ("directory", "oci"):
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


def prepare(
    app: str,
    output: Output,
    owner: tuple[int, int] | None,
    *,
    image: Image | None = None,
    watcher: Watcher | None = None,
) -> Prepared:
    """Make the slug of BUILD_DIR `app` beside its place. A directory is moved there where it can be; where it has
    to be copied, it belongs to `owner` all the same.

    `image` is what an OCI image says of itself. `watcher` sees what is archived as it is archived, and nothing of a
    slug that is a directory. Raises OSError, with nothing left beside.
    """
    parent = output.path.parent
    parent.mkdir(parents=True, exist_ok=True)
    _collect_leftovers(output)
    beside = f"{parent}/{_beside_prefix(output)}{os.urandom(6).hex()}"
    held = _Held()
    bare: Sequence[str] = ()
    unread: Sequence[str] = ()
    try:
        if output.format == "directory":
            slug = _directory(app, beside, output, owner, held)
        elif output.format == "oci":
            os.mkdir(beside, 0o755)
            held.lock(os.open(beside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            written = write_image(app, beside, image or Image(), watcher)
            slug = _slug(output, written.contents, written.digest, written.bytes)
            bare, unread = written.contents.bare, written.unread
        else:
            target = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            held.lock(target)
            contents, digest = _archive(app, beside, target, output.format, watcher)
            os.fsync(target)
            slug = _slug(output, contents, digest, os.fstat(target).st_size)
            bare = contents.bare
        return Prepared(output, beside, slug, held.fd, bare=bare, unread=unread)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(output.path)
        remove_tree(beside)
        held.release()
        raise


def _slug(output: Output, contents: Contents, digest: str, size: int) -> Slug:
    return Slug(str(output.path), output.format, size, f"sha256:{digest}", contents.sizes, contents.left_out)


class _Held:
    """The lock by which another build knows that what is beside is being made."""

    fd = -1

    def lock(self, fd: int) -> None:
        self.release()
        self.fd = fd
        fcntl.flock(fd, fcntl.LOCK_EX)

    def release(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _directory(app: str, beside: str, output: Output, owner: tuple[int, int] | None, held: _Held) -> Slug:
    # Buildpacks fill their caches with hard links; what is published must not change with the cache.
    break_hard_links(app)
    _clear_setuid(app)
    held.lock(os.open(app, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    left_out: list[str] = []
    try:
        os.rename(app, beside)
    except OSError:
        os.mkdir(beside, 0o700)
        held.lock(os.open(beside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        report = copy_tree(app, beside, owner=owner, unlock=True)
        left_out = [left.path for left in report.left_out]
    found = sizes(beside)
    return Slug(str(output.path), output.format, sum(found.values()), "", found, left_out)


def _archive(app: str, beside: str, target: int, format_: str, watcher: Watcher | None) -> tuple[Contents, str]:
    if format_ == "squashfs":
        contents = write_squashfs(app, beside, target, watcher)
        with open(target, "rb", closefd=False) as file:
            return contents, hashlib.file_digest(file, "sha256").hexdigest()
    with Packed(target, {"tgz": "gzip", "tar.zst": "zstd"}[format_]) as packed:
        contents = write_tree(app, packed, watcher=watcher)
        packed(tar.END)
    return contents, packed.digest


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
