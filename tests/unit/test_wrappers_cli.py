"""The command lines of `compile` and `exec`, which are parsed by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nsbuild.cli.wrappers import CHOICES, OPTIONS, Misused, _Call, _parse, main
from nsbuild.wrap import WrapOptions

THREE = ["pack", "build", "cache"]


def call(command: str, *words: str) -> _Call:
    return _Call(command, *_parse(command, words))


def test_compile_takes_three_or_four_directories() -> None:
    made = call("compile", *THREE)
    assert (made.buildpack, made.build_dir, made.directories) == ("pack", "build", ["cache", ""])
    made = call("compile", *THREE, "env")
    assert (made.directories, made.program, made.options) == (["cache", "env"], "pack/bin/compile", WrapOptions())
    for words in ([], THREE[:2], [*THREE, "env", "more"]):
        with pytest.raises(Misused, match="three or four"):
            call("compile", *words)


def test_exec_takes_a_command() -> None:
    made = call("exec", "--build-dir", "build", "--", "ls", "--help", "--", "-x")
    assert (made.build_dir, made.argv) == ("build", ["ls", "--help", "--", "-x"])
    assert call("exec", "--build-dir", "build", "ls", "--help").argv == ["ls", "--help"], (
        "options end at the first word"
    )
    with pytest.raises(Misused, match="--build-dir"):
        call("exec", "--", "ls")
    with pytest.raises(Misused, match="command"):
        call("exec", "--build-dir", "build", "--")
    assert call("exec", "--build-dir", "build", "--explain").explain


def test_both_ways_to_give_a_value() -> None:
    for words in (
        ["--run-path", "/workspace"],
        ["--run-path=/workspace"],
        ["--run-path=/x", "--run-path=/workspace"],
    ):
        assert call("compile", *words, *THREE).options.run_path == "/workspace"
    assert call("compile", "--export-to=a=b", *THREE).options.export_to == "a=b"
    assert call("compile", "--with-export=", "--with-export", "b", *THREE).options.exports == ("", "b")
    assert call("compile", "--", *THREE).build_dir == "build"
    assert call("compile", "--", "-pack", "build", "cache").buildpack == "-pack"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--no-such", *THREE], "no option --no-such"),
        (["-x", *THREE], "no option -x"),
        (["--build-dir", "x", *THREE], "no option --build-dir"),
        (["--run-path"], "--run-path needs a value"),
        (["--verbose=1", *THREE], "--verbose takes no value"),
        *[([f"{name}=other", *THREE], f"{name} 'other' is none of") for name in CHOICES],
    ],
)
def test_misuse(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("compile", words) == 125
    shown = capsys.readouterr()
    assert shown.out == "" and said in shown.err
    assert shown.err.startswith("nsbuild: ") and shown.err.endswith("See nsbuild compile --help.\n")
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("0.5", 0.5)])
def test_times(text: str, seconds: float) -> None:
    assert call("compile", "--timeout", text, *THREE).options.timeout == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "0", "0s", "1d", "soon", "inf", "nan", "1 s s", "1e2s", "600h"])
def test_no_times(text: str) -> None:
    with pytest.raises(Misused, match="is not a time"):
        call("compile", "--timeout", text, *THREE)


def test_binds() -> None:
    assert call("compile", "--bind", "/usr", *THREE).options.binds == (("/usr", "/usr"),)
    assert call("compile", "--bind", "/usr:/a/../b", *THREE).options.binds == (("/usr", "/b"),)
    for text in ("/usr:relative", "relative", "/usr:"):
        with pytest.raises(Misused, match="absolute"):
            call("compile", "--bind", text, *THREE)


def test_a_source_with_a_colon(tmp_path: object) -> None:
    from pathlib import Path

    odd = Path(str(tmp_path)) / "a:b"
    odd.mkdir()
    assert call("compile", "--bind", str(odd), *THREE).options.binds == ((str(odd), str(odd)),)
    assert call("compile", "--bind", f"{odd}:/c", *THREE).options.binds == ((str(odd), "/c"),)


@pytest.mark.parametrize("command", ["compile", "exec"])
def test_help_has_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("-h", "--help"):
        assert main(command, [word]) == 0
    text = capsys.readouterr().out
    for name, (_, about, commands) in OPTIONS.items():
        assert (f"  {name}" in text and about in text) == (command in commands), name
    assert "128+n" in text and all(code in text for code in ("123", "124", "125", "126", "127"))


def test_a_builder_does_not_wait_for_what_it_does_not_use() -> None:
    """Once it imported `enum` and all errors, by way of the module that prints a line."""
    heavy = {"click", "rich", "enum", "dataclasses", "inspect", "typing", "tomllib", "platformdirs", "nsbuild.errors"}
    script = f"import sys; sys.path[:] = {sys.path}; from nsbuild.cli import wrappers; print(*sys.modules)"
    words = [sys.executable, "-I", "-S", "-c", script]
    modules = set(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
    assert "nsbuild.cli.say" in modules
    assert not heavy & modules
