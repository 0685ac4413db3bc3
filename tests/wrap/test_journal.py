"""The journal itself: nobody takes one for abandoned that is being written."""

from __future__ import annotations

import fcntl
import os
import time

import pytest

from nsbuild.wrap import journal, recovery


def test_a_journal_that_is_being_written_is_nobodys_to_recover(ground: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its creation and its lock, another invocation looks for what killed ones have left."""
    lock = fcntl.flock
    looked: list[str] = []

    def late(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            looked.extend(recovery.recover_all(ground))
            looked.append("looked")
        lock(fd, operation)

    monkeypatch.setattr(journal.fcntl, "flock", late)  # type: ignore[attr-defined]
    kept = journal.Journal(ground, f"{ground}/workspace", {"/app": f"{ground}/app"})
    assert looked == ["looked"]
    assert journal.workspaces(ground) == {f"{ground}/workspace"}
    kept.end()
    assert os.listdir(ground) == []


def test_what_a_killed_writer_has_left_goes(ground: str) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    name = f"{ground}/.{pid}-00000000"
    with open(name, "w"):  # noqa: PTH123
        assert recovery.recover_all(ground) == []
    assert os.listdir(ground) == []


def test_a_build_of_ours_is_not_taken_for_another_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of the comparison, as a busy host or a laptop's lid may have it."""

    class Paused:
        @staticmethod
        def time() -> float:
            time.sleep(1.5)
            return time.time()

    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    try:
        written = time.time()
        monkeypatch.setattr(recovery, "time", Paused)
        assert recovery._began_before(pid, written)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_a_number_that_is_another_process_by_now_is_not_waited_for(ground: str) -> None:
    """This process has `nsbuild` in its command line, and was there before; a child made later is not the build."""
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    try:
        assert recovery._began_before(pid, time.time())
        assert not recovery._began_before(pid, time.time() - 100)
        recovery._wait_for(pid, time.time() - 100)  # else it raises, for that child stays
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
