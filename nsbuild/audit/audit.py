"""One audit from beginning to end, as `nsbuild audit` does it."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsbuild.audit.auditor import Auditor
from nsbuild.audit.directory import audit_directory
from nsbuild.audit.finding import Report
from nsbuild.audit.needles import Matcher, needles_for
from nsbuild.audit.opened import opened
from nsbuild.audit.waivers import apply_waivers, read_waivers
from nsbuild.errors import UsageError

CLASSIC = r"/tmp/build_[0-9a-zA-Z]+"
"""Where platforms compile: gliderlabs/herokuish and Heroku's own build output."""
WORKSPACES = r"/[!-~]{1,200}/\.workspaces/[0-9A-Za-z_.-]+"
"""Where nsbuild keeps BUILD_DIR on the host, by default."""
IN_THE_VIEW = ("/tmp/cache", "/tmp/env", "/tmp/buildpacks", "/tmp/codon/tmp")
"""What a buildpack sees only while it compiles, in either layout."""


@dataclass(frozen=True)
class AuditOptions:
    """`paths` are absolute paths that nothing should remember, `patterns` regular expressions of such. Without any,
    the places that nsbuild and the platforms build in. `run_path` is where the slug runs; without it, what the slug
    says, or /app. `record` is that of its build, which tells who wrote what. `today` is for waivers. A slug that is
    no directory is unpacked in `workspace_dir`.
    """

    paths: Sequence[str] = ()
    patterns: Sequence[str] = ()
    run_path: str | None = None
    record: str | None = None
    waivers: str | None = None
    workspace_dir: str | None = None
    today: datetime.date | None = None


def matcher_for(options: AuditOptions) -> Matcher:
    """Raises UsageError for a path that is too short to look for, or a pattern that is none."""
    paths, patterns = options.paths, options.patterns
    if not paths and not patterns:
        paths, patterns = IN_THE_VIEW, (CLASSIC, WORKSPACES)
    try:
        return Matcher(needles_for(paths), patterns)
    except ValueError as error:
        raise UsageError(f"--path: {error}.", "Give the whole path of the build directory.") from None
    except re.error as error:
        raise UsageError(f"--pattern: {error}.", "It is a regular expression.") from None


def audit(
    path: str | Path, options: AuditOptions | None = None, *, on_stack: Callable[[str], bool | None] = os.path.lexists
) -> Report:
    """Everything in `path`, a slug of any format or a directory, that remembers one of the paths. It is not changed.

    `on_stack` tells whether an interpreter outside the slug is there at run time; the default asks this host. Raises
    UsageError when there is nothing of that name, for a slug that is damaged, or for what is wrong in the options;
    Refused when a slug cannot be unpacked here.
    """
    options = options or AuditOptions()
    waivers = read_waivers(options.waivers) if options.waivers else []
    writers = writers_of(options.record) if options.record else {}
    matcher = matcher_for(options)
    with opened(path, options.workspace_dir, options.run_path) as slug:
        auditor = Auditor(str(path), matcher, run_path=slug.run_path, on_stack=on_stack)
        audit_directory(auditor, slug.directory, lambda file, info: writers.get(file, ""), unlock=slug.ours)
    report = auditor.finish()
    if waivers:
        apply_waivers(report, waivers, options.today or datetime.date.today())
    return report


def writers_of(record: str) -> dict[str, str]:
    """Who wrote each file in which the audit of a build found something, by the build's record (`--report`).

    Raises UsageError for what is no record.
    """
    wrong = UsageError(f"{record} is no record of a build.", "Give what nsbuild build --report has written.")
    try:
        content = json.loads(Path(record).read_bytes())
        return {str(one["file"]): str(one["writer"]) for one in content["audit"]}
    except OSError as error:
        raise UsageError(f"The record {record} cannot be read: {error.strerror}.") from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise wrong from None
