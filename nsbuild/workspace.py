"""The private directory of one build or run: what becomes `/app`, `/tmp`, the cache and ENV_DIR."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from nsbuild.errors import Refused
from nsbuild.interrupts import signals_held
from nsbuild.sandbox import Layout, User
from nsbuild.tree import remove_tree
from nsbuild.tree.make import make_directory

PREFIX = "build-"
WORKSPACES = ".workspaces"
COPIES = ".copies"
"""Directories of ours, which go when they are empty. One that a user has named stays, whoever made it."""


class Workspace:
    """`app`, `home`, `tmp`, `cache`, `env` and `var-tmp` below one directory, locked while it is in use."""

    def __init__(self, path: str, user: User) -> None:
        self.path = path
        self.user = user

    @property
    def owner(self) -> tuple[int, int] | None:
        """Whom root gives everything to; None for an ordinary user, who owns what it makes."""
        return (self.user.uid, self.user.gid) if os.geteuid() == 0 else None

    def directory(self, name: str) -> str:
        return f"{self.path}/{name}"

    def make(self, name: str, mode: int = 0o755) -> str:
        """An empty directory of the build's user; whatever a build has left under that name is removed."""
        path = self.directory(name)
        remove_tree(path)
        os.mkdir(path, 0o700)
        if self.owner is not None:
            os.chown(path, *self.owner)
        os.chmod(path, mode)
        return path

    def places(self, layout: Layout) -> dict[str, str]:
        """Where in the layout's view each directory goes."""
        placed = {
            "/tmp": self.directory("tmp"),
            layout.build_dir: self.directory("app"),
            layout.cache_dir: self.directory("cache"),
            layout.env_dir: self.directory("env"),
        }
        if layout.home != layout.build_dir:
            placed[layout.home] = self.directory("home")
        return placed

    def mend(self, layout: Layout, came_back: Mapping[str, str]) -> list[str]:
        """Make what a phase has removed or replaced again, BUILD_DIR excepted. Returns what it was, in words.

        A directory that it has closed is opened.
        """
        mended = []
        names = {path: os.path.basename(source) for path, source in self.places(layout).items()}
        for path, kind in came_back.items():
            if kind == "directory":
                _open_up(self.directory(names[path]))
            if kind == "directory" or path == layout.build_dir:
                continue
            self.make(names[path], 0o1777 if path == "/tmp" else 0o755)
            mended.append(
                f"{path} was {'gone' if kind == 'missing' else f'a {kind}'}; it is an empty directory again"
            )
        return mended


@contextlib.contextmanager
def workspace(parent: Path, user: User) -> Iterator[Workspace]:
    """A new workspace below `parent`, removed at the end whatever a build has put into it.

    Raises Refused when it cannot be made there (not ours, not writable, noexec).
    """
    path = name_in(parent)
    with contextlib.ExitStack() as stack:
        with signals_held():
            try:
                lock = make_locked(parent, path)
            except OSError as error:
                raise Refused(
                    f"The workspace cannot be made in {parent}: {error.strerror}.",
                    "Give a directory of yours with --workspace-dir.",
                ) from error
            stack.callback(remove_locked, parent, path, lock)
        made = Workspace(path, user)
        if made.owner is not None:
            os.chown(path, *made.owner)
        for name in ("app", "home", "cache", "env"):
            made.make(name)
        for name in ("tmp", "var-tmp"):
            made.make(name, 0o1777)
        yield made


def _open_up(path: str) -> None:
    """A directory that a build has closed can neither be moved nor be read: let its owner in again."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{fd}", mode | stat.S_IRWXU)
    finally:
        os.close(fd)


def name_in(parent: Path) -> str:
    """A name for a workspace below `parent`, which `collect_orphans` knows as one."""
    return str(parent / f"{PREFIX}{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}")


def make_locked(parent: Path, path: str) -> int:
    """Make the directory `path` in `parent`; the lock on it, which tells that it is in use. Raises OSError."""
    while True:
        make_directory(parent)
        try:
            _check_executable(parent)
            os.mkdir(path, 0o700)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # Another build has just removed the empty parent, or `gc` what was not locked yet.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(path):
            return lock
        os.close(lock)


def remove_locked(parent: Path, path: str, lock: int) -> None:
    """Remove a directory of `make_locked`, and its parent where that is ours and empty now. Raises OSError."""
    with signals_held():
        try:
            remove_tree(path)
        finally:
            os.close(lock)
        _leave(parent)


def _leave(parent: Path) -> None:
    if parent.name in (WORKSPACES, COPIES):
        with contextlib.suppress(OSError):
            parent.rmdir()  # ENOTEMPTY while another build has one there


def _check_executable(parent: Path) -> None:
    if os.statvfs(parent).f_flag & os.ST_NOEXEC:
        raise OSError(errno.EACCES, "its filesystem is mounted noexec, so no buildpack could run")


def user_cache() -> Path:
    """Where caches and workspaces are when nothing else is said. Raises Refused for a user without a home."""
    import platformdirs

    nowhere = Refused("There is no home directory for caches and workspaces.", "Set HOME or XDG_CACHE_HOME.")
    try:
        path: Path = platformdirs.user_cache_path("nsbuild")
    except RuntimeError:
        raise nowhere from None
    if not path.is_absolute():  # older versions of platformdirs
        raise nowhere
    return path


def app_caches(given: str | None = None) -> Path:
    """Where the caches of apps are: where `--cache` says, or in the user's cache. Raises Refused as `user_cache`."""
    return Path(given or user_cache() / "apps").absolute()


def workspaces(given: str | None = None, caches: str | None = None) -> Path:
    """Where workspaces are: where `--workspace-dir` says, or beside the caches. Raises Refused as `user_cache`."""
    return Path(given).absolute() if given else app_caches(caches) / WORKSPACES


def collect_orphans(parent: Path) -> list[str]:
    """Remove the workspaces below `parent` that no running build holds; returns their paths."""
    removed = []
    for found in sorted(parent.glob(f"{PREFIX}*")):
        try:
            lock = os.open(found, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(str(found))
            removed.append(str(found))
        except OSError:
            continue  # a running build's, or somebody else's
        finally:
            os.close(lock)
    if removed:
        _leave(parent)
    return removed
