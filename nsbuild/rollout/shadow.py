"""A shadow's candidate, on the side of the build that is shipped: copies, and a process that waits for the end.

Copying is all that the shipped build waits for. The process is a fresh interpreter in a session of its own, with
nothing of the builder's open but what it polls to see this process end.
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import time
from pathlib import Path
from typing import Any, TypeVar

from nsbuild.rollout import cache
from nsbuild.rollout.scratch import Scratch, default_parent
from nsbuild.rollout.slots import NoSlot, take_slot
from nsbuild.sandbox.remote import fresh_interpreter
from nsbuild.sandbox.value import pack
from nsbuild.sandbox.view import app_layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nsbuild.rollout.arms import Call
    from nsbuild.rollout.noted import Noted

JOB, DELIVERED, LOCK, SLOT = 0, 3, 4, 5
"""Descriptors of the candidate's process: what to do; this process, readable once it has ended; the locks."""
_HIGH = 64
Made = TypeVar("Made", bound="Candidate")
_STATE = ("XDG_STATE_HOME", "NSBUILD_ROLLOUT_STATE")


class Candidate:
    """Copies of everything that a build is given, in `scratch`. A subclass knows what that is."""

    def __init__(self, noted: Noted, timeout: float, scratch: Scratch) -> None:
        self._noted = noted
        self._timeout = timeout
        self._scratch = scratch
        self.slot = -1
        self.started = False

    def _spawn(self, kind: str, shipped: str, **job: Any) -> None:
        """The shipped build has ended, and left `shipped`, which may be empty: build once this process has ended.

        Never raises for the candidate's sake.
        """
        try:
            copied = self._scratch.copy(shipped, "shipped") if shipped else ""
            self._noted.told["shadow"] = dict(self._scratch.cost())
            known = {
                "kind": kind,
                "path": self._scratch.path,
                "shipped": copied,
                "decided": self._noted.as_plain(),
                "timeout": self._timeout,
                "environ": dict(os.environ),
            }
            spawn({**known, **job}, self._scratch, self.slot)
            self.started = True
        except OSError as error:
            _skipped(self._noted, _reason(error))


class CompileCandidate(Candidate):
    """Of a `compile`."""

    def __init__(self, call: Call, noted: Noted, timeout: float, scratch: Scratch) -> None:
        """Raises OSError."""
        super().__init__(noted, timeout, scratch)
        self._call = call
        scratch.copy(call.build_dir, "app")
        scratch.copy(call.buildpack, "buildpack")
        own = os.path.realpath(call.cache_dir)
        if os.path.isdir(own) and cache.layout_of(own) == app_layout(call.options.run_path).name:
            scratch.copy(own, "cache", skip=(cache.TAG, cache.NEW))
        else:
            scratch.make("cache", f"{scratch.path}/app")
        if call.env_dir and os.path.isdir(call.env_dir):
            scratch.copy(call.env_dir, "env")
        exports = scratch.make("exports", f"{scratch.path}/app")
        for number, path in enumerate(path for path in call.options.exports if os.path.isfile(path)):
            Path(exports, f"{number:03}").write_bytes(Path(path).read_bytes())

    def start(self, exit_code: int) -> None:
        """The shipped compile has ended like this, with BUILD_DIR as it is now."""
        call = self._call
        given = [call.build_dir, call.cache_dir, call.env_dir]
        self._spawn(
            "compile",
            call.build_dir if exit_code == 0 else "",
            environ=dict(call.environ),
            given=given,
            real=[os.path.realpath(path) if path else "" for path in given],
            buildpack=os.path.realpath(call.buildpack),
            cwd=_cwd(),
            options=pack(call.options.replace(limits=None)),
        )


@contextlib.contextmanager
def prepare(
    noted: Noted, workspace_dir: str | None, say: Callable[[str], None], make: Callable[[Scratch], Made]
) -> Iterator[Made | None]:
    """A candidate that can be started; None, said and noted, when there cannot be one. Removed unless started."""
    scratch = candidate = slot = None
    try:
        try:
            slot = take_slot()
            scratch = Scratch(Path(workspace_dir).absolute() if workspace_dir else default_parent())
            candidate = make(scratch)
            candidate.slot = slot
        except OSError as error:
            say(f"there will be no shadow: {_reason(error)}.")
            _skipped(noted, _reason(error))
        except NoSlot as error:
            _skipped(noted, str(error))
        yield candidate
    finally:
        if slot is not None:
            os.close(slot)  # its process has another
        if scratch is not None and (candidate is None or not candidate.started):
            with contextlib.suppress(OSError):  # gc finds it
                scratch.remove()


def spawn(job: Mapping[str, Any], scratch: Scratch, slot: int) -> None:
    """Start the process that will do the job, and hand the workspace and the slot over to it. Raises OSError."""
    with contextlib.ExitStack() as stack:

        def high(fd: int, close: bool = True) -> int:
            made = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
            stack.callback(os.close, made)
            if close:
                os.close(fd)
            return made

        body = high(os.memfd_create("nsbuild-candidate"))
        with open(body, "wb", closefd=False) as file:
            marshal.dump(dict(job), file)
        os.lseek(body, 0, os.SEEK_SET)
        ours = high(os.pidfd_open(os.getpid()))
        lock, taken = high(scratch.lock, close=False), high(slot, close=False)
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_DUP2, body, JOB),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        # A pipe of the builder's that stayed open here would keep whoever reads it waiting.
        for name in os.listdir("/proc/self/fd"):
            fd = int(name)
            with contextlib.suppress(OSError):  # the listing's own
                if fd > 2 and os.get_inheritable(fd):
                    actions.append((os.POSIX_SPAWN_CLOSE, fd))
        actions += [(os.POSIX_SPAWN_DUP2, ours, DELIVERED), (os.POSIX_SPAWN_DUP2, lock, LOCK)]
        actions += [(os.POSIX_SPAWN_DUP2, taken, SLOT)]
        argv, environment = fresh_interpreter("nsbuild.rollout.candidate")
        environment |= {os.fsencode(name): os.environb[os.fsencode(name)] for name in _STATE if name in os.environ}
        os.posix_spawn(argv[0], argv, environment, file_actions=actions, setsid=True)
        os.close(scratch.lock)


def _reason(error: OSError) -> str:
    return f"{error.filename or 'a copy'}: {error.strerror}"


def _skipped(noted: Noted, why: str) -> None:
    from nsbuild.rollout.decision import SKIPPED
    from nsbuild.rollout.noted import record_candidate

    noted.told["shadow"] = {"problem": why}
    record_candidate(noted.as_plain(), SKIPPED, started=time.time(), seconds=0.0, fallback=why)


def _cwd() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"
