"""Which path a build takes (direct, shadow or namespace), how that is going, and when to stop.

The names below are imported when they are first used: a builder waits for a decision.
"""

from __future__ import annotations

from nsbuild.lazy import names_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsbuild.rollout.decide import attributes_of
    from nsbuild.rollout.decision import Decided, Decision, Outcome, Step
    from nsbuild.rollout.kill import kill_file, killed
    from nsbuild.rollout.ledger import Ledger, state_directory
    from nsbuild.rollout.source import choose

__all__ = [
    "Decided",
    "Decision",
    "Ledger",
    "Outcome",
    "Step",
    "attributes_of",
    "choose",
    "kill_file",
    "killed",
    "state_directory",
]

__getattr__ = names_of(__name__, __all__, ("kill", "decision", "source", "decide", "ledger"))
