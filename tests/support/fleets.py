"""A simulated fleet: apps with buildpacks, sizes and habits, builds that fail by themselves, a buildpack that is bad.

Everything of an app follows from its number, so an app is itself in whichever arm it is built.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from nsbuild.rollout.decision import (
    DIFFERENT,
    DIRECT,
    FAILED,
    FALLBACK,
    NAMESPACE,
    RESCUED,
    SAME,
    SHADOW,
    SUCCEEDED,
    Decided,
    Decision,
    Outcome,
)

BAD = "acme/assets"
BUILDPACKS = (("heroku/nodejs",), ("heroku/python",), ("heroku/ruby",), ("heroku/nodejs", "heroku/python"), (BAD,))
REFUSED = "unshare: Operation not permitted (kernel.apparmor_restrict_unprivileged_userns)"

Decide = Callable[[str, Mapping[str, str | tuple[str, ...]]], Decision]


@dataclass(frozen=True)
class App:
    name: str
    attributes: Mapping[str, str | tuple[str, ...]]
    seconds: float
    slug_bytes: int


@dataclass
class Fleet:
    """`fails` is the chance of any build, `bad_fails` that of BAD in the namespace from build `bad_from`
    on; of a hundred hosts `refusing` refuse.

    A second passes slowly: `pace` builds are made a second of the fleet's clock.
    """

    apps: int
    seed: int = 0
    fails: float = 0.03
    bad_fails: float = 0.03
    bad_from: int = 0
    refusing: int = 0
    rescue: bool = False
    began: float = 1_760_000_000.0
    pace: float = 0.05
    builds: int = 0
    _chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def app(self, number: int) -> App:
        own = random.Random(f"{self.seed} {number}")
        packs = own.choices(BUILDPACKS, (40, 30, 15, 10, 5))[0]
        attributes = {"stack": own.choice(("heroku-22", "heroku-24")), "team": f"team-{own.randrange(20)}"}
        name = f"app-{number:05}"
        return App(
            name,
            {**attributes, "buildpacks": packs},
            own.lognormvariate(3.5, 0.8),
            int(own.lognormvariate(17.5, 0.7)),
        )

    def build(self, decide: Decide) -> tuple[Decided, list[Outcome]]:
        """The next build of some app, the busy ones more often: what was decided, and how it went."""
        chance = self._chance
        number = self.builds
        self.builds += 1
        app = self.app(min(int(chance.expovariate(2.5 / self.apps)), self.apps - 1))
        host = chance.randrange(100)
        decision = decide(app.name, {**app.attributes, "host": f"builder-{host:02}"})
        when = self.began + number / self.pace
        decided = Decided(
            id=f"{number:032x}",
            app=decision.app,
            path=decision.path,
            reason=decision.reason,
            decided=when,
            bucket=decision.bucket,
            flags=decision.flags,
            share=decision.share,
            host=f"builder-{host:02}",
            stack=str(app.attributes["stack"]),
            team=str(app.attributes["team"]),
            buildpacks=tuple(app.attributes["buildpacks"]),
        )
        bad = BAD in decided.buildpacks and number >= self.bad_from
        # Drawn for both arms alike: a build that fails by itself fails in either.
        fate = chance.random()
        fails = fate < (self.bad_fails if bad and decided.path == NAMESPACE else self.fails)
        seconds = app.seconds * chance.lognormvariate(0, 0.15)
        told: dict[str, object] = {"slug_bytes": None if fails else app.slug_bytes + chance.randrange(4096)}
        result, arm = FAILED if fails else SUCCEEDED, DIRECT
        if decided.path == NAMESPACE:
            arm = NAMESPACE
            if host < self.refusing:
                result, arm, told["fallback"] = FALLBACK, DIRECT, REFUSED
            elif fails and bad and self.rescue:
                result, arm, fails, told["namespace_exit_code"] = RESCUED, DIRECT, False, 1
        shipped = decided.outcome(arm, result, started=when, seconds=seconds, exit_code=int(fails), **told)
        if decided.path != SHADOW:
            return decided, [shipped]
        differs = chance.random() < 0.02
        fails = fate < (self.bad_fails if bad else self.fails)
        result = FAILED if fails else DIFFERENT if differs else SAME
        diff = (
            {"real": 1 + chance.randrange(40), "path": chance.randrange(9)}
            if differs
            else {"path": chance.randrange(9)}
        )
        candidate = decided.outcome(
            NAMESPACE,
            result,
            started=when + seconds,
            seconds=seconds * 1.3,
            shadow=True,
            diff=None if fails else diff,
            exit_code=int(fails),
        )
        return decided, [shipped, candidate]

    def run(self, count: int, decide: Decide) -> Iterator[tuple[Decided, list[Outcome]]]:
        for _ in range(count):
            yield self.build(decide)
