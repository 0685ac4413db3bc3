"""The slug: what a build leaves, put in place in one step."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time

from nsbuild.record import Slug
from nsbuild.slug.archive import write_tgz
from nsbuild.slug.output import Output
from nsbuild.tree import (
    break_hard_links,
    copy_tree,
    fsync_directory,
    remove_tree,
    replace_directory,
    tree_size,
)
from nsbuild.tree.beneath import open_root
from nsbuild.tree.descent import Descent
from nsbuild.tree.walk import Event, walk


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
            digest, size = write_tgz(app, lock)
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
