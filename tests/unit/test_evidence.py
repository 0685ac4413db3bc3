"""The guard's statistic: its guarantee, by counting every row of coins there is, and which way it moves."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbuild.rollout.evidence import Evidence, raised

CHANCES = (0.01, 0.1, 0.5, 0.9)
chances = st.floats(0.0001, 0.9999)
coins = st.lists(st.tuples(chances, st.booleans()), max_size=60)


def evidence_of(*tosses: tuple[float, bool]) -> Evidence:
    evidence = Evidence()
    for chance, happened in tosses:
        evidence.add(chance, happened)
    return evidence


def expected(claimed: list[float], true: list[float]) -> float:
    """The mean of the evidence over every row of coins, each weighed by its true chance."""
    total = 0.0
    for row in product((False, True), repeat=len(claimed)):
        weight = math.prod(p if head else 1 - p for p, head in zip(true, row, strict=True))
        total += weight * evidence_of(*zip(claimed, row, strict=True)).value
    return total


@pytest.mark.parametrize("chance", CHANCES)
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_with_fair_coins_the_mean_evidence_is_one(chance: float, count: int) -> None:
    assert expected([chance] * count, [chance] * count) == pytest.approx(1, rel=1e-9)


def test_also_when_the_share_grows_on_the_way() -> None:
    shares = [0.01, 0.01, 0.05, 0.05, 0.05, 0.25, 0.25, 0.5, 0.5]
    assert expected(shares, shares) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("chance", CHANCES)
def test_with_coins_that_fall_for_the_namespace_it_is_less(chance: float) -> None:
    assert expected([chance] * 6, [chance * 0.7] * 6) < 1
    assert expected([chance] * 6, [chance**0.7] * 6) > 1


@pytest.mark.parametrize("chance", CHANCES)
@pytest.mark.parametrize("bound", [2, 5, 20])
def test_looking_at_every_toss_is_free(chance: float, bound: float) -> None:
    """The chance that the evidence is ever so high, of 12 coins, each looked at."""
    ever = 0.0
    for row in product((False, True), repeat=12):
        if evidence_of(*((chance, head) for head in row)).highest >= bound:
            ever += math.prod(chance if head else 1 - chance for head in row)
    assert ever <= 1 / bound


def test_a_coin_that_may_look_at_those_before_it_gains_nothing() -> None:
    """Ville's inequality holds for a share that is raised because of what was seen: here it follows the last toss."""

    def mean(before: list[tuple[float, bool]], count: int) -> float:
        if count == 0:
            return evidence_of(*before).value
        chance = 0.5 if before and before[-1][1] else 0.05
        heads = mean([*before, (chance, True)], count - 1)
        return chance * heads + (1 - chance) * mean([*before, (chance, False)], count - 1)

    assert mean([], 9) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(("heads", "tails"), [(0, 0), (3, 0), (0, 4), (5, 2), (9, 8)])
def test_an_even_coin_is_the_beta_binomial_mixture(heads: int, tails: int) -> None:
    """Beta(1, 1) cut to u > 1/2: its integral in closed form, by the binomial's tail. 32 parts differ by little."""
    n = heads + tails
    beta = math.factorial(heads) * math.factorial(tails) / math.factorial(n + 1)
    tail = sum(math.comb(n + 1, j) for j in range(heads + 1)) / 2 ** (n + 1)
    exact = 2 * beta * tail * 2**n
    got = evidence_of(*[(0.5, True)] * heads, *[(0.5, False)] * tails).value
    assert got == pytest.approx(exact, rel=0.01)


@given(coins, chances, st.floats(1.01, 50))
def test_a_head_is_evidence_and_the_more_so_the_less_it_was_to_be_expected(
    row: list[tuple[float, bool]], chance: float, odds: float
) -> None:
    before = evidence_of(*row)
    after = evidence_of(*row, (chance, True))
    assert after.value >= before.value
    assert evidence_of(*row, (raised(chance, odds), True)).value <= after.value * (1 + 1e-9)
    assert evidence_of(*row, (chance, False)).value <= before.value


@given(coins)
def test_the_order_does_not_change_the_evidence_and_the_highest_only_grows(row: list[tuple[float, bool]]) -> None:
    shuffled = row[:]
    random.Random(0).shuffle(shuffled)
    assert evidence_of(*shuffled).value == pytest.approx(evidence_of(*row).value, rel=1e-6)
    highest = [evidence_of(*row[:count]).highest for count in range(len(row) + 1)]
    assert highest == sorted(highest) and highest[0] == 1
    assert highest[-1] >= evidence_of(*row).value * (1 - 1e-9)


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_coin_that_can_only_fall_one_way_tells_nothing(chance: float) -> None:
    assert evidence_of((chance, True), (chance, False)).value == 1


def test_a_chance_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.2"):
        Evidence().add(1.2, True)


def test_a_thousand_heads_are_a_number() -> None:
    assert math.isfinite(evidence_of(*[(0.01, True)] * 1000).highest)
