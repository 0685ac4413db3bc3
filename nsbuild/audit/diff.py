"""Two slugs, entry by entry: what differs, and what that means."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nsbuild.audit.audit import CLASSIC, IN_THE_VIEW, WORKSPACES
from nsbuild.audit.decode import is_bytecode
from nsbuild.audit.needles import needles_for
from nsbuild.audit.normal import Difference, Paths, classify
from nsbuild.audit.opened import Opened, opened
from nsbuild.errors import UsageError
from nsbuild.printable import printable
from nsbuild.tree.beneath import open_beneath, open_root
from nsbuild.tree.copy import open_regular
from nsbuild.tree.descent import Descent
from nsbuild.tree.walk import Event, walk

_BLOCK = 1 << 20
LARGEST = 64 << 20
"""Bytes of a file that is looked into; a larger one that differs is a real difference."""


@dataclass(frozen=True)
class DiffOptions:
    """`paths` and `patterns` are where either was built, besides where nsbuild and the platforms build; `run_paths`
    where they run, besides where they say. `ignored` are globs of paths, each with the reason for which a difference
    there does not count. Slugs that are no directories are unpacked in `workspace_dir`.
    """

    paths: Sequence[str] = ()
    patterns: Sequence[str] = ()
    run_paths: Sequence[str] = ()
    ignored: Sequence[tuple[str, str]] = ()
    workspace_dir: str | None = None


IGNORED = ((".nsbuild-slug", "nsbuild's own marker names the layout"),)
"""Differences that mean nothing whatever was built."""


@dataclass(frozen=True)
class Change:
    """One entry that differs. `what` is `only in A`, `only in B`, `type`, `mode`, `owner`, `link` or `content`.

    `kind` tells contents and links apart by what they differ in (`nsbuild.audit.normal.Difference`); everything else
    is `real`. `ignored` is the reason for which it does not count, if there is one.
    """

    path: str
    what: str
    kind: Difference = Difference.REAL
    a: str = ""
    b: str = ""
    ignored: str = ""


@dataclass
class Diff:
    """`same` counts entries without any difference."""

    a: str
    b: str
    changes: list[Change] = field(default_factory=list)
    same: int = 0

    @property
    def counted(self) -> list[Change]:
        """Those that are not ignored."""
        return [change for change in self.changes if not change.ignored]

    def totals(self) -> dict[tuple[str, Difference], int]:
        return dict(Counter((change.what, change.kind) for change in self.counted))

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints; `schema` 1."""
        totals = [{"what": what, "kind": str(kind), "count": count} for (what, kind), count in self.totals().items()]
        changes = [asdict(change) for change in self.changes]
        return {"schema": 1, "a": self.a, "b": self.b, "same": self.same, "totals": totals, "changes": changes}

    def as_text(self, *, everything: bool = False) -> Iterator[str]:
        """One screen: what differs and how much of it, the real differences first."""
        if not self.counted:
            yield f"the same: {self.same} entries"
            return
        for kind in reversed(Difference):
            mine = [change for change in self.counted if change.kind is kind]
            if not mine:
                continue
            yield f"{kind} ({len(mine)})"
            shown = mine if everything else mine[:15]
            for change in shown:
                detail = f": {printable(change.a)} | {printable(change.b)}" if change.a or change.b else ""
                yield f"    {change.what:9} {printable(change.path)}{detail}"
            if len(mine) > len(shown):
                yield f"    ... and {len(mine) - len(shown)} more (--all shows them)"
        ignored = len(self.changes) - len(self.counted)
        left_out = f", {ignored} ignored" if ignored else ""
        many = "" if len(self.counted) == 1 else "s"
        yield f"{len(self.counted)} difference{many}, {self.same} entries the same{left_out}"


def diff(a: str | Path, b: str | Path, options: DiffOptions | None = None) -> Diff:
    """Compare two slugs of any formats, or directories. They are not changed.

    Raises UsageError when one of them is not there, is damaged or cannot be read, or for a wrong option; Refused
    when a slug cannot be unpacked here.
    """
    options = options or DiffOptions()
    try:
        needles = needles_for([*IN_THE_VIEW, *options.paths])
    except ValueError as error:
        raise UsageError(f"--path: {error}.", "Give the whole path of the build directory.") from None
    with opened(a, options.workspace_dir) as slug_a, opened(b, options.workspace_dir) as slug_b:
        run_paths = dict.fromkeys((slug_a.run_path, slug_b.run_path, *options.run_paths))
        paths = Paths(needles, [CLASSIC, WORKSPACES, *options.patterns], run_paths)
        try:
            left, right = _entries(slug_a), _entries(slug_b)
            with _Root(slug_a) as root_a, _Root(slug_b) as root_b:
                return _Comparison(str(a), str(b), left, right, root_a, root_b, paths, options).run()
        except OSError as error:
            raise UsageError(f"{error.filename or a} cannot be read: {error.strerror}.", "Give two slugs.") from None


@dataclass(frozen=True)
class _Entry:
    mode: int
    owner: tuple[int, int]
    size: int
    target: str = ""


def _entries(slug: Opened) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    with Descent(slug.directory, open_root(slug.directory, None)) as descent:
        for event, name, info in walk(descent, unlock=slug.ours):
            if event is Event.LEAVE:
                continue
            path = descent.relative("" if event is Event.ENTER else name)
            target = os.readlink(name, dir_fd=descent.fd) if stat.S_ISLNK(info.st_mode) else ""
            found[path] = _Entry(info.st_mode, (info.st_uid, info.st_gid), info.st_size, target)
    return found


class _Root:
    """A directory whose files are opened beneath it."""

    def __init__(self, slug: Opened) -> None:
        self._fd = open_root(slug.directory, None)
        self._unlock = slug.ours

    def __enter__(self) -> _Root:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def open(self, path: str) -> int:
        parent, _, name = path.rpartition("/")
        directory = open_beneath(self._fd, parent or ".", os.O_PATH | os.O_DIRECTORY)
        try:
            return open_regular(directory, name, unlock=self._unlock)
        finally:
            os.close(directory)


class _Comparison:
    def __init__(
        self,
        a: str,
        b: str,
        left: dict[str, _Entry],
        right: dict[str, _Entry],
        root_a: _Root,
        root_b: _Root,
        paths: Paths,
        options: DiffOptions,
    ) -> None:
        self._result = Diff(a, b)
        self._left, self._right = left, right
        self._roots = (root_a, root_b)
        self._paths = paths
        self._ignored = (*IGNORED, *options.ignored)
        # One owner on each side, whoever it is, is no difference: a slug has one.
        owners = [{entry.owner for entry in side.values()} for side in (left, right)]
        self._owners_count = any(len(side) > 1 for side in owners)

    def run(self) -> Diff:
        for path in sorted(self._left.keys() | self._right.keys()):
            before = len(self._result.changes)
            if path not in self._right:
                self._add(path, "only in A")
            elif path not in self._left:
                self._add(path, "only in B")
            else:
                self._compare(path, self._left[path], self._right[path])
            if len(self._result.changes) == before:
                self._result.same += 1
        return self._result

    def _add(self, path: str, what: str, kind: Difference = Difference.REAL, a: str = "", b: str = "") -> None:
        ignored = next((reason for glob, reason in self._ignored if fnmatchcase(path, glob)), "")
        self._result.changes.append(Change(path, what, kind, a, b, ignored))

    def _compare(self, path: str, a: _Entry, b: _Entry) -> None:
        if stat.S_IFMT(a.mode) != stat.S_IFMT(b.mode):
            self._add(path, "type", Difference.REAL, _type(a.mode), _type(b.mode))
            return
        if a.target != b.target:
            normal = [self._paths(os.fsencode(entry.target)) for entry in (a, b)]
            kind = Difference.PATH if normal[0] == normal[1] else Difference.REAL
            self._add(path, "link", kind, a.target, b.target)
        elif stat.S_IMODE(a.mode) != stat.S_IMODE(b.mode) and not stat.S_ISLNK(a.mode):
            self._add(path, "mode", Difference.REAL, f"{stat.S_IMODE(a.mode):04o}", f"{stat.S_IMODE(b.mode):04o}")
        elif self._owners_count and a.owner != b.owner:
            self._add(path, "owner", Difference.REAL, _owner(a), _owner(b))
        if stat.S_ISREG(a.mode):
            kind_of_content = self._content(path, a, b)
            if kind_of_content is not None:
                self._add(path, "content", kind_of_content, f"{a.size} bytes", f"{b.size} bytes")

    def _content(self, path: str, a: _Entry, b: _Entry) -> Difference | None:
        fds = [root.open(path) for root in self._roots]
        try:
            if a.size == b.size and _same_bytes(*fds):
                return None
            if max(a.size, b.size) > LARGEST:
                return Difference.REAL
            for fd in fds:
                os.lseek(fd, 0, os.SEEK_SET)
            left, right = (_read(fd) for fd in fds)
            of_source = self._of_source(path) if is_bytecode(path) else Difference.REAL
            found = classify(path, left, right, self._paths, same_source=of_source is None)
            # Columns and a hash of the source differ with it.
            return of_source if found is Difference.REAL and of_source is not None else found
        finally:
            for fd in fds:
                os.close(fd)

    def _of_source(self, path: str) -> Difference | None:
        """What the .py that a .pyc was compiled from differs in; None for the same, REAL where a side has none."""
        directory, _, name = path.rpartition("/")
        module = f"{name.split('.', 1)[0]}.py"
        source = f"{directory.removesuffix('__pycache__')}{module}" if directory else module
        sides = self._left.get(source), self._right.get(source)
        if sides[0] is None or sides[1] is None or not all(side and stat.S_ISREG(side.mode) for side in sides):
            return Difference.REAL
        return self._content(source, sides[0], sides[1])


def _owner(entry: _Entry) -> str:
    return ":".join(map(str, entry.owner))


def _type(mode: int) -> str:
    names = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}
    return names.get(stat.S_IFMT(mode), "special")


def _same_bytes(a: int, b: int) -> bool:
    while True:
        left, right = os.read(a, _BLOCK), os.read(b, _BLOCK)
        if left != right:
            return False
        if not left:
            return True


def _read(fd: int) -> bytes:
    blocks, left = [], LARGEST  # it may be growing
    while left and (block := os.read(fd, min(left, _BLOCK))):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)
