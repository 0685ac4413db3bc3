"""The audit of a directory: every entry once, whatever lies there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from nsbuild.audit.auditor import Auditor
from nsbuild.tree.beneath import open_root
from nsbuild.tree.copy import extents, open_regular
from nsbuild.tree.descent import Descent, Identity, identity
from nsbuild.tree.walk import Event, walk

_BLOCK = 1 << 20


def audit_directory(
    auditor: Auditor,
    directory: str,
    writer: Callable[[str, os.stat_result], str] | None = None,
    *,
    unlock: bool = False,
) -> None:
    """Feed everything below `directory`. What cannot be read, has vanished or changed becomes a problem.

    `writer` tells who wrote an entry last; `unlock` is for a tree of our own, as in `walk`. Raises OSError when the
    directory itself cannot be read.
    """
    seen: set[Identity] = set()
    with Descent(directory, open_root(directory, None)) as descent:
        for event, name, info in walk(descent, tolerant=True, unlock=unlock):
            if event is Event.LEAVE:
                continue
            if event is Event.ENTER:
                auditor.directory(descent.shown())
                continue
            path = descent.shown(name)
            if writer is not None:
                auditor.writer(path, writer(path, info))
            try:
                _audit_entry(auditor, descent, name, path, info, seen, unlock)
            except FileNotFoundError:
                auditor.problem(path, "vanished while it was audited")
            except OSError as error:
                auditor.problem(path, f"cannot be read: {error.strerror}")


def _audit_entry(
    auditor: Auditor,
    descent: Descent,
    name: str,
    path: str,
    info: os.stat_result,
    seen: set[Identity],
    unlock: bool,
) -> None:
    if stat.S_ISLNK(info.st_mode):
        auditor.symlink(path, os.readlink(name, dir_fd=descent.fd))
    elif stat.S_ISDIR(info.st_mode):
        auditor.problem(path, "cannot be read: it is a closed directory")
    elif stat.S_ISREG(info.st_mode):
        if info.st_nlink > 1 and identity(info) in seen:
            auditor.directory(path)  # a hard link: its bytes have been searched under another name
            return
        if info.st_nlink > 1:
            seen.add(identity(info))
        fd = open_regular(descent.fd, name, unlock=unlock)
        try:
            _audit_file(auditor, fd, path, info)
        finally:
            os.close(fd)


def _audit_file(auditor: Auditor, fd: int, path: str, info: os.stat_result) -> None:
    executable = bool(info.st_mode & 0o111)
    data = os.read(fd, min(_BLOCK, info.st_size + 1))  # room that is not filled is not free
    if len(data) < _BLOCK and len(data) == info.st_size:
        auditor.whole(path, data, executable=executable)
        return
    file = auditor.file(path, executable=executable)
    at = 0
    # A build can leave a file of a petabyte that is all hole. One that grows is read as far as it reached.
    sparse = info.st_blocks * 512 < info.st_size
    for start, end in extents(fd, info.st_size) if sparse else [(0, info.st_size)]:
        if start > at:
            file.skip(start - at)
        at = start
        os.lseek(fd, start, os.SEEK_SET)
        while at < end and (data := os.read(fd, min(_BLOCK, end - at))):
            file.feed(data)
            auditor.report.bytes += len(data)
            at += len(data)
        if at < end:
            auditor.problem(path, "shrank while it was audited")
            break
    auditor.done(path, file)
