"""One decision on its way: what was decided, what came of it, and where both are written down."""

from __future__ import annotations

import contextlib
import os

from nsbuild.rollout.kill import killed
from nsbuild.sandbox.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from nsbuild.rollout.decision import Decided
    from nsbuild.rollout.ledger import Ledger


class Asked(Value):
    """What `--rollout` and the options beside it say.

    `attributes` are the words of `--attr`, `path` overrides the flags, `shadow_timeout` is in seconds.
    """

    flags: str
    app: str
    attributes: tuple[str, ...] = ()
    path: str = ""
    rescue: bool = False
    shadow_timeout: float = 1800.0


class Noted:
    """The decision for this build, made and in the ledger; its outcomes go there with `outcome`.

    `told` is what a record says of it. Where the kill switch is thrown that is all: nothing is imported, read or
    written, so nothing that is wrong with a rollout can cost a build anything. `say` gets a sentence when a person
    should know something.
    """

    def __init__(
        self, asked: Asked, attributes: Mapping[str, Any], say: Callable[[str], None], told: dict[str, Any]
    ) -> None:
        """Raises UsageError for an app, attribute or path that is none."""
        self._say = say
        self._decided: Decided | None = None
        self.told = told
        self.path = "direct"
        if why := killed(asked.flags):
            told |= {"app": asked.app, "path": self.path, "reason": "kill", "problem": f"{why}."}
        else:
            self._decide(asked, attributes)

    @property
    def reason(self) -> str:
        """Why it was decided so, a clause for people."""
        return f"the rollout's decision ({self.told['reason']})"

    def _decide(self, asked: Asked, attributes: Mapping[str, Any]) -> None:
        from nsbuild.rollout.decide import attributes_of
        from nsbuild.rollout.source import choose

        attributes = {**attributes, **attributes_of(asked.attributes)}
        ledger, state = _ledger(self._say)
        decision = choose(asked.flags, asked.app, attributes, override=asked.path, state=state)
        self.path = decision.path
        if decision.problem:
            self._say(f"rollout: {decision.problem}")
        self._decided = ledger.decided(decision)
        self.told |= {
            "decision": self._decided.id,
            "app": decision.app,
            "path": decision.path,
            "reason": decision.reason,
            "rule": decision.rule,
            "bucket": decision.bucket,
            "flags": decision.flags,
            "problem": decision.problem,
        }

    def outcome(self, arm: str, result: str, *, started: float, seconds: float, **more: Any) -> None:
        """How the build that was shipped went, for the ledger, which never makes this raise, and what is told."""
        self.told["result"] = result
        self.told |= {name: value for name, value in more.items() if name != "diff"}
        if self._decided is not None:
            made = self._decided.outcome(arm, result, started=started, seconds=seconds, **more)
            _ledger(self._say)[0].record(made)

    def as_plain(self) -> dict[str, Any]:
        """The decision for another process, as `candidate_outcome` takes it."""
        from dataclasses import asdict

        assert self._decided is not None
        return asdict(self._decided)


CANDIDATES = "candidates"
_KEPT = 200


def record_candidate(decided: Mapping[str, Any], result: str, told: str = "", **more: Any) -> None:
    """A candidate's row, by the process that has built it; and what is `told` of it, for people, in a file.

    The file is called by the decision's id; the newest 200 are kept. Never raises for the ledger's sake.
    """
    from nsbuild.rollout.decision import Decided

    known = Decided(**{**decided, "buildpacks": tuple(decided["buildpacks"])})
    ledger, state = _ledger(lambda sentence: None)
    made = known.outcome("namespace", result, shadow=True, **more)
    ledger.record(made)
    if told and state is not None:
        directory = state / CANDIDATES
        head = f"{made.app}: {result}, exit {made.exit_code}{f', {made.fallback}' if made.fallback else ''}\n"
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, exist_ok=True)
            (directory / f"{known.id}.txt").write_text(head + told, encoding="utf-8", errors="backslashreplace")
            for old in sorted(directory.iterdir(), key=lambda path: -path.lstat().st_mtime)[_KEPT:]:
                old.unlink()


def _ledger(say: Callable[[str], None]) -> tuple[Ledger, Path | None]:
    """The ledger, and the directory of it and of the last good flags; None where that cannot be used."""
    from pathlib import Path

    from nsbuild.rollout.ledger import Ledger, state_directory

    try:
        state = state_directory()
    except OSError as error:
        return Ledger(Path(error.filename or os.devnull), say), None  # which says what it loses
    return Ledger(state, say), state
