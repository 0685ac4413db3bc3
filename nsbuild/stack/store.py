"""Unpacked images, below the user's cache directory: one directory each, by image id, whole or not there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsbuild.errors import FULL, NsbuildError, Refused, UsageError
from nsbuild.sandbox.remote import fresh_interpreter
from nsbuild.tree import fsync_directory, remove_tree, write_atomic
from nsbuild.tree.locks import locked
from nsbuild.user import DEFAULT_UID
from nsbuild.workspace import user_cache

_BESIDE = "new-"
_COMPLETE = "stack.json"
"""Written last."""


@dataclass(frozen=True)
class Reference:
    """An image in a file or an OCI layout, as the user named it; `tag` is one of an OCI layout."""

    name: str
    path: str
    tag: str = ""


class Store:
    """`directory` holds `sha256-.../root` for each image, and in `known` which image a file was when last read."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or user_cache() / "stacks"

    def find(self, digest: str) -> str | None:
        """The root file system of an image id, when it has been unpacked."""
        place = self._place(digest)
        return f"{place}/root" if (place / _COMPLETE).is_file() else None

    def get(self, reference: Reference) -> tuple[str, str]:
        """(image id, its root file system), unpacked if it was not yet; of several builds one does it.

        Raises UsageError for what is no image, Refused, OSError.
        """
        source = os.open(reference.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            known = self.directory / "known" / _identity(source, reference.tag)
            with contextlib.suppress(FileNotFoundError):
                digest = known.read_text()
                if (root := self.find(digest)) is not None:
                    return digest, root
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._beside() as beside:
                digest = self._unpack(reference, source, beside)
            known.parent.mkdir(exist_ok=True)
            write_atomic(str(known), digest.encode())
        finally:
            os.close(source)
        root = self.find(digest)
        assert root is not None
        return digest, root

    def collect(self) -> list[str]:
        """Remove what killed builds have left of an image; returns the paths. Raises OSError."""
        if not self.directory.is_dir():
            return []
        with locked(self.directory.resolve(), fcntl.LOCK_EX):
            return self._remove_left()

    def _remove_left(self) -> list[str]:
        removed = []
        for left in sorted(self.directory.glob(f"{_BESIDE}*")):
            # Whoever has unpacked it renames or removes it without the store's lock.
            gone_or_in_use = contextlib.suppress(FileNotFoundError, BlockingIOError)
            with gone_or_in_use, locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB) as there:
                if there:
                    remove_tree(str(left))
                    removed.append(str(left))
        return removed

    def _place(self, digest: str) -> Path:
        return self.directory / digest.replace(":", "-").replace("/", "-")

    @contextlib.contextmanager
    def _beside(self) -> Iterator[Path]:
        """A new directory, locked while it is in use. What killed builds have left beside it is removed."""
        beside = self.directory / f"{_BESIDE}{os.urandom(6).hex()}"
        lock = contextlib.ExitStack()
        # Under the store's lock: nobody takes it for a left one before it is locked itself.
        with locked(self.directory.resolve(), fcntl.LOCK_EX):
            self._remove_left()
            (beside / "root").mkdir(parents=True)
            lock.enter_context(locked(beside, fcntl.LOCK_EX))
        try:
            yield beside
        finally:
            with lock:
                remove_tree(str(beside))

    def _unpack(self, reference: Reference, source: int, beside: Path) -> str:
        root = beside / "root"
        uid, gid = os.geteuid(), os.getegid()
        if uid == 0:
            # Nobody but builds has this uid: no other user can change what they all see.
            uid = gid = DEFAULT_UID
            os.chown(root, uid, gid)
        argv, environment = fresh_interpreter("nsbuild.stack.unpack", str(source), str(uid), str(gid), reference.tag)
        with subprocess.Popen(
            argv,
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(source,),
            start_new_session=True,
        ) as process:
            try:
                digest = str(_answer(process, reference, self.directory)["digest"])
                place = self._place(digest)
                # Whoever comes second waits, and finds it done.
                with open(f"{place}.lock", "a") as lock:  # noqa: PTH123
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if self.find(digest) is None:
                        remove_tree(str(place))
                        assert process.stdin is not None
                        with contextlib.suppress(BrokenPipeError):
                            process.stdin.write(b"go\n")
                            process.stdin.flush()
                        _answer(process, reference, self.directory)
                        content = json.dumps({"schema": 1, "digest": digest, "name": reference.name}) + "\n"
                        write_atomic(str(beside / _COMPLETE), content.encode())
                        os.rename(beside, place)
                        fsync_directory(str(self.directory))
                return digest
            finally:
                process.kill()


def _answer(process: subprocess.Popen[bytes], reference: Reference, store: Path) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise Refused(f"The process that unpacks {reference.name} was killed.", "Is there enough memory?")
    answer: dict[str, Any] = json.loads(line)
    if "malformed" in answer:
        raise not_an_image(reference.name, str(answer["malformed"]))
    if "errno" in answer:
        place = f"{answer['path']}: " if answer["path"] else ""
        raise Refused(
            f"The stack root {reference.name} cannot be unpacked in {store}: {place}{os.strerror(answer['errno'])}.",
            "Set XDG_CACHE_HOME to a directory with space." if answer["errno"] in FULL else "",
        )
    return answer


def not_an_image(name: str, problem: str) -> NsbuildError:
    """`problem` goes on from `the stack root ...`."""
    return UsageError(
        f"The stack root {name} {problem}.", "Give a directory, an OCI layout, or what `docker save` writes."
    )


def _identity(source: int, tag: str) -> str:
    """Changes whenever the file does, or the index of the OCI layout."""
    info = os.fstat(source)
    if os.path.isdir(f"/proc/self/fd/{source}"):
        info = os.stat("index.json", dir_fd=source)
    fields = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns, tag)
    return hashlib.sha256(repr(fields).encode("utf-8", "surrogateescape")).hexdigest()
