"""What the guard's statistic costs and gives: false halts under no difference, and builds until a regression stops.

Started by `scripts/bench guard` in an installed copy. Every build is another app's; a coin with the chance of the
share puts it into the namespace. Beside the guard, Fisher's exact test (one-sided) at the same level: at ten looks
planned in advance, and at every failure as a person does who watches.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from math import exp, lgamma

from nsbuild.rollout.decision import DIRECT, FAILED, NAMESPACE, SUCCEEDED, Outcome
from nsbuild.rollout.evidence import Evidence
from nsbuild.rollout.guard import ALPHA, State, judge

DIRECT_FAILS = 0.03
LOOKS = 10
STAGES = (0.0, 0.01, 0.05, 0.25)
Run = tuple[int, list[tuple[int, int, int, bool]]]
"""Builds in all; and of every failure the builds so far, those in the namespace, and whether it was there."""


def run(seed: int, share: float, fails: float, builds: int) -> Run:
    """One rollout at one share; `fails` is the chance in the namespace."""
    toss = random.Random(seed).random
    namespace, failures = 0, []
    for number in range(1, builds + 1):
        inside = toss() < share
        namespace += inside
        if toss() < (fails if inside else DIRECT_FAILS):
            failures.append((number, number - namespace, namespace, inside))
    return builds, failures


def guard(run: Run, share: float) -> int | None:
    """At which build the guard's measure of failures halts, if it does."""
    evidence = Evidence()
    for number, _direct, _namespace, inside in run[1]:
        evidence.add(share, inside)
        if evidence.highest >= 1 / ALPHA:
            return number
    return None


def watched(run: Run, share: float) -> int | None:
    """At which build somebody halts who looks at Fisher's test at every failure."""
    failures = 0
    for count, (number, direct, namespace, inside) in enumerate(run[1], 1):
        failures += inside
        if inside and fisher(direct, namespace, count, failures) <= ALPHA:
            return number
    return None


def planned(run: Run, share: float, level: float = ALPHA / LOOKS) -> int | None:
    """The same, at ten looks and at a tenth of the level each."""
    builds, failures = run
    for look in range(1, LOOKS + 1):
        number = builds * look // LOOKS
        before = [failure for failure in failures if failure[0] <= number]
        if not before:
            continue
        namespace = before[-1][2]
        if fisher(number - namespace, namespace, len(before), sum(failure[3] for failure in before)) <= level:
            return number
    return None


def fisher(direct: int, namespace: int, failures: int, inside: int) -> float:
    """The chance that so many or more of the failures are in the namespace, if the path makes no difference."""

    def choose(n: int, k: int) -> float:
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    whole = choose(direct + namespace, failures)
    most = min(failures, namespace)
    return sum(
        exp(choose(namespace, k) + choose(direct, failures - k) - whole)
        for k in range(inside, most + 1)
        if failures - k <= direct
    )


METHODS: dict[str, Callable[[Run, float], int | None]] = {
    "guard, every build": guard,
    f"Fisher, {LOOKS} looks": planned,
    "Fisher, every failure": watched,
}


def fleet(seed: int, builds: int) -> Iterator[Outcome]:
    """A fleet to which the path makes no difference, with all that the guard measures."""
    chance = random.Random(seed)
    buckets = [chance.random() for _ in range(builds // 4)]
    for number in range(builds):
        share = STAGES[len(STAGES) * number // builds]
        app = min(int(chance.expovariate(3 / len(buckets))), len(buckets) - 1)
        inside = buckets[app] < share
        yield Outcome(
            id=str(number),
            decision=str(number),
            app=str(app),
            path=NAMESPACE if inside else DIRECT,
            arm=NAMESPACE if inside else DIRECT,
            result=FAILED if chance.random() < DIRECT_FAILS else SUCCEEDED,
            started=number,
            seconds=chance.lognormvariate(3, 0.2) * (1.1 if inside else 1),
            slug_bytes=int(1e6 * chance.lognormvariate(3, 0.02)),
            leaks=int(chance.random() < 0.02),
            boot="failed" if chance.random() < 0.02 else "passed",
            share=share,
        )


def table(runs: int, builds: int) -> None:
    print(f"{runs} rollouts a row, {DIRECT_FAILS:.0%} of direct builds fail, alpha {ALPHA}")
    print(f"no difference, {builds:,} builds each: how many of the rollouts are stopped")
    print(f"  {'share':>6}" + "".join(f"{name:>24}" for name in METHODS))
    for share in (0.01, 0.1, 0.5):
        made = [run(seed, share, DIRECT_FAILS, builds) for seed in range(runs)]
        halts = [sum(method(one, share) is not None for one in made) / runs for method in METHODS.values()]
        print(f"  {share:6.0%}" + "".join(f"{halted:24.2%}" for halted in halts))
    for fails in (0.09, 0.30):
        print(f"{DIRECT_FAILS:.0%} -> {fails:.0%}: median builds until it is stopped (of them in the namespace)")
        print(f"  {'share':>6}" + "".join(f"{name:>24}" for name in list(METHODS)[:2]))
        for share in (0.01, 0.05, 0.1, 0.25, 0.5):
            print(f"  {share:6.0%}" + "".join(f"{text:>24}" for text in medians(runs, builds, share, fails)))


def medians(runs: int, builds: int, share: float, fails: float) -> Iterator[str]:
    made = [run(seed, share, fails, builds) for seed in range(runs)]
    for method in list(METHODS.values())[:2]:
        stopped = [method(one, share) or float("inf") for one in made]
        median = statistics.median(stopped)
        missed = sum(one == float("inf") for one in stopped) / runs
        yield (f"{median:,.0f} ({median * share:,.0f})" if median < float("inf") else "never") + (
            f" {missed:.0%} missed" if missed > 0.005 else ""
        )


def whole(runs: int, builds: int) -> None:
    """The guard as it is, with all its measures and its cap."""
    verdicts = [judge(fleet(seed, builds)) for seed in range(runs)]
    halts = sum(verdict.state is State.FAILING for verdict in verdicts) / runs
    passing = sum(verdict.state is State.PASSING for verdict in verdicts) / runs
    print(f"the whole guard (every measure, the cap), no difference, {builds:,} builds of {builds // 4:,} apps")
    shares = ", ".join(f"{share:.0%}" for share in STAGES)
    print(f"  through {shares}: {halts:.2%} stopped (bound {2 * ALPHA:.0%}), {passing:.0%} passing at the end")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--builds", type=int, default=20000, help="of one rollout")
    given = parser.parse_args()
    began = time.monotonic()
    table(given.runs, given.builds)
    whole(given.runs, 3000)
    print(f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
