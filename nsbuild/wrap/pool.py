"""Workspaces that wait for the next launch, with a skeleton in them that is verified before it is used.

Making and removing one costs more than the launch itself: see `nsbuild.sandbox.skeleton`.
"""

from __future__ import annotations

import fcntl
import os

from nsbuild.tree.make import make_directory
from nsbuild.tree.remove import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container

_FRESH = ("tmp", "var-tmp")
SHAPES = 64
"""As many kinds of launches have a skeleton of their own: builders make up paths for every call."""


class Workspace:
    """A locked directory with an empty `tmp` and `var-tmp`, and perhaps a skeleton (`root`).

    `lasting` ones are kept in a pool, others removed at the end.
    """

    def __init__(self, path: str, lock: int, lasting: bool) -> None:
        self.path = path
        self.lasting = lasting
        self._lock = lock

    def furnish(self, owner: tuple[int, int] | None) -> None:
        """Remove what an interrupted launch has left; make the directories of this one."""
        for name in os.listdir(self.path):
            if name != "root":
                remove_tree(f"{self.path}/{name}")
        for name in _FRESH:
            path = f"{self.path}/{name}"
            os.mkdir(path)
            os.chmod(path, 0o1777)
            if owner is not None:
                os.chown(path, *owner)

    def leave(self) -> None:
        """Nothing of the build stays but, in a lasting one, the skeleton."""
        if self.lasting:
            for name in os.listdir(self.path):
                if name != "root":
                    remove_tree(f"{self.path}/{name}")
        else:
            remove_tree(self.path)

    def close(self) -> None:
        """Give the lock up."""
        os.close(self._lock)


def take(pool: str, spoken_for: Callable[[], Container[str]]) -> Workspace:
    """A free workspace of the pool directory, a new one if need be. `spoken_for` reads which ones journals name.

    Raises OSError.
    """
    number = 0
    while True:
        path = f"{pool}/{number}"
        try:
            lock = _lock(path, spoken_for)
        except FileNotFoundError:
            make_directory(path, 0o700)
            continue
        if lock is not None:
            return Workspace(path, lock, lasting=True)
        number += 1


def make(path: str) -> Workspace:
    """A workspace for one launch, outside of the pool. Raises OSError."""
    os.mkdir(path, 0o700)
    lock = _lock(path)
    assert lock is not None
    return Workspace(path, lock, lasting=False)


def _lock(path: str, spoken_for: Callable[[], Container[str]] = frozenset) -> int | None:
    """None when another launch has it, or what is in it belongs to one that was killed."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Journals under the lock, and before the name: a launch may have been killed, or recovered from, just now.
        if path not in spoken_for() and os.path.samestat(os.fstat(fd), os.lstat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def clear(pools: str, spoken_for: Callable[[], Container[str]]) -> list[str]:
    """Remove every workspace below `pools` that no launch holds and no journal names; returns their paths.

    Raises OSError.
    """
    removed = []
    for shape in _names(pools):
        for number in _names(f"{pools}/{shape}"):
            path = f"{pools}/{shape}/{number}"
            try:
                lock = _lock(path, spoken_for)
            except FileNotFoundError:
                continue  # somebody else clears too
            if lock is not None:
                remove_tree(path)
                os.close(lock)
                removed.append(path)
        try:
            os.rmdir(f"{pools}/{shape}")
        except OSError:
            continue  # not empty: in use
    return removed


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
