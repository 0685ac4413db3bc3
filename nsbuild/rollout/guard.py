"""The guard: whether the namespace does worse than the direct path, as far as the ledger can tell. Pure.

`judge` reads outcomes and answers; nothing happens by it. `nsbuild.rollout.check` does what follows from the answer.
The statistic, its guarantee and what it takes for granted: docs/decisions/guard.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from nsbuild.printable import printable
from nsbuild.rollout.decision import Outcome
from nsbuild.rollout.measures import Arm, Compared, Measure, measured

ALPHA = 0.01
"""The chance that builds which the path makes no difference to are ever stopped for `failure`, and the same for all
the other measures together."""
ASSURED = 20.0
"""The evidence against "twice the failures" from which on the guard says `passing`."""
CAP = 5
"""So many apps broken, and half of those that the namespace has built, stop it whatever the evidence."""
_BREAKS = ("failure", "rescue", "boot")
_SHOWN = 5


class State(StrEnum):
    """`inconclusive` waits for a person, or for more builds."""

    PASSING = "passing"
    FAILING = "failing"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Count:
    """Distinct apps: with how many it happened, of how many that were looked at."""

    hit: int
    apps: int

    def __str__(self) -> str:
        share = f" ({self.hit / self.apps:.1%})" if self.apps else ""
        return f"{self.hit:,} of {self.apps:,} apps{share}"


@dataclass(frozen=True)
class Finding:
    """One measure: `evidence` is the highest that it has been, `now` what it is, `halts` where it stops the rollout.

    `apps` are the latest in the namespace with which it happened, as `app (id of its decision)`; `common` is what
    they have in common: a buildpack, a host or a stack, each with how many of them.
    """

    measure: str
    about: str
    failing: bool
    evidence: float
    now: float
    halts: float
    namespace: Count
    direct: Count | None
    problem: str = ""
    apps: tuple[str, ...] = ()
    common: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """`reasons` say why, a sentence each; `relief` is the evidence against twice the failures."""

    state: State
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]
    builds: int
    relief: float

    def as_text(self) -> Iterator[str]:
        """What a person reads at three in the morning: the verdict, why, who is hit, then every measure."""
        yield f"{self.state}: {self.reasons[0]}"
        yield from (f"  {reason}" for reason in self.reasons[1:])
        for finding in self._why():
            yield ""
            yield f"{finding.measure}: {finding.about}"
            yield from _evidence(finding)
        yield ""
        yield f"{'measure':9} {'namespace':26} {'direct':26} {'evidence':>12} {'halts at':>9}"
        for finding in self.findings:
            direct = "-" if finding.direct is None else str(finding.direct)
            evidence = finding.problem or f"{ratio(finding.evidence):>12} {ratio(finding.halts):>9}"
            yield f"{finding.measure:9} {finding.namespace!s:26} {direct:26} {evidence}"
        yield f"{self.builds:,} builds looked at; apps are counted once each."

    def _why(self) -> list[Finding]:
        """Those that stop it; those that have counted, where the cap alone does."""
        failing = [finding for finding in self.findings if finding.failing]
        if failing or self.state is not State.FAILING:
            return failing
        return [finding for finding in self.findings if finding.measure in _BREAKS and finding.namespace.hit]


def judge(outcomes: Iterable[Outcome], cap: int = CAP) -> Verdict:
    """What these outcomes, in the ledger's order, say about the namespace. `cap` 0 is no cap."""
    seen: list[Outcome] = list(outcomes)
    found = measured(seen)
    findings = tuple(_finding(measure, len(found) - 1, _problem(measure, found[0])) for measure in found)
    capped = _capped(found, cap)
    failing = [finding for finding in findings if finding.failing]
    relief = found[0].relief.highest
    state, reasons = State.FAILING, [_sentence(finding) for finding in failing] + capped
    if not reasons:
        state, reasons = _waiting(found[0], findings)
    return Verdict(state, tuple(reasons), findings, sum(not one.shadow for one in seen), relief)


def _waiting(failure: Measure, findings: tuple[Finding, ...]) -> tuple[State, list[str]]:
    leaning = [finding for finding in findings if not finding.problem and finding.now >= finding.halts / 10]
    if leaning:
        return State.INCONCLUSIVE, [f"not enough to halt, too much to go on: {_sentence(one)}" for one in leaning]
    if failure.relief.highest >= ASSURED:
        sure = f"evidence {ratio(failure.relief.highest)}, {ratio(ASSURED)} is asked"
        return State.PASSING, [f"the namespace does not fail twice as often as the direct path ({sure})."]
    count = len(failure.namespace.apps)
    sure = f"evidence {ratio(failure.relief.highest)} of {ratio(ASSURED)}"
    return State.INCONCLUSIVE, [
        f"too few builds to say that the namespace does not fail twice as often ({sure}): {count:,} apps there."
    ]


def _capped(found: list[Measure], cap: int) -> list[str]:
    broken = {app for measure in found if measure.name in _BREAKS for app in measure.namespace.hit}
    built = {app for measure in found if measure.name in _BREAKS for app in measure.namespace.apps}
    if not cap or len(broken) < cap or 2 * len(broken) < len(built):
        return []
    return [f"{len(broken)} of the {len(built)} apps that the namespace has built are broken; the cap is {cap}."]


def _problem(measure: Measure, failure: Measure) -> str:
    """Why the arms of this one cannot be compared; empty when they can. Both must be looked at alike."""
    if type(measure) is not Compared or not measure.namespace.apps:
        return ""
    looked = len(measure.namespace.apps) / max(len(failure.namespace.apps), 1)
    beside = len(measure.direct.apps) / max(len(failure.direct.apps), 1)
    return "" if 2 * beside >= looked else "not compared: direct builds are not looked at"


def _finding(measure: Measure, others: int, problem: str) -> Finding:
    halts = 1 / ALPHA if measure.name == "failure" else others / ALPHA
    now, evidence = measure.strength()
    hit = list(measure.namespace.hit.values())
    return Finding(
        measure.name,
        printable(measure.about),
        evidence >= halts and not problem,
        evidence,
        now,
        halts,
        _count(measure.namespace),
        _count(measure.direct) if measure.direct.apps else None,
        problem,
        tuple(f"{printable(one.app)} ({printable(one.decision)})" for one in hit[: -_SHOWN - 1 : -1]),
        tuple(_common(hit)),
    )


def _count(arm: Arm) -> Count:
    return Count(len(arm.hit), len(arm.apps))


def _common(hit: list[Outcome]) -> Iterator[str]:
    """The commonest buildpack, host and stack."""
    counts = (
        ("buildpack", Counter(name for one in hit for name in dict.fromkeys(one.buildpacks))),
        ("host", Counter(one.host for one in hit if one.host)),
        ("stack", Counter(one.stack for one in hit if one.stack)),
        ("reason", Counter(one.fallback for one in hit if one.fallback)),
    )
    for what, counter in counts:
        for name, count in counter.most_common(1):
            yield f"{count} of {len(hit)} have {what} {printable(name)}"


def _sentence(finding: Finding) -> str:
    beside = f", {finding.direct} direct" if finding.direct is not None else ""
    return f"{finding.measure} ({finding.about}): {finding.namespace} in the namespace{beside}."


def _evidence(finding: Finding) -> Iterator[str]:
    yield f"  namespace  {finding.namespace}"
    if finding.direct is not None:
        yield f"  direct     {finding.direct}"
    yield f"  evidence   {ratio(finding.evidence)} that it is the namespace; it halts at {ratio(finding.halts)}"
    yield from (f"  common     {line}" for line in finding.common)
    yield f"  latest     {', '.join(finding.apps)}"


def ratio(evidence: float) -> str:
    """As people bet."""
    return f"{evidence:,.0f} : 1" if evidence < 1e6 else f"{evidence:.0e} : 1"
