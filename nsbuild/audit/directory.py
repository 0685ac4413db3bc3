"""The audit of a directory: every entry once, whatever lies there."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from typing import Self

from nsbuild.audit.auditor import Auditor
from nsbuild.audit.workers import FDS, Entry, Part, Workers
from nsbuild.tree.beneath import open_root
from nsbuild.tree.copy import extents, open_whatever
from nsbuild.tree.descent import Descent, Identity, identity
from nsbuild.tree.walk import Event, walk

_BLOCK = 1 << 20
_FILES, _BYTES = 64, 4 << 20
"""What makes a batch, if a directory has as much."""
ALONE = 300
"""Files that are audited before other processes are asked to help: to fork costs as much as some hundreds."""
PROCESSES = min(4, len(os.sched_getaffinity(0)))
"""With more of them, the walk that feeds them is what is waited for."""

Writer = Callable[[str, float], str]
"""Who wrote an entry last, by its path and its change time in seconds; empty when nobody knows."""


def audit_directory(auditor: Auditor, directory: str, writer: Writer | None = None, *, unlock: bool = False) -> None:
    """Feed everything below `directory`. What cannot be read, has vanished or changed becomes a problem.

    A large one is read by as many processes as there are processors for it, up to `PROCESSES`, where this process
    has one thread. `unlock` is for a tree of our own, as in `walk`. Raises OSError when the directory itself cannot
    be read, the one that it is in is moved away meanwhile, or a process that helped was killed.
    """
    with Descent(directory, open_root(directory, None)) as descent, _Reading(auditor, writer, unlock) as reading:
        closed = [False]
        seen: set[Identity] = set()
        for event, name, info in walk(descent, tolerant=True, unlock=unlock):
            if event is not Event.OTHER:
                reading.elsewhere()
            if event is Event.LEAVE:
                closed.pop()
            elif event is Event.ENTER:
                auditor.directory(descent.shown())
                closed.append(info.st_mode & 0o500 != 0o500)
            elif stat.S_ISREG(info.st_mode):
                if info.st_nlink > 1:
                    if identity(info) in seen:  # its bytes have been searched under another name
                        auditor.directory(descent.shown(name))
                        continue
                    seen.add(identity(info))
                reading.file(descent, (name, info.st_mode, info.st_size, info.st_blocks, info.st_ctime))
                if closed[-1]:
                    reading.flush(here=True)  # the walk closes the directory again when it leaves
            else:
                _audit_other(auditor, descent, name, info, writer)
        reading.finish()


def _audit_other(auditor: Auditor, descent: Descent, name: str, info: os.stat_result, writer: Writer | None) -> None:
    path = descent.shown(name)
    if stat.S_ISDIR(info.st_mode):
        auditor.problem(path, "cannot be read: it is a closed directory")
    elif stat.S_ISLNK(info.st_mode):
        if writer is not None:
            auditor.writer(path, writer(path, info.st_ctime))
        try:
            auditor.symlink(path, os.readlink(name, dir_fd=descent.fd))
        except OSError as error:
            _not_read(auditor, path, error)


def _not_read(auditor: Auditor, path: str, error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        auditor.problem(path, "vanished while it was audited")
    else:
        auditor.problem(path, f"cannot be read: {error.strerror}")


class _Reading:
    """Gathers files into batches, and has them audited here or by others."""

    def __init__(self, auditor: Auditor, writer: Writer | None, unlock: bool) -> None:
        self._auditor = auditor
        self._writer = writer
        self._unlock = unlock
        self._workers: Workers | None = None
        self._parts: list[Part] = []
        self._fds: list[int] = []
        self._entries: list[Entry] | None = None
        """Those of the directory in which the walk is, if it had any yet."""
        self._bytes = self._files = self._given = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._drop()
        if self._workers is not None:
            self._workers.__exit__()

    def elsewhere(self) -> None:
        """The walk is in another directory now."""
        self._entries = None

    def file(self, descent: Descent, entry: Entry) -> None:
        """A regular file of the directory in which the descent is."""
        if self._entries is None:
            if len(self._fds) == FDS:
                self.flush()
            self._entries = []
            self._parts.append((descent.shown(), self._entries))
            self._fds.append(os.dup(descent.fd))  # the walk may be elsewhere when it is read
        self._entries.append(entry)
        self._files += 1
        self._bytes += entry[2]
        if self._files == _FILES or self._bytes >= _BYTES:
            self.flush()

    def flush(self, *, here: bool = False) -> None:
        """Have what was gathered audited; `here` at once, by this process."""
        self._given += self._files
        if self._workers is None and self._given > ALONE and PROCESSES > 1 and threading.active_count() == 1:
            self._workers = Workers(PROCESSES - 1, self._begin, self._audit, lambda: self._auditor.collected)
        if here or self._workers is None or not self._workers.give(self._parts, self._fds):
            for part, fd in zip(self._parts, self._fds, strict=True):
                self._audit(part, fd)
        self._drop()

    def _drop(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._parts, self._fds, self._entries = [], [], None
        self._bytes = self._files = 0

    def _begin(self) -> None:
        """In one of the others: it collects what it reads itself."""
        self._drop()  # what is gathered is its caller's, and descriptors may be few
        self._auditor = self._auditor.another()

    def finish(self) -> None:
        self.flush()
        if self._workers is not None:
            for collected in self._workers.finish():
                self._auditor.collected.add(collected)

    def _audit(self, part: Part, dir_fd: int) -> None:
        auditor, above = self._auditor, part[0] and part[0] + "/"
        for name, mode, size, blocks, changed in part[1]:
            path = above + name
            if self._writer is not None:
                auditor.writer(path, self._writer(path, changed))
            try:
                fd = open_whatever(dir_fd, name, unlock=self._unlock)
                try:
                    _audit_file(auditor, fd, path, bool(mode & 0o111), size, blocks)
                finally:
                    os.close(fd)
            except OSError as error:
                _not_read(auditor, path, error)


def _audit_file(auditor: Auditor, fd: int, path: str, executable: bool, size: int, blocks: int) -> None:
    data = os.read(fd, min(_BLOCK, size + 1))  # room that is not filled is not free
    if len(data) < _BLOCK and len(data) == size:
        auditor.whole(path, data, executable=executable)
        return
    file = auditor.file(path, executable=executable)
    at = 0
    # A build can leave a file of a petabyte that is all hole. One that grows is read as far as it reached.
    sparse = blocks * 512 < size
    for start, end in extents(fd, size) if sparse else [(0, size)]:
        if start > at:
            file.skip(start - at)
        at = start
        os.lseek(fd, start, os.SEEK_SET)
        while at < end and (data := os.read(fd, min(_BLOCK, end - at))):
            file.feed(data)
            auditor.collected.bytes += len(data)
            at += len(data)
        if at < end:
            auditor.problem(path, "shrank while it was audited")
            break
    auditor.done(path, file)
