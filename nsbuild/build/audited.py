"""The audit of what a build leaves, in the very pass that archives it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from nsbuild.audit import Auditor, Matcher, Report, Severity, audit_directory, needles_for
from nsbuild.audit.auditor import Linked
from nsbuild.audit.file import FileAudit
from nsbuild.build.log import Log
from nsbuild.build.options import BuildError
from nsbuild.errors import ExitCode
from nsbuild.printable import printable
from nsbuild.record import Phase, Record
from nsbuild.sandbox import Layout
from nsbuild.stack import StackRoot
from nsbuild.tree.descent import Identity, identity
from nsbuild.workspace import Workspace

_CLOCK = 0.01
"""Seconds by which a file's change time may lie before the clock: the kernel keeps a coarse one for files."""


def places(layout: Layout, workspace: str) -> list[str]:
    """What nothing in a slug may remember: the workspace on the host, what only the build saw, our caller's own
    directories.
    """
    seen = [workspace, layout.cache_dir, layout.env_dir, "/tmp/buildpacks"]
    if layout.build_dir != layout.home:
        seen.append(layout.build_dir)
    ours = [os.path.expanduser("~"), os.environ.get("TMPDIR", "")]
    # /root and /tmp are words of any text.
    return seen + [path for path in ours if path.startswith("/") and path.rstrip("/").count("/") > 1]


class Writers:
    """Which buildpack wrote a file last: the one during whose call its inode changed, which no build can forge."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        # Not detect, which follows the staging of the app at once.
        calls = [one for one in phases if one.buildpack and one.name != "detect"]
        self._calls = [(one.began - _CLOCK, one.began + one.seconds, one.buildpack) for one in calls]

    def of(self, changed: float) -> str:
        """The buildpack of a file whose ctime is `changed`, in seconds; empty for what the app brought."""
        found = ""
        for began, ended, buildpack in self._calls:
            if began <= changed <= ended:
                found = buildpack
        return found


class SlugAudit:
    """What `slug.prepare` tells its watcher goes to an auditor."""

    def __init__(self, layout: Layout, work: Workspace, stack_root: StackRoot, record: Record) -> None:
        self._auditor = Auditor(
            "slug",
            Matcher(needles_for(places(layout, work.path))),
            run_path=layout.home,
            on_stack=stack_root.starts,
        )
        self._writers = Writers(record.phases)
        self._open: tuple[str, os.stat_result, FileAudit] | None = None
        self._linked: dict[Identity, Linked] = {}

    def watch(self, path: str, info: os.stat_result, piece: bytes) -> None:
        """A `nsbuild.slug.Watcher`."""
        if self._open is not None:
            if self._open[0] == path:
                self._open[2].feed(piece)
                return
            self._close()
        self._auditor.entries((path,))
        writer = self._writers.of(info.st_ctime)
        self._auditor.writer(path, writer)
        executable = bool(info.st_mode & 0o111)
        if stat.S_ISLNK(info.st_mode):
            self._auditor.symlink(path, os.fsdecode(piece))
        elif not stat.S_ISREG(info.st_mode):
            pass
        elif not piece and info.st_size:  # a further hard link
            self._auditor.count(info.st_size)
            self._linked[identity(info)].also(path, writer)
        elif len(piece) == info.st_size:
            with self._of(path, info):
                self._auditor.whole(path, piece, executable=executable)
        else:
            file = self._auditor.file(path, executable=executable)
            file.feed(piece)
            self._open = (path, info, file)

    def directory(self, path: str) -> None:
        """For a slug that is not archived."""
        audit_directory(self._auditor, path, lambda name, changed: self._writers.of(changed), unlock=True)

    def _close(self) -> None:
        if self._open is not None:
            path, info, file = self._open
            with self._of(path, info):
                self._auditor.done(path, file)
            self._open = None

    @contextmanager
    def _of(self, path: str, info: os.stat_result) -> Iterator[None]:
        """What is told meanwhile is of a file, which may have further names."""
        if info.st_nlink == 1:
            yield
            return
        with self._auditor.apart(path, self._writers.of(info.st_ctime), bool(info.st_mode & 0o111)) as file:
            yield
        self._linked[identity(info)] = file

    def finish(self) -> Report:
        self._close()
        for file in self._linked.values():
            self._auditor.linked(file)
        return self._auditor.finish()


def judge(report: Report, fail: bool, log: Log) -> None:
    """One line of what was found, and all of it in the record. Raises BuildError for what breaks, if asked to."""
    log.record.audit = [asdict(finding) for finding in report.findings]
    log.record.audit_problems = [f"{problem.file} {problem.reason}" for problem in report.problems]
    first = report.findings[0] if report.findings else None
    said = f"first {printable(first.where)} ({first.kind}): it holds {printable(first.place)}" if first else ""
    log.note(f"audit: {report.line()}{f', {said}; nsbuild audit SLUG shows all' if said else ''}.")
    breaking = report.counts()[Severity.BREAKS]
    if breaking and fail:
        raise BuildError(
            f"The audit found {breaking} place{'' if breaking == 1 else 's'} that would break the app at run time,"
            f" {said}.",
            "The record (--report) has all of them.",
            ExitCode.AUDIT,
        )
