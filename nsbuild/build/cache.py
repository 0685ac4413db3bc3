"""The build cache of one app, stack and layout: a private copy for each build, replaced only after success."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nsbuild.errors import Refused
from nsbuild.tree import copy_tree, remove_tree, replace_directory

_BESIDE = "new-"


@dataclass(frozen=True)
class Cache:
    """`directory` is the store's root; `key` tells apps, stacks and layouts apart, as caches may contain paths."""

    directory: Path
    key: str

    @property
    def content(self) -> Path:
        return self.directory / self.key / "content"

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
            self.content.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(f"cannot be written: {error.strerror}") from error

    def load(self, destination: str, owner: tuple[int, int] | None) -> bool:
        """Copy the cache to an empty directory; False when there is none yet."""
        with self._turn(fcntl.LOCK_SH):
            if not self.content.is_dir():
                return False
            copy_tree(str(self.content), destination, owner=owner, unlock=True)
            return True

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
                old: list[str | None] = []
                try:
                    yield lambda: old.append(replace_directory(beside, str(self.content)))
                except BaseException:
                    if old and old[0] is not None:
                        beside = replace_directory(old[0], str(self.content)) or beside
                    elif old:
                        os.rename(self.content, beside)
                    raise
                if old and old[0] is not None:
                    beside = old[0]
            finally:
                remove_tree(beside)

    def _refusal(self, problem: str) -> Refused:
        return Refused(f"The cache {self.content.parent} {problem}.", "Give another directory with --cache.")

    @contextlib.contextmanager
    def _turn(self, kind: int) -> Iterator[None]:
        fd = os.open(self.content.parent / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, kind)
            yield
        finally:
            os.close(fd)


def cache_key(app: str, stack: str, layout: str) -> str:
    """Readable, and different for every app, stack and layout."""
    digest = hashlib.sha256("\0".join((app, stack, layout)).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(app)).strip("-.")[:40] or "app"
    return f"{name}-{digest}"
