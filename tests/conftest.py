"""Fixtures: a workspace for each way of launching, and the promise that a test leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import prctl
import pytest
from hypothesis import HealthCheck, settings
from support.processes import ROOT, children, descriptors, eventually, read
from support.rooms import WAYS, Room, reason_against

SANDBOX = Path(__file__).parent / "sandbox"


def pytest_configure() -> None:
    """A shell without job control, and nohup, start what is in the background with these ignored, and so would we."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # How long an example takes says nothing of us, but of what else the host does.
    settings.register_profile("any-host", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any-host")


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No process, descriptor or mount of a sandbox test outlives it: orphans come to us, and are counted."""
    if SANDBOX not in request.path.parents:
        yield
        return
    opened = descriptors()
    known = set(children())
    was_reaper = prctl.get_child_subreaper()
    prctl.set_child_subreaper(1)
    yield
    gone = eventually(lambda: not _orphans(known))
    prctl.set_child_subreaper(was_reaper)
    left = {pid: read(f"/proc/{pid}/cmdline") for pid in _orphans(known)}
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert gone, f"processes left behind: {left}"
    assert descriptors() == opened, "descriptors left open"


def _orphans(known: set[int]) -> list[int]:
    """Children we did not have before, after reaping those that have ended."""
    left = []
    for pid in set(children()) - known:
        try:
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                left.append(pid)
        except ChildProcessError:
            continue
    return left


@pytest.fixture
def ground() -> Iterator[str]:
    """A directory on disk where things can be executed and everybody can pass."""
    path = tempfile.mkdtemp(prefix="sandbox-", dir="/var/tmp")
    os.chmod(path, 0o755)
    yield path
    mounts = read("/proc/self/mountinfo")
    if not ROOT:
        subprocess.run(["chmod", "-R", "u+rwx", path], stderr=subprocess.DEVNULL, check=False)
    shutil.rmtree(path)
    assert path not in mounts, "a mount was left on the host"


def _room(way: str, ground: str) -> Iterator[Room]:
    if reason := reason_against(way, ground):
        pytest.skip(reason)
    room = Room(ground, way)
    yield room
    # A Launcher whose caller was killed is still giving back.
    assert room.keeps_root or eventually(lambda: not os.path.lexists(room.host("root"))), "a skeleton was left"


@pytest.fixture(params=WAYS)
def room(request: pytest.FixtureRequest, ground: str) -> Iterator[Room]:
    """A workspace, once for each way of launching."""
    yield from _room(request.param, ground)


@pytest.fixture(params=["root", "user"])
def either(request: pytest.FixtureRequest, ground: str) -> Iterator[Room]:
    """A workspace, for a direct launch by root and by an ordinary user: where being root makes a difference."""
    yield from _room(request.param, ground)


@pytest.fixture
def simple(ground: str) -> Iterator[Room]:
    """A workspace for a direct launch by an ordinary user: where the way makes no difference."""
    yield from _room("user", ground)


@pytest.fixture(params=["user", "user-isolated"])
def launched(request: pytest.FixtureRequest, ground: str) -> Iterator[Room]:
    """A workspace for a launch by an ordinary user, by this process and by a Launcher's."""
    yield from _room(request.param, ground)
