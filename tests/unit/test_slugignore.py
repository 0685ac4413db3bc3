""".slugignore, by example and against bash's own globbing."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from nsbuild.build.slugignore import parse_slugignore


def ignores(text: str, path: str, directory: bool = False) -> bool:
    return parse_slugignore(text).ignores(path, directory)


@pytest.mark.parametrize(
    ("line", "path", "expected"),
    [
        ("spec", "spec", True),
        ("spec", "a/b/spec", True),
        ("spec", "specs", False),
        ("/spec", "spec", True),
        ("/spec", "a/spec", False),
        ("*.psd", "a/x.psd", True),
        ("*.psd", ".psd", False),  # no wildcard matches a leading dot
        (".*", ".env", True),
        ("/*.md", "a/x.md", False),
        ("/*.md", "x.md", True),
        ("doc/*.md", "doc/x.md", True),
        ("doc/*.md", "a/doc/x.md", True),
        ("doc/*.md", "doc/a/x.md", False),  # * stays within one name
        ("/doc/*.md", "a/doc/x.md", False),
        ("doc/**/x", "doc/x", True),
        ("doc/**/x", "doc/a/b/x", True),
        ("/**/x", "a/b/x", True),
        ("a/**", "a/b", True),
        ("**", "a", True),
        ("file?", "file1", True),
        ("file?", "file", False),
        ("[ab]c", "bc", True),
        ("[!ab]c", "bc", False),
        ("[^ab]c", "xc", True),
        ("[^ab]c", "ac", False),
        ("[a", "[a", True),
        ("*.{md,txt}", "x.txt", True),
        ("*.{md,txt}", "x.rst", False),
        ("{a,b{c,d}}/e", "bd/e", True),
        ("{a}", "{a}", True),
        (r"\*", "*", True),
        (r"\*", "x", False),
        (r"\#x", "#x", True),
        (r"\!x", "!x", True),
        ("#x", "#x", False),
        ("!x", "x", False),
        ("!x", "!x", False),
        ("  x\t\r", "x", True),
        ("with space", "with space", True),
        ("", "x", False),
        ("/", "x", False),
        (".", "x", False),
        ("./x", "a/x", True),
        ("..", "x", False),
        ("a//b", "a/b", True),
        ("\udcff*", "\udcffx", True),
        ("new*", "new\nline", True),
    ],
)
def test_a_line(line: str, path: str, expected: bool) -> None:
    assert ignores(line, path) is expected
    assert ignores(f"# a comment\r\n\r\nother\r\n{line}\r\nmore", path) is expected


def test_a_slash_at_the_end_is_for_directories() -> None:
    assert ignores("tmp/", "a/tmp", directory=True) and not ignores("tmp/", "a/tmp")
    assert ignores("tmp", "tmp", directory=True)


def test_no_negation_is_said_with_its_line() -> None:
    (warning,) = parse_slugignore("*.md\n!README.md\n").warnings
    assert "line 2" in warning
    assert ignores("*.md\n!README.md\n", "README.md")


def test_lines_made_to_take_for_ever_do_not() -> None:
    """Each would take longer than the universe in a matcher that backtracks, or expands all there is."""
    assert not ignores("*a" * 50 + "b", "a" * 250)
    assert not ignores("**/a/" * 100 + "b", "/".join("a" * 250))
    assert not ignores("{a,b}" * 60, "c")


TREE = (
    "a",
    "b",
    ".a",
    "ab/",
    "ab/a",
    "ab/.b",
    "ab/b/",
    "ab/b/a",
    "ab/b/ba",
    "b,/",
    "b,/a",
    "{a,b}",
    "-a",
    "[a]",
    "!b",
)
"""Directories end in `/`."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name in TREE:
        if name.endswith("/"):
            (root / name).mkdir()
        else:
            (root / name).touch()
    return root


BASH = r"""
shopt -s nullglob; LC_ALL=C
glob=$1; shift
for directory; do
    cd -- "$directory"
    eval "for found in $glob; do [[ ! -e \$found ]] || printf '%s\\0' \"\$directory/\$found\"; done"
    cd -- "$OLDPWD"
done
"""
DIRECTORIES = ("ab", "ab/b", "b,")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(glob=st.text("ab.*?[]^-!{},/", min_size=1, max_size=9), anchored=st.booleans())
@example(glob="[?-.!]", anchored=False)
def test_it_is_what_bash_finds(tree: Path, glob: str, anchored: bool) -> None:
    glob = glob.lstrip("/")
    assume(
        not {"..", "**/", "{/", ",/", "{,", ",,", ",}"}
        & {glob[place : place + size] for place in range(9) for size in (2, 3)}
    )
    assume(glob and not glob.startswith("!") and "." not in re.split("[/{,}]", glob))
    assume(not re.search(r"\[.*\[\.", glob))  # a collating symbol of POSIX, which Ruby does not know
    below = () if anchored else DIRECTORIES
    found = subprocess.run(["bash", "-c", BASH, "bash", glob, ".", *below], cwd=tree, capture_output=True, check=True)
    assert not found.stderr, found.stderr
    expected = {os.path.normpath(os.fsdecode(path)) for path in found.stdout.split(b"\0") if path} - {"."}
    ignore = parse_slugignore(f"/{glob}" if anchored else glob)
    assert {name.rstrip("/") for name in TREE if ignore.ignores(name.rstrip("/"), name.endswith("/"))} == expected
