"""The guard at work: it reads the ledger, and throws the kill switch when the verdict is failing. Nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nsbuild.errors import Refused
from nsbuild.rollout.decision import HALTED, RESUMED, Mark
from nsbuild.rollout.guard import CAP, State, Verdict, judge
from nsbuild.rollout.kill import kill_file, killed
from nsbuild.rollout.ledger import Ledger
from nsbuild.tree import write_atomic


@dataclass(frozen=True)
class Checked:
    """`halted` is the kill file that was written, empty when none was; `killed` why builds go direct, if they do."""

    verdict: Verdict
    halted: str
    killed: str

    def as_text(self) -> Iterator[str]:
        """The verdict, and what has come of it."""
        yield from self.verdict.as_text()
        if self.halted:
            yield f"STOPPED: {self.halted} was written, and every build goes direct from now on."
            yield "When it is mended: nsbuild rollout set --unkill --why TEXT. The guard begins anew then."
        elif self.killed:
            yield f"Every build goes direct already: {self.killed}."


def check(ledger: Ledger, flags_file: str, *, cap: int = CAP, dry_run: bool = False) -> Checked:
    """Judge what the ledger holds since a person has last taken the kill file away, and halt when it is failing.

    Two of these at a time, or one that is killed half-way, end as one does. Raises Refused when the ledger cannot be
    read, or the kill file not be written.
    """
    marks = ledger.marks()
    # After the marks: a kill file is written before its mark; where there is none any more, a person took it away.
    why = killed(flags_file)
    if marks and marks[-1].event == HALTED and not why and not dry_run:
        ledger.mark(RESUMED, marks[-1].after, len(marks))
        marks = ledger.marks()
        why = killed(flags_file)
    after = _begin(marks, bool(why))
    verdict = judge(ledger.outcomes(after), cap)
    if verdict.state is not State.FAILING or dry_run:
        return Checked(verdict, "", why)
    halted = ""
    if not why:
        halted = kill_file(flags_file)
        try:
            write_atomic(halted, _notice(verdict).encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise Refused(
                f"The rollout is failing and was NOT stopped: {halted} cannot be written: {error.strerror}. "
                f"{verdict.reasons[0]}",
                "Stop it by hand: set NSBUILD_ROLLOUT_KILL=1 where the builders run, or write that file.",
            ) from None
    if not (marks and marks[-1].event == HALTED):
        ledger.mark(HALTED, after, len(marks))
    return Checked(verdict, halted, killed(flags_file))


def _begin(marks: Sequence[Mark], stopped: bool) -> int:
    """The number of the outcome after which to look.

    What a halt was for is still looked at while the rollout is stopped, and not when a person has let it go on; nor
    is what was under way meanwhile.
    """
    if not marks:
        return 0
    return marks[-1].after if marks[-1].event == HALTED and stopped else marks[-1].outcome


def _notice(verdict: Verdict) -> str:
    """What the kill file says to whoever finds it."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    lines = (
        f"Written by `nsbuild rollout check` at {when}. While this file is there, every build takes the direct path.",
        "To go on: nsbuild rollout set --unkill --why TEXT. The guard begins anew then.",
        "",
        *verdict.as_text(),
    )
    return "".join(f"{line}\n" for line in lines)
