"""One audit from beginning to end, as `nsbuild audit` does it."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsbuild.audit.auditor import Auditor
from nsbuild.audit.directory import audit_directory
from nsbuild.audit.finding import Report
from nsbuild.audit.needles import Matcher, needles_for
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
    the places that nsbuild and the platforms build in. `run_path` is where the slug runs. `today` is for waivers.
    """

    paths: Sequence[str] = ()
    patterns: Sequence[str] = ()
    run_path: str = "/app"
    waivers: str | None = None
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
    """Everything in the directory `path` that remembers one of the paths. Nothing is written.

    `on_stack` tells whether an interpreter outside the slug is there at run time; the default asks this host. Raises
    UsageError when there is no such directory, or for what is wrong in the options.
    """
    options = options or AuditOptions()
    waivers = read_waivers(options.waivers) if options.waivers else []
    auditor = Auditor(str(path), matcher_for(options), run_path=options.run_path, on_stack=on_stack)
    try:
        audit_directory(auditor, str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be audited: {error.strerror}.", "Give a slug or a directory.") from None
    report = auditor.finish()
    if waivers:
        apply_waivers(report, waivers, options.today or datetime.date.today())
    return report
