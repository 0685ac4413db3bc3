"""What `nsbuild rollout` shows to people."""

from __future__ import annotations

import time

from nsbuild.rollout import Decision
from nsbuild.rollout.status import Status
from nsbuild.rollout.summary import Shipped


def chain(decision: Decision) -> str:
    """Every question, its answer, and why; the last answer is the decision."""
    lines = [f"{decision.app}: {decision.path}"]
    for step in decision.steps:
        lines.append(f"  {step.name:12}{step.answer or '-':11}{step.why}")
    lines.append(f"flags: {decision.flags or 'none'}")
    if decision.problem:
        lines.append(f"problem: {decision.problem}")
    return "\n".join(lines)


def standing(status: Status) -> str:
    """A screen: the switch, the flags, the numbers."""
    lines = [f"KILLED: every build goes direct, because {status.killed}."] if status.killed else []
    lines.append(f"flags      {status.file}{f', {status.flags[:19]}' if status.flags else ''}")
    if status.problem:
        lines.append(f"           {status.problem}")
    elif status.shares is None:
        lines.append("           a rule of its own in place of the percentages")
    else:
        lines.append("           " + ", ".join(f"{share:.2%} {path}" for path, share in status.shares.items()))
    if status.expires:
        lines.append(f"           expires {status.expires}")
    if status.edit is not None:
        told = ", ".join(map(str, status.edit.get("change", ())))
        lines.append(f"last edit  {status.edit.get('when')} by {status.edit.get('who')}: {told}")
        lines.append(f"           {status.edit.get('why')}")
    lines.append(f"state      {status.state}")
    ledger = status.ledger
    if ledger.first is None or ledger.last is None:
        return "\n".join([*lines, "ledger     no build is in it"])
    builds = sum(row.builds for row in ledger.shipped.values())
    lines.append(f"ledger     {builds:,} builds, {_utc(ledger.first)} to {_utc(ledger.last)} UTC")
    if status.spooled or status.rejected:
        lines.append(f"           {status.spooled:,} records wait in the spool, {status.rejected:,} were no records")
    head = ("path", "builds", "apps", "failing", "fallback", "rescued", "leaking", "median", "95 %", "slug")
    lines += ["", _row(head), *(_row((path, *_cells(row))) for path, row in ledger.shipped.items())]
    lines += ["", "shadows    " + ", ".join(f"{count:,} {result}" for result, count in ledger.candidates.items())]
    lines += [*_reasons("skipped", ledger.skips), *_reasons("fallbacks", ledger.fallbacks)]
    return "\n".join(lines)


def _reasons(what: str, counted: tuple[tuple[str, int], ...]) -> list[str]:
    """The most frequent ones."""
    return [f"{'' if number else what:11}{count:,}  {why}" for number, (why, count) in enumerate(counted[:5])]


def _cells(row: Shipped) -> tuple[str, ...]:
    failing = f"{row.failing / row.builds:.2%}" if row.builds else "-"
    times = [f"{seconds:.1f} s" if seconds is not None else "-" for seconds in (row.seconds_median, row.seconds_p95)]
    size = f"{row.slug_bytes_median / 1e6:.1f} MB" if row.slug_bytes_median is not None else "-"
    counts = (row.results.get("fallback", 0), row.results.get("rescued", 0), row.leaking)
    return (f"{row.builds:,}", f"{row.apps:,}", failing, *(f"{count:,}" for count in counts), *times, size)


def _row(cells: tuple[str, ...]) -> str:
    return f"{cells[0]:10}" + "".join(f"{cell:>10}" for cell in cells[1:])


def _utc(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(when))
