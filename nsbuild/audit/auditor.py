"""A whole slug, entry by entry, from whoever reads it: a walk of ours, or the pass that archives it."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from nsbuild.audit import kinds
from nsbuild.audit.decode import container
from nsbuild.audit.file import FileAudit, symlink_findings
from nsbuild.audit.finding import ORDER, Finding, Problem, Report
from nsbuild.audit.members import Budget
from nsbuild.audit.needles import Matcher


@dataclass
class Collected:
    """What an auditor knows. Two that have seen different entries make one by `add`."""

    findings: list[Finding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    entries: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    interpreters: list[tuple[str, str, str]] = field(default_factory=list)
    """(script, interpreter, who wrote the script)"""

    def add(self, other: Collected) -> None:
        self.findings += other.findings
        self.problems += other.problems
        self.files += other.files
        self.bytes += other.bytes
        self.entries |= other.entries
        self.links |= other.links
        self.interpreters += other.interpreters


@dataclass
class Linked:
    """A file of several names: `found` in it under `path`, and who wrote it, by name as far as it was met."""

    path: str
    found: Collected
    executable: bool
    names: dict[str, str]

    def also(self, path: str, writer: str) -> None:
        """A further name. It matters only where there is something to tell."""
        if self.found.findings or self.found.problems or self.found.interpreters:
            self.names[path] = writer


class Auditor:
    """Collects a report. Entries may come in any order; `finish` once.

    `run_path` is where the slug runs, for the interpreters of its scripts; `on_stack(path)` tells whether the stack
    has one, None when nobody knows.
    """

    def __init__(
        self,
        path: str,
        matcher: Matcher,
        *,
        run_path: str = "/app",
        on_stack: Callable[[str], bool | None] = lambda path: None,
    ) -> None:
        self.matcher = matcher
        self.collected = Collected()
        self._path = path
        self._run_path = run_path
        self._on_stack = on_stack
        self._last = ("", "")
        # A thousand bombs of which each may unpack to a GiB would take an hour.
        self._budget = Budget(size=16 << 30, members=5_000_000)

    def another(self) -> Auditor:
        """One for another part of the same slug, that has seen nothing yet."""
        return Auditor(self._path, self.matcher, run_path=self._run_path, on_stack=self._on_stack)

    @contextmanager
    def apart(self, path: str, writer: str, executable: bool) -> Iterator[Linked]:
        """What is told meanwhile, of a file of several names, is collected in this, and not yet in the report. The
        counts are.
        """
        kept, found = self.collected, Collected()
        self.collected = found
        try:
            yield Linked(path, found, executable, {path: writer})
        finally:
            self.collected = kept
            kept.files, kept.bytes = kept.files + found.files, kept.bytes + found.bytes
            found.files = found.bytes = 0

    def writer(self, path: str, name: str) -> None:
        """Who wrote an entry last, to be told before the entry itself; empty when nobody knows."""
        self._last = (path, name)

    def entries(self, paths: Iterable[str]) -> None:
        """What there is in the slug: every file and directory, whatever else is told of it."""
        self.collected.entries.update(paths)

    def symlink(self, path: str, target: str) -> None:
        self.collected.links[path] = target
        self._add(symlink_findings(self.matcher, path, target))

    def quiet(self, data: bytes) -> bool:
        """Whether there is nothing to tell of a file that holds this, whatever it is called. There seldom is."""
        return not (self.matcher.anywhere(data) or data[:2] == b"#!" or container(data))

    def count(self, size: int) -> None:
        """A quiet file, or a further name of one that has been told already."""
        self.collected.files += 1
        self.collected.bytes += size

    def whole(self, path: str, data: bytes, *, executable: bool) -> None:
        """A file whose bytes are all there."""
        if self.quiet(data):
            self.count(len(data))
        else:
            file = self.file(path, executable=executable)
            file.feed(data)
            self.done(path, file)

    def file(self, path: str, *, executable: bool) -> FileAudit:
        """For a file that comes in blocks: feed it, then hand it to `done`."""
        return FileAudit(self.matcher, path, executable=executable, budget=Budget(slug=self._budget))

    def done(self, path: str, file: FileAudit) -> None:
        """All blocks of a file have been fed."""
        findings, problems = file.close()
        self.count(file.size)
        self._add(findings)
        self.collected.problems += problems
        if file.interpreter:
            self.collected.interpreters.append((path, file.interpreter, self._last[1]))

    def linked(self, file: Linked) -> None:
        """A file all of whose names have been met: it is told once, under the name for which it is worst."""

        def rank(name: str) -> tuple[int, str]:
            return ORDER[kinds.KINDS[kinds.kind_of_text(name, file.executable)].severity], name

        name = min(file.names, key=rank)
        writer = file.names[name]
        for one in file.found.findings:
            kind = one.kind if one.member else kinds.kind_under(one.kind, name, file.executable)
            about = kinds.KINDS[kind]
            self.collected.findings.append(
                replace(one, file=name, kind=kind, severity=about.severity, effect=about.effect, writer=writer)
            )
        for problem in file.found.problems:
            self.problem(name + problem.file.removeprefix(file.path), problem.reason)
        self.collected.interpreters += [(name, interpreter, writer) for _, interpreter, _ in file.found.interpreters]

    def problem(self, path: str, reason: str) -> None:
        """Something that could not be read."""
        self.collected.problems.append(Problem(path, reason))

    def _add(self, findings: Iterable[Finding]) -> None:
        path, name = self._last
        self.collected.findings += [replace(one, writer=name) if one.file == path else one for one in findings]

    def finish(self) -> Report:
        """The report, sorted."""
        report = Report(self._path, self.collected.findings, self.collected.problems)
        report.files, report.bytes = self.collected.files, self.collected.bytes
        known = {(one.file, one.kind) for one in report.findings}
        for path, interpreter, writer in self.collected.interpreters:
            kind = self._interpreter_kind(interpreter)
            if kind and (path, "shebang") not in known:
                about = kinds.KINDS[kind]
                report.findings.append(
                    Finding(path, kind, about.severity, interpreter, about.effect, offset=2, writer=writer)
                )
        report.sort()
        return report

    def _interpreter_kind(self, interpreter: str) -> str:
        """What is wrong with a script's interpreter, if anything is known to be."""
        if not interpreter.startswith("/"):
            return "interpreter-missing" if interpreter else ""
        inside = posixpath.relpath(interpreter, self._run_path)
        if not inside.startswith("../"):
            return "" if self._in_slug(inside) else "interpreter-missing"
        return "interpreter-foreign" if self._on_stack(interpreter) is False else ""

    def _in_slug(self, path: str, hops: int = 40) -> bool:
        """Whether a path leads to something, through links within the slug; links out of it are taken on trust."""
        if path in self.collected.entries and path not in self.collected.links:
            return True
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            link = self.collected.links.get("/".join(parts[:count]))
            if link is None:
                continue
            if hops == 0:
                return False
            beneath = posixpath.join(self._run_path, *parts[: count - 1], link, *parts[count:])
            inside = posixpath.relpath(posixpath.normpath(beneath), self._run_path)
            return inside.startswith("../") or self._in_slug(inside, hops - 1)
        return False
