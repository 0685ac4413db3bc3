"""nsbuild audit, as a person and a script see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def audit(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nsbuild", "audit", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


@pytest.fixture
def slug(tmp_path: Path) -> Path:
    (tmp_path / "pkg.pth").write_text("/tmp/build_0a1b2c/src\n")
    return tmp_path


def test_the_default_knows_where_platforms_build(slug: Path) -> None:
    done = audit(slug)
    assert done.returncode == 14 and done.stderr == ""
    assert "pkg.pth: /tmp/build_0a1b2c (at byte 0)" in done.stdout


def test_machines(slug: Path) -> None:
    assert json.loads(audit(slug, "--json").stdout)["counts"]["breaks"] == 1
    assert json.loads(audit(slug, "--sarif").stdout)["version"] == "2.1.0"


def test_stale_is_no_failure(slug: Path) -> None:
    (slug / "pkg.pth").rename(slug / "notes.txt")
    assert audit(slug).returncode == 0


def test_a_directory_that_is_closed_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    for mode in (0o400, 0o100):
        tmp_path.chmod(mode)
        done = audit(str(tmp_path))
        tmp_path.chmod(0o700)
        assert (done.returncode, done.stdout) == (2, "")
        told = f"nsbuild: {tmp_path} cannot be read: Permission denied. Give a slug or a directory.\n"
        assert done.stderr == told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere cannot be read: No such file or directory"),
        ([".", "--path", "app"], "--path: 'app' is not an absolute path"),
        ([".", "--pattern", "("], "--pattern: "),
        ([".", "--pattern", ""], "--pattern: '' is found in every text."),
        ([".", "--pattern", "x*"], "--pattern: 'x*' is found in every text."),
        ([".", "--waivers", "nowhere"], "waivers nowhere cannot be read"),
    ],
)
def test_misuse_is_one_sentence(words: list[str], said: str) -> None:
    done = audit(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and done.stderr.count("\n") == 1
