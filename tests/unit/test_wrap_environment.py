"""The caller's environment as it must read inside the view."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbuild.wrap.environment import below, by_length, map_environment, map_path, seen, spellings

PATHS = {"/tmp/build_1": "/app", "/tmp/build_1/cache": "/tmp/cache", "/b": "/tmp/env"}
SHOWN = ["/usr", "/tmp", "/var/tmp", "/app", "/home/me/packs", "/tmp/shown"]
names = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/tmp/build_1", "/app"),
        ("/tmp/build_1/", "/app/"),
        ("/tmp/build_1/x y", "/app/x y"),
        ("/tmp/build_1/cache", "/tmp/cache"),
        ("/tmp/build_1/cache/pip", "/tmp/cache/pip"),
        ("/tmp/build_1/cached", "/app/cached"),
        ("/tmp/build_12", "/tmp/build_12"),
        ("/tmp/build_12/x", "/tmp/build_12/x"),
        ("/x/tmp/build_1", "/x/tmp/build_1"),
        ("/usr/bin:/tmp/build_1/bin", "/usr/bin:/tmp/build_1/bin"),
        ("--prefix=/tmp/build_1", "--prefix=/tmp/build_1"),
        (" /tmp/build_1", " /tmp/build_1"),
        ("/tmp", "/tmp"),
        ("", ""),
    ],
)
def test_a_value_is_mapped_by_its_leading_components(value: str, expected: str) -> None:
    assert map_path(value, by_length(PATHS)) == expected


@given(st.lists(names, min_size=1), st.lists(names))
def test_whatever_lies_in_a_directory_and_only_that(parts: list[str], rest: list[str]) -> None:
    directory = "/" + "/".join(parts)
    paths = by_length({directory: "/app"})
    inside = "/".join((directory, *rest))
    assert map_path(inside, paths) == "/".join(("/app", *rest))
    assert below(inside, directory)
    assert map_path(f"{directory}x", paths) == f"{directory}x"
    assert map_path(f"x{directory}", paths) == f"x{directory}"


def test_what_else_is_changed() -> None:
    environ = {"HOME": "/home/me", "KEPT": "a\nb", "EMPTY": "", "BASH_FUNC_f%%": "() { :; }", "odd-name": "\udcff"}
    expected = {**environ, "HOME": "/app"}
    assert map_environment(environ, PATHS, "/app", SHOWN) == expected
    assert map_environment({}, PATHS, "/app", SHOWN) == {"HOME": "/app"}


@pytest.mark.parametrize(
    ("given", "inside"),
    [
        ("/tmp", "/tmp"),
        ("/var/tmp", "/var/tmp"),
        ("/tmp/mine", None),
        ("/tmp/shown/mine", "/tmp/shown/mine"),
        ("/usr/tmp", "/usr/tmp"),
        ("/home/me", None),
        ("/home/me/packs/x", "/home/me/packs/x"),
        ("/tmp/build_1/tmp", "/app/tmp"),
        ("relative", None),
        ("", None),
    ],
)
def test_tmpdir(given: str, inside: str | None) -> None:
    assert map_environment({"TMPDIR": given}, PATHS, "/app", SHOWN).get("TMPDIR") == inside


def test_seen_is_decided_by_the_closest_directory() -> None:
    assert seen("/tmp/shown", SHOWN) and seen("/app/x", SHOWN)
    assert not seen("/tmp/x", SHOWN) and not seen("/", SHOWN)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/b/link", ["/b/link", "/b/link", "/real"]),
        ("/b/link/", ["/b/link/", "/b/link", "/real"]),
        ("build", [f"{os.getcwd()}/build", "/real"]),
        ("./build", ["./build", f"{os.getcwd()}/build", "/real"]),
    ],
)
def test_how_a_caller_may_write_a_directory(given: str, expected: list[str]) -> None:
    assert spellings(given, "/real") == expected
