"""How much disk a workspace takes: a process beside measures it, when asked and every few seconds while a build runs.

It is a process of its own because a walk takes as long as there are files, and a launch has to be relayed meanwhile;
and because it enters a user namespace, in which directories of its user that a build has closed (mode 0) are open.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from types import TracebackType

from nsbuild.errors import Refused
from nsbuild.sandbox import kernel
from nsbuild.sandbox.remote import fresh_interpreter
from nsbuild.tree import disk_usage

INTERVAL = 2.0
"""Seconds between two looks, the second of them at least; where a look takes long, four times as long as that."""
_ASK, _WATCH = b"a", b"w"


class DiskWatch:
    """Measures the tree `path`, for which `limit` bytes are too much. A context manager.

    After `watch` its `fd` has something to read once it was too much; `measure` ends that.
    """

    def __init__(self, path: str, limit: int) -> None:
        argv, environment = fresh_interpreter("nsbuild.disk", path, str(limit), str(INTERVAL))
        self.limit = limit
        self._process = subprocess.Popen(
            argv, env=environment, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._asks, self._answers = self._process.stdin, self._process.stdout
        self.fd = self._answers.fileno()

    def watch(self) -> None:
        """Look every so often from now on. Raises Refused when the process is gone."""
        self._tell(_WATCH)

    def measure(self) -> dict[str, int]:
        """Bytes of disk, by the name in the tree that they are below: now, or when `watch` found them too much.

        Raises Refused when the process is gone, or cannot read the tree.
        """
        self._tell(_ASK)
        found: dict[str, int] = {}
        while line := self._answers.readline():
            answer = json.loads(line)
            if "failed" in answer:
                raise Refused(f"How much disk the build takes cannot be told: {answer['failed']}.")
            if not found or sum(answer["used"].values()) >= self.limit:
                found = answer["used"]
            if answer["asked"]:
                return found
        raise _gone()

    def _tell(self, what: bytes) -> None:
        try:
            self._asks.write(what)
            self._asks.flush()
        except BrokenPipeError:
            raise _gone() from None

    def __enter__(self) -> DiskWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._answers.close()
        try:
            self._asks.close()
        except BrokenPipeError:
            pass  # what was still to be told


def _gone() -> Refused:
    return Refused("The process that keeps --disk has ended.", "Was it killed, or is there no memory?")


def main(path: str, limit: str, interval: str) -> None:
    """The process: answers on stdout, a line of JSON each, until stdin ends."""
    _open_closed_directories()
    watching = False
    wait = float(interval)
    stdin = select.poll()
    stdin.register(0, select.POLLIN)
    while True:
        if stdin.poll(wait * 1000 if watching else None):
            told = os.read(0, 1)
            if not told:
                return
            watching = told == _WATCH
            if watching:
                continue
        began = time.monotonic()
        try:
            used = disk_usage(path)
        except OSError as error:
            _answer(failed=str(error))
            return
        wait = max(float(interval), 4 * (time.monotonic() - began))
        if not watching or sum(used.values()) >= int(limit):
            _answer(used=used, asked=not watching)
            watching = False


def _answer(**answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _open_closed_directories() -> None:
    """In a user namespace of its own a process has CAP_DAC_READ_SEARCH over what is its own user's and group's.

    Where there are none it sees what the user sees; but then there is no sandbox either.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return
    try:
        kernel.unshare(kernel.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)
    except OSError:
        return
