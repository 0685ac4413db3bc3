"""What vm/ keeps is made once, whoever else makes it, and a maker that was killed leaves nothing for long."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT, eventually

from vm import cache

CHECKOUT = Path(__file__).parent.parent.parent
MAKER = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(CHECKOUT)!r})
from vm import cache

def make(work):
    (work / "it").write_text(str(os.getpid()))
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(float(sys.argv[2]))
    return work / "it"

print(cache.made("thing", "a thing", make).read_text())
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def start(began: Path, seconds: float) -> subprocess.Popen[str]:
    began.mkdir(exist_ok=True)
    words = [sys.executable, "-I", "-c", MAKER, str(began), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_what_several_make_at_once_is_made_once(tmp_path: Path) -> None:
    makers = [start(tmp_path / "began", 0.5) for _ in range(3)]
    said = {maker.communicate(timeout=60)[0] for maker in makers}
    (began,) = (tmp_path / "began").iterdir()
    assert said == {f"{began.name}\n"}
    assert list((cache.directory() / "scratch").iterdir()) == []


def test_what_a_killed_maker_leaves_goes_with_the_next_and_what_is_being_made_stays(tmp_path: Path) -> None:
    killed = start(tmp_path / "killed", 60)
    assert eventually(lambda: any((tmp_path / "killed").iterdir()), 30)
    with cache.scratch() as beside:
        assert len(list(beside.parent.iterdir())) == 2
        killed.kill()
        killed.communicate(timeout=60)
    assert len(list((cache.directory() / "scratch").iterdir())) == 1
    assert not (cache.directory() / "thing").exists()
    assert cache.made("thing", "a thing", ours).read_text() == "ours"
    assert list((cache.directory() / "scratch").iterdir()) == []


def test_what_a_killed_maker_has_started_ends_with_it(tmp_path: Path) -> None:
    """And as root what that has started and mounted in turn."""
    mounted, began = tmp_path / "mounted", tmp_path / "began"
    mounted.mkdir()
    more = f"mount -t tmpfs tmpfs {mounted}; (: {mounted}; sleep 1000) & " if ROOT else ""
    script = f"{more} echo >{began}; : {mounted}; sleep 1000"
    code = f"import subprocess, sys; sys.path.insert(0, {str(CHECKOUT)!r}); from vm.apt import bound\n"
    code += f"subprocess.run(bound(['sh', '-c', {script!r}]))"
    maker = subprocess.Popen([sys.executable, "-I", "-c", code])
    assert eventually(began.exists, 30)
    assert running(str(mounted)) and str(mounted) not in Path("/proc/self/mountinfo").read_text()
    maker.kill()
    maker.wait(30)
    assert eventually(lambda: not running(str(mounted))), running(str(mounted))


def running(word: str) -> list[bytes]:
    """The command lines of processes with this word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return [line for line in found if word.encode() in line]


def ours(work: Path) -> Path:
    (work / "it").write_text("ours")
    return work / "it"
