"""How the shares have moved, and which shadows differ most: what the report draws, and `status --json` has too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from nsbuild.rollout.decision import PATHS
from nsbuild.rollout.ledger import Ledger

STRETCHES = 40
WORST = 20
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Stretch:
    """Shipped builds that follow each other in the ledger: how many by path, and how many of them failed.

    `began` is when the first of them did, in seconds since 1970. All stretches have as many builds, give or take one.
    """

    began: float
    builds: Mapping[str, int]
    failing: Mapping[str, int]


@dataclass(frozen=True)
class Different:
    """A shadow pair whose slugs differ: `real` differences, and `others` of kinds that are expected."""

    app: str
    decision: str
    real: int
    others: int


def stretches(ledger: Ledger) -> tuple[Stretch, ...]:
    """The earliest first. Raises Refused."""
    [(total,)] = ledger.query("SELECT count(*) FROM outcome WHERE NOT shadow")
    columns = ", ".join(f"total(path = '{path}'), total(path = '{path}' AND exit_code IS NOT 0)" for path in PATHS)
    rows = ledger.query(
        f"SELECT started, {columns}, min(place) FROM ("
        "SELECT started, path, exit_code, row_number() OVER (ORDER BY seq) - 1 AS place FROM outcome WHERE NOT shadow"
        ") GROUP BY place * ? / ? ORDER BY place",
        (min(STRETCHES, total), total),
    )
    return tuple(
        Stretch(
            row[0],
            {path: int(row[1 + 2 * place]) for place, path in enumerate(PATHS)},
            {path: int(row[2 + 2 * place]) for place, path in enumerate(PATHS)},
        )
        for row in rows
    )


def worst(ledger: Ledger) -> tuple[Different, ...]:
    """Those with the most real differences, an app once. Raises Refused."""
    rows = ledger.query(
        "SELECT app, decision, max(real), kinds - real FROM (SELECT app, decision, "
        "coalesce(json_extract(diff, '$.real'), 0) AS real, (SELECT total(value) FROM json_each(diff)) AS kinds "
        "FROM outcome WHERE shadow AND result = 'different') GROUP BY app ORDER BY 3 DESC, 1 LIMIT ?",
        (WORST,),
    )
    return tuple(Different(app, decision, int(real), int(others)) for app, decision, real, others in rows)


def wilson(hit: int, count: int) -> tuple[float, float] | None:
    """Wilson's bounds of a proportion, at 95 %; None where nothing was counted."""
    if not count:
        return None
    share, spread = hit / count, _Z**2 / count
    middle = share + spread / 2
    reach = _Z * sqrt((share * (1 - share) + spread / 4) / count)
    return max(0.0, (middle - reach) / (1 + spread)), min(1.0, (middle + reach) / (1 + spread))
