"""One file, as its bytes come by: searched once, and looked into where bytes alone do not tell."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nsbuild.audit import decode, kinds
from nsbuild.audit.finding import Finding, Problem, merged
from nsbuild.audit.members import DEEPEST, Budget, NotRead, members
from nsbuild.audit.needles import Match, Matcher

KEPT = 32 << 20
"""Bytes of a program or archive that are kept to be looked into; of a longer one only the bytes are searched."""


class FileAudit:
    """Give it the bytes with `feed`, then ask `close`. `path` is from the top of the slug.

    A file inside an archive has the archive's path, its own `member` name and a depth of 1 or more.
    """

    def __init__(
        self,
        matcher: Matcher,
        path: str,
        *,
        executable: bool = False,
        member: str = "",
        depth: int = 0,
        budget: Budget | None = None,
    ) -> None:
        self._matcher = matcher
        self._path = path
        self._member = member
        self._name = member.rpartition("!")[2] or path
        self._executable = executable
        self._depth = depth
        self._budget = budget or Budget()
        self._found: list[Match] = []
        self._head = b""
        self.size = 0
        """Bytes that have been fed, holes included."""
        self._tail = b""
        self._searched = 0
        """How much of the tail has been searched already."""
        self._kept: list[bytes] | None = None
        self.interpreter = ""
        """What the first line of an executable script names, after `close`."""

    def feed(self, block: bytes) -> None:
        """The next bytes. They are searched when what follows them is known."""
        self._keep(block)
        self.size += len(block)
        self._search(self._tail + block if self._tail else block, last=False)

    def skip(self, size: int) -> None:
        """A hole of `size` bytes: zeros, but nothing is searched for in it, and no match goes across."""
        self._search(self._tail, last=True)
        self._tail, self._searched = b"", 0
        self._keep(bytes(min(size, KEPT + 1)))
        self.size += size

    def _keep(self, block: bytes) -> None:
        if not self.size:
            self._head = block[: decode.HEAD]
            if self._wanted_whole():
                self._kept = []
        elif len(self._head) < decode.HEAD:
            self._head = (self._head + block)[: decode.HEAD]
        if self._kept is not None:
            self._kept.append(block)
            if self.size + len(block) > KEPT:
                self._kept = None

    def _wanted_whole(self) -> bool:
        return bool(decode.container(self._head)) or decode.is_elf(self._head) or decode.is_bytecode(self._name)

    def _search(self, data: bytes, *, last: bool) -> None:
        overlap = self._matcher.overlap
        high = len(data) if last else max(len(data) - overlap, self._searched)
        if high > self._searched and self._matcher.anywhere(data):
            base = self.size - len(data)
            text = kinds.looks_like_text(self._head)
            for match in self._matcher.matches(data, self._searched, high, text=text):
                self._found.append(Match(base + match.offset, match.place))
        cut = max(high - overlap, 0)
        self._tail = data[cut:]
        self._searched = high - cut

    def close(self) -> tuple[list[Finding], list[Problem]]:
        """All findings and problems of the file. Never raises for what is in it."""
        self._search(self._tail, last=True)
        problems: list[Problem] = []
        findings = list(self._own_findings())
        shape = decode.container(self._head)
        if self._kept is None:
            if self.size > KEPT and (shape or decode.is_elf(self._head)):
                self._problem(
                    problems, f"is larger than {KEPT >> 20} MiB: its bytes were searched, not what they mean"
                )
        elif shape:
            inside: list[Finding] = []
            self._look_inside(shape, b"".join(self._kept), inside, problems)
            # What its bytes show as well, where nothing is compressed, is not said twice.
            explained = {one.place for one in inside}
            findings = [one for one in findings if one.kind != "binary" or one.place not in explained] + inside
        return merged(findings), problems

    def _problem(self, problems: list[Problem], reason: str) -> None:
        problems.append(Problem(f"{self._path}!{self._member}" if self._member else self._path, reason))

    def _own_findings(self) -> Iterator[Finding]:
        line = decode.shebang(self._head)
        if line is not None and self._executable:
            interpreter, length = line
            self.interpreter = os.fsdecode(interpreter)
            if length > decode.SHEBANG_LIMIT:
                yield self._finding("shebang-too-long", self.interpreter, 0)
        if not self._found:
            return
        if decode.is_elf(self._head):
            yield from self._in_program()
        elif decode.is_bytecode(self._name) and self._kept is not None:
            data = b"".join(self._kept)
            for match in self._found:
                yield self._finding(decode.bytecode_kind(data, match.offset), match.place, match.offset)
        else:
            text = kinds.looks_like_text(self._head)
            kind = kinds.kind_of_text(self._name, self._executable) if text else "binary"
            for match in self._found:
                first = line is not None and match.offset < line[1]
                yield self._finding("shebang" if first else kind, match.place, match.offset)

    def _in_program(self) -> Iterator[Finding]:
        loaded = list(decode.elf_paths(b"".join(self._kept))) if self._kept is not None else []
        explained = set()
        for kind, text in loaded:
            raw = os.fsencode(text)
            for match in self._matcher.matches(raw, 0, len(raw)):
                explained.add(match.place)
                yield self._finding(kind, match.place, None)
        for match in self._found:
            if match.place not in explained:
                yield self._finding("binary", match.place, match.offset)

    def _look_inside(self, shape: str, data: bytes, findings: list[Finding], problems: list[Problem]) -> None:
        if self._depth >= DEEPEST:
            self._problem(problems, f"is an archive {DEEPEST} deep in others: it was not opened")
            return
        try:
            for name, blocks in members(shape, data, self._name, self._budget):
                inner = FileAudit(
                    self._matcher,
                    self._path,
                    member=f"{self._member}!{name}" if self._member else name,
                    depth=self._depth + 1,
                    budget=self._budget,
                )
                try:
                    for block in blocks:
                        inner.feed(block)
                finally:
                    found, other = inner.close()
                    findings += found
                    problems += other
        except NotRead as error:
            self._problem(problems, str(error))

    def _finding(self, kind: str, place: str, offset: int | None) -> Finding:
        about = kinds.KINDS[kind]
        return Finding(self._path, kind, about.severity, place, about.effect, self._member, offset)


def symlink_findings(matcher: Matcher, path: str, target: str) -> list[Finding]:
    """What a symlink's target remembers."""
    raw = os.fsencode(target)
    about = kinds.KINDS["symlink"]
    return merged(
        Finding(path, "symlink", about.severity, match.place, about.effect)
        for match in matcher.matches(raw, 0, len(raw))
    )
