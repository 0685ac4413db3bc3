"""`rollout set`: checked, at once or not at all, logged; and the switch, which works whatever else does not."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from openfeature.contrib.tools.flagd.core.flagd_core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
from rollout.files import document, members, share, write
from support.meanwhile import meanwhile

from nsbuild.errors import Refused, UsageError
from nsbuild.rollout import choose, edit
from nsbuild.rollout.edit import Change, apply, buckets_of, kill, read_log, restore, unkill
from nsbuild.rollout.forms import lists_of, shares_of
from nsbuild.rollout.source import read_source

WHY = "week two"


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("NSBUILD_ROLLOUT_KILL", raising=False)
    return tmp_path / "flags.json"


def path_of(flags: Path, app: str) -> tuple[str, str]:
    decision = choose(str(flags), app, {})
    assert not decision.problem
    return decision.path, decision.reason


def test_edits_begin_a_file_and_build_on_one_another(flags: Path) -> None:
    apply(str(flags), Change(namespace=500), "first")
    apply(str(flags), Change(shadow=10_000, allow={"big": "namespace", "odd": "shadow"}, deny=["bad"]), "second")
    # printf nsbuild:app-4 | sha256sum: bucket 308
    assert {app: path_of(flags, app) for app in ("app-4", "app-1", "big", "odd", "bad")} == {
        "app-4": ("namespace", "percentage"),
        "app-1": ("shadow", "percentage"),
        "big": ("namespace", "allow"),
        "odd": ("shadow", "allow"),
        "bad": ("direct", "deny"),
    }
    apply(str(flags), Change(deny=["big"], forget=["bad"]), "third")
    assert path_of(flags, "big") == ("direct", "deny")
    assert path_of(flags, "bad")[1] == "percentage"
    assert "big" not in json.dumps(json.loads(flags.read_text())["flags"]["nsbuild-allow"])


def ifs(rule: object) -> list[list[object]]:
    if isinstance(rule, dict):
        own = [rule["if"]] if "if" in rule else []
        return own + [one for part in rule.values() for one in ifs(part)]
    return [one for part in rule for one in ifs(part)] if isinstance(rule, list) else []


def test_what_is_written_is_flagds_and_read_again(flags: Path) -> None:
    lists = {"a": "namespace", "b": "shadow", "c": "direct", "d": "namespace"}
    apply(str(flags), Change(namespace=500, shadow=2500, allow=lists, deny=["e"]), WHY)
    content = json.loads(flags.read_text())
    # flagd-schemas, json/targeting.json: "the form accepting more than 3 arguments is not supported in flagd"
    assert [len(arguments) for arguments in ifs(content["flags"])] == [3] * 6
    assert all(type(value) in (str, bool, int, float) for value in content["metadata"].values())
    assert shares_of(content["flags"]["nsbuild-percentage"]) == (500, 2500)
    assert lists_of(content["flags"]["nsbuild-allow"]) == {"namespace": ["a", "d"], "shadow": ["b"], "direct": ["c"]}
    core = FlagdCore()
    core.set_flags(flags.read_text())
    context = EvaluationContext("x", {"app": "b", "bucket": 2499})
    assert core.resolve_string_value("nsbuild-allow", "", context).value == "shadow"
    assert core.resolve_string_value("nsbuild-percentage", "", context).value == "shadow"


def test_every_edit_is_logged_with_who_when_and_why(flags: Path) -> None:
    first = apply(str(flags), Change(namespace=25), "a canary")
    second = apply(str(flags), Change(deny=["shop"]), "its owner asked")
    log = read_log(str(flags))
    assert [(entry["why"], entry["change"], entry["before"], entry["after"]) for entry in log] == [
        ("a canary", ["namespace 0.25 %"], "", first),
        ("its owner asked", ["deny shop"], first, second),
    ]
    for entry in log:
        assert entry["who"].endswith(f"@{os.uname().nodename}")
        when = datetime.strptime(entry["when"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        assert abs((datetime.now(UTC) - when).total_seconds()) < 60
    assert choose(str(flags), "shop", {}).flags == second


@pytest.mark.parametrize(
    ("text", "buckets"), [("0", 0), ("1", 100), ("0.25", 25), ("12.5%", 1250), ("100", 10_000), ("100.00", 10_000)]
)
def test_percentages(text: str, buckets: int) -> None:
    assert buckets_of(text) == buckets


@pytest.mark.parametrize("text", ["101", "-1", "x", "", "nan", "inf", "1e9", "100.01", "0.001", "٣٠٠", "5 %%"])
def test_what_is_no_percentage(text: str) -> None:
    with pytest.raises(UsageError, match=r"no percentage|finer than"):
        buckets_of(text)


@pytest.mark.parametrize(
    ("change", "why", "sentence"),
    [
        (Change(), WHY, "nothing to change"),
        (Change(namespace=1), " ", "There is no reason"),
        (Change(namespace=1), "x" * 1001, "1001 characters"),
        (Change(deny=[""]), WHY, "id of the app is empty"),
        (Change(deny=["a\nb"]), WHY, "cannot be printed"),
        (Change(expires="tomorrow"), WHY, "no time with its zone"),
        (Change(expires="2020-01-01T00:00:00Z"), WHY, "is stale"),
        (Change(deny=[f"app-{number}" for number in range(5_000)]), WHY, "Use a percentage"),
    ],
)
def test_a_bad_edit_changes_nothing(flags: Path, change: Change, why: str, sentence: str) -> None:
    apply(str(flags), Change(namespace=5), WHY)
    before = flags.read_bytes()
    with pytest.raises(UsageError, match=sentence):
        apply(str(flags), change, why)
    assert flags.read_bytes() == before
    assert len(read_log(str(flags))) == 1
    assert sorted(path.name for path in flags.parent.glob("*flags*")) == [
        "flags.json",
        "flags.json.lock",
        "flags.json.log",
    ]


def test_what_others_have_written_in_the_file_stays(flags: Path) -> None:
    content = document(percentage=share(100, 200), rules={"if": [{"==": [{"var": "team"}, "red"]}, "shadow", "none"]})
    content["flags"]["another-tool"] = {"state": "whatever it likes"}
    content["metadata"]["owner"] = "platform"
    write(flags, content)
    flags.chmod(0o640)
    apply(str(flags), Change(namespace=300), WHY)
    after = json.loads(flags.read_text())
    assert after["flags"]["nsbuild-rules"] == content["flags"]["nsbuild-rules"]
    assert after["flags"]["another-tool"] == content["flags"]["another-tool"]
    assert after["metadata"] == content["metadata"]
    assert shares_of(after["flags"]["nsbuild-percentage"]) == (300, 200)
    assert stat.S_IMODE(flags.stat().st_mode) == 0o640


def test_a_link_to_the_file_stays_one(flags: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    flags.symlink_to("real/flags.json")
    apply(str(flags), Change(namespace=300), WHY)
    apply(str(flags), Change(namespace=400), WHY)
    assert flags.is_symlink() and json.loads((tmp_path / "real/flags.json").read_text())["flags"]


@pytest.mark.parametrize(
    ("content", "change", "sentence"),
    [
        (
            document(percentage={"<": [{"var": "bucket"}, 5]}),
            Change(namespace=1),
            "Give both --namespace and --shadow",
        ),
        (document(deny={"if": [{"==": [{"var": "team"}, "x"]}, "denied", "none"]}), Change(deny=["a"]), "by hand"),
        (document(allow={"if": [{"in": ["a", {"var": "app"}]}, "shadow", "none"]}), Change(forget=["a"]), "by hand"),
        (
            document(allow={"if": [{"in": [{"var": "app"}, ["a"]]}, "shadow", "direct"]}),
            Change(forget=["a"]),
            "by hand",
        ),
    ],
)
def test_a_rule_that_a_person_wrote_is_not_rewritten(
    flags: Path, content: object, change: Change, sentence: str
) -> None:
    write(flags, content)
    before = flags.read_bytes()
    with pytest.raises(UsageError, match=sentence):
        apply(str(flags), change, WHY)
    assert flags.read_bytes() == before


def test_a_bad_file_is_not_edited_and_the_last_good_one_restored(flags: Path, tmp_path: Path) -> None:
    apply(str(flags), Change(namespace=10_000), WHY)
    good = flags.read_bytes()
    assert choose(str(flags), "shop", {}, state=tmp_path).path == "namespace"
    with pytest.raises(UsageError, match="is good"):
        restore(str(flags), tmp_path, WHY)
    flags.write_text("{typo")
    with pytest.raises(UsageError, match="no JSON"):
        apply(str(flags), Change(namespace=1), WHY)
    restore(str(flags), tmp_path, "a typo")
    assert flags.read_bytes() == good
    assert read_log(str(flags))[-1]["change"] == ["restore the last good flags"]
    flags.unlink()
    restore(str(flags), tmp_path, "removed by mistake")
    assert flags.read_bytes() == good


def test_an_expired_file_can_be_made_to_hold_longer(flags: Path) -> None:
    write(flags, {**document(percentage=share(1)), "metadata": {"expires": "2020-01-01T00:00:00Z"}})
    with pytest.raises(UsageError, match="stale"):
        apply(str(flags), Change(namespace=5), WHY)
    apply(str(flags), Change(expires="2999-01-01T00:00:00+02:00"), WHY)
    assert read_source(str(flags), None, datetime.now(UTC)).ask is not None
    apply(str(flags), Change(expires=""), WHY)
    assert "expires" not in json.loads(flags.read_text())["metadata"]


def test_the_switch_works_with_a_typo_in_the_flags_file(flags: Path) -> None:
    flags.write_text("{typo")
    kill(str(flags), "it is 3 a.m.")
    assert choose(str(flags), "shop", {}, override="namespace").reason == "kill"
    kept = json.loads((flags.parent / "flags.json.kill").read_text())
    assert (kept["why"], kept["change"]) == ("it is 3 a.m.", ["kill"])
    unkill(str(flags), "mended")
    assert choose(str(flags), "shop", {}).reason == "trouble"
    assert [entry["change"] for entry in read_log(str(flags))] == [["kill"], ["unkill"]]
    with pytest.raises(UsageError, match="The flags count already"):
        unkill(str(flags), WHY)


def test_the_switch_comes_before_the_log(flags: Path) -> None:
    (flags.parent / "flags.json.log").mkdir()
    with pytest.raises(Refused, match="cannot be logged"):
        kill(str(flags), WHY)
    assert choose(str(flags), "shop", {}).reason == "kill"
    with pytest.raises(Refused, match="cannot be logged"):
        unkill(str(flags), WHY)
    assert choose(str(flags), "shop", {}).reason == "kill"


EDITOR = """
import sys
from nsbuild.rollout.edit import Change, apply
for number in range(10):
    apply(sys.argv[1], Change(allow={f"app-{sys.argv[2]}-{number}": "namespace"}), "at once")
"""


def test_edits_at_once_lose_none_and_readers_see_only_whole_files(flags: Path, tmp_path: Path) -> None:
    apply(str(flags), Change(namespace=1), WHY)
    editors = [subprocess.Popen([sys.executable, "-I", "-c", EDITOR, str(flags), str(one)]) for one in range(4)]
    problems: list[str] = []
    done = threading.Event()

    def reads() -> None:
        while not done.is_set():
            problems.append(read_source(str(flags), tmp_path, datetime.now(UTC)).problem)

    reader = threading.Thread(target=reads)
    reader.start()
    assert [editor.wait() for editor in editors] == [0] * 4
    done.set()
    reader.join()
    assert len(problems) > 1 and set(problems) == {""}
    lists = lists_of(json.loads(flags.read_text())["flags"]["nsbuild-allow"])
    assert lists is not None
    assert set(lists["namespace"]) == {f"app-{one}-{number}" for one in range(4) for number in range(10)}
    log = read_log(str(flags))
    assert len(log) == 41
    assert [entry["before"] for entry in log[1:]] == [entry["after"] for entry in log[:-1]]


def test_a_change_by_another_tool_in_between_is_not_overwritten(flags: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(str(flags), Change(namespace=1), WHY)
    monkeypatch.setattr(edit, "_edit", lambda *_: write(flags, document(percentage=share(7))))
    with pytest.raises(Refused, match="changed by somebody else"):
        apply(str(flags), Change(namespace=2), WHY)
    assert shares_of(json.loads(flags.read_text())["flags"]["nsbuild-percentage"]) == (7, 0)


def test_a_file_that_is_put_there_meanwhile_is_not_overwritten(flags: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "_edit", lambda *_: write(flags, document(percentage=share(7))))
    with pytest.raises(Refused, match="changed by somebody else"):
        apply(str(flags), Change(namespace=2), WHY)
    assert shares_of(json.loads(flags.read_text())["flags"]["nsbuild-percentage"]) == (7, 0)


def test_a_link_that_leads_elsewhere_meanwhile_is_not_written_through(flags: Path, tmp_path: Path) -> None:
    """Nor is the edit said to be in force, which it would not be."""
    for name in ("one", "two"):
        apply(str(tmp_path / name), Change(namespace=1), WHY)
    flags.symlink_to(tmp_path / "one")
    before = (tmp_path / "one").read_bytes()

    def moved(*_: object) -> None:
        flags.unlink()
        flags.symlink_to(tmp_path / "two")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Refused, match="changed by somebody else"):
        meanwhile(patch, [(edit, "parse_flags")], 0, moved)
        apply(str(flags), Change(namespace=2), WHY)
    assert (tmp_path / "one").read_bytes() == before == (tmp_path / "two").read_bytes()


def test_edits_by_two_names_of_a_file_wait_for_one_another(flags: Path, tmp_path: Path) -> None:
    apply(str(flags), Change(namespace=1), WHY)
    link = tmp_path / "link.json"
    link.symlink_to(flags)
    other = threading.Thread(target=lambda: apply(str(link), Change(allow={"other": "namespace"}), WHY))

    def begin() -> None:
        other.start()
        other.join(0.5)  # it ends, or waits for us

    with pytest.MonkeyPatch.context() as patch:
        assert meanwhile(patch, [(edit, "write_atomic")], 0, begin) == []
        apply(str(flags), Change(namespace=2), WHY)
        other.join()
    made = json.loads(flags.read_text())["flags"]
    assert shares_of(made["nsbuild-percentage"]) == (2, 0)
    assert lists_of(made["nsbuild-allow"])["namespace"] == ["other"]  # type: ignore[index]


@pytest.mark.parametrize("number", range(2))
def test_a_kill_beside_an_unkill_is_not_lost(flags: Path, number: int) -> None:
    kill(str(flags), "first")
    other = threading.Thread(target=lambda: kill(str(flags), "second"))
    steps = [(edit, "_log"), (os, "unlink")]

    def begin() -> None:
        other.start()
        other.join(0.5)  # it ends, or waits for us

    with pytest.MonkeyPatch.context() as patch:
        taken = meanwhile(patch, steps, number, begin)
        unkill(str(flags), "mended")
        other.join()
    assert len(taken) > number
    assert [entry["why"] for entry in read_log(str(flags))] == ["first", "mended", "second"]
    assert choose(str(flags), "shop", {}).reason == "kill"


def test_of_two_unkills_the_second_is_told_that_the_flags_count_already(flags: Path) -> None:
    kill(str(flags), WHY)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UsageError, match="The flags count already"):
        meanwhile(patch, [(edit, "_locked")], 0, lambda: unkill(str(flags), WHY))
        unkill(str(flags), WHY)
    assert [entry["change"] for entry in read_log(str(flags))] == [["kill"], ["unkill"]]


def test_the_switch_works_where_the_flags_lead_to_what_cannot_be_written(flags: Path) -> None:
    flags.symlink_to("nowhere/flags.json")
    kill(str(flags), WHY)
    unkill(str(flags), WHY)
    assert not os.path.lexists(f"{flags}.kill") and os.path.lexists(f"{flags}.lock")


def test_the_switch_works_while_an_editor_is_stopped(flags: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "_WAIT", 0.1)
    with edit._locked(str(flags)):
        kill(str(flags), WHY)
        with pytest.raises(Refused, match="Somebody else has been editing"):
            unkill(str(flags), WHY)
    assert choose(str(flags), "shop", {}).reason == "kill"
    assert [entry["change"] for entry in read_log(str(flags))] == [["kill"]]


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    for change in (lambda file: apply(file, Change(namespace=1), WHY), lambda file: kill(file, WHY)):
        with pytest.raises(Refused, match="cannot be made: No such file or directory"):
            change(str(tmp_path / "nowhere/flags.json"))


def test_the_last_good_flags_are_those_of_that_file(flags: Path, tmp_path: Path) -> None:
    write(flags, document(allow=members(["shop"], "namespace")))
    assert choose(str(flags), "shop", {}, state=tmp_path).path == "namespace"
    other = choose(str(tmp_path / "other.json"), "shop", {}, state=tmp_path)
    assert (other.path, other.reason) == ("direct", "trouble")
