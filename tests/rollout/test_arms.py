"""`compile --rollout` does what was decided: direct, namespace with a way back, and what is written down of it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rollout import files
from rollout.fleets import Fleet
from support.processes import ROOT
from support.refusals import REFUSALS, no_user_namespaces
from support.rooms import Output
from support.sites import PERSON, TESTS, as_root, ordinary

pytest_plugins = ["support.builder_fixtures", "rollout.fleet_fixtures"]

TELL = 'echo "$1" > "$1/where"; echo "$1" >> "$2/made-at"; echo out; echo err >&2'
"""A compile that leaves where it ran."""


@pytest.mark.parametrize("path", ["direct", "namespace"])
def test_what_was_decided_is_done_and_written_down(everywhere: Fleet, path: str) -> None:
    fleet = everywhere
    fleet.set(10000 if path == "namespace" else 0)
    fleet.builder.pack(TELL)
    result = fleet.compile().ok()
    assert (result.out, result.err) == (b"out\n", "err\n")
    seen = "/app" if path == "namespace" else str(fleet.builder.build)
    assert (fleet.builder.build / "where").read_text() == f"{seen}\n"
    row = fleet.only()
    assert (row.path, row.arm, row.result, row.exit_code, row.shadow) == (path, path, "succeeded", 0, False)
    assert (row.app, row.buildpacks) == ("app-1", ("pack",))
    told = result.record["rollout"]
    reason = "percentage" if path == "namespace" else "off"
    assert (told["path"], told["reason"], told["result"]) == (path, reason, "succeeded")
    assert told["decision"] == row.decision and told["flags"] == row.flags and row.flags.startswith("sha256:")
    assert (result.record["path"], result.record["path_reason"]) == (path, f"the rollout's decision ({reason})")
    fleet.builder.intact()


def test_attributes_reach_the_rules_and_an_override_beats_them(fleet: Fleet) -> None:
    rule = {"if": [{"==": [{"var": "team"}, "red"]}, "namespace", "direct"]}
    files.write(fleet.flags, files.document(rules=rule))
    fleet.builder.pack(TELL)
    assert fleet.compile("--attr", "team=red").ok().record["path"] == "namespace"
    assert fleet.compile("--attr", "team=blue").ok().record["path"] == "direct"
    assert fleet.compile("--attr", "team=blue", "--path", "namespace").ok().record["path"] == "namespace"
    assert [row.reason for row in fleet.rows()] == ["rule", "rule", "override"]


@pytest.mark.parametrize("code", [1, 125])
def test_a_failure_is_the_buildpacks_own(fleet: Fleet, code: int) -> None:
    fleet.builder.pack(f'echo once >> "$1/log"; exit {code}')
    for share in (10000, 0):
        fleet.set(share)
        assert fleet.compile().code == code
    assert [(row.arm, row.result, row.exit_code) for row in fleet.rows()] == [
        ("namespace", "failed", code),
        ("direct", "failed", code),
    ]
    assert (fleet.builder.build / "log").read_text() == "once\nonce\n"


def imported_before(fleet: Fleet, *options: str | Path) -> tuple[set[str], set[str]]:
    """Modules imported until the buildpack has spoken, and all."""
    fleet.builder.pack("echo THE BUILDPACK SPEAKS >&2")
    words = [sys.executable, "-I", "-X", "importtime", "-m", "nsbuild", *fleet.builder.words(*options)]
    person: dict[str, Any] = {"user": PERSON, "group": PERSON, "extra_groups": []} if ROOT else {}
    env = fleet.builder.site.environment(fleet.builder.environment())
    done = subprocess.run(words, env=env, capture_output=True, check=True, cwd=fleet.builder.path, **person)
    before, spoken, after = done.stderr.decode().partition("THE BUILDPACK SPEAKS")
    assert spoken
    names = [{line.rpartition("|")[2].strip() for line in text.splitlines()} for text in (before, before + after)]
    return names[0], names[1]


@ordinary
def test_what_a_builder_waits_for(fleet: Fleet) -> None:
    _, names = imported_before(fleet)
    assert "nsbuild.wrap.wrap" in names and not any(name.startswith("nsbuild.rollout") for name in names)
    fleet.flags.write_text("{broken")
    fleet.flags.with_name("flags.json.kill").touch()
    before, names = imported_before(fleet, *fleet.words())
    assert "nsbuild.rollout.kill" in before
    assert not {"dataclasses", "sqlite3", "json", "nsbuild.rollout.decide", "openfeature"} & names


WATCHED = """
import sys
def heard(event, words):
    if event in ("os.fork", "os.posix_spawn", "subprocess.Popen", "_thread.start_new_thread", "sqlite3.connect"):
        sys.stderr.write(f"HEARD {event}\\n")
sys.addaudithook(heard)
from nsbuild.cli.wrappers import main
sys.exit(main("compile", sys.argv[1:]))
"""


@ordinary
@pytest.mark.parametrize("share", [0, 10000])
def test_it_is_decided_and_written_down_before_any_fork_and_without_a_thread(fleet: Fleet, share: int) -> None:
    fleet.set(share)
    fleet.builder.pack(TELL)
    words = [sys.executable, "-c", WATCHED, *fleet.builder.words(*fleet.words())[1:]]
    env = {**fleet.builder.site.environment(fleet.builder.environment()), "PYTHONPATH": str(TESTS.parent)}
    person: dict[str, Any] = {"user": PERSON, "group": PERSON, "extra_groups": []} if ROOT else {}
    done = subprocess.run(words, env=env, capture_output=True, check=True, cwd=fleet.builder.path, **person)
    heard = [line.removeprefix("HEARD ") for line in done.stderr.decode().splitlines() if line.startswith("HEARD ")]
    assert heard[0] == heard[-1] == "sqlite3.connect", "the decision first, and then the outcome"
    assert {"os.fork", "os.posix_spawn"} & set(heard), heard
    assert "_thread.start_new_thread" not in heard


def test_a_kill_works_with_a_broken_flags_file(fleet: Fleet) -> None:
    fleet.builder.pack(TELL)
    fleet.flags.write_text("{broken")
    fleet.flags.with_name("flags.json.kill").touch()
    result = fleet.compile().ok()
    assert (result.err, result.record["path"]) == ("err\n", "direct")
    result = fleet.compile("--path", "namespace").ok()
    told = result.record["rollout"]
    assert (told["path"], told["reason"], told["result"]) == ("direct", "kill", "succeeded")
    assert told["problem"] == f"{fleet.flags}.kill exists."


def test_nothing_that_is_wrong_with_a_rollout_reaches_a_killed_build(fleet: Fleet) -> None:
    """Nor does its ledger: one look is all."""
    fleet.builder.pack(TELL)
    fleet.flags.with_name("flags.json.kill").touch()
    result = fleet.compile("--attr", "team", env={"NSBUILD_ROLLOUT_STATE": "/proc/nowhere"}).ok()
    assert (result.out, result.err, result.record["path"]) == (b"out\n", "err\n", "direct")
    fleet.compile().ok()
    assert not fleet.state.exists()


def test_broken_flags_are_told_and_fail_no_build(fleet: Fleet) -> None:
    fleet.builder.pack(TELL)
    fleet.flags.write_text("{broken")
    result = fleet.compile().ok()
    assert result.err.splitlines()[0].startswith("nsbuild: rollout: ") and "flags.json" in result.err
    assert (result.record["path"], fleet.only().reason) == ("direct", "trouble")


# -- the way back


@pytest.mark.parametrize("name", REFUSALS)
def test_the_kernel_refuses_in_the_middle_of_a_fleet(fleet: Fleet, name: str) -> None:
    prepare, word = REFUSALS[name]
    pack = fleet.builder.pack(f'{TELL}; echo x >> "$(dirname "$0")/../ran"; exit 7')
    (fleet.builder.cache / "of-today").touch()
    result = fleet.compile(prepare=prepare)
    assert (result.code, result.out) == (7, b"out\n")
    first, *rest = result.err.splitlines()
    assert first.startswith("nsbuild: running directly, without a sandbox: ") and word in first and rest == ["err"]
    assert (pack / "ran").read_text() == "x\n"
    row = fleet.only()
    assert (row.path, row.arm, row.result, row.exit_code) == ("namespace", "direct", "fallback", 7)
    assert word in row.fallback and result.record["path_reason"] == row.fallback
    assert result.record["path"] == "direct" and result.record["rollout"]["result"] == "fallback"
    assert sorted(os.listdir(fleet.builder.cache)) == ["made-at", "of-today"]
    assert fleet.compile().code == 7, "and a host that allows it"
    assert fleet.rows()[-1].arm == "namespace"
    fleet.builder.intact()


def test_a_fallback_that_is_not_wanted(fleet: Fleet) -> None:
    fleet.builder.pack(TELL)
    result = fleet.compile("--fallback", "never", prepare=no_user_namespaces)
    result.refused(125, "max_user_namespaces")
    assert result.out == b""
    assert (fleet.only().result, fleet.only().exit_code, fleet.only().arm) == ("failed", 125, "namespace")


@as_root
def test_files_that_no_namespace_can_show_are_a_reason_to_fall_back(everywhere: Fleet) -> None:
    builder = everywhere.builder
    if not builder.as_root or builder.owner == 0:
        pytest.skip("the case is root's, with an owner of BUILD_DIR")
    builder.pack(TELL)
    (builder.build / "somebody-elses").touch()
    result = everywhere.compile().ok()
    assert "belongs to uid 0" in result.err and everywhere.only().result == "fallback"
    assert "belongs to uid 0" in everywhere.only().fallback


def test_what_is_in_use_is_no_reason_to_fall_back(fleet: Fleet) -> None:
    import fcntl

    fleet.builder.pack(TELL)
    held = os.open(fleet.builder.build, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    result = fleet.compile()
    os.close(held)
    assert result.refused(125, "in use").out == b""
    assert fleet.only().result == "failed"


ONLY_THERE = 'echo x >> "$2/made-at"; echo "$1" >> "$(dirname "$0")/../export"; '
ONLY_THERE += 'if [ "$1" = /app ]; then rm -rf "$1/source"; touch "$1/broken"; exit 3; fi; '
ONLY_THERE += 'cat "$1/source" > "$1/built"'


def test_a_compile_that_fails_only_in_the_namespace_is_rescued(everywhere: Fleet) -> None:
    fleet = everywhere
    pack = fleet.builder.pack(ONLY_THERE)
    (fleet.builder.cache / "of-today").touch()
    fleet.builder.own(fleet.builder.cache)
    result = fleet.compile("--rescue").ok()
    assert sorted(os.listdir(fleet.builder.build)) == ["built", "source"]
    assert (fleet.builder.build / "built").read_text() == "precious"
    assert (pack / "export").read_text() == f"{fleet.builder.build}\n"
    assert "failed in the namespace (exit 3)" in result.err
    row = fleet.only()
    assert (row.arm, row.result, row.exit_code, row.namespace_exit_code) == ("direct", "rescued", 0, 3)
    assert result.record["path"] == "direct" and result.record["rollout"]["result"] == "rescued"
    assert result.record["rollout"]["rescue"]["copied_bytes"] == len("precious")
    assert sorted(os.listdir(fleet.builder.cache)) == ["made-at", "of-today"], "the direct path's own"
    owner = fleet.builder.owner if ROOT else os.getuid()
    assert {path.stat().st_uid for path in fleet.builder.build.rglob("*")} <= {owner, 0 if ROOT else owner}
    fleet.builder.intact()
    assert not list(fleet.builder.state.glob("nsbuild/.copies/*"))


def test_rescue_is_asked_for(fleet: Fleet) -> None:
    fleet.builder.pack(ONLY_THERE)
    assert fleet.compile().code == 3
    assert (fleet.only().arm, fleet.only().result) == ("namespace", "failed")
    assert (fleet.builder.build / "broken").exists()


def test_what_fails_in_both_keeps_the_cache_of_the_namespace(fleet: Fleet) -> None:
    fails = '[ ! -e "$1/source.bad" ] || { [ "$1" = /app ] && exit 3 || exit 4; }'
    fleet.builder.pack(f'echo "$1" >> "$2/made-at"; {fails}')
    fleet.compile().ok()
    (fleet.builder.build / "source.bad").touch()
    result = fleet.compile("--rescue")
    assert result.code == 4
    row = fleet.rows()[-1]
    assert (row.arm, row.result, row.exit_code, row.namespace_exit_code) == ("direct", "failed", 4, 3)
    (fleet.builder.build / "source.bad").unlink()
    fleet.compile("--rescue").ok()
    assert (fleet.builder.cache / "made-at").read_text() == "/app\n/app\n/app\n"
    assert fleet.rows()[-1].arm == "namespace"


def test_an_interrupted_compile_is_not_rescued(fleet: Fleet) -> None:
    fleet.builder.pack('echo x >> "$2/ran"; trap "exit 9" TERM; echo ready; while :; do sleep 0.02; done')
    process = fleet.builder.start(*fleet.builder.words(*fleet.words("--rescue")))
    assert process.stdout is not None
    Output(os.dup(process.stdout.fileno())).wait_for(b"ready")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=50)
    assert process.returncode == 9
    assert (fleet.only().arm, fleet.only().result, fleet.only().exit_code) == ("namespace", "failed", 9)
    fleet.builder.intact()


def test_a_disk_without_room_for_a_rescue_costs_only_the_rescue(fleet: Fleet) -> None:
    fleet.builder.pack(ONLY_THERE)
    nowhere = fleet.builder.site.write("nowhere", "a file")
    fleet.builder.names.add("nowhere")
    state = fleet.builder.state / "nsbuild"
    state.mkdir(parents=True)
    shutil.copy(nowhere, state / ".copies")
    fleet.builder.own(fleet.builder.state)
    result = fleet.compile("--rescue")
    assert result.code == 3 and "there will be no rescue" in result.err
    assert fleet.only().result == "failed"


# -- the ledger


def test_a_locked_ledger_fails_no_build_and_loses_nothing(fleet: Fleet) -> None:
    fleet.builder.pack(TELL)
    fleet.compile().ok()
    with sqlite3.connect(fleet.state / "ledger.sqlite", isolation_level=None) as held:
        held.execute("BEGIN EXCLUSIVE")
        fleet.compile().ok()
        held.execute("ROLLBACK")
    held.close()
    assert [row.result for row in fleet.rows()] == ["succeeded", "succeeded"]
    assert len(fleet.decisions()) == 2


def test_no_place_for_a_ledger_fails_no_build(fleet: Fleet) -> None:
    fleet.builder.pack(TELL)
    result = fleet.compile(env={"NSBUILD_ROLLOUT_STATE": "/proc/nowhere"}).ok()
    assert result.record["path"] == "namespace"
    assert result.err.count("rollout record is lost") == 2, result.err


# -- bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rollout", "FLAGS"), "--rollout needs --app"),
        (("--app", "a"), "--app is for --rollout"),
        (("--rescue",), "--rescue is for --rollout"),
        (("--rollout", "FLAGS", "--app", ""), "empty"),
        (("--rollout", "FLAGS", "--app", "x" * 10000), "10000 characters"),
        (("--rollout", "FLAGS", "--app", "a\nb"), "cannot be printed"),
        (("--rollout", "FLAGS", "--app", "a", "--path", "sideways"), "'sideways' is no path"),
        (("--rollout", "FLAGS", "--app", "a", "--attr", "team"), "'team' is no NAME=VALUE"),
        (("--rollout", "FLAGS", "--app", "a", "--shadow-timeout", "soon"), "--shadow-timeout: 'soon' is not a time"),
        (("--rollout", "FLAGS", "--app", "a", "--network", "none"), "--network cannot be kept on the direct path"),
        (("--rollout", "FLAGS", "--app", "a", "--memory", "1G"), "--memory cannot be kept on the direct path"),
    ],
)
def test_bad_input_is_one_sentence(fleet: Fleet, words: tuple[str, ...], said: str) -> None:
    fleet.builder.pack(TELL)
    given = [str(fleet.flags) if word == "FLAGS" else word for word in words]
    result = fleet.builder.compile(*given).refused(125, said)
    assert result.out == b"" and len(result.err.splitlines()) == 1
    assert not (fleet.builder.build / "where").exists()
    assert not (fleet.state / "ledger.sqlite").exists() or not fleet.rows()
