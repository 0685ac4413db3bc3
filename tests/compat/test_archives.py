"""Runtime archives, unpacked as buildpacks do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compat import archives
from compat.errors import CompatError

SYSTEM = os.path.realpath(sys.executable)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """What an installed Python looks like. Its interpreter is that of the tests."""
    top = tmp_path / "prefix"
    for name in (
        *("lib/python3.13/os_.py", "lib/python3.13/test/test_os.py", "lib/python3.13/idlelib/idle_test/a.py"),
        *("lib/python3.13/site-packages/pip/__init__.py", "lib/python3.13/__pycache__/os_.cpython-313.pyc"),
        *("lib/libpython3.13.a", "include/python3.13/Python.h", "bin/pip3", "bin/idle3", "bin/python3-config"),
    ):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("x = 1\n")
    (top / "lib/python3.13/os_.py").chmod(0o600)
    (top / "bin/python3").write_text(f'#!/bin/sh\nexec {SYSTEM} "$@"\n')
    (top / "bin/python3").chmod(0o755)
    return top


def test_a_python_archive_is_as_upstream_leaves_one(prefix: Path, tmp_path: Path) -> None:
    kept = tmp_path / "archives"
    archive = archives.pack_python(prefix, "3.13.0", kept)
    assert archives.packed_pythons(kept) == {"3.13.0": archive}
    assert os.listdir(kept) == [archive.name], "something was left beside it"
    into = tmp_path / "into"
    into.mkdir()
    # As lib/python.sh of heroku-buildpack-python has it.
    with archive.open("rb") as stream:
        subprocess.run(["tar", "--directory", into, "--extract", "--zstd"], stdin=stream, check=True)
    found = {str(path.relative_to(into)) for path in into.rglob("*") if not path.is_dir()}
    compiled = {name for name in found if name.endswith(".pyc")}
    assert found - compiled == {
        *("bin/python", "bin/python3", "bin/python3-config"),
        *("include/python3.13/Python.h", "lib/python3.13/os_.py"),
    }
    assert os.readlink(into / "bin/python") == "python3"
    assert (into / "lib/python3.13/os_.py").stat().st_mode & 0o777 == 0o644, "another user could not read it"
    (pyc,) = compiled
    assert (into / pyc).read_bytes()[4] == 1, "this bytecode looks at times"
    assert str(tmp_path).encode() not in (into / pyc).read_bytes()


def test_a_prefix_that_is_none_is_named(prefix: Path, tmp_path: Path) -> None:
    running = "{}.{}.{}".format(*sys.version_info)
    assert archives.installed_pythons([prefix]) == {running: prefix}
    with pytest.raises(CompatError, match=f"{tmp_path}/none is no Python"):
        archives.installed_pythons([prefix, tmp_path / "none"])


def test_an_archive_that_cannot_be_kept_is_one_sentence(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompatError, match=r"cannot make .*: Not a directory"):
        archives.pack_python(prefix, "3.13.0", tmp_path / "file/archives")
