"""What the ledger says, in numbers: those of `status`, of the report and of the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nsbuild.rollout.decision import FALLBACK, PATHS, SHADOW_RESULTS, SHIPPED_RESULTS, SKIPPED
from nsbuild.rollout.history import Different, Stretch, stretches, wilson, worst
from nsbuild.rollout.ledger import Ledger


@dataclass(frozen=True)
class Shipped:
    """The builds that were shipped of one decided path. `apps` are distinct ones.

    `results` has a count for each of SHIPPED_RESULTS. A build fails by its exit code: `failing` counts fallbacks and
    rescues that ended badly too. `well` are the apps of which no build has failed, `well_bounds` Wilson's for their
    share, at 95 %. Seconds and bytes are None where no build is known; `leaking` are builds with leaks.
    """

    builds: int
    apps: int
    results: Mapping[str, int]
    failing: int
    well: int
    well_bounds: tuple[float, float] | None
    seconds_median: float | None
    seconds_p95: float | None
    slug_bytes_median: float | None
    leaking: int
    boots: Mapping[str, int]


@dataclass(frozen=True)
class Summary:
    """`decisions` by path, `reasons` by reason; `shipped` by decided path; `candidates` by result, of the shadows.

    `fallbacks` and `skips` (of candidates) are the reasons for those, the most frequent first. `first` and `last` are
    when the earliest and the latest outcome began, in seconds since 1970; None without any. `history` and `worst` are
    what the report draws.
    """

    decisions: Mapping[str, int]
    reasons: Mapping[str, int]
    shipped: Mapping[str, Shipped]
    candidates: Mapping[str, int]
    fallbacks: tuple[tuple[str, int], ...]
    skips: tuple[tuple[str, int], ...]
    first: float | None
    last: float | None
    history: tuple[Stretch, ...]
    worst: tuple[Different, ...]


def summarise(ledger: Ledger) -> Summary:
    """Raises Refused when the ledger cannot be read."""
    with ledger:
        candidates = dict(ledger.query("SELECT result, count(*) FROM outcome WHERE shadow GROUP BY result"))
        [(first, last)] = ledger.query("SELECT min(started), max(started) FROM outcome")
        return Summary(
            decisions=_all(PATHS, dict(ledger.query("SELECT path, count(*) FROM decision GROUP BY path"))),
            reasons=dict(ledger.query("SELECT reason, count(*) FROM decision GROUP BY reason ORDER BY reason")),
            shipped={path: _shipped(ledger, path) for path in PATHS},
            candidates=_all(SHADOW_RESULTS, candidates),
            fallbacks=_reasons(ledger, FALLBACK),
            skips=_reasons(ledger, SKIPPED),
            first=first,
            last=last,
            history=stretches(ledger),
            worst=worst(ledger),
        )


def _reasons(ledger: Ledger, result: str) -> tuple[tuple[str, int], ...]:
    found = ledger.query(
        "SELECT fallback, count(*) FROM outcome WHERE result = ? GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20", (result,)
    )
    return tuple((str(why), int(count)) for why, count in found)


def _shipped(ledger: Ledger, path: str) -> Shipped:
    where = "FROM outcome WHERE NOT shadow AND path = ?"
    [(builds, apps, failing, leaking)] = ledger.query(
        f"SELECT count(*), count(DISTINCT app), total(exit_code IS NOT 0), total(leaks > 0) {where}", (path,)
    )
    [(ill,)] = ledger.query(f"SELECT count(DISTINCT app) {where} AND exit_code IS NOT 0", (path,))
    boots = dict(ledger.query(f"SELECT boot, count(*) {where} AND boot != '' GROUP BY boot", (path,)))

    def quantile(column: str, share: float) -> float | None:
        known = f"{where} AND {column} IS NOT NULL"
        [(count,)] = ledger.query(f"SELECT count(*) {known}", (path,))
        if not count:
            return None
        place = min(int(count * share), count - 1)
        return float(ledger.query(f"SELECT {column} {known} ORDER BY 1 LIMIT 1 OFFSET ?", (path, place))[0][0])

    return Shipped(
        builds=builds,
        apps=apps,
        results=_all(SHIPPED_RESULTS, dict(ledger.query(f"SELECT result, count(*) {where} GROUP BY 1", (path,)))),
        failing=int(failing),
        well=apps - ill,
        well_bounds=wilson(apps - ill, apps),
        seconds_median=quantile("seconds", 0.5),
        seconds_p95=quantile("seconds", 0.95),
        slug_bytes_median=quantile("slug_bytes", 0.5),
        leaking=int(leaking),
        boots=_all(("passed", "failed"), boots),
    )


def _all(names: tuple[str, ...], counts: Mapping[str, int]) -> dict[str, int]:
    """Every name, with 0 where nothing was counted; what a newer nsbuild has named comes after."""
    return {**dict.fromkeys(names, 0), **counts}
