"""One launched process, seen from its parent: clone, messages, signals, the end."""

from __future__ import annotations

import errno
import marshal
import os
import stat
import struct
import time

from nsbuild.sandbox import as_root, init, kernel
from nsbuild.sandbox.outcome import AfterCommandError, LaunchError, Outcome
from nsbuild.sandbox.skeleton import Skeleton
from nsbuild.sandbox.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any
else:
    import _signal as signal  # without the enums of `signal`: 4 ms

_NAMESPACES = (
    kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
)


class Child:
    """A process that is, or soon will be, pid 1 of a view, and waits to be told to go.

    `body(mounts, status, go)` is its life: mounts that were taken for it, the pipe for its messages, the one from
    which it reads that it may go.
    """

    def __init__(
        self, view: View, skeleton: Skeleton, body: Callable[[Mapping[str, int], int, int], None], network: bool
    ) -> None:
        self.status, status_w = os.pipe()
        go_r, self.alive = os.pipe()  # it ends with this process

        def child(mounts: Mapping[str, int]) -> None:
            os.close(self.status)
            os.close(self.alive)
            body(mounts, status_w, go_r)

        namespaces = _NAMESPACES | (kernel.CLONE_NEWNET if network else 0)
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        try:
            self.pid = _clone(view, skeleton, namespaces, child, status_w)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(status_w)
            os.close(go_r)
            if not hasattr(self, "pid"):
                os.close(self.status)
                os.close(self.alive)
        self.pidfd = os.pidfd_open(self.pid)
        self.mounts = -1

    def hold_mounts(self) -> None:
        """Keep its mounts until `let_go`: their end takes the kernel a millisecond, for which nobody need wait.

        To be called before it is told to go, which closes its /proc to us.
        """
        self.mounts = os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def let_go(self) -> None:
        if self.mounts >= 0:
            os.close(self.mounts)
            self.mounts = -1

    def end(self) -> None:
        """Kill it and whatever it has started, and wait."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)
        self.let_go()
        self.close()

    def close(self) -> None:
        """It has ended, and its status has been taken."""
        for fd in (self.status, self.pidfd, self.alive):
            os.close(fd)


def network_of(view: View) -> Callable[[], None] | None:
    """What is to be done for the view's network before the pivot."""
    if view.network != "none":
        return None
    from nsbuild.sandbox.network import bring_loopback_up

    return bring_loopback_up


class Running:
    """A child of this process that has its command."""

    def __init__(self, child: Child, skeleton: Skeleton, command: init.Command, began: float) -> None:
        self._skeleton = skeleton
        self.workspace = skeleton.workspace
        self._buffer = b""
        self.messages: list[tuple[Any, ...]] = []
        self._cloned = time.monotonic()
        self.timings = {"prepare": self._cloned - began}
        self._started = 0.0
        self._child = child
        self._ended = False
        self.fd = child.status
        self.let_go = child.let_go
        try:
            skeleton.on_step("cloned", str(child.pid))
            if command.cgroup:
                self._enter(command.cgroup)
            os.write(child.alive, b"g")
        except BrokenPipeError:
            return  # it has failed already, and said why
        except BaseException:
            child.end()
            raise

    @classmethod
    def start(cls, view: View, skeleton: Skeleton, command: init.Command, stdio: tuple[int, int, int]) -> Running:
        """Prepare the skeleton and clone. Whatever was placed is given back when that fails."""
        began = time.monotonic()
        skeleton.take()
        try:
            skeleton.verify(view)
            skeleton.place(view)
            before_pivot = network_of(view)
            if command.rlimits:
                import resource  # noqa: F401  the child needs it, where it can no longer be found
            if command.tty:
                from nsbuild.sandbox import terminal  # noqa: F401  likewise
            own_pipes(view, stdio)

            def body(mounts: Mapping[str, int], status: int, go: int) -> None:
                given = init.Descriptors(*stdio, status, go)
                init.run(view, skeleton.path, mounts, status, before_pivot, lambda: (command, given))

            return cls(Child(view, skeleton, body, before_pivot is not None), skeleton, command, began)
        except BaseException:
            skeleton.give_back()
            raise

    def _enter(self, cgroup: str) -> None:
        """Put pid 1 into a cgroup while it waits; what it starts later is born there."""
        path = f"{cgroup}/cgroup.procs"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, str(self._child.pid).encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise LaunchError("limits", "write", path, error.errno or 0, str(error)) from None

    def read(self) -> bool:
        """Take what the child reports; False at the end of it."""
        data = os.read(self.fd, 65536)
        self._buffer += data
        while len(self._buffer) >= 4:
            (size,) = struct.unpack_from("<I", self._buffer)
            if len(self._buffer) < 4 + size:
                break
            message = marshal.loads(self._buffer[4 : 4 + size])
            self._buffer = self._buffer[4 + size :]
            self.messages.append(message)
            if message[0] == "started":
                self._started = time.monotonic()
                self.timings["start"] = self._started - self._cloned
        return bool(data)

    def kill(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self._child.pidfd, number)
        except ProcessLookupError:
            return

    def abandon(self) -> None:
        """Kill everything and give things back: the caller's side has failed."""
        if not self._ended:
            self.kill(signal.SIGKILL)
            try:
                self.finish()
            except (LaunchError, AfterCommandError):
                return

    def finish(self) -> Outcome:
        """Wait for pid 1 (the kernel has killed the rest of its namespace by then) and give things back."""
        while self.read():
            continue
        _, status, usage = os.wait4(self._child.pid, 0)
        now = time.monotonic()
        self.timings["run"] = now - (self._started or self._cloned)
        self._child.close()
        self._ended = True
        try:
            came_back = self._skeleton.give_back()
        except OSError as error:
            outcome = _outcome(self.messages, status, usage, self.timings, {})
            raise AfterCommandError(outcome, error.errno or 0, f"{error.filename}: {error.strerror}") from error
        self.timings["give back"] = time.monotonic() - now
        outcome = _outcome(self.messages, status, usage, self.timings, came_back)
        return outcome.replace(kept_beside=self._skeleton.kept_beside)


def _outcome(
    messages: Sequence[tuple[Any, ...]],
    init_status: int,
    usage: object,
    timings: dict[str, float],
    came_back: dict[str, str],
) -> Outcome:
    rest: dict[str, Any] = {
        "timings": timings,
        "max_rss_kib": getattr(usage, "ru_maxrss", 0),
        "user_seconds": getattr(usage, "ru_utime", 0.0),
        "system_seconds": getattr(usage, "ru_stime", 0.0),
        "read_bytes": getattr(usage, "ru_inblock", 0) * 512,
        "written_bytes": getattr(usage, "ru_oublock", 0) * 512,
        "came_back": came_back,
    }
    for kind, *detail in messages:
        if kind == "exited":
            code = os.waitstatus_to_exitcode(detail[0])
            return Outcome(code if code >= 0 else None, -code if code < 0 else None, **rest)
        if kind == "failed":
            step, call, path, number, text = detail
            if ("started",) in messages:
                raise AfterCommandError(Outcome(None, None, **rest), number, f"{step}: {text}")
            raise LaunchError(step, call, path, number, text)
        if kind == "cannot":
            step, number = str(detail[0]), int(str(detail[1]))
            if step not in ("exec", "chdir"):
                raise LaunchError(step, step, "", number, os.strerror(number) if number else step)
            missing = step == "exec" and number in (errno.ENOENT, errno.ENOTDIR)
            error = "not found" if missing else "cannot execute" if step == "exec" else "no working directory"
            return Outcome(None, None, error, number, **rest)
    code = os.waitstatus_to_exitcode(init_status)
    if code < 0:
        # pid 1 was killed before it could report: by our own SIGKILL, the kernel's memory killer, a person.
        return Outcome(None, -code, **rest)
    if ("started",) in messages:
        raise AfterCommandError(Outcome(None, None, **rest), 0, "the sandbox's first process ended without a word")
    raise LaunchError("start", "clone", "", 0, "the sandbox's first process ended without a word")


def _clone(
    view: View,
    skeleton: Skeleton,
    namespaces: int,
    child: Callable[[Mapping[str, int]], None],
    status_w: int,
) -> int:
    """The pid of the new pid 1, a child of this process in any case."""
    if os.geteuid() != 0:
        pid = _checked_clone(namespaces)
        if pid == 0:
            _become(lambda: child({}), status_w)
        return pid
    # As root: a process in between becomes the build's user first, so that the namespace is that user's. It
    # leaves at once; CLONE_PARENT makes pid 1 ours all the same.
    report_r, report_w = os.pipe()
    try:
        between = _checked_clone(0)
    except LaunchError:
        os.close(report_r)
        os.close(report_w)
        raise
    if between == 0:
        os.close(report_r)
        _become(lambda: as_root.drop_and_clone(view, skeleton, namespaces, child, report_w), status_w)
    os.close(report_w)
    with open(report_r, "rb") as report:  # noqa: PTH123
        message = report.read()
    os.waitpid(between, 0)
    answer: tuple[Any, ...] = marshal.loads(message) if message else ("failed", "start", "setuid", "", 0, "no answer")
    kind, *detail = answer
    if kind == "pid":
        return int(detail[0])
    raise LaunchError(*detail)


def _checked_clone(namespaces: int) -> int:
    try:
        return kernel.clone(namespaces)
    except kernel.KernelError as error:
        raise LaunchError("clone", "clone", "", error.errno or 0, str(error)) from None


def _become(child: Callable[[], None], status_w: int) -> None:
    """Run the child's side; it must never return into the caller's stack."""
    try:
        child()
    except BaseException as error:
        init.send(status_w, "failed", "start", type(error).__name__, "", 0, str(error)[:1000])
    finally:
        os._exit(125)


def own_pipes(view: View, stdio: tuple[int, int, int]) -> None:
    """`echo >/dev/stdout` opens the pipe again, by its owner's rights."""
    if os.geteuid() != 0:
        return
    for fd in stdio[1:]:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.fchown(fd, view.user.uid, -1)
