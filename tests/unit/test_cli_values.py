"""How words of the command line become values; the record; the exit codes."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import click
import pytest

from nsbuild.cli.group import main
from nsbuild.cli.options import BindSpec, Duration, KeyValue, config_vars
from nsbuild.errors import ExitCode, NsbuildError, Refused, UsageError
from nsbuild.record import BuildpackRecord, Phase, Record, Slug


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("90s", 90.0), ("15m", 900.0), ("2h", 7200.0), ("0.5s", 0.5), ("1.5h", 5400.0)],
)
def test_a_duration(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1", "1d", "1 m", "m1", "1e3", "nan", "inf", "0", "0s", "600h", "9" * 400]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.UsageError) as refusal:
        Duration().convert(text, None, None)
    assert repr(text)[:20] in refusal.value.format_message()


@pytest.mark.parametrize(
    ("text", "pair"),
    [("A=b", ("A", "b")), ("A=", ("A", "")), ("A=b=c\n", ("A", "b=c\n")), ("A=\udcff", ("A", "\udcff"))],
)
def test_name_and_value(text: str, pair: tuple[str, str]) -> None:
    assert KeyValue().convert(text, None, None) == pair


@pytest.mark.parametrize("text", ["hunter2", "=hunter2", ""])
def test_what_is_none_is_not_repeated(text: str) -> None:
    with pytest.raises(click.UsageError) as refusal:
        KeyValue().convert(text, None, None)
    assert "hunter2" not in refusal.value.format_message()


def test_a_bind(tmp_path: Path) -> None:
    colons = tmp_path / "a:b"
    colons.touch()
    assert BindSpec().convert(str(tmp_path), None, None) == (str(tmp_path), str(tmp_path))
    assert BindSpec().convert(f"{tmp_path}:/x/../y", None, None) == (str(tmp_path), "/y")
    assert BindSpec().convert(str(colons), None, None) == (str(colons), str(colons))
    assert BindSpec().convert(f"{colons}:/y", None, None) == (str(colons), "/y")
    with pytest.raises(click.UsageError):
        BindSpec().convert(f"{tmp_path}:relative", None, None)


def test_config_vars_come_from_three_places_and_the_later_one_wins(tmp_path: Path) -> None:
    directory = tmp_path / "vars"
    (directory / "not-a-file").mkdir(parents=True)
    (directory / "A").write_bytes(b"dir\n")
    (directory / "B").write_bytes(b"dir\xff")
    file = tmp_path / "file"
    file.write_bytes(b'# c\r\n\r\nB=file\r\nexport C="quoted # text"\nD=\'one\nE=a\xe2\x80\xa8b\nF=\n')
    found = config_vars((("C", "option"),), str(directory), str(file))
    assert found == {"A": "dir\n", "B": "file", "C": "option", "D": "'one", "E": "a\u2028b", "F": ""}


def test_a_malformed_line_is_named_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("A=1\n\nhunter2\n")
    with pytest.raises(click.UsageError) as refusal:
        config_vars((), None, str(file))
    assert "line 3" in refusal.value.format_message() and "hunter2" not in refusal.value.format_message()


def test_the_exit_codes_are_those_that_scripts_depend_on() -> None:
    assert {name: int(code) for name, code in ExitCode.__members__.items()} == {
        "OK": 0,
        "TESTS_FAILED": 1,
        "DIFFERENT": 1,
        "NEEDS_CARE": 1,
        "FAILING": 1,
        "INCONCLUSIVE": 3,
        "USAGE": 2,
        "UNFIT": 3,
        "NO_BUILDPACK": 10,
        "COMPILE_FAILED": 11,
        "RELEASE_FAILED": 12,
        "LIMIT": 13,
        "AUDIT": 14,
        "AFTER_COMMAND": 123,
        "TIMEOUT": 124,
        "REFUSED": 125,
        "CANNOT_EXECUTE": 126,
        "NOT_FOUND": 127,
        "INTERRUPTED": 130,
    }


def test_an_error_is_a_sentence_and_a_fix() -> None:
    assert str(UsageError("This is wrong.", "Do that.")) == "This is wrong. Do that."
    assert str(Refused("This is wrong.")) == "This is wrong."
    assert NsbuildError("x", code=ExitCode.LIMIT).code == 13


def test_a_record_is_json_of_schema_1() -> None:
    record = Record("id", "/source\udcff", "app", "/app", "heroku-24")
    record.buildpacks.append(BuildpackRecord("ref", "sha256:x", report={"a": 1}))
    record.phases.append(Phase("compile", "ref", 1.5, exit_code=0, timings={"start": 0.1}))
    record.slug = Slug("/out", "directory", 12)
    found = json.loads(record.to_json())
    assert found["schema"] == 1
    assert found["source"] == "/source\udcff"
    assert set(found) == {field.name for field in fields(Record)}
    assert found["phases"][0]["timings"] == {"start": 0.1}
    slug = {"path": "/out", "format": "directory", "bytes": 12, "digest": "", "sizes": {}, "left_out": []}
    assert found["slug"] == slug
    assert (found["path"], found["nsbuild"]) == ("namespace", "0.1.0")
    record.to_json().encode("ascii")


@pytest.mark.parametrize("words", [(), ("cache",), ("buildpack",)])
def test_no_line_of_a_list_of_commands_is_cut(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.split("Commands:\n")[1].splitlines()
    assert len(lines) > 1 and not [line for line in lines if line.endswith("...")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["doctor", "extra"], "Got unexpected extra argument (extra)."),
        (["build"], "Missing argument 'SOURCE'."),
        (
            ["build", "x", "--secret", "word"],
            "Invalid value for '--secret': it is not ID=FILE.",
        ),
        (
            ["build", "x", "--env", "word"],
            "Invalid value for '--env': it is not NAME=VALUE.",
        ),
    ],
)
def test_a_mistake_in_the_command_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == ExitCode.USAGE
    assert capsys.readouterr().err == f"nsbuild: {said} See nsbuild {words[0]} --help.\n"
