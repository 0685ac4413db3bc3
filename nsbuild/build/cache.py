"""The build cache of one app, stack and layout: a private copy for each build, replaced only after success."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nsbuild.errors import Refused
from nsbuild.tree import copy_tree, remove_tree, replace_directory, tree_size, write_atomic
from nsbuild.tree.make import make_directory

_BESIDE = "new-"
_ABOUT = "about.json"


@dataclass(frozen=True)
class CacheUse:
    """What a cache is for: caches may contain paths, and what one stack or purpose needs is no use to another."""

    app: str
    stack: str
    layout: str
    purpose: str = "build"

    @property
    def key(self) -> str:
        """Readable, and different for every use."""
        parts = (self.app, self.stack, self.layout, *([] if self.purpose == "build" else [self.purpose]))
        digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(self.app)).strip("-.")[:40] or "app"
        return f"{name}-{digest}"


@dataclass(frozen=True)
class Cache:
    """`directory` is the store's root."""

    directory: Path
    use: CacheUse

    @property
    def content(self) -> Path:
        return self.directory / self.use.key / "content"

    def check(self) -> None:
        """Raises Refused when the cache is somebody else's, or cannot be used."""
        for path in (self.directory, self.content.parent, self.content):
            try:
                owner = path.lstat().st_uid
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self._refusal(f"cannot be read: {error.strerror}") from error
            if os.geteuid() not in (0, owner):
                raise self._refusal(f"belongs to uid {owner}, not to you (uid {os.geteuid()})")
        try:
            make_directory(self.content.parent)
        except OSError as error:
            raise self._refusal(f"cannot be written: {error.strerror}") from error

    def load(self, destination: str, owner: tuple[int, int] | None) -> bool:
        """Copy the cache to an empty directory; False when there is none yet."""
        with self.reading() as content:
            if content is None:
                return False
            copy_tree(str(content), destination, owner=owner, unlock=True)
            return True

    @contextlib.contextmanager
    def reading(self) -> Iterator[Path | None]:
        """What is kept, which nobody replaces or removes meanwhile; None when there is none yet."""
        with self._turn(fcntl.LOCK_SH):
            yield self.content if self.content.is_dir() else None

    @contextlib.contextmanager
    def replacing(self, source: str) -> Iterator[Callable[[], None]]:
        """Bring a build's cache beside the kept one; calling what is yielded puts it in place.

        An exception after that puts the kept one back. Builds that share a cache take turns, and the last wins.
        `source` is moved where it can be. What a killed build has left beside is removed. Raises OSError; the
        kept cache is then as it was.
        """
        with self._turn(fcntl.LOCK_EX):
            for left in self.content.parent.glob(f"{_BESIDE}*"):
                remove_tree(str(left))
            beside = str(self.content.parent / f"{_BESIDE}{os.urandom(6).hex()}")
            try:
                try:
                    os.rename(source, beside)
                except OSError:
                    copy_tree(source, beside, unlock=True)
                _write_about(self.content.parent, self.use)
                old: list[str | None] = []
                try:
                    yield lambda: old.append(replace_directory(beside, str(self.content)))
                except BaseException:
                    if old and old[0] is not None:
                        beside = replace_directory(old[0], str(self.content)) or beside
                    elif old:
                        os.rename(self.content, beside)
                    raise
                if old:
                    beside = old[0] or beside
                    with contextlib.suppress(OSError):  # it is in place: when, is not worth failing for
                        os.utime(self.content.parent / _ABOUT)
            finally:
                remove_tree(beside)

    def _refusal(self, problem: str) -> Refused:
        return Refused(f"The cache {self.content.parent} {problem}.", "Give another directory with --cache.")

    def _turn(self, kind: int) -> contextlib.AbstractContextManager[None]:
        return _turn(self.content.parent, kind)


@contextlib.contextmanager
def _turn(directory: Path, kind: int) -> Iterator[None]:
    """Hold the lock of one cache. Who removes a cache removes its lock, and another is made."""
    path = directory / "lock"
    while True:
        make_directory(directory)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # removed since the mkdir
        try:
            fcntl.flock(fd, kind)
            if _is(path, fd):
                yield
                return
        finally:
            os.close(fd)


def _is(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Kept:
    """One kept cache. `use` is None for one of a version that did not write it down; `saved` is a Unix time."""

    key: str
    use: CacheUse | None
    bytes: int
    saved: float


def list_caches(directory: Path) -> list[Kept]:
    """The caches below a store's root, by key. Raises OSError."""
    found = []
    for path in sorted(directory.glob("*/content")):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            if not path.is_symlink():
                about = path.parent / _ABOUT
                saved = about.stat().st_mtime if about.exists() else path.parent.stat().st_mtime
                found.append(Kept(path.parent.name, _read_about(about), tree_size(str(path))[0], saved))
    return found


def remove_cache(directory: Path, key: str) -> None:
    """Remove one kept cache, when no build is copying or replacing it. Raises OSError."""
    own = directory / key
    with _turn(own, fcntl.LOCK_EX):
        for left in (*own.glob(f"{_BESIDE}*"), own / "content", own / _ABOUT):
            remove_tree(str(left))
        (own / "lock").unlink()
        with contextlib.suppress(OSError):
            own.rmdir()  # ENOTEMPTY once the next build has come


def _write_about(directory: Path, use: CacheUse) -> None:
    write_atomic(str(directory / _ABOUT), json.dumps(asdict(use)).encode("ascii"))


def _read_about(path: Path) -> CacheUse | None:
    try:
        return CacheUse(**{name: str(value) for name, value in json.loads(path.read_bytes()).items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
