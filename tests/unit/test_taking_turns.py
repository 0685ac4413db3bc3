"""Directories that several processes make, lock and remove: a whole other operation before each step of one."""

from __future__ import annotations

import contextlib
import fcntl
import os
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from support.meanwhile import meanwhile

from nsbuild.build import cache
from nsbuild.tree.locks import locked, made_and_locked
from nsbuild.workspace import WORKSPACES, collect_orphans, make_locked, name_in, remove_locked
from nsbuild.wrap import pool

STEPS = [(os, "mkdir"), (os, "stat"), (os, "statvfs"), (os, "open"), (fcntl, "flock")]


def is_locked(path: str | Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def gone(directory: Path) -> None:
    with contextlib.suppress(OSError), locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB):
        directory.rmdir()


def collected(parent: Path) -> None:
    collect_orphans(parent)
    gone(parent)


def test_a_workspace_is_made_while_the_last_other_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in count():
        parent = tmp_path / str(number) / WORKSPACES
        other, path = name_in(parent), name_in(parent)
        lock = make_locked(parent, other)
        with monkeypatch.context() as patch:
            taken = meanwhile(patch, STEPS, number, partial(remove_locked, parent, other, lock))
            held = make_locked(parent, path)
        assert is_locked(path)
        os.close(held)
        if len(taken) <= number:
            break
    assert number > 3


def test_a_workspace_is_made_while_gc_removes_what_nobody_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in count():
        parent = tmp_path / str(number) / WORKSPACES
        path = name_in(parent)
        with monkeypatch.context() as patch:
            taken = meanwhile(patch, STEPS, number, partial(collected, parent))
            held = make_locked(parent, path)
        assert is_locked(path)
        os.close(held)
        if len(taken) <= number:
            break
    assert number > 3


def test_a_launch_takes_a_workspace_while_gc_clears_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in count():
        pools = f"{tmp_path}/{number}"
        if number % 2:
            pool.take(f"{pools}/3", frozenset).close()
        with monkeypatch.context() as patch:
            taken = meanwhile(patch, STEPS, number // 2, partial(pool.clear, pools, frozenset))
            work = pool.take(f"{pools}/3", frozenset)
        assert is_locked(work.path)
        work.furnish(None)
        work.close()
        if len(taken) <= number // 2 and number % 2 == 0:
            break
    assert number > 6


def test_two_clear_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in count():
        pools = f"{tmp_path}/{number}"
        several = [pool.take(f"{pools}/{shape}", frozenset) for shape in (3, 3, 4)]
        for one in several:
            one.close()
        with monkeypatch.context() as patch:
            steps = [*STEPS, (os, "listdir"), (os, "rmdir")]
            taken = meanwhile(patch, steps, number, partial(pool.clear, pools, frozenset))
            pool.clear(pools, frozenset)
        assert os.listdir(pools) == []
        if len(taken) <= number:
            break
    assert number > 6


def test_a_directory_is_locked_while_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in count():
        place = tmp_path / str(number)
        place.mkdir()
        with monkeypatch.context() as patch:
            taken = meanwhile(patch, STEPS, number, partial(gone, place))
            with made_and_locked(place):
                assert is_locked(place)
        if len(taken) <= number:
            break
    assert number > 2


def test_a_cache_is_read_while_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use = cache.CacheUse("app", "stack", "app")
    for number in count():
        kept = cache.Cache(tmp_path, use)
        kept.check()
        with monkeypatch.context() as patch:
            taken = meanwhile(patch, STEPS, number, lambda: cache.remove_cache(tmp_path, use.key))
            kept.check()
            assert not kept.load(f"{tmp_path}/copy", None)
        if taken[number] == "flock":
            break  # whoever removes it waits from here on
    assert number > 3
