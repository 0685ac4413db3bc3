"""Outputs that are full, or that nobody reads: no traceback, and the status is still the one that is documented."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NSBUILD = [sys.executable, "-I", "-m", "nsbuild"]


@pytest.mark.parametrize("words", [["--help"], ["exec", "--help"], ["doctor"]], ids=" ".join)
def test_a_full_stdout_is_our_failure(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run([*NSBUILD, *words], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 125
    assert done.stderr == b"nsbuild: The standard output: No space left on device.\n"


@pytest.mark.parametrize(
    "words", [["exec", "--build-dir", "nosuch", "--", "true"], ["build", "nosuch"]], ids=" ".join
)
def test_a_full_stderr_changes_no_status(words: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run([*NSBUILD, *words], stderr=full, cwd=tmp_path, check=False)
    assert done.returncode == (125 if words[0] == "exec" else 2)


def test_a_build_whose_stderr_nobody_reads_is_built(tmp_path: Path) -> None:
    app, pack = tmp_path / "app", tmp_path / "pack"
    (pack / "bin").mkdir(parents=True)
    app.mkdir()
    (app / "file").touch()
    compile_ = pack / "bin" / "compile"
    compile_.write_text("#!/bin/sh\n")
    compile_.chmod(0o755)
    words = ["build", str(app), "-b", str(pack), "-o", str(tmp_path / "slug"), "--cache", str(tmp_path / "cache")]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*NSBUILD, *words], stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == 0
    assert (tmp_path / "slug" / "file").exists()


def test_nothing_after_the_dashes_is_misuse(tmp_path: Path) -> None:
    done = subprocess.run([*NSBUILD, "run", str(tmp_path), "--"], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "no command after --" in done.stderr


def test_gc_works_without_a_home(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "XDG_STATE_HOME": str(tmp_path)}
    script = "import os, sys; os.environ.pop('HOME', None); sys.argv = ['nsbuild', 'gc']\n"
    script += "import nsbuild.workspace as w\nfrom nsbuild.errors import Refused\n"
    script += "def nowhere(): raise Refused('no home')\nw.user_cache = nowhere\n"
    script += "from nsbuild.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
