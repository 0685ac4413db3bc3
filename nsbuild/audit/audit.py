"""One audit from beginning to end, as `nsbuild audit` does it."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsbuild.audit.auditor import Auditor
from nsbuild.audit.directory import audit_directory
from nsbuild.audit.finding import Report
from nsbuild.audit.needles import Matcher, needles_for
from nsbuild.audit.opened import Opened, opened
from nsbuild.audit.waivers import apply_waivers, read_waivers
from nsbuild.errors import UsageError
from nsbuild.slug.marker import MARKER
from nsbuild.stack import HOST, StackRoot, open_stack_root, stored_stack_root

CLASSIC = r"/tmp/build_[0-9a-zA-Z]+"
"""Where platforms compile: gliderlabs/herokuish and Heroku's own build output."""
WORKSPACES = r"/[!#-&*+.0-9@-~-][!#-&*+.-9@-~-]{0,199}/\.workspaces/[0-9A-Za-z_.-]+"
"""Where nsbuild keeps BUILD_DIR on the host, by default. Without what stands before a path: neither the slashes of a
file: URL nor the path before a colon, comma or quote belong to it.
"""
IN_THE_VIEW = ("/tmp/cache", "/tmp/env", "/tmp/buildpacks", "/tmp/codon/tmp")
"""What a buildpack sees only while it compiles, in either layout."""

_UNASKED = "whether it has the interpreters of scripts was not looked at (--stack-root)"


@dataclass(frozen=True)
class AuditOptions:
    """`paths` are absolute paths that nothing should remember, `patterns` regular expressions of such. Without any,
    the places that nsbuild and the platforms build in. `run_path` is where the slug runs; without it, what the slug
    says, or /app. `stack_root` is what it runs on, as `open_stack_root` takes it; without it, the image that it was
    built on, where that has been unpacked here, or this host. `record` is that of its build, which tells who wrote
    what. `today` is for waivers. A slug that is no directory is unpacked in `workspace_dir`.
    """

    paths: Sequence[str] = ()
    patterns: Sequence[str] = ()
    run_path: str | None = None
    stack_root: str | None = None
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
        for pattern in patterns:
            if re.search(pattern, ""):
                raise UsageError(
                    f"--pattern: {pattern!r} is found in every text.", "Give one that a path must match."
                )
        return Matcher(needles_for(paths), patterns)
    except ValueError as error:
        raise UsageError(f"--path: {error}.", "Give the whole path of the build directory.") from None
    except re.error as error:
        raise UsageError(f"--pattern: {error}.", "It is a regular expression.") from None


def audit(
    path: str | Path, options: AuditOptions | None = None, *, on_stack: Callable[[str], bool | None] | None = None
) -> Report:
    """Everything in `path`, a slug of any format or a directory, that remembers one of the paths. It is not changed.

    `on_stack` tells whether an interpreter outside the slug is there at run time; the default asks the stack root.
    Raises UsageError when there is nothing of that name, for a slug that is damaged, or for what is wrong in the
    options; Refused when a slug or a stack root cannot be unpacked here.
    """
    options = options or AuditOptions()
    waivers = read_waivers(options.waivers) if options.waivers else []
    writers = writers_of(options.record) if options.record else {}
    matcher = matcher_for(options)
    with opened(path, options.workspace_dir, options.run_path) as slug:
        root = _stack_root(slug, options)
        starts = on_stack or (root.starts if root else lambda path: None)
        auditor = Auditor(str(path), matcher, run_path=slug.run_path, on_stack=starts)
        if root is None:
            auditor.problem(MARKER, f"names a stack root that is not here, {slug.stack_root}: {_UNASKED}")
        wrote = (lambda file, changed: writers.get(file, "")) if writers else None
        audit_directory(auditor, slug.directory, wrote, unlock=slug.ours)
    report = auditor.finish()
    if waivers:
        apply_waivers(report, waivers, options.today or datetime.date.today())
    return report


def _stack_root(slug: Opened, options: AuditOptions) -> StackRoot | None:
    """What the slug runs on; None for what it was built on and is not here."""
    if options.stack_root is not None:
        return open_stack_root(options.stack_root)
    return stored_stack_root(slug.stack_root) if slug.stack_root else HOST


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
