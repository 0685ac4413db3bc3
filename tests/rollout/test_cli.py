"""`nsbuild rollout`: what people type and what they read."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rollout.files import document, members, share, write
from rollout.test_ledger import outcome
from rollout.test_summary import fill

from nsbuild.cli import main
from nsbuild.rollout import spool
from nsbuild.rollout.schema import as_row

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("NSBUILD_ROLLOUT_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("NSBUILD_ROLLOUT_KILL", raising=False)
    return str(tmp_path / "flags.json")


def run(*words: str) -> int:
    return main(["rollout", *words])


def test_a_rollout_from_the_command_line(flags: str, capsys: Capture) -> None:
    assert run("set", "--rollout", flags, "--namespace", "5", "--shadow", "25%", "--why", "week two") == 0
    assert (
        run("set", "--rollout", flags, "--allow", "big", "--allow", "odd=shadow", "--deny", "bad", "--why", "x") == 0
    )
    capsys.readouterr()
    # printf %s nsbuild:app-4 | sha256sum: bucket 308
    for app, path in [
        ("app-4", "namespace"),
        ("app-1", "shadow"),
        ("big", "namespace"),
        ("odd", "shadow"),
        ("bad", "direct"),
    ]:
        assert run("decide", "--rollout", flags, "--app", app) == 0
        assert capsys.readouterr() == (f"{path}\n", "")
    assert run("decide", "--rollout", flags, "--app", "bad", "--path", "shadow") == 0
    assert capsys.readouterr().out == "shadow\n"
    assert run("set", "--rollout", flags, "--kill", "--why", "it is 3 a.m.") == 0
    assert run("decide", "--rollout", flags, "--app", "big", "--path", "shadow") == 0
    assert capsys.readouterr().out == "killed: every build goes direct\ndirect\n"
    assert run("set", "--rollout", flags, "--unkill", "--why", "mended") == 0


def test_explain_shows_every_question(flags: str, capsys: Capture) -> None:
    rules = {"if": [{"==": [{"var": "team"}, "red"]}, "direct", "none"]}
    write(Path(flags), document(deny=members(["bad"], "denied"), rules=rules, percentage=share(10_000)))
    assert run("explain", "shop", "--rollout", flags, "--attr", "team=blue") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "shop: namespace"
    assert [line.split()[:2] for line in lines[1:7]] == [
        ["kill", "-"],
        ["override", "-"],
        ["deny", "-"],
        ["allow", "-"],
        ["rule", "-"],
        ["percentage", "namespace"],
    ]
    assert re.fullmatch(r"flags: sha256:[0-9a-f]{64}", lines[7]) and len(lines) == 8
    assert run("explain", "shop", "--rollout", flags, "--attr", "team=red", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["reason"], told["rule"], told["attributes"]["team"]) == (
        "direct",
        "rule",
        "direct",
        "red",
    )


def test_a_decision_on_bad_flags_is_direct_and_said_on_stderr(flags: str, capsys: Capture) -> None:
    assert run("decide", "--rollout", flags, "--app", "shop") == 0
    out, err = capsys.readouterr()
    assert out == "direct\n" and err.count("\n") == 1
    assert f"{flags} cannot be read: No such file or directory" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["set", "--namespace", "101", "--why", "x"], "'101' is no percentage. It is a number from 0 to 100."),
        (["set", "--namespace", "1"], "There is no reason. Say why with --why TEXT"),
        (["set", "--why", "x"], "There is nothing to change."),
        (["set", "--kill", "--namespace", "1", "--why", "x"], "--kill goes alone, with --why."),
        (["set", "--kill", "--unkill", "--why", "x"], "--kill goes alone, with --why."),
        (["set", "--unkill", "--why", "x"], "The flags count already."),
        (["decide", "--app", ""], "The id of the app is empty. Give --app ID."),
        (["decide", "--app", "x" * 10_240], "has 10240 characters, and may have 256."),
        (["decide", "--app", "a\nb"], "The id of the app, 'a\\nb', has characters that cannot be printed"),
        (["decide", "--app", "a", "--path", "up"], "'up' is no path. It is one of direct, shadow, namespace."),
        (["explain", "a", "--attr", "team"], "--attr 'team' is no NAME=VALUE."),
        (["recover", "--flags", "--why", "x"], "cannot be read: No such file or directory."),
    ],
)
def test_misuse_is_one_sentence_and_2(flags: str, capsys: Capture, words: list[str], sentence: str) -> None:
    assert run(*words, "--rollout", flags) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and err.startswith("nsbuild: ")


def test_the_flags_file_may_be_named_in_the_configuration(flags: str, tmp_path: Path, capsys: Capture) -> None:
    assert run("status") == 2
    assert "No flags file is named. Give --rollout FILE" in capsys.readouterr().err
    config = tmp_path / "config/nsbuild/nsbuild.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[rollout]\nflags = "../../flags.json"\n')
    write(Path(flags), document(allow=members(["shop"], "shadow")))
    assert run("explain", "shop") == 0
    assert capsys.readouterr().out.startswith("shop: shadow\n")
    assert main(["config"]) == 0
    assert re.search(rf'^rollout\.flags +"{re.escape(flags)}"', capsys.readouterr().out, re.MULTILINE)
    config.write_text('[rollout]\nflag = "x"\n')
    assert run("status") == 2
    assert "[rollout] has flags and provider, and nothing else." in capsys.readouterr().err


def test_status_for_people(flags: str, tmp_path: Path, capsys: Capture) -> None:
    assert run("set", "--rollout", flags, "--namespace", "5", "--shadow", "25", "--why", "week two") == 0
    capsys.readouterr()
    assert run("status", "--rollout", flags) == 0
    assert "no build is in it" in capsys.readouterr().out
    fill(tmp_path / "state")
    assert run("status", "--rollout", flags) == 0
    text = capsys.readouterr().out
    assert f"flags      {flags}, sha256:" in text
    assert "5.00% namespace, 25.00% shadow" in text
    assert "namespace 5 %, shadow 25 %\n           week two" in text
    assert "9 builds, 1970-01-01 00:16 to 1970-01-01 00:33 UTC" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line and not line.startswith(" ")}
    assert rows["path"][:6] == ["builds", "apps", "failing", "fallback", "rescued", "leaking"]
    assert rows["direct"][:6] == ["3", "2", "0.00%", "0", "0", "0"]
    assert rows["namespace"][:6] == ["4", "3", "50.00%", "1", "1", "1"]
    assert "1 same, 0 different, 1 failed" in text
    assert "fallbacks  1  no user namespaces" in text
    Path(flags).write_text("{typo")
    Path(f"{flags}.kill").touch()
    assert run("status", "--rollout", flags) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"KILLED: every build goes direct, because {flags}.kill exists.\n")
    assert "is no JSON" in text


def test_status_json_and_prometheus_say_the_same(flags: str, tmp_path: Path, capsys: Capture) -> None:
    assert run("set", "--rollout", flags, "--namespace", "5", "--shadow", "25", "--why", "x") == 0
    ledger = fill(tmp_path / "state")
    ledger.record(outcome(9, result="fallback", shadow=False, fallback='no "user"\nnamespaces\\'))
    capsys.readouterr()
    assert run("status", "--rollout", flags, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert run("metrics", "--rollout", flags) == 0
    samples = {
        (sample.name.removeprefix("nsbuild_rollout_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(capsys.readouterr().out)
        for sample in family.samples
    }
    assert samples[("killed",)] == 0 and samples[("flags_good",)] == 1
    assert (samples[("share", "namespace")], samples[("share", "shadow")]) == (0.05, 0.25)
    for path, row in told["ledger"]["shipped"].items():
        assert samples[("apps", path)] == row["apps"] and samples[("failing_builds", path)] == row["failing"]
        for result, count in row["results"].items():
            assert samples[("builds", path, result)] == count
        assert samples.get(("build_seconds", path, "0.5")) == row["seconds_median"]
    for result, count in told["ledger"]["candidates"].items():
        assert samples[("candidates", result)] == count
    assert samples[("fallbacks", 'no "user"\nnamespaces\\')] == 1
    assert run("metrics", "--rollout", flags, "-o", str(tmp_path / "nsbuild.prom")) == 0
    assert "nsbuild_rollout_killed 0.0" in (tmp_path / "nsbuild.prom").read_text()
    assert run("metrics", "--rollout", flags, "-o", str(tmp_path / "nowhere/x.prom")) == 2


def test_recover_takes_in_the_spool_and_removes_what_is_old(flags: str, tmp_path: Path, capsys: Capture) -> None:
    ledger = fill(tmp_path / "state")
    spool.append(tmp_path / "state", "outcome", as_row(outcome(3, started=2000.0 + 40 * 86400)))
    (tmp_path / "state/spool-1-aa.jsonl").write_text("torn")
    assert run("recover", "--older-than", "30") == 0
    out, err = capsys.readouterr()
    assert out == "1 records taken in\n11 records older than 30 days removed\n"
    assert "1 lines of the spool were no records" in err
    assert [row.decision for row in ledger.outcomes()] == ["d3"]


def test_a_spool_that_cannot_be_taken_in_is_said_and_kept(flags: str, tmp_path: Path, capsys: Capture) -> None:
    fill(tmp_path / "state")
    spool.append(tmp_path / "state", "outcome", as_row(outcome(3)))
    with sqlite3.connect(tmp_path / "state/ledger.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert run("recover") == 125
    err = capsys.readouterr().err
    assert "cannot be taken in: version 99" in err and err.count("\n") == 1
    assert len((tmp_path / "state/spool.jsonl").read_text().splitlines()) == 1


def test_recover_puts_the_last_good_flags_back(flags: str, capsys: Capture) -> None:
    assert run("set", "--rollout", flags, "--namespace", "100", "--why", "x") == 0
    assert run("decide", "--rollout", flags, "--app", "shop") == 0
    Path(flags).write_text("{typo")
    assert run("recover", "--rollout", flags, "--flags", "--why", "a typo") == 0
    capsys.readouterr()
    assert run("decide", "--rollout", flags, "--app", "shop") == 0
    assert capsys.readouterr() == ("namespace\n", "")


def test_a_state_directory_that_cannot_be_made_is_said(
    flags: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    write(Path(flags), document(percentage=share(10_000)))
    monkeypatch.setenv("NSBUILD_ROLLOUT_STATE", f"{flags}/x")
    assert run("status", "--rollout", flags) == 125
    assert "state directory" in capsys.readouterr().err
    assert run("decide", "--rollout", flags, "--app", "shop") == 0, "a decision does without"
    assert capsys.readouterr() == ("namespace\n", "")


def test_without_the_extra_a_decision_is_direct_and_says_what_to_install(flags: str, tmp_path: Path) -> None:
    write(Path(flags), document(percentage=share(10_000)))
    code = "import sys; sys.modules['openfeature'] = None\nfrom nsbuild.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-I", "-c", code, "rollout", "decide", "--rollout", flags, "--app", "shop"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=True)
    assert done.stdout == "direct\n"
    assert "install nsbuild[rollout]" in done.stderr and done.stderr.count("\n") == 1
