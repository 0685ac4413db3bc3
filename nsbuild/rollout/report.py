"""The report: one HTML page that needs no network, drawn from the numbers of `status --json` and of the guard."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import nsbuild
from nsbuild.printable import printable
from nsbuild.rollout.decision import PATHS
from nsbuild.rollout.guard import Verdict, ratio
from nsbuild.rollout.history import Stretch
from nsbuild.rollout.status import Status
from nsbuild.rollout.summary import Summary

_WIDTH, _HEIGHT = 800, 170
_LEFT, _RIGHT = 100, 790


def as_html(status: Status, verdict: Verdict, now: float) -> str:
    """The page. What apps, hosts and buildpacks are called is hostile: it is escaped, and shown printable."""
    environment = Environment(
        loader=PackageLoader("nsbuild.rollout", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_shown,
    )
    environment.globals.update(percent=_percent, seconds=_seconds, size=_size, utc=_utc, ratio=ratio)
    least, marks = _marks(status.ledger)
    return environment.get_template("report.html.j2").render(
        status=status,
        ledger=status.ledger,
        verdict=verdict,
        paths=PATHS,
        bars=list(_bars(status.ledger.history)),
        marks=marks,
        least=least,
        version=nsbuild.__version__,
        now=now,
    )


def _shown(value: object) -> object:
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _bars(history: tuple[Stretch, ...]) -> Iterator[Mapping[str, Any]]:
    """A column a stretch: the namespace at the bottom, then shadows, then direct."""
    width = _WIDTH / max(len(history), 1)
    for place, stretch in enumerate(history):
        total, top = sum(stretch.builds.values()), float(_HEIGHT)
        for path in reversed(PATHS):
            height = _HEIGHT * stretch.builds[path] / max(total, 1)
            top -= height
            sizes = {"x": place * width, "y": top, "width": max(width - 1, 1), "height": height}
            if height:
                yield {"path": path, **{name: f"{size:.1f}" for name, size in sizes.items()}}


def _marks(ledger: Summary) -> tuple[float, list[Mapping[str, Any]]]:
    """Where each path's share of well apps and its bounds are, on a scale from the first value to all."""
    known = {path: row for path, row in ledger.shipped.items() if row.well_bounds is not None}
    bounds = [row.well_bounds for row in known.values() if row.well_bounds is not None]
    least = min((low for low, _ in bounds), default=0.0)
    least = max(0.0, int(least * 50 - 0.5) / 50)

    def place(share: float) -> str:
        return f"{_LEFT + (_RIGHT - _LEFT) * (share - least) / (1 - least):.1f}"

    return least, [
        {"path": path, "at": place(row.well / row.apps), "low": place(low), "high": place(high)}
        for (path, row), (low, high) in zip(known.items(), bounds, strict=True)
    ]


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def _size(size: float | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f} MB"


def _utc(when: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(when))
    except (OverflowError, ValueError, OSError):
        return str(when)
