"""What becomes of a VM that hangs or dies, and of one whose starter does: with a script in QEMU's place."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import eventually

from vm import initramfs, kernels, machine, rootfs
from vm.job import Conditions
from vm.kernels import Kernel
from vm.machine import ATTEMPTS, STARTED, Ended

ROOT = Path(__file__).parent.parent.parent
Qemu = Callable[[str], None]


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Qemu:
    """Puts a shell script in QEMU's place, in which `say WORDS` is what a VM writes on its console."""
    monkeypatch.setattr(rootfs, "get", lambda: (tmp_path / "tar", tmp_path / "image"))
    monkeypatch.setattr(kernels, "get", lambda name: Kernel(name, tmp_path / "vmlinuz", tmp_path))
    monkeypatch.setattr(initramfs, "get", lambda *_: tmp_path / "initramfs")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(script: str) -> None:
        # The console is -add-fd fd=N,set=3, as machine.py has it.
        console = """for word; do [[ $word != fd=*,set=3 ]] || { fd=${word#fd=}; fd=${fd%,*}; }; done"""
        say = """say() { echo "$1" >&$fd; }"""
        path = tmp_path / machine.QEMU
        path.write_text(f"#!/bin/bash\necho began >>{tmp_path}/began\n{console}\n{say}\n{script}\n")
        path.chmod(0o755)

    return put


def boot(timeout: float) -> Ended:
    return machine.boot("6.12", ["true"], Conditions(), timeout=timeout)


def test_one_that_hangs_is_ended_in_time(qemu: Qemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    qemu(f"say 'vm: started'; touch {started}; exec sleep 1000")
    start = subprocess.Popen

    def start_and_see(words: Any, **options: Any) -> subprocess.Popen[bytes]:
        """The time that it has runs from here on: what it says in it is not for the host to decide."""
        process = start(words, **options)
        assert machine.QEMU not in words or eventually(started.exists)
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_see)
    ended = boot(2)
    assert (ended.status, ended.console) == (None, f"{STARTED}\n")
    assert re.match(r"The VM was ended after -?\d seconds, the time that it had\.\n", ended.why())
    assert (tmp_path / "began").read_text() == "began\n"


def test_one_that_dies_in_the_middle_says_its_last_words(qemu: Qemu, tmp_path: Path) -> None:
    qemu("say 'vm: started'; say 'Kernel panic'; kill -KILL $$")
    ended = boot(60)
    assert ended.status is None
    assert re.match(r"QEMU ended with -9 after \d+ seconds\.\n", ended.why())
    assert ended.why().endswith("Kernel panic")
    assert (tmp_path / "began").read_text() == "began\n"


def test_a_kernel_that_does_not_come_up_is_started_again(
    qemu: Qemu, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    qemu("say 'Kernel panic'")
    ended = boot(60)
    assert ended.status is None
    assert (tmp_path / "began").read_text() == "began\n" * ATTEMPTS
    assert capfd.readouterr().err.count("died before the command was started") == ATTEMPTS


def test_what_it_took_is_told(qemu: Qemu) -> None:
    qemu("say 'vm: started'; exec python3 -c 'bytearray(200 << 20)'")
    # Until it executes QEMU, the process that will be it has the memory of this one.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    assert 200 << 20 < boot(60).memory < max(400 << 20, 2 * own)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_who_started_it_and_leaves_no_file(
    qemu: Qemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    qemu(f"echo $$ >{tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 1000")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from vm import initramfs, kernels, machine, rootfs
from vm.job import Conditions
here = Path({str(tmp_path)!r})
rootfs.get = lambda: (here, here)
kernels.get = lambda name: kernels.Kernel(name, here, here)
initramfs.get = lambda *_: here
machine.boot("6.12", ["true"], Conditions())
"""
    process = subprocess.Popen([sys.executable, "-I", "-c", code], stderr=subprocess.DEVNULL)
    assert eventually((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text())
    process.send_signal(number)
    assert process.wait(50) != 0
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert list(temporary.iterdir()) == []
