"""How the rollout stands: the switch, the flags in force, the last edit, and the ledger's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nsbuild.errors import UsageError
from nsbuild.rollout import spool
from nsbuild.rollout.bucket import BUCKETS
from nsbuild.rollout.edit import read_log
from nsbuild.rollout.flags import PERCENTAGE, parse_flags
from nsbuild.rollout.forms import shares_of
from nsbuild.rollout.kill import killed
from nsbuild.rollout.ledger import Ledger
from nsbuild.rollout.source import read_flags_file
from nsbuild.rollout.summary import Summary, summarise


@dataclass(frozen=True)
class Status:
    """`killed` is why every build goes direct, empty when it does not. `flags` is the digest of the flags file,
    `problem` why it cannot be used. `shares` are those below which an app goes `namespace` or `shadow`, 0 to 1, None
    where the file has a rule of its own. `expires` is in UTC, `edit` the last entry of the log. `spooled` are the
    lines that wait for the ledger, `rejected` those without meaning. `state` is the directory of all of that.
    """

    killed: str
    file: str
    flags: str
    problem: str
    shares: Mapping[str, float] | None
    expires: str
    edit: Mapping[str, Any] | None
    state: str
    ledger: Summary
    spooled: int
    rejected: int


def read_status(flags_file: str, state: Path, ledger: Ledger, now: datetime) -> Status:
    """Raises Refused when the ledger cannot be read; a bad flags file is told."""
    flags, problem = None, ""
    try:
        flags = parse_flags(read_flags_file(flags_file)[0], flags_file, now)
    except UsageError as error:
        problem = str(error)
    shares = shares_of(flags.flags.get(PERCENTAGE)) if flags is not None else None
    log = read_log(flags_file)
    numbers = summarise(ledger)
    return Status(
        killed=killed(flags_file),
        file=flags_file,
        flags=flags.digest if flags is not None else "",
        problem=problem,
        shares=None if shares is None else {"namespace": shares[0] / BUCKETS, "shadow": shares[1] / BUCKETS},
        expires="" if flags is None or flags.expires is None else flags.expires.astimezone(UTC).isoformat(),
        edit=log[-1] if log else None,
        state=str(state),
        ledger=numbers,
        spooled=sum(_lines(path) for path in state.glob("spool*.jsonl")),
        rejected=_lines(state / spool.REJECTED),
    )


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0
