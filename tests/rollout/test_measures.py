"""What the guard counts: apps and not builds, coins with the right chance, and which builds are none."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

import pytest

from nsbuild.rollout.decision import Outcome
from nsbuild.rollout.evidence import Evidence
from nsbuild.rollout.measures import Measure, chance, measured, measures


def build(app: str, path: str, share: float | None = 0.1, result: str = "succeeded", **more: object) -> Outcome:
    fields = {"id": app, "decision": app, "arm": path, "started": 0.0, "seconds": 10.0, "slug_bytes": 1000, **more}
    return Outcome(app=app, path=path, share=share, result=result, **fields)  # type: ignore[arg-type]


def seen(name: str, *outcomes: Outcome) -> Measure:
    return next(measure for measure in measured(outcomes) if measure.name == name)


def evidence_of(*tosses: tuple[float, bool]) -> float:
    evidence = Evidence()
    for toss, happened in tosses:
        evidence.add(toss, happened)
    return evidence.value


def counts(measure: Measure) -> tuple[int, int, int, int]:
    there, direct = measure.namespace, measure.direct
    return len(there.hit), len(there.apps), len(direct.hit), len(direct.apps)


def test_an_app_that_fails_all_day_is_one() -> None:
    failure = seen("failure", *[build("a", "namespace", result="failed")] * 50, build("b", "direct"))
    assert counts(failure) == (1, 1, 0, 1)
    assert failure.evidence.value == pytest.approx(evidence_of((0.1, True)))


def test_a_failure_counts_however_late_in_an_apps_life_it_comes() -> None:
    """What only a second build breaks on, from its cache, is in no first build."""
    failure = seen("failure", *[build("a", "namespace")] * 9, build("a", "namespace", result="failed"))
    assert failure.evidence.value == pytest.approx(evidence_of((0.1, True)))


def test_an_app_seen_direct_can_only_be_among_those_the_share_has_grown_by() -> None:
    failure = seen(
        "failure",
        build("a", "direct", 0.1, "failed"),
        build("a", "direct", 0.1, "failed"),
        build("a", "namespace", 0.25, "failed"),
        build("a", "namespace", 0.5, "failed"),
    )
    assert failure.evidence.value == pytest.approx(evidence_of((0.1, False), (chance(0.25, 0.1), True)))
    assert counts(failure) == (1, 1, 1, 1)


def test_a_share_that_has_shrunk_tells_nothing_of_an_app_that_was_counted() -> None:
    failure = seen("failure", build("a", "namespace", 0.25, "failed"), build("a", "direct", 0.01, "failed"))
    assert failure.evidence.value == pytest.approx(evidence_of((0.25, True)))


@pytest.mark.parametrize("share", [None, 0.0, 1.0])
def test_where_the_bucket_had_no_say_there_is_no_coin(share: float | None) -> None:
    failure = seen("failure", *[build(str(one), "namespace", share, "failed") for one in range(20)])
    assert failure.evidence.value == 1
    assert counts(failure)[:2] == (20, 20)


def test_a_fallback_and_a_rescue_that_gave_a_slug_are_no_failures() -> None:
    outcomes = [
        build("a", "namespace", result="fallback", exit_code=0, arm="direct"),
        build("b", "namespace", result="rescued", exit_code=0, arm="direct"),
        build("c", "namespace", result="fallback", exit_code=1, arm="direct"),
    ]
    assert list(seen("failure", *outcomes).namespace.hit) == ["c"]
    assert list(seen("rescue", *outcomes).namespace.hit) == ["b"]
    assert list(seen("fallback", *outcomes).namespace.hit) == ["a", "c"]


def test_a_tolerated_thing_is_held_against_its_share_of_all_builds() -> None:
    rescue = seen("rescue", build("a", "namespace"), build("a", "namespace", result="rescued"), build("b", "direct"))
    assert rescue.evidence.value == pytest.approx(evidence_of((0.01, False), (0.01, True)))
    again = seen("rescue", *[build("a", "namespace", result="rescued")] * 5)
    assert again.evidence.value == pytest.approx(evidence_of((0.01, True)))


def test_what_nobody_has_looked_at_is_not_counted() -> None:
    leaks = seen("leaks", build("a", "namespace"), build("b", "namespace", leaks=2), build("c", "direct", leaks=0))
    assert counts(leaks) == (1, 1, 0, 1)
    boot = seen("boot", build("a", "namespace"), build("b", "namespace", boot="failed"), build("c", "direct"))
    assert counts(boot) == (1, 1, 0, 0)


def grown(*steps: tuple[str, float, float]) -> tuple[int, int, int, int]:
    return counts(seen("duration", *[build("a", path, share, seconds=seconds) for path, share, seconds in steps]))


def test_a_duration_is_compared_with_the_apps_own_from_before_the_share_grew() -> None:
    """The first build after is left out for both arms: that of the namespace has no cache."""
    before = ("direct", 0.0, 10.0)
    assert grown(before, ("namespace", 0.1, 99.0)) == (0, 0, 0, 0)
    assert grown(before, ("namespace", 0.1, 99.0), ("namespace", 0.1, 11.1)) == (1, 1, 0, 0)
    assert grown(before, ("namespace", 0.1, 99.0), ("namespace", 0.1, 10.9)) == (0, 1, 0, 0)
    assert grown(before, ("direct", 0.1, 99.0), ("direct", 0.1, 10.1)) == (0, 0, 1, 1)
    assert grown(before, ("direct", 0.1, 99.0), ("direct", 0.1, 9.9)) == (0, 0, 0, 1)
    assert grown(("namespace", 0.1, 10.0), *[("namespace", 0.1, 99.0)] * 5) == (0, 0, 0, 0)
    assert grown(before, *[("namespace", 0.1, 99.0)] * 5) == (1, 1, 0, 0)


def test_a_duration_has_the_chance_of_an_app_that_was_direct_before() -> None:
    duration = seen("duration", *[build("a", "direct", 0.1)] * 2, *[build("a", "namespace", 0.25, seconds=20.0)] * 2)
    assert duration.evidence.value == pytest.approx(evidence_of((chance(0.25, 0.1), True)))


def test_a_slug_is_compared_by_its_size() -> None:
    assert counts(seen("size", build("a", "direct", 0.0), *[build("a", "namespace", slug_bytes=1101)] * 2))[:2] == (
        1,
        1,
    )
    assert counts(seen("size", build("a", "direct", 0.0), *[build("a", "namespace", slug_bytes=1100)] * 2))[:2] == (
        0,
        1,
    )


def pair(app: str, shipped: str, candidate: str) -> Sequence[Outcome]:
    first = build(app, "shadow", None, shipped, arm="direct")
    return first, build(app, "shadow", None, candidate, arm="namespace", shadow=True)


def test_of_shadow_pairs_those_that_differ_are_even_coins_one_an_app() -> None:
    outcomes = [
        *pair("a", "succeeded", "same"),
        *pair("b", "succeeded", "failed"),
        *pair("b", "succeeded", "failed"),
        *pair("c", "failed", "different"),
        *pair("d", "failed", "failed"),
        *pair("e", "succeeded", "timed out"),
        *pair("f", "succeeded", "crashed"),
    ]
    shadow = seen("shadow", *outcomes)
    assert counts(shadow) == (1, 5, 1, 5)
    assert shadow.evidence.value == pytest.approx(evidence_of((0.5, True), (0.5, False)))
    assert counts(seen("failure", *outcomes)) == (0, 0, 2, 6)


def test_whatever_the_path_makes_no_difference_to_is_an_even_bet() -> None:
    """The guarantee, with every rule above at once: what happens to each app is written down, and only its bucket is
    drawn. The mean evidence over all buckets of 4 apps in 4 places is 1, whatever they do and whatever the shares.
    """
    shares = (0.0, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.25, 0.75, 0.75)
    for seed in range(6):
        toss = random.Random(seed)
        fate = [(share, app, toss.random() < 0.4, toss.choice((8, 10, 12))) for share in shares for app in range(4)]
        totals: dict[str, float] = {}
        for buckets in product((0.0, 0.25, 0.5, 0.75), repeat=4):
            outcomes = []
            for share, app, fails, seconds in fate:
                path = "namespace" if buckets[app] < share else "direct"
                slower = seconds * (1.1 if path == "namespace" else 1)
                more = {"leaks": int(fails), "buildpacks": (("a",), ("a", "b"), ("b",), ("c",))[app]}
                outcomes.append(
                    build(str(app), path, share, "failed" if fails else "succeeded", seconds=slower, **more)
                )
            for measure in measured(outcomes):
                totals[measure.name] = totals.get(measure.name, 0.0) + measure.strength()[0] / 4**4
        for name in ("failure", "buildpack", "leaks", "duration"):
            assert totals[name] == pytest.approx(1, rel=1e-9), (name, seed)


def test_every_measure_has_a_name_of_its_own() -> None:
    assert len({measure.name for measure in measures()}) == 9
