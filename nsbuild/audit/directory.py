"""The audit of a directory: every entry once, whatever lies there."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Self

from nsbuild.audit.auditor import Auditor, Collected, Linked
from nsbuild.audit.workers import FDS, Part, Workers
from nsbuild.tree.beneath import open_root
from nsbuild.tree.copy import extents, open_whatever
from nsbuild.tree.descent import Descent, Identity, identity
from nsbuild.tree.walk import listings

_BLOCK = 1 << 20
_SMALL = 64 << 10
_FILES = 64
"""In a batch, if a directory has as many."""
ALONE = 300
"""Files for which no other process is asked to help: to fork costs as much as some hundreds."""
PROCESSES = min(4, len(os.sched_getaffinity(0)))
"""With more of them, the walk that feeds them is what is waited for."""

Writer = Callable[[str, float], str]
"""Who wrote an entry last, by its path and its change time in seconds; empty when nobody knows."""

_Linked = dict[Identity, Linked]
"""Files of several names, each under the one that an archive has first."""


def _order(file: Linked) -> list[str]:
    """As the names of an archive are sorted."""
    return file.path.split("/")


def audit_directory(auditor: Auditor, directory: str, writer: Writer | None = None, *, unlock: bool = False) -> None:
    """Feed everything below `directory`. What cannot be read, has vanished or changed becomes a problem.

    A large one is read by as many processes as there are processors for it, up to `PROCESSES`, where this process
    has one thread. `unlock` is for a tree of our own, as in `walk`. Raises OSError when the directory itself cannot
    be read, the one that it is in is moved away meanwhile, or a process that helped was killed.
    """
    with Descent(directory, open_root(directory, None)) as descent, _Reading(auditor, writer, unlock) as reading:
        for listing in listings(descent, unlock=unlock):
            here = descent.shown()
            above = here and here + "/"
            auditor.entries([here] if here else [])
            auditor.entries([above + name for name in listing.files])
            reading.files(here, descent.fd, listing.files)
            if listing.closed:
                reading.flush(here=True)  # before it is closed again
            for name in listing.others:
                _audit_other(auditor, above + name, descent.fd, name, writer)
        reading.finish()


def _audit_other(auditor: Auditor, path: str, dir_fd: int, name: str, writer: Writer | None) -> None:
    try:
        info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            auditor.problem(path, "cannot be read: it is a closed directory")
        elif stat.S_ISREG(info.st_mode):
            auditor.problem(path, "was no file before: it changed while it was audited")
        elif stat.S_ISLNK(info.st_mode):
            if writer is not None:
                auditor.writer(path, writer(path, info.st_ctime))
            auditor.symlink(path, os.readlink(name, dir_fd=dir_fd))
    except OSError as error:
        _not_read(auditor, path, error)


def _not_read(auditor: Auditor, path: str, error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        auditor.problem(path, "vanished while it was audited")
    else:
        auditor.problem(path, f"cannot be read: {error.strerror}")


class _Batch:
    """Files of a few directories, which are kept open."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.fds: list[int] = []
        self.room = _FILES

    def add(self, dir_fd: int, part: Part) -> None:
        self.fds.append(os.dup(dir_fd))  # the walk may be elsewhere when it is read
        self.parts.append(part)
        self.room -= len(part[1])

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.parts, self.fds, self.room = [], [], _FILES


class _Reading:
    """Gathers files into batches, and has them audited here or by others."""

    def __init__(self, auditor: Auditor, writer: Writer | None, unlock: bool) -> None:
        self._auditor = auditor
        self._writer = writer
        self._unlock = unlock
        self._turn = os.memfd_create("turn") if unlock else -1
        self._workers: Workers | None = None
        self._batches = [_Batch()]
        self._files = 0
        self._linked: _Linked = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._drop()
        if self._workers is not None:
            self._workers.__exit__()
        if self._turn >= 0:
            os.close(self._turn)

    def files(self, directory: str, dir_fd: int, names: Sequence[str]) -> None:
        """Regular files of a directory."""
        while names:
            batch = self._batches[-1]
            some, names = names[: batch.room], names[batch.room :]
            batch.add(dir_fd, (directory, some))
            self._files += len(some)
            kept_open = sum(len(one.fds) for one in self._batches)
            if batch.room and kept_open < FDS:
                continue
            # The first wait until it is known that there are many, for they may be the largest.
            if self._workers is None and self._files <= ALONE and kept_open < FDS:
                self._batches.append(_Batch())
            else:
                self.flush()

    def flush(self, *, here: bool = False) -> None:
        """Have what was gathered audited; `here` at once, by this process."""
        if self._workers is None and self._files > ALONE and PROCESSES > 1 and threading.active_count() == 1:
            self._workers = Workers(PROCESSES - 1, self._begin, self._audit, self._result)
        for batch in self._batches:
            if here or self._workers is None or not self._workers.give(batch.parts, batch.fds):
                for part, fd in zip(batch.parts, batch.fds, strict=True):
                    self._audit(part, fd)
        self._drop()

    def _drop(self) -> None:
        for batch in self._batches:
            batch.close()
        del self._batches[1:]

    def _begin(self) -> None:
        """In one of the others: it collects what it reads itself."""
        self._drop()  # what is gathered is its caller's, and descriptors may be few
        self._auditor, self._linked = self._auditor.another(), {}

    def _result(self) -> tuple[Collected, _Linked]:
        return self._auditor.collected, self._linked

    def finish(self) -> None:
        self.flush()
        if self._workers is not None:
            for collected, linked in self._workers.finish():
                self._auditor.collected.add(collected)
                for which, read in linked.items():
                    # Each process may have read a file under another name.
                    first, other = sorted((read, self._linked.get(which, read)), key=_order)
                    first.names.update(other.names)
                    self._linked[which] = first
        for file in self._linked.values():
            self._auditor.linked(file)

    def _audit(self, part: Part, dir_fd: int) -> None:
        directory, names = part
        auditor, above = self._auditor, directory and directory + "/"
        for name in names:
            changed = None
            try:
                try:
                    fd = open_whatever(dir_fd, name, unlock=False)
                except PermissionError:
                    if not self._unlock:
                        raise
                    fd, changed = self._unlocked(dir_fd, name)
                try:
                    # What is small and has nothing in it, nearly every file, costs no other call. Some filesystems
                    # in user space give less than there is: the end has come where nothing comes.
                    data = os.read(fd, _SMALL)
                    if 0 < len(data) < _SMALL and not os.read(fd, 1) and auditor.quiet(data):
                        auditor.count(len(data))
                    else:
                        self._look(above + name, fd, changed)
                finally:
                    os.close(fd)
            except OSError as error:
                _not_read(auditor, above + name, error)

    def _unlocked(self, dir_fd: int, name: str) -> tuple[int, float]:
        """A file of ours that its mode closes, and its ctime, which tells who wrote it and changes when it is opened.

        By one process at a time, for it may have other names, and each gives back the mode that it has seen.
        """
        fcntl.lockf(self._turn, fcntl.LOCK_EX)
        try:
            changed = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ctime
            return open_whatever(dir_fd, name, unlock=True), changed
        finally:
            fcntl.lockf(self._turn, fcntl.LOCK_UN)

    def _look(self, path: str, fd: int, changed: float | None) -> None:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            self._auditor.problem(path, "is no file any more: it changed while it was audited")
            return
        writer = ""
        if self._writer is not None:
            writer = self._writer(path, info.st_ctime if changed is None else changed)
            self._auditor.writer(path, writer)
        if info.st_nlink == 1:
            _audit_file(self._auditor, path, fd, info)
            return
        known = self._linked.get(identity(info))
        if known is not None and _order(known) < path.split("/"):
            self._auditor.count(info.st_size)
            known.also(path, writer)
            return
        with self._auditor.apart(path, writer, bool(info.st_mode & 0o111)) as file:
            _audit_file(self._auditor, path, fd, info)
        if known is not None:
            file.names.update(known.names)
        self._linked[identity(info)] = file


def _audit_file(auditor: Auditor, path: str, fd: int, info: os.stat_result) -> None:
    size, executable = info.st_size, bool(info.st_mode & 0o111)
    os.lseek(fd, 0, os.SEEK_SET)
    data = os.read(fd, min(_BLOCK, size + 1))  # room that is not filled is not free
    if len(data) < _BLOCK and len(data) == size:
        auditor.whole(path, data, executable=executable)
        return
    file = auditor.file(path, executable=executable)
    at = 0
    # A build can leave a file of a petabyte that is all hole. One that grows is read as far as it reached.
    sparse = info.st_blocks * 512 < size
    for start, end in chain(extents(fd, size), [(size, size)]) if sparse else [(0, size)]:
        if start > at:
            file.skip(start - at)
        at = start
        os.lseek(fd, start, os.SEEK_SET)
        while at < end and (data := os.read(fd, min(_BLOCK, end - at))):
            file.feed(data)
            at += len(data)
        if at < end:
            auditor.problem(path, "shrank while it was audited")
            break
    auditor.done(path, file)
