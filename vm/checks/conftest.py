"""Tests that only a VM can run: vm/matrix gives them to pytest in there. `plain` has the mounts that they name."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
NSBUILD = CHECKOUT / ".venv/bin/nsbuild"
INLINE = CHECKOUT / "tests/buildpacks/inline"
Ran = subprocess.CompletedProcess[str]


@pytest.fixture
def nsbuild() -> Callable[..., Ran]:
    """The command, as a user starts it."""

    def run(*words: str | Path) -> Ran:
        done = subprocess.run([NSBUILD, *words], capture_output=True, text=True, check=False, timeout=300)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def app() -> Callable[[Path, str], Path]:
    """Makes an app that is its own buildpack, with this compile script."""

    def make(directory: Path, script: str) -> Path:
        (directory / "bin").mkdir(parents=True)
        for name, text in (("detect", "echo Check"), ("compile", script)):
            (directory / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (directory / "bin" / name).chmod(0o755)
        (directory / "Procfile").write_text("web: true\n")
        return directory

    return make


@pytest.fixture
def emptied() -> Iterator[Callable[[str], Path]]:
    """A directory on one of the VM's own mounts."""
    used: list[Path] = []

    def take(mount: str) -> Path:
        path = Path(mount) / "check"
        assert Path(mount).is_mount(), f"{mount} is made by the variant's set-up"
        path.mkdir()
        used.append(path)
        return path

    yield take
    for path in used:
        shutil.rmtree(path)
