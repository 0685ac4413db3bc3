"""How much a row of events speaks against "the namespace is no worse", so that anybody may look at any time.

docs/decisions/guard.md derives it. In short: each event is a coin whose chance is known if the namespace makes no
difference. A bettor stakes on heads; what the stake has grown to is the evidence (an e-process). With a fair coin it
reaches 100 with a chance of at most 1 in 100, however often one looks.
"""

from __future__ import annotations

import math
from functools import lru_cache

_BETTORS = 32
_ODDS = tuple(u / (1 - u) for u in (0.5 + (i + 0.5) / (2 * _BETTORS) for i in range(_BETTORS)))
"""The odds ratios that are bet on, all above 1: Beta(1, 1) over u = r / (1 + r), cut to u > 1/2, at the midpoints of
32 equal parts. With a chance of 1/2 that is the one-sided Beta-binomial mixture. A mixture of 32 bets is itself an
e-process: what the parts leave out costs evidence, never the guarantee."""
_LARGEST = 700.0
"""e to that is about as large as a float gets."""


class Evidence:
    """The stake, begun at 1. `value` is what it is now, `highest` the highest it has been."""

    def __init__(self) -> None:
        self._logs = [-math.log(_BETTORS)] * _BETTORS
        self._highest = 0.0
        self._now: float | None = 0.0

    def add(self, chance: float, happened: bool) -> None:
        """One coin: `chance` is the most that heads may have if the namespace is no worse.

        A chance of 0 or 1 tells nothing, whatever happened. Raises ValueError for one outside 0 to 1.
        """
        if not 0 <= chance <= 1:
            raise ValueError(f"a chance of {chance}")
        if chance in (0, 1):
            return
        heads, tails = _factors(chance)
        factors = heads if happened else tails
        self._logs = [log + factor for log, factor in zip(self._logs, factors, strict=True)]
        self._now = None
        if happened:
            # Only then can it have grown.
            self._highest = max(self._highest, self._log())

    @property
    def value(self) -> float:
        return math.exp(min(self._log(), _LARGEST))

    @property
    def highest(self) -> float:
        return math.exp(min(self._highest, _LARGEST))

    def _log(self) -> float:
        if self._now is None:
            top = max(self._logs)
            self._now = top + math.log(math.fsum(math.exp(log - top) for log in self._logs))
        return self._now


def raised(chance: float, odds: float) -> float:
    """That chance when its odds are so many times as large."""
    return chance * odds / (1 - chance + chance * odds)


@lru_cache(maxsize=4096)
def _factors(chance: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What heads and what tails multiply each bettor's stake by, as logarithms."""
    payoffs = [-math.log(1 - chance + chance * odds) for odds in _ODDS]
    return tuple(math.log(odds) + payoff for odds, payoff in zip(_ODDS, payoffs, strict=True)), tuple(payoffs)
