"""A report for people, for programs (JSON) and for code hosts (SARIF 2.1.0)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

import nsbuild
from nsbuild.audit.finding import Finding, Report, Severity
from nsbuild.audit.kinds import KINDS
from nsbuild.printable import printable

_LEVELS = {Severity.BREAKS: "error", Severity.STALE: "warning", Severity.COSMETIC: "note"}
SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_SHOWN = 20
"""Findings of one severity and kind, or problems, that text shows; the rest is a number."""


def as_text(report: Report, *, everything: bool = False) -> Iterator[str]:
    """Lines for a person: what breaks first, by kind."""
    for severity in Severity:
        mine = [finding for finding in report.findings if finding.severity is severity]
        if not mine:
            continue
        yield f"{severity} ({len(mine)})"
        for kind in dict.fromkeys(finding.kind for finding in mine):
            same = [finding for finding in mine if finding.kind == kind]
            yield f"  {kind}: {same[0].effect}"
            for finding in same[: None if everything else _SHOWN]:
                yield f"    {printable(finding.where)}: {printable(finding.place)}{_details(finding)}"
            yield from _others(same, everything)
    if report.waived:
        yield f"waived ({len(report.waived)})"
        for finding, reason in report.waived[: None if everything else _SHOWN]:
            yield f"    {printable(finding.where)}: {finding.kind}, {reason}"
        yield from _others(report.waived, everything)
    if report.problems:
        yield f"not looked into ({len(report.problems)})"
        for problem in report.problems[: None if everything else _SHOWN]:
            yield f"    {printable(problem.file)} {problem.reason}"
        yield from _others(report.problems, everything)
    yield report.line()


def _others(found: Sequence[object], everything: bool) -> Iterator[str]:
    if not everything and len(found) > _SHOWN:
        yield f"    ... and {len(found) - _SHOWN} more (--all shows them)"


def _details(finding: Finding) -> str:
    parts = []
    if finding.offset is not None:
        parts.append(f"at byte {finding.offset}")
    if finding.count > 1:
        parts.append(f"{finding.count} times")
    if finding.writer:
        parts.append(f"written by {finding.writer}")
    return f" ({', '.join(parts)})" if parts else ""


def as_dict(report: Report) -> dict[str, Any]:
    """What `--json` prints; `schema` 1."""
    return {
        "schema": 1,
        "path": report.path,
        "files": report.files,
        "bytes": report.bytes,
        "counts": {str(severity): count for severity, count in report.counts().items()},
        "findings": [asdict(finding) for finding in report.findings],
        "waived": [{**asdict(finding), "reason": reason} for finding, reason in report.waived],
        "problems": [asdict(problem) for problem in report.problems],
    }


def as_json(report: Report) -> str:
    return json.dumps(as_dict(report), indent=2)


PROOF = "proof"
"""The rule of what `audit --prove` has run and does not work."""


def as_sarif(report: Report, failures: Iterable[tuple[str, str]] = ()) -> str:
    """For code hosts and editors: one rule a kind, one result a finding. `failures` are files, and what failed when
    they were run.
    """
    failed = [
        {
            "ruleId": PROOF,
            "level": "error",
            "message": {"text": text},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(file)}}}],
        }
        for file, text in failures
    ]
    used = {finding.kind for finding in report.findings}
    rules = [
        {
            "id": kind,
            "shortDescription": {"text": KINDS[kind].effect if kind in KINDS else "A waiver has expired."},
            "defaultConfiguration": {"level": _LEVELS[KINDS[kind].severity] if kind in KINDS else "error"},
        }
        for kind in sorted(used)
    ]
    if failed:
        effect = "What is run where nothing of its build is does not work."
        rules.append({"id": PROOF, "shortDescription": {"text": effect}, "defaultConfiguration": {"level": "error"}})
    log = {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "nsbuild audit", "version": nsbuild.__version__, "rules": rules}},
                "results": [*(_result(finding) for finding in report.findings), *failed],
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "toolExecutionNotifications": [
                            {"level": "warning", "message": {"text": f"{problem.file} {problem.reason}"}}
                            for problem in report.problems
                        ],
                    }
                ],
            }
        ],
    }
    return json.dumps(log, indent=2)


def _uri(file: str) -> str:
    return quote(file.encode("utf-8", "surrogateescape")) or "."


def _result(finding: Finding) -> dict[str, Any]:
    location: dict[str, Any] = {"artifactLocation": {"uri": _uri(finding.file)}}
    if finding.offset is not None and not finding.member:
        location["region"] = {
            "byteOffset": finding.offset,
            "byteLength": len(finding.place.encode("utf-8", "replace")),
        }
    writer = f" Written by {finding.writer}." if finding.writer else ""
    return {
        "ruleId": finding.kind,
        "level": _LEVELS[finding.severity],
        "message": {"text": f"{finding.where} holds {finding.place}. {finding.effect}{writer}"},
        "locations": [{"physicalLocation": location}],
    }
