"""Which path a build takes: precedence, stickiness, growth, and flags that are somebody's typo or worse."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rollout.files import document, flag, members, share, write
from support.meanwhile import meanwhile

from nsbuild.errors import UsageError
from nsbuild.rollout import choose
from nsbuild.rollout import source as sources
from nsbuild.rollout.bucket import ALGORITHM, BUCKETS, bucket
from nsbuild.rollout.decide import Source, attributes_of, check_app, decide
from nsbuild.rollout.evaluate import evaluator
from nsbuild.rollout.flags import LARGEST, parse_flags
from nsbuild.rollout.source import last_good_file, read_flags_file, read_source

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("NSBUILD_ROLLOUT_KILL", raising=False)
    yield


def source(content: dict[str, Any]) -> Source:
    flags = parse_flags(json.dumps(content).encode(), "flags.json", NOW)
    return Source(evaluator(flags), flags.salt, flags.digest)


EVERYTHING = document(
    deny=members(["a", "b"], "denied"),
    allow=members(["a", "b", "c", "d"], "shadow"),
    rules={"if": [{"==": [{"var": "team"}, "red"]}, "namespace", {"==": [{"var": "team"}, "old"]}, "direct", "none"]},
    percentage=share(10_000),
)


@pytest.mark.parametrize(
    ("app", "team", "override", "kill", "path", "reason"),
    [
        ("a", "red", "namespace", "a file", "direct", "kill"),
        ("a", "red", "namespace", "", "namespace", "override"),
        ("a", "red", "", "", "direct", "deny"),
        ("c", "red", "", "", "shadow", "allow"),
        ("e", "red", "", "", "namespace", "rule"),
        ("e", "old", "", "", "direct", "rule"),
        ("e", "", "", "", "namespace", "percentage"),
    ],
)
def test_what_comes_first_wins(app: str, team: str, override: str, kill: str, path: str, reason: str) -> None:
    decision = decide(app, {"team": team}, source(EVERYTHING), override=override, kill=kill)
    assert (decision.path, decision.reason) == (path, reason)
    assert [step.answer for step in decision.steps] == [""] * (len(decision.steps) - 1) + [path]


def test_what_nothing_settles_is_direct() -> None:
    decision = decide("e", {}, source(document(deny=members([], "denied"), percentage=share(0))))
    assert (decision.path, decision.reason) == ("direct", "off")
    assert [step.name for step in decision.steps] == [
        "kill",
        "override",
        "deny",
        "allow",
        "rule",
        "percentage",
        "off",
    ]


def test_a_rule_is_named_by_its_variant_and_sees_the_attributes() -> None:
    rules = flag(
        {"if": [{"in": ["heroku/python", {"var": "buildpacks"}]}, "python-first", None]},
        variants={"python-first": "namespace"},
        defaultVariant=None,
    )
    one = source({"flags": {"nsbuild-rules": rules}})
    decision = decide("e", attributes_of(["buildpacks=heroku/nodejs,heroku/python"]), one)
    assert (decision.path, decision.rule) == ("namespace", "python-first")
    assert decide("e", attributes_of(["buildpacks=heroku/nodejs"]), one).reason == "off"


def test_a_disabled_flag_settles_nothing() -> None:
    content = document(percentage=share(10_000))
    content["flags"]["nsbuild-percentage"]["state"] = "DISABLED"
    assert decide("e", {}, source(content)).reason == "off"


# --- buckets ---


def test_the_algorithm_is_what_it_always_was() -> None:
    assert ALGORITHM == "sha256-8-10000"
    # printf %s nsbuild:shop | sha256sum | cut -c 1-8, in decimal, its last four digits
    vectors = {("nsbuild", "shop"): 8097, ("nsbuild", "blog"): 2156, ("2", "shop"): 6550, ("", ""): 1014}
    vectors[("nsbuild", "größe")] = 5080
    assert {key: bucket(*key) for key in vectors} == vectors


def test_100000_apps_are_spread_evenly() -> None:
    counts = [0] * 100
    for number in range(100_000):
        counts[bucket("nsbuild", f"app-{number}") * 100 // BUCKETS] += 1
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts)
    assert 58 < chi_square < 149, "99 degrees of freedom: outside with a probability of 0.1 %"


def test_another_salt_is_another_order() -> None:
    first = {f"app-{number}" for number in range(5000) if bucket("one", f"app-{number}") < 500}
    second = {f"app-{number}" for number in range(5000) if bucket("two", f"app-{number}") < 500}
    assert len(first & second) < len(first) // 4


def test_a_growing_share_only_ever_adds_apps() -> None:
    apps = [f"app-{number}" for number in range(300)]
    namespace: set[str] = set()
    reached: set[str] = set()
    for in_namespace, in_shadow in [(0, 100), (100, 500), (500, 500), (500, 2500), (2500, 10_000), (10_000, 0)]:
        one = source(document(percentage=share(in_namespace, in_shadow)))
        paths = {app: decide(app, {}, one).path for app in apps}
        now = {app for app in apps if paths[app] == "namespace"}
        assert namespace <= now
        assert reached <= {app for app in apps if paths[app] != "direct"}
        namespace, reached = now, {app for app in apps if paths[app] != "direct"}
    assert namespace == set(apps)


def test_an_app_stays_where_it_is_whoever_asks(tmp_path: Path) -> None:
    path = write(tmp_path / "flags.json", document(percentage=share(5000)))
    code = (
        "import sys; from nsbuild.rollout import choose\n"
        "print(*(choose(sys.argv[1], f'app-{number}', {}).path for number in range(50)))"
    )
    asked = {
        subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    one = source(document(percentage=share(5000)))
    assert asked == {" ".join(decide(f"app-{number}", {"host": "x"}, one).path for number in range(50)) + "\n"}


def test_the_share_is_told_where_the_bucket_had_a_say(tmp_path: Path) -> None:
    path = write(tmp_path / "flags.json", document(allow=members(["a"], "namespace"), percentage=share(2500, 9000)))
    decisions = [choose(str(path), f"app-{number}", {}) for number in range(40)]
    assert {decision.path for decision in decisions} == {"direct", "shadow", "namespace"}
    assert {decision.share for decision in decisions} == {0.25}
    assert choose(str(path), "a", {}).share is None
    assert choose(str(path), "app-1", {}, override="direct").share is None
    by_bucket = {"if": [{"<": [{"var": "bucket"}, 100]}, "namespace", "none"]}
    write(path, document(rules=by_bucket, percentage=share(2500)))
    assert {choose(str(path), f"app-{number}", {}).share for number in range(40)} == {None}
    write(path, document(percentage={"if": [{"<": [{"var": "team"}, 3]}, "namespace", "none"]}))
    assert choose(str(path), "app-1", {}).share is None


# --- flags files ---


def test_a_flags_file_is_read_and_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "flags.json", EVERYTHING)
    decision = choose(str(path), "c", {}, state=tmp_path)
    assert (decision.path, decision.reason, decision.problem) == ("shadow", "allow", "")
    assert decision.attributes["host"] == os.uname().nodename
    assert last_good_file(str(path), tmp_path).read_bytes() == path.read_bytes()


BROKEN = {
    "missing": None,
    "malformed": b'{"flags": {"nsbuild-deny"',
    "empty": b"",
    "a list": b"[]",
    "not UTF-8": b'{"flags": "\xff"}',
    "stale": json.dumps({**EVERYTHING, "metadata": {"expires": "2020-01-01T00:00:00Z"}}).encode(),
    "huge": b'{"flags": "' + b"x" * LARGEST + b'"}',
    "deep": b"[" * 500_000,
    "unknown flag": json.dumps({"flags": {"nsbuild-percent": flag()}}).encode(),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_bad_flags_file_means_the_last_good_one_else_direct(tmp_path: Path, how: str) -> None:
    path = write(tmp_path / "flags.json", EVERYTHING)
    kept = tmp_path / "kept"
    kept.mkdir()
    good = choose(str(path), "c", {}, state=kept)
    content = BROKEN[how]
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    decision = choose(str(path), "c", {}, state=kept)
    assert (decision.path, decision.reason, decision.flags) == ("shadow", "allow", good.flags)
    assert str(path) in decision.problem and "The last good flags, of 20" in decision.problem
    assert "\n" not in decision.problem
    for state in (None, tmp_path):
        decision = choose(str(path), "c", {}, state=state)
        assert (decision.path, decision.reason, decision.flags) == ("direct", "trouble", "")
        assert "There are no good flags from before: direct." in decision.problem


def test_a_build_that_began_with_older_flags_leaves_no_stale_last_good_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size as the newer ones, and with their time, they would be taken for them ever after."""
    flags = tmp_path / "flags.json"
    write(flags, document(percentage=share(20)))
    older, when = read_flags_file(str(flags))
    kept = last_good_file(str(flags), tmp_path)
    write(flags, document(percentage=share(10)))
    assert flags.stat().st_size == len(older)
    for number in count():
        kept.unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            steps = [(sources, "write_atomic"), (os, "rename"), (os, "utime")]
            taken = meanwhile(patch, steps, number, partial(sources._remember, kept, older, when))
            read_source(str(flags), tmp_path, datetime.now(UTC))
        read_source(str(flags), tmp_path, datetime.now(UTC))
        assert kept.read_bytes() == flags.read_bytes()
        if len(taken) <= number:
            break
    assert number > 1


def test_what_expires_does_so_in_every_time_zone(tmp_path: Path) -> None:
    for text, good in [
        ("2026-06-01T12:00:01Z", True),
        ("2026-06-01T14:00:01+02:00", True),
        ("2026-06-01T12:00:00Z", False),
        ("2026-06-01T13:59:59+02:00", False),
    ]:
        path = write(tmp_path / "flags.json", {**EVERYTHING, "metadata": {"expires": text}})
        source = read_source(str(path), None, NOW)
        assert (source.ask is not None) == good, source.problem
    # A clock that went backwards makes it good again, and nothing worse.
    assert read_source(str(path), None, datetime(2020, 1, 1, tzinfo=UTC)).ask is not None


def test_last_good_flags_that_have_expired_since_are_not_used(tmp_path: Path) -> None:
    path = write(tmp_path / "flags.json", {**EVERYTHING, "metadata": {"expires": "2026-06-01T13:00:00Z"}})
    assert read_source(str(path), tmp_path, NOW).ask is not None
    path.unlink()
    assert read_source(str(path), tmp_path, NOW).ask is not None
    assert read_source(str(path), tmp_path, NOW.replace(hour=14)).ask is None


def one_flag(**changes: Any) -> dict[str, Any]:
    return {"flags": {"nsbuild-rules": flag(**changes)}}


def nested(depth: int) -> Any:
    rule: Any = {"var": "x"}
    for _ in range(depth):
        rule = {"!": [rule]}
    return rule


WRONG = {
    "there is no flag 'nsbuild-percent'": {"flags": {"nsbuild-percent": flag()}},
    "none of nsbuild's flags": {"flags": {"other": flag()}},
    "flags: it is no object": {"flags": []},
    "neither ENABLED nor DISABLED": one_flag(state="on"),
    "is 'sandbox', none of \"\", direct, shadow, namespace": one_flag(variants={"x": "sandbox"}),
    "is 'namespace', none of \"\", direct.": {"flags": {"nsbuild-deny": flag(variants={"x": "namespace"})}},
    "there is no variant 'nowhere', which defaultVariant names": one_flag(defaultVariant="nowhere"),
    "there is no variant 'nope', which its targeting names": one_flag(targeting={"if": [True, "nope"]}),
    "no rule: each has one operator": one_flag(targeting={"a": 1, "b": 2}),
    "'fractional' is not allowed in a rule: it moved": one_flag(targeting={"fractional": [["direct", 50]]}),
    "'map' is not allowed": one_flag(targeting={"map": [[1], {"var": ""}]}),
    "would change with the clock": one_flag(targeting={"<": [{"var": "$flagd.timestamp"}, 1]}),
    "nested deeper than 64": one_flag(targeting=nested(65)),
    "more than 5000 parts": one_flag(targeting={"in": [{"var": "app"}, ["x"] * 5_000]}),
    "there is no evaluator 'x'": {"$evaluators": {"y": True}, **one_flag(targeting={"$ref": "x"})},
    "an evaluator cannot refer to another": {
        "$evaluators": {"x": {"$ref": "y"}, "y": True},
        **one_flag(targeting={"$ref": "x"}),
    },
    "metadata.salt is no text": {"metadata": {"salt": 3}, **one_flag()},
    "metadata.bucket is not sha256-8-10000": {"metadata": {"bucket": "murmur3"}, **one_flag()},
    "no time with its zone": {"metadata": {"expires": "2030-01-01T00:00:00"}, **one_flag()},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_flags(json.dumps(WRONG[sentence]).encode(), "flags.json", NOW)
    assert sentence in str(caught.value) and "flags.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nested_brackets_and_references_that_would_explode_are_refused_at_once() -> None:
    bomb = {f"e{number}": [{"$ref": f"e{number + 1}"}] * 10 for number in range(30)}
    wide = {"list": ["app"] * 100}
    for evaluators, targeting in [
        (bomb, {"$ref": "e0"}),
        (wide, {"and": [{"in": [{"var": "app"}, {"$ref": "list"}]}] * 500}),
    ]:
        with pytest.raises(UsageError):
            parse_flags(json.dumps({"$evaluators": evaluators, **one_flag(targeting=targeting)}).encode(), "f", NOW)


def test_an_evaluator_that_rules_share_is_used() -> None:
    content = {"$evaluators": {"reds": {"==": [{"var": "team"}, 'r"\\d']}}}
    one = source({**content, **one_flag(targeting={"if": [{"$ref": "reds"}, "shadow", "none"]})})
    assert decide("e", {"team": 'r"\\d'}, one).path == "shadow"
    assert decide("e", {"team": "r"}, one).path == "direct"


def test_a_variant_that_only_the_evaluation_finds_unknown_is_direct_and_said() -> None:
    decision = decide("e", {"team": "purple"}, source(one_flag(targeting={"var": "team"})))
    assert (decision.path, decision.reason) == ("direct", "trouble")
    assert "nsbuild-rules" in decision.problem and "purple" in decision.problem


def test_a_rule_that_fails_is_direct_and_said() -> None:
    decision = decide("e", {}, source(one_flag(targeting={"missing_some": ["x", {"var": "y"}]})))
    assert (decision.path, decision.reason) == ("direct", "trouble")
    assert decision.problem


def test_the_strangest_rules_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    decide("e", {}, source(one_flag(targeting={"if": [{"sem_ver": [{"var": "no"}, "~~", "x"]}, "shadow", "none"]})))
    assert capfd.readouterr() == ("", "")


def test_a_fifo_and_a_directory_are_no_flags_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", ".", "fifo/x", "n\0ul"):
        with pytest.raises(UsageError, match="The flags file"):
            read_flags_file(str(tmp_path / name))


def test_a_file_that_is_replaced_while_it_is_read_is_one_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    contents = [
        json.dumps(document(percentage=share(share_))).encode() + b" " * pad
        for share_, pad in ((0, 9), (5000, 99999))
    ]
    path.write_bytes(contents[0])
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            fresh = tmp_path / "fresh"
            fresh.write_bytes(random.choice(contents))
            fresh.rename(path)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(300):
            assert read_flags_file(str(path))[0] in contents
    finally:
        stop.set()
        thread.join()


# --- the kill switch ---


@pytest.mark.parametrize("content", [json.dumps(EVERYTHING), '{"typo', None])
def test_the_kill_file_works_whatever_is_in_the_flags_file(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "flags.json"
    if content is not None:
        path.write_text(content)
    kill = tmp_path / "flags.json.kill"
    kill.symlink_to("/nowhere")
    decision = choose(str(path), "e", {"team": "red"}, override="namespace", state=tmp_path)
    assert (decision.path, decision.reason) == ("direct", "kill")
    assert str(kill) in decision.steps[0].why
    kill.unlink()
    assert choose(str(path), "e", {}, override="namespace").reason == "override"


def test_the_kill_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "flags.json", EVERYTHING)
    for value, reason in [("1", "kill"), ("yes", "kill"), ("0", "percentage"), ("", "percentage")]:
        monkeypatch.setenv("NSBUILD_ROLLOUT_KILL", value)
        assert choose(str(path), "e", {}).reason == reason


def test_a_kill_file_that_cannot_be_looked_at_counts(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert choose(str(tmp_path / "loop/flags.json"), "e", {}).reason == "kill"


def test_the_kill_switch_costs_one_stat_and_no_imports(tmp_path: Path) -> None:
    (tmp_path / "flags.json.kill").touch()
    code = (
        "import os, sys; before = set(sys.modules); from nsbuild.rollout.kill import killed\n"
        "looked, lstat = [], os.lstat; os.lstat = lambda path: looked.append(path) or lstat(path)\n"
        "assert killed(sys.argv[1]); print(looked == [sys.argv[1] + '.kill'], *set(sys.modules) - before)"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "flags.json")]
    looked, *imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert looked == "True"
    assert set(imported) <= {"__future__", "nsbuild", "nsbuild.lazy", "nsbuild.rollout", "nsbuild.rollout.kill"}


# --- bad input ---


@pytest.mark.parametrize(
    ("app", "sentence"),
    [
        ("", "The id of the app is empty"),
        ("x" * 10_240, "has 10240 characters"),
        ("a\nb", "cannot be printed"),
        ("a b", "or a space"),
        ("\udcff", "cannot be printed"),
    ],
)
def test_an_id_that_is_none(app: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        check_app(app)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    with pytest.raises(UsageError):
        choose("/nowhere/flags.json", app, {})


def test_an_override_that_is_no_path() -> None:
    with pytest.raises(UsageError, match=r"'sandbox' is no path. It is one of direct, shadow, namespace"):
        decide("e", {}, Source(None), override="sandbox")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["team"], "is no NAME=VALUE"),
        (["a b=c"], "is no NAME=VALUE"),
        (["app=x"], "nsbuild's own"),
        (["bucket=1"], "nsbuild's own"),
        (["team=x", "team=y"], "there twice"),
        (["team=" + "x" * 1025], "1025 characters"),
        ([f"a{number}=" for number in range(65)], "65 attributes"),
    ],
)
def test_an_attribute_that_is_none(words: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        attributes_of(words)


def test_the_clock_is_no_part_of_a_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    one = source(EVERYTHING)
    now = decide("e", {}, one)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert decide("e", {}, one) == now
