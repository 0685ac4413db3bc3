"""The guard's verdicts, and what follows from them: a fleet with a bad buildpack is stopped, and says why."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from support.fleets import BAD, REFUSED, Fleet
from support.meanwhile import meanwhile

from nsbuild.cli import main
from nsbuild.errors import Refused
from nsbuild.rollout import check as checking
from nsbuild.rollout import choose
from nsbuild.rollout.bucket import BUCKETS, bucket
from nsbuild.rollout.check import check
from nsbuild.rollout.decide import decide
from nsbuild.rollout.decision import DIRECT, NAMESPACE, SHADOW, Decision, Outcome
from nsbuild.rollout.edit import Change, apply, buckets_of
from nsbuild.rollout.guard import CAP, State, Verdict, judge
from nsbuild.rollout.kill import kill_file
from nsbuild.rollout.ledger import Ledger, state_directory
from nsbuild.rollout.source import read_source


def by_share(share: float, path: str = NAMESPACE, salt: str = "test") -> object:
    def decide(app: str, attributes: Mapping[str, object]) -> Decision:
        inside = bucket(salt, app) < share * BUCKETS
        known = share if path == NAMESPACE else 0.0
        return Decision(app, path if inside else DIRECT, "percentage" if inside else "off", share=known)

    return decide


def outcomes(fleet: Fleet, *stages: tuple[int, float], path: str = NAMESPACE) -> list[Outcome]:
    """So many builds at each share."""
    return [
        outcome
        for count, share in stages
        for _, built in fleet.run(count, by_share(share, path))  # type: ignore[arg-type]
        for outcome in built
    ]


def text(verdict: Verdict) -> str:
    return "\n".join(verdict.as_text())


def test_a_fleet_that_is_well_passes_when_there_is_enough_of_it() -> None:
    fleet = Fleet(apps=3000, seed=2)
    seen = outcomes(fleet, (2000, 0.0), (2000, 0.25))
    early = judge(seen[:2300])
    assert early.state is State.INCONCLUSIVE
    assert early.reasons[0].startswith("too few builds to say")
    late = judge([*seen, *outcomes(fleet, (4000, 0.5))])
    assert late.state is State.PASSING
    assert late.relief >= 20
    assert late.builds == 8000


def test_a_ledger_without_builds_is_inconclusive() -> None:
    assert judge([]).state is State.INCONCLUSIVE


@pytest.mark.parametrize("seed", range(3))
def test_a_bad_buildpack_that_few_apps_have_is_failing_and_named(seed: int) -> None:
    """One app of twenty has it: among the failures of all it is lost."""
    verdict = judge(outcomes(Fleet(apps=2000, seed=seed, bad_fails=0.9), (500, 0.0), (4000, 0.25)))
    assert verdict.state is State.FAILING
    found = next(one for one in verdict.findings if one.measure == "buildpack")
    assert found.failing and found.about == f"builds that fail, of {BAD}"
    assert found.evidence >= found.halts == 800
    assert f"{found.namespace.hit} of {found.namespace.hit} have buildpack {BAD}" in text(verdict)


def test_what_fails_everywhere_is_failing() -> None:
    seen = outcomes(Fleet(apps=2000, seed=1), (4000, 0.1))
    hit = [one.path == NAMESPACE and number % 4 == 0 for number, one in enumerate(seen)]
    worse = [replace(one, result="failed") if hits else one for one, hits in zip(seen, hit, strict=True)]
    found = judge(worse).findings[0]
    assert found.measure == "failure" and found.failing
    assert found.evidence >= found.halts == 100
    assert len(found.apps) == 5


def test_with_rescue_nothing_fails_and_the_guard_sees_it_all_the_same() -> None:
    fleet = Fleet(apps=2000, seed=5, bad_fails=0.9, rescue=True)
    verdict = judge(outcomes(fleet, (500, 0.0), (3000, 0.25)))
    assert [one.measure for one in verdict.findings if one.failing] == ["rescue"]


def test_hosts_that_refuse_are_named_with_the_reason() -> None:
    verdict = judge(outcomes(Fleet(apps=2000, seed=4, refusing=20), (4000, 0.25)))
    assert [one.measure for one in verdict.findings if one.failing] == ["fallback"]
    assert REFUSED in text(verdict)


def test_a_shadow_fleet_is_judged_by_its_pairs() -> None:
    fleet = Fleet(apps=2000, seed=5)
    seen = outcomes(fleet, (3000, 0.3), path=SHADOW)
    assert not any(one.failing for one in judge(seen).findings)
    spoilt = [
        replace(one, result="failed")
        if one.shadow and BAD in one.buildpacks and random.Random(one.app).random() < 0.9
        else one
        for one in seen
    ]
    assert [one.measure for one in judge(spoilt).findings if one.failing] == ["shadow"]


@pytest.mark.parametrize(("factor", "failing"), [(1.0, False), (1.1, False), (1.4, True)])
@pytest.mark.parametrize("name", ["duration", "size"])
def test_what_takes_longer_or_grows_is_failing_beyond_a_tenth(name: str, factor: float, failing: bool) -> None:
    fleet = Fleet(apps=1000, seed=6)
    seen = outcomes(fleet, (3000, 0.0), (8000, 0.25))

    def changed(one: Outcome) -> Outcome:
        if one.path != NAMESPACE or one.slug_bytes is None:
            return one
        if name == "duration":
            return replace(one, seconds=one.seconds * factor)
        return replace(one, slug_bytes=int(one.slug_bytes * factor))

    verdict = judge(map(changed, seen))
    assert [one.measure for one in verdict.findings if one.failing] == ([name] if failing else [])


@pytest.mark.parametrize(("name", "worse"), [("leaks", {"leaks": 3}), ("boot", {"boot": "failed"})])
def test_leaks_and_boots_count_where_both_arms_are_looked_at(name: str, worse: dict[str, object]) -> None:
    seen = outcomes(Fleet(apps=1000, seed=7), (4000, 0.25))
    well: dict[str, object] = {"leaks": 0, "boot": "passed"}

    def looked(one: Outcome, both: bool) -> Outcome:
        if one.path != NAMESPACE:
            return replace(one, **well) if both else one  # type: ignore[arg-type]
        hit = random.Random(one.app).random() < 0.3
        return replace(one, **{**well, **(worse if hit else {})})  # type: ignore[arg-type]

    both = judge([looked(one, True) for one in seen])
    assert [one.measure for one in both.findings if one.failing] == [name]
    alone = judge([looked(one, False) for one in seen], cap=0)
    assert not any(one.failing for one in alone.findings)
    assert "direct builds are not looked at" in text(alone)


def few(broken: int, well: int) -> list[Outcome]:
    """An allowlist: the bucket has no say, so there is no evidence, whatever happens."""
    return [
        Outcome(
            str(n), str(n), f"app-{n}", NAMESPACE, NAMESPACE, "failed" if n < broken else "succeeded", float(n), 1.0
        )
        for n in range(broken + well)
    ]


def test_a_handful_of_broken_apps_stops_what_no_evidence_can() -> None:
    assert judge(few(CAP, CAP)).state is State.FAILING
    assert f"{CAP} of the {2 * CAP} apps that the namespace has built are broken; the cap is {CAP}" in text(
        judge(few(CAP, CAP))
    )
    assert "latest     app-4 (" in text(judge(few(CAP, CAP))), "and who they are"
    assert judge(few(CAP - 1, 0)).state is State.INCONCLUSIVE
    assert judge(few(CAP, CAP + 1)).state is State.INCONCLUSIVE
    assert judge(few(2, 0), cap=2).state is State.FAILING
    assert judge(few(50, 0), cap=0).state is State.INCONCLUSIVE


def test_evidence_on_its_way_is_said_and_does_not_pass() -> None:
    seen = outcomes(Fleet(apps=2000, seed=0, bad_fails=0.9), (500, 0.0), (2000, 0.25))
    states = [judge(seen[:count], cap=0) for count in range(500, 2500, 40)]
    leaning = [one for one in states if one.reasons[0].startswith("not enough to halt")]
    assert leaning and {one.state for one in leaning} == {State.INCONCLUSIVE}
    first = next(number for number, one in enumerate(states) if one.state is State.FAILING)
    # Ever halted is halted: the highest evidence counts, not that of the last look.
    assert {one.state for one in states[first:]} == {State.FAILING}


def test_no_text_of_an_app_reaches_a_terminal_raw() -> None:
    evil = [replace(one, app=f"\x1b[31m{one.app}\n", buildpacks=("\x1b]0;x\a",)) for one in few(9, 0)]
    assert all(line.isprintable() for line in judge(evil).as_text())


# --- with a ledger and a flags file ---


def ramp(ledger: Ledger, flags: str, fleet: Fleet, stages: list[tuple[int, str]]) -> tuple[list[State], int | None]:
    """Stages are (builds, percentage). A look after every 50 builds; the verdicts, and the build that stopped it."""
    states = []
    for count, percent in stages:
        apply(flags, Change(namespace=buckets_of(percent)), "the next stage")
        asked = partial(decide, source=read_source(flags, None, datetime.now(UTC)))
        for number in range(count):
            decided, built = fleet.build(asked)
            ledger.record(decided)
            for outcome in built:
                ledger.record(outcome)
            if number % 50 == 49:
                checked = check(ledger, flags)
                states.append(checked.verdict.state)
                if checked.halted:
                    return states, fleet.builds
    return states, None


STAGES = [(200, "0"), (200, "1"), (400, "5"), (1600, "25")]


def test_a_bad_buildpack_is_stopped_while_the_share_grows(tmp_path: Path) -> None:
    """The real flags, decisions, ledger and kill file; only the builds are simulated."""
    ledger, flags = Ledger(tmp_path), str(tmp_path / "flags.json")
    fleet = Fleet(apps=1500, seed=8, bad_fails=0.9)
    with ledger:
        states, stopped = ramp(ledger, flags, fleet, STAGES)
    assert stopped is not None and states[-1] is State.FAILING
    assert set(states[:-1]) == {State.INCONCLUSIVE}
    notice = Path(kill_file(flags)).read_text()
    assert "every build takes the direct path" in notice and f"have buildpack {BAD}" in notice
    assert [mark.event for mark in ledger.marks()] == ["halted"]
    # From here on nothing is built in the namespace, whatever the flags say.
    apply(flags, Change(namespace=buckets_of("100")), "somebody who has not heard of it")
    assert {choose(flags, f"app-{number:05}", {}).path for number in range(50)} == {DIRECT}


def test_a_fleet_that_is_well_is_not_stopped(tmp_path: Path) -> None:
    ledger, flags = Ledger(tmp_path), str(tmp_path / "flags.json")
    with ledger:
        states, stopped = ramp(ledger, flags, Fleet(apps=1500, seed=9), STAGES)
    assert stopped is None and State.FAILING not in states
    assert not os.path.lexists(kill_file(flags))
    assert choose(flags, "app-00001", {}).share == 0.25


def spoilt(ledger: Ledger) -> None:
    with ledger:
        for row in few(CAP, 0):
            ledger.record(replace(row, id=os.urandom(8).hex()))


def test_a_halt_that_was_undone_is_not_held_against_what_follows(tmp_path: Path) -> None:
    ledger, flags = Ledger(tmp_path), str(tmp_path / "flags.json")
    spoilt(ledger)
    assert check(ledger, flags).halted == kill_file(flags)
    again = check(ledger, flags)
    assert (again.verdict.state, again.halted) == (State.FAILING, "")
    spoilt(ledger)  # under way when it was stopped
    os.unlink(kill_file(flags))
    fresh = check(ledger, flags)
    assert (fresh.verdict.state, fresh.verdict.builds, fresh.halted) == (State.INCONCLUSIVE, 0, "")
    assert not os.path.lexists(kill_file(flags))
    spoilt(ledger)
    assert check(ledger, flags).halted == kill_file(flags)
    assert [mark.event for mark in ledger.marks()] == ["halted", "resumed", "halted"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    ledger, flags = Ledger(tmp_path), str(tmp_path / "flags.json")
    spoilt(ledger)
    assert check(ledger, flags, dry_run=True).verdict.state is State.FAILING
    assert not os.path.lexists(kill_file(flags)) and not ledger.marks()


def test_a_kill_file_of_somebody_elses_is_left_as_it_is(tmp_path: Path) -> None:
    ledger, flags = Ledger(tmp_path), str(tmp_path / "flags.json")
    Path(kill_file(flags)).write_text("Friday, Ann")
    spoilt(ledger)
    checked = check(ledger, flags)
    assert (checked.halted, checked.killed) == ("", f"{kill_file(flags)} exists")
    assert Path(kill_file(flags)).read_text() == "Friday, Ann"


def test_a_kill_file_that_cannot_be_written_is_said_with_the_verdict(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    spoilt(ledger)
    with pytest.raises(
        Refused, match=r"was NOT stopped: .*/nowhere/flags.json.kill cannot be written: .*5 of the 5 apps"
    ):
        check(ledger, str(tmp_path / "nowhere/flags.json"))
    assert not ledger.marks()


def test_checks_at_the_same_time_end_as_one(tmp_path: Path) -> None:
    ledger, flags = Ledger(tmp_path), str(tmp_path / "flags.json")
    spoilt(ledger)
    script = "import sys\nfrom pathlib import Path\nfrom nsbuild.rollout.check import check\n"
    script += "from nsbuild.rollout.ledger import Ledger\ncheck(Ledger(Path(sys.argv[1])), sys.argv[2])\n"
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), flags]) for _ in range(4)]
    assert [process.wait() for process in running] == [0, 0, 0, 0]
    assert {mark.event for mark in ledger.marks()} == {"halted"}
    assert "5 of the 5 apps" in Path(kill_file(flags)).read_text()


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("step", range(5))
def test_a_check_in_the_middle_of_a_check_ends_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, resumes: bool
) -> None:
    """The whole of another one, before each of the steps that the first takes."""
    ledger, flags = Ledger(tmp_path), str(tmp_path / "flags.json")
    spoilt(ledger)
    events = ["halted"]
    if resumes:
        check(ledger, flags)
        os.unlink(kill_file(flags))
        spoilt(ledger)
        events = ["halted", "resumed"]
    steps = [(Ledger, "marks"), (Ledger, "mark"), (checking, "killed"), (checking, "write_atomic")]
    taken = meanwhile(monkeypatch, steps, step, lambda: check(Ledger(tmp_path), flags))
    check(ledger, flags)
    monkeypatch.undo()
    assert len(taken) > step
    assert [mark.event for mark in ledger.marks()] == events
    assert os.path.lexists(kill_file(flags)) is not resumes
    for _ in range(2):
        check(ledger, flags)
    assert [mark.event for mark in ledger.marks()] == events


def rollout(flags: str, *words: str) -> int:
    return main(["rollout", "check", "--rollout", flags, *words])


def test_the_command_says_it_all_and_exits_by_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NSBUILD_ROLLOUT_STATE", str(tmp_path))
    ledger, flags = Ledger(tmp_path), str(tmp_path / "flags.json")
    assert rollout(flags) == 3
    assert capsys.readouterr().out.startswith("inconclusive: too few builds")
    spoilt(ledger)
    assert rollout(flags, "--cap", "6") == 3
    capsys.readouterr()
    assert rollout(flags, "--dry-run", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"]["state"], told["verdict"]["builds"], told["halted"]) == ("failing", CAP, "")
    assert told["verdict"]["findings"][0]["namespace"] == {"hit": CAP, "apps": CAP}
    assert rollout(flags) == 1
    out = capsys.readouterr().out
    assert out.startswith("failing: 5 of the 5 apps that the namespace has built are broken")
    assert f"STOPPED: {kill_file(flags)} was written" in out
    assert rollout(flags) == 1
    assert f"Every build goes direct already: {kill_file(flags)} exists." in capsys.readouterr().out
    assert main(["rollout", "set", "--rollout", flags, "--unkill", "--why", "mended"]) == 0
    with ledger:
        for outcome in outcomes(Fleet(apps=100, seed=2), (100, 0.0)):
            ledger.record(outcome)
    capsys.readouterr()
    assert rollout(flags) == 3, "the first look after a halt begins anew"
    monkeypatch.setenv("NSBUILD_ROLLOUT_STATE", str(tmp_path / "other"))
    with Ledger(state_directory()) as other:
        for outcome in outcomes(Fleet(apps=3000, seed=0), (500, 0.0), (2500, 0.5)):
            other.record(outcome)
    assert rollout(flags) == 0
    assert "passing: the namespace does not fail twice as often as the direct path" in capsys.readouterr().out
