"""What was decided for a build, and how the build went: the values that the rest of the room hands around."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nsbuild

DIRECT, SHADOW, NAMESPACE = "direct", "shadow", "namespace"
PATHS = (DIRECT, SHADOW, NAMESPACE)
"""`direct`: the builder's path of today. `shadow`: ship direct, build in the namespace too, compare. `namespace`."""

REASONS = ("kill", "override", "deny", "allow", "rule", "percentage", "off", "trouble")
"""What settled it, in the order of precedence. `trouble`: no flags could be read or evaluated: direct."""

SUCCEEDED, FAILED, FALLBACK, RESCUED = "succeeded", "failed", "fallback", "rescued"
SAME, DIFFERENT, CRASHED, TIMED_OUT, SKIPPED = "same", "different", "crashed", "timed out", "skipped"
SHIPPED_RESULTS = (SUCCEEDED, FAILED, FALLBACK, RESCUED)
SHADOW_RESULTS = (SAME, DIFFERENT, FAILED, CRASHED, TIMED_OUT, SKIPPED)
BOOTS = ("", "passed", "failed")
HALTED, RESUMED = "halted", "resumed"


@dataclass(frozen=True)
class Step:
    """One question of the chain, as `explain` prints it: `answer` is a path, or empty for "ask the next"."""

    name: str
    answer: str
    why: str


@dataclass(frozen=True)
class Settled:
    """What was decided for an app, and by what. `path` is one of PATHS, `reason` one of REASONS.

    `rule` is the variant that the rules gave, empty but for the reason `rule`. `bucket` is the app's, 0 to 9999, None
    where no flags were read. `flags` is the digest of the flags file that counted, `sha256:...`, empty without one.
    `share` is the chance, 0 to 1, that this decision gave the namespace to an app whose bucket is not known: the
    percentage in force. The guard compares by it. None where the bucket had no say.
    `problem` is a sentence about the flags, empty when all is well.
    """

    app: str
    path: str
    reason: str
    rule: str = ""
    bucket: int | None = None
    flags: str = ""
    problem: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Decision(Settled):
    """With the questions that led to it. `attributes` are strings, `buildpacks` a tuple."""

    attributes: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decided(Settled):
    """As the ledger has it. `decided` is in seconds since 1970."""

    id: str
    decided: float
    host: str = ""
    stack: str = ""
    team: str = ""
    buildpacks: tuple[str, ...] = ()
    nsbuild: str = nsbuild.__version__

    def outcome(self, arm: str, result: str, *, started: float, seconds: float, **more: Any) -> Outcome:
        """How a build of this decision went; `more` are fields of Outcome that are known."""
        return Outcome(
            id=os.urandom(16).hex(),
            decision=self.id,
            app=self.app,
            path=self.path,
            arm=arm,
            result=result,
            started=started,
            seconds=seconds,
            reason=self.reason,
            share=self.share,
            flags=self.flags,
            host=self.host,
            stack=self.stack,
            buildpacks=self.buildpacks,
            **more,
        )


@dataclass(frozen=True)
class Mark:
    """What the guard has done: `event` is HALTED or RESUMED, `at` in seconds since 1970.

    It has looked at the outcomes above the number `after`; `outcome` was the last one then.
    """

    event: str
    at: float
    after: int
    outcome: int


@dataclass(frozen=True)
class Outcome:
    """How one build went. A shadow decision has two: the shipped build's, and (`shadow`) the candidate's.

    `decision` is the id of a Decided; `path`, `reason`, `share`, `flags`, `host`, `stack` and `buildpacks` are
    repeated from it. `arm` is where the build really ran, `direct` or `namespace`: of a fallback and of a rescue it
    is `direct`.
    `started` is in seconds since 1970, `seconds` by a clock that only goes forward.

    `result` of what was shipped: `succeeded`, `failed`, `fallback` (the namespace was refused before the first byte
    of a buildpack had run, and it was built direct; `exit_code` says how that went, `fallback` why), `rescued` (it
    failed in the namespace, and succeeded direct from a pristine copy). Of a candidate: `same` or `different` (it was
    built, and the slugs compared), `failed`, `timed out`, `crashed` (built, and the comparison failed), `skipped`
    (not tried; `fallback` says why).

    `exit_code` is what the builder was given (of a candidate: its own). `namespace_exit_code` is that of the compile
    in the namespace where a rescue was tried, whether or not it helped. `leaks` are an audit's findings that break
    something, `slug_bytes` the slug's size, `diff` the changes by kind (keys: `nsbuild.audit.normal.Difference`),
    `boot` whether the slug was seen to boot (BOOTS; empty: nobody looked). None: not known.

    `seq` is the row's number in the ledger, 0 before it is there: rows are ordered by it, for clocks go backwards.
    """

    id: str
    decision: str
    app: str
    path: str
    arm: str
    result: str
    started: float
    seconds: float
    shadow: bool = False
    reason: str = ""
    exit_code: int | None = None
    namespace_exit_code: int | None = None
    fallback: str = ""
    leaks: int | None = None
    slug_bytes: int | None = None
    diff: Mapping[str, int] | None = None
    boot: str = ""
    share: float | None = None
    flags: str = ""
    host: str = ""
    stack: str = ""
    buildpacks: tuple[str, ...] = ()
    nsbuild: str = nsbuild.__version__
    seq: int = 0
