"""What an audit says: findings, each with what it does at run time, and what could not be looked into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Severity(StrEnum):
    """What a remembered path does when the slug runs."""

    BREAKS = "breaks"
    """A file that cannot work without the path: a shebang, an RPATH, a .pth, a symlink."""
    STALE = "stale"
    """A path that is printed or compared, and is wrong: direct_url.json, RECORD, configuration."""
    COSMETIC = "cosmetic"
    """Nothing reads it but a person: debug information, file names in tracebacks."""


ORDER = {Severity.BREAKS: 0, Severity.STALE: 1, Severity.COSMETIC: 2}


@dataclass(frozen=True)
class Finding:
    """One path in one file, as often as it is there.

    `file` is relative to what was audited, `member` the way inside an archive (`lib.zip` -> `a/b.pth`; nested ones
    joined by `!`). `kind` is a key of `nsbuild.audit.kinds.KINDS`, `place` the path that is remembered, `offset` that
    of the first match in bytes (in the member, for a member; None where there is none), `effect` one sentence.
    `writer` is the buildpack whose compile wrote the file last, when a record knows.
    """

    file: str
    kind: str
    severity: Severity
    place: str
    effect: str
    member: str = ""
    offset: int | None = None
    count: int = 1
    writer: str = ""

    @property
    def where(self) -> str:
        return f"{self.file}!{self.member}" if self.member else self.file


@dataclass(frozen=True)
class Problem:
    """Something that was not, or not wholly, looked into. `reason` is a sentence without its subject."""

    file: str
    reason: str


@dataclass
class Report:
    """Everything an audit found. `waived` are findings that a waiver covers, with the waiver's reason."""

    path: str
    findings: list[Finding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    waived: list[tuple[Finding, str]] = field(default_factory=list)
    files: int = 0
    bytes: int = 0

    def sort(self) -> None:
        self.findings.sort(key=lambda one: (ORDER[one.severity], one.file, one.member, one.kind, one.place))
        self.problems.sort(key=lambda one: (one.file, one.reason))

    def counts(self) -> dict[Severity, int]:
        """Findings by severity, all three of them."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in Severity}

    def line(self) -> str:
        """One line for the end of a build."""
        if not self.findings:
            found = "nothing but what is waived" if self.waived else "no trace of the build's paths"
            missed = f", {len(self.problems)} not looked into" if self.problems else ""
            return f"{found} in {self.files} files{missed}"
        parts = [f"{count} {severity}" for severity, count in self.counts().items() if count]
        files = len({finding.file for finding in self.findings})
        return f"{', '.join(parts)} in {files} of {self.files} files"


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for all matches of one place in one file (or member) and kind: the first, and how many."""
    first: dict[tuple[str, str, str, str], Finding] = {}
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for finding in findings:
        key = (finding.file, finding.member, finding.kind, finding.place)
        counts[key] += finding.count
        known = first.get(key)
        if known is None or (finding.offset or 0) < (known.offset or 0):
            first[key] = finding
    return [replace(finding, count=counts[key]) for key, finding in first.items()]
