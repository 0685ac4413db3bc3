"""Waivers: findings that somebody has looked at, and until when that holds.

A TOML file of `[[waiver]]` tables: `file` (a glob on the finding's file and member, `*` also across `/`), `kind` (one
kind, or left out for every kind), `reason` (a sentence) and `expires` (a date).
"""

from __future__ import annotations

import datetime
import fnmatch
import tomllib
from dataclasses import dataclass
from pathlib import Path

from nsbuild.audit.finding import Finding, Report, Severity
from nsbuild.audit.kinds import KINDS
from nsbuild.errors import UsageError

_KEYS = {"file", "kind", "reason", "expires"}


@dataclass(frozen=True)
class Waiver:
    """`expires` is the last day on which it holds."""

    file: str
    reason: str
    expires: datetime.date
    kind: str = ""

    def covers(self, finding: Finding) -> bool:
        return self.kind in ("", finding.kind) and fnmatch.fnmatchcase(finding.where, self.file)


def read_waivers(path: str | Path) -> list[Waiver]:
    """The waivers of a file. Raises UsageError naming the file and what is wrong in it."""
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"The waivers {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The waivers {path} are no TOML: {error}.") from None
    tables = content.pop("waiver", [])
    if content or not isinstance(tables, list):
        raise UsageError(f"{path}: only [[waiver]] tables are known.", "See docs/audit.md.")
    return [_waiver(table, f"{path}, waiver {number}") for number, table in enumerate(tables, 1)]


def _waiver(table: object, where: str) -> Waiver:
    if not isinstance(table, dict) or set(table) - _KEYS:
        raise UsageError(f"{where}: it has file, kind, reason and expires, and nothing else.")
    for key in ("file", "reason"):
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise UsageError(f"{where}: {key} is missing.", f"Give it a {key}, a string.")
    expires = table.get("expires")
    if not isinstance(expires, datetime.date) or isinstance(expires, datetime.datetime):
        raise UsageError(f"{where}: expires is not a date.", "Write it as expires = 2030-01-31.")
    kind = table.get("kind", "")
    if kind and kind not in KINDS:
        raise UsageError(f"{where}: there is no kind {kind!r}.", f"It is one of {', '.join(sorted(KINDS))}.")
    return Waiver(table["file"], table["reason"], expires, kind)


def apply_waivers(report: Report, waivers: list[Waiver], today: datetime.date) -> None:
    """Move covered findings to `waived`. An expired waiver covers nothing, and is a finding itself."""
    for waiver in waivers:
        covered = [finding for finding in report.findings if waiver.covers(finding)]
        if waiver.expires < today:
            if covered:
                report.findings.append(
                    Finding(
                        waiver.file,
                        "waiver-expired",
                        min((one.severity for one in covered), key=list(Severity).index),
                        f"{waiver.expires}",
                        f"The waiver ({waiver.reason}) has expired: look at the findings again.",
                    )
                )
            continue
        report.waived += [(finding, waiver.reason) for finding in covered]
        report.findings = [finding for finding in report.findings if not waiver.covers(finding)]
    report.sort()
