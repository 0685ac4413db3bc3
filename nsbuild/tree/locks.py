"""Directories that processes take turns on, by flock. Who removes one holds its lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from nsbuild.tree.make import make_directory


def lock_directory(directory: Path, how: int) -> int:
    """A descriptor of a directory with a flock. Raises OSError, BlockingIOError with LOCK_NB."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_there(directory: Path, fd: int) -> bool:
    """Whether it was not removed before we had the lock."""
    try:
        return os.path.samestat(os.stat(directory), os.fstat(fd))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(directory: Path, how: int) -> Iterator[bool]:
    """Holds a flock on a directory; False when it was removed meanwhile. Raises as `lock_directory`."""
    fd = lock_directory(directory, how)
    try:
        yield is_there(directory, fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def made_and_locked(directory: Path) -> Iterator[None]:
    """A directory that is there, made where need be, and locked."""
    while True:
        make_directory(directory, 0o700)
        try:
            fd = lock_directory(directory, fcntl.LOCK_EX)
        except FileNotFoundError:
            continue
        if is_there(directory, fd):
            break
        os.close(fd)
    try:
        yield
    finally:
        os.close(fd)
