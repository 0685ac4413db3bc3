"""What the guard measures: which builds are coins, and what chance heads has if the namespace is no worse.

Apps are counted, not builds: one that fails all day is one app. docs/decisions/guard.md says why each rule is what
it is. Outcomes come in the ledger's order; a candidate's (`shadow`) comes after that of the build it shadows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nsbuild.rollout.decision import FAILED, FALLBACK, NAMESPACE, RESCUED, SKIPPED, SUCCEEDED, TIMED_OUT, Outcome
from nsbuild.rollout.evidence import Evidence, raised

SLACK = 1.1
"""The namespace may take so many times as long, and its slugs be so many times as large."""
DOUBLED = 2.0
"""What the guard shows not to be so before it says `passing`: that many times the failures."""
RESCUES, FALLBACKS = 0.01, 0.05
"""The tolerated chance of a build's. Only the namespace has them, so there is nothing to compare with."""


@dataclass
class Arm:
    """Distinct apps: all that were looked at, and those with whom it happened, in the order in which it did."""

    apps: set[str] = field(default_factory=set)
    hit: dict[str, Outcome] = field(default_factory=dict)

    def see(self, outcome: Outcome, hit: bool) -> None:
        self.apps.add(outcome.app)
        if hit:
            self.hit.setdefault(outcome.app, outcome)


class Measure:
    """One question about the namespace. `evidence` speaks against it, and `relief` against "twice as bad"."""

    def __init__(self, name: str, about: str) -> None:
        self.name, self.about = name, about
        self.namespace, self.direct = Arm(), Arm()
        self.evidence, self.relief = Evidence(), Evidence()

    def see(self, outcome: Outcome) -> None:
        """Take the next outcome of the ledger into account."""
        raise NotImplementedError

    def strength(self) -> tuple[float, float]:
        """The evidence: what it is now, and the highest that it has been."""
        return self.evidence.value, self.evidence.highest

    def toss(self, chance: float, namespace: bool) -> None:
        """It has happened with an app: in the namespace, of which the chance was this if the path changes nothing."""
        self.evidence.add(chance, namespace)
        self.relief.add(1 - raised(chance, DOUBLED), not namespace)


class Compared(Measure):
    """Both arms: it happened, and the coin is in which. The app's bucket has tossed it, so nothing need be known of
    how often it happens, nor of what else happens at the time.

    `hit` answers whether it happened with a build, or None where nobody looked.
    """

    def __init__(self, name: str, about: str, hit: Callable[[Outcome], bool | None]) -> None:
        super().__init__(name, about)
        self._hit = hit
        self._floors: dict[str, float] = {}

    def see(self, outcome: Outcome) -> None:
        hit = None if outcome.shadow else self._hit(outcome)
        if hit is None:
            return
        namespace = outcome.path == NAMESPACE
        (self.namespace if namespace else self.direct).see(outcome, hit)
        if hit and outcome.share is not None:
            floor = self._floors.get(outcome.app, 0.0)
            if outcome.share > floor:
                self.toss(chance(outcome.share, floor), namespace)
                self._floors[outcome.app] = 1.0 if namespace else outcome.share


class Each(Compared):
    """The same, for every buildpack by itself: the mean of their evidence, which is evidence again.

    A bad buildpack that few apps have is lost among the failures of all. Weights fall with the order in which
    buildpacks turn up, 1/2, 1/6, 1/12 ..., of which the sum is 1 however many there will be.
    """

    def __init__(self, name: str, about: str, hit: Callable[[Outcome], bool | None]) -> None:
        super().__init__(name, about, hit)
        self._parts: dict[str, Compared] = {}
        self._weights: dict[str, float] = {}
        self._highest = 1.0

    def see(self, outcome: Outcome) -> None:
        for buildpack in dict.fromkeys(outcome.buildpacks):
            if buildpack not in self._parts:
                place = len(self._parts) + 1
                self._parts[buildpack] = Compared(buildpack, self.about, self._hit)
                self._weights[buildpack] = 1 / (place * (place + 1))
            part = self._parts[buildpack]
            before = part.evidence.value
            part.see(outcome)
            if part.evidence.value > before:
                self._look()

    def _look(self) -> None:
        self._highest = max(self._highest, self._now())
        worst = max(self._parts.values(), key=lambda part: self._weights[part.name] * part.evidence.value)
        self.about = f"builds that fail, of {worst.name}"
        self.namespace, self.direct = worst.namespace, worst.direct

    def strength(self) -> tuple[float, float]:
        return self._now(), self._highest

    def _now(self) -> float:
        """The weight of those that have not turned up yet stays at stake."""
        rest = 1 / (len(self._parts) + 1)
        return rest + sum(self._weights[name] * part.evidence.value for name, part in self._parts.items())


class Grown(Measure):
    """Both arms, each build beside the app's own last direct one of before the share grew, by a size or a duration.

    The first build after it grew is left out for both arms: in the namespace it begins without a cache.
    """

    def __init__(self, name: str, about: str, size: Callable[[Outcome], float | None]) -> None:
        super().__init__(name, about)
        self._size = size
        self._before: dict[str, tuple[float, float]] = {}
        self._first: dict[str, float] = {}
        self._floors: dict[str, float] = {}

    def see(self, outcome: Outcome) -> None:
        app, share, namespace = outcome.app, outcome.share, outcome.path == NAMESPACE
        size = None if outcome.shadow or outcome.result != SUCCEEDED else self._size(outcome)
        if not size or share is None:
            return
        before, at = self._before.get(app, (0.0, 1.0))
        floor = max(at, self._floors.get(app, 0.0))
        if share > floor:
            if self._first.get(app) != share:
                self._first[app] = share
                return
            hit = size > before * (SLACK if namespace else 1)
            (self.namespace if namespace else self.direct).see(outcome, hit)
            if hit:
                self.toss(chance(share, floor), namespace)
            self._floors[app] = 1.0 if namespace else share
        if not namespace:
            self._before[app] = (size, share)


class Tolerated(Measure):
    """The namespace alone: each build is a coin whose heads may come up so often. An app is out after its first."""

    def __init__(self, name: str, about: str, hit: Callable[[Outcome], bool], tolerated: float) -> None:
        super().__init__(name, about)
        self._hit = hit
        self.tolerated = tolerated

    def see(self, outcome: Outcome) -> None:
        if outcome.shadow or outcome.path != NAMESPACE or outcome.app in self.namespace.hit:
            return
        hit = self._hit(outcome)
        self.namespace.see(outcome, hit)
        self.evidence.add(self.tolerated, hit)


class Paired(Measure):
    """Shadow pairs, as McNemar counts them: an app's first pair of which one failed, and a coin for which one."""

    def __init__(self, name: str, about: str) -> None:
        super().__init__(name, about)
        self._shipped: dict[str, bool] = {}

    def see(self, outcome: Outcome) -> None:
        if not outcome.shadow:
            if outcome.path == "shadow":
                self._shipped[outcome.decision] = failed(outcome)
            return
        shipped_failed = self._shipped.pop(outcome.decision, None)
        if shipped_failed is None or outcome.result in (TIMED_OUT, SKIPPED):
            return
        candidate_failed = outcome.result == FAILED
        counted = outcome.app in self.namespace.hit or outcome.app in self.direct.hit
        self.namespace.see(outcome, candidate_failed and not shipped_failed)
        self.direct.see(outcome, shipped_failed and not candidate_failed)
        if candidate_failed != shipped_failed and not counted:
            self.toss(0.5, candidate_failed)


def chance(share: float, floor: float) -> float:
    """That an app is in the namespace now, which was seen direct at the share `floor`: its bucket is not below it."""
    return (share - floor) / (1 - floor)


def failed(outcome: Outcome) -> bool:
    """Whether the user got no slug."""
    return outcome.result == FAILED or (outcome.result == FALLBACK and outcome.exit_code != 0)


def measures() -> list[Measure]:
    """All of them, fresh: failure, and the others."""
    return [
        Compared("failure", "builds that fail", failed),
        Each("buildpack", "builds that fail, of one buildpack", failed),
        Tolerated("rescue", "failed in the namespace, succeeded direct", lambda one: one.result == RESCUED, RESCUES),
        Tolerated("fallback", "the namespace was refused", lambda one: one.result == FALLBACK, FALLBACKS),
        Compared("leaks", "slugs with a path that breaks", lambda one: None if one.leaks is None else one.leaks > 0),
        Compared("boot", "slugs that do not boot", lambda one: one.boot == "failed" if one.boot else None),
        Grown("duration", f"slower than {SLACK} x direct", lambda one: one.seconds),
        Grown("size", f"slugs larger than {SLACK} x direct", lambda one: one.slug_bytes),
        Paired("shadow", "fails in the namespace only, built both ways"),
    ]


def measured(outcomes: Iterable[Outcome]) -> list[Measure]:
    """All of them, having seen these."""
    found = measures()
    for outcome in outcomes:
        for measure in found:
            measure.see(outcome)
    return found
