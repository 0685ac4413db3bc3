"""Limits of the command line, in a cgroup that was delegated to who started it. The variant `delegated` is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import hogs

from vm.checks.conftest import Ran

BUSY = """
began, end = time.process_time(), time.monotonic() + 3
while time.monotonic() < end:
    pass
print(time.process_time() - began)
"""
Limited = Callable[[str, str, str], tuple[Ran, dict[str, object]]]


@pytest.fixture
def limited(nsbuild: Callable[..., Ran], tmp_path: Path) -> Limited:
    """`exec` of a Python program under a limit: what it said, and the record."""

    def run(option: str, value: str, code: str) -> tuple[Ran, dict[str, object]]:
        build = tmp_path / "app"
        build.mkdir()
        report = tmp_path / "report.json"
        program = ["/usr/bin/python3", "-I", "-c", f"import errno, os, time\n{code}"]
        done = nsbuild("exec", option, value, "--report", report, "--build-dir", build, "--", *program)
        return done, json.loads(report.read_text())

    return run


def test_memory_and_the_kill_is_named(limited: Limited) -> None:
    done, record = limited("--memory", "96M", hogs.MEMORY)
    assert done.returncode == 128 + 9
    assert "96 MiB for all processes together" in done.stderr and "by cgroup v2" in done.stderr
    assert "out of memory: the kernel killed it at its limit of 96 MiB" in done.stderr
    assert "out of memory" in json.dumps(record)


def test_processes(limited: Limited) -> None:
    done, _ = limited("--pids", "20", hogs.PROCESSES)
    assert (done.returncode, done.stdout.strip()) == (0, "18 EAGAIN")
    assert "20 processes and threads, by cgroup v2" in done.stderr


def test_cores(limited: Limited) -> None:
    done, _ = limited("--cpu", "0.25", BUSY)
    assert done.returncode == 0
    assert "0.25 cores, by cgroup v2" in done.stderr
    # Three seconds of a whole core would be 3.
    assert float(done.stdout) < 1.5
