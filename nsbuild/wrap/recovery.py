"""Putting back what a killed launcher had adopted: by its guardian, the next invocation, or `nsbuild recover`."""

from __future__ import annotations

import os
import select
import time

from nsbuild.sandbox.skeleton import give_back_orphans
from nsbuild.tree.flock import flock_within
from nsbuild.tree.remove import remove_tree
from nsbuild.wrap import journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_WAIT = 10.0
"""Seconds for a build to die once its launcher has: the kernel kills it, but a process in the kernel may linger."""


class StillRunning(OSError):
    """The build of a journal is still alive, so nothing may be taken from under it."""


def recover_all(directory: str, failed: Callable[[OSError], None] | None = None) -> list[str]:
    """Put back what abandoned journals tell of. Returns sentences for a person.

    `failed` is told of what cannot be put back (now); without it the first such OSError is raised at the end.
    """
    said = []
    errors = []
    for path, fd in journal.abandoned(directory):
        try:
            said += put_back(path)
        except OSError as error:
            errors.append(error)
        finally:
            os.close(fd)
    if errors and failed is None:
        raise errors[0]
    if failed is not None:
        for problem in errors:
            failed(problem)
    return said


def recover_aloud(directory: str, say: Callable[[str], None]) -> None:
    """Before anything else. What cannot be put back (now) is in the way of its own BUILD_DIR only."""

    def failed(error: OSError) -> None:
        place = f"{error.filename}: " if error.filename else ""
        say(f"an interrupted launch cannot be recovered from: {place}{error.strerror}.")

    for sentence in recover_all(directory, failed):
        say(f"recovered from an interrupted launch: {sentence}.")


def bring_back(directory: str, place: str, seconds: float, say: Callable[[str], None]) -> None:
    """`place` is not there: let whoever is putting it back end, or do it, when its user was killed just now."""
    deadline = time.monotonic() + seconds
    for entry in journal.entries(directory):
        if os.path.realpath(place) in entry.places.values():
            try:
                fd = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                flock_within(fd, deadline - time.monotonic())
            except BlockingIOError:
                pass
            finally:
                os.close(fd)
    recover_aloud(directory, say)


def put_back(path: str) -> list[str]:
    """Put back everything of one journal, whose lock the caller holds, and remove it."""
    try:
        entry = journal.read(path)
    except FileNotFoundError:
        return []
    said = []
    if entry is not None:
        if entry.version > journal.VERSION:
            raise OSError(0, f"was written by a newer nsbuild (journal version {entry.version}); use that one", path)
        _wait_for(entry.child, os.stat(path).st_mtime)
        for source, place in give_back_orphans(entry.workspace, entry.places):
            said.append(
                f"{source} is back" if place == source else f"{source} exists again; what was there is {place}"
            )
        remove_tree(entry.workspace)
    os.unlink(path)
    return said


def _wait_for(pid: int, written: float) -> None:
    """Until process 1 of the build is gone. A number that is another process's by now is not waited for."""
    if not pid:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        deadline = time.monotonic() + _WAIT
        while _began_before(pid, written) and not select.select([pidfd], [], [], 0.05)[0]:
            if time.monotonic() > deadline:
                raise StillRunning(0, f"process {pid} of the build is still there", f"/proc/{pid}")
    finally:
        os.close(pidfd)


def _began_before(pid: int, moment: float) -> bool:
    """Whether the process is older than the journal's last line: else its number has been used again."""
    now = time.time()  # before its age: a pause between the two makes it older, which costs a wait and no more
    try:
        with open(f"/proc/{pid}/stat", "rb") as file, open("/proc/uptime", "rb") as clock:  # noqa: PTH123
            began = int(file.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
            age = float(clock.read().split()[0]) - began
    except OSError:
        return False
    return now - age <= moment + 1.0


class Guardian:
    """A process that outlives the launcher for as long as it takes to put everything back."""

    def __init__(self, kept: journal.Journal) -> None:
        read_end, self._write_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._write_end)
                _guard(read_end, kept)
            finally:
                os._exit(0)
        os.close(read_end)

    def dismiss(self) -> None:
        """Everything is back: it may go."""
        try:
            os.write(self._write_end, b"d")
        except BrokenPipeError:
            self.pid = os.waitpid(self.pid, 0)[0]  # killed before; it is not needed any more
        else:
            os.waitpid(self.pid, 0)
        os.close(self._write_end)


def _guard(read_end: int, kept: journal.Journal) -> NoReturn:
    # Out of the launcher's group and session: what ends the launcher must not end us.
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.chdir("/")
    import _signal as signal  # type: ignore[import-not-found]

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    if not os.read(read_end, 1):
        put_back(kept.path)
    os._exit(0)
