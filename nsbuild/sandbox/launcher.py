"""The parent's side of a launch: clone, wait, forward signals, time limit -> Outcome; the long-lived Launcher.

A small process with one thread clones directly. Any other caller goes through a `Launcher`, a fresh isolated
interpreter: with other threads alive a fork of Python is unsafe, PDEATHSIG fires when the *thread* ends, and the
cost of a fork grows with the caller's memory (5 ms become 20 at 400 MB).
"""

from __future__ import annotations

import os
import select
import struct
import time

from nsbuild.sandbox import init, kernel, seccomp
from nsbuild.sandbox.outcome import AfterCommandError, Outcome
from nsbuild.sandbox.running import Running
from nsbuild.sandbox.skeleton import Skeleton
from nsbuild.sandbox.stdio import Stdio
from nsbuild.sandbox.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping, Sequence

    from nsbuild.sandbox.limits import Limits
    from nsbuild.sandbox.remote import Remote, RemoteRunning
else:
    import _signal as signal  # without the enums of `signal`: 4 ms

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
DEFAULT_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
_LONGEST_POLL = 2**31 - 1  # milliseconds
LARGE_KIB = 150_000
"""Above this resident size a fork costs more than a message to a Launcher."""


def launch(
    view: View,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    stdin: int = 0,
    stdout: int = 1,
    stderr: int = 2,
    on_output: Callable[[bytes], None] | None = None,
    on_error: Callable[[bytes], None] | None = None,
    timeout: float | None = None,
    grace: float = 10.0,
    interrupt_grace: float | None = None,
    until: int | None = None,
    limits: Limits | None = None,
    tty: bool = False,
) -> Outcome:
    """Run `argv` in the view and wait for it. Without `env` the environment is a PATH.

    `stdin`, `stdout` and `stderr` are descriptors; a terminal is never handed over (stdin becomes /dev/null, output
    is relayed). With `on_output` the command gets one pipe for both outputs and every chunk is passed on; with
    `on_error` as well, a pipe for each.
    SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2 and SIGALRM that reach this process meanwhile are passed to
    the command, once. After `timeout` seconds the command gets SIGTERM, `grace` seconds later everything is
    killed; so is everything `interrupt_grace` seconds after a signal that was passed on, when it is given; and at
    once when the descriptor `until`, of a pipe say, has something to read (which is left there), or its other end is
    closed: `Outcome.stopped`.

    `limits` (`nsbuild.sandbox.limits`) are for the command and everything it starts, together where a delegated
    cgroup can hold them to that; `Outcome.limited` says how each was kept, `Outcome.usage` what was used.

    With `tty` the command gets a terminal of its own, which is relayed to those that `stdin` and `stdout` must be:
    raw meanwhile, given back as they were. A `stderr` that is no terminal stays what it is.

    Raises LaunchError when the command could not be started, OSError when the view cannot be prepared, ValueError
    for limits that cannot be meant or terminals that are none, and AfterCommandError when the command has ended and
    a placed directory cannot be renamed back.
    """
    with Launcher.for_caller() as launcher:
        return launcher.launch(
            view,
            argv,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            on_output=on_output,
            on_error=on_error,
            timeout=timeout,
            grace=grace,
            interrupt_grace=interrupt_grace,
            until=until,
            limits=limits,
            tty=tty,
        )


def thread_count() -> int:
    """Threads of this process, native ones included."""
    return len(os.listdir("/proc/self/task"))


def _resident_kib() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)


class Launcher:
    """Launches for a caller that lives on: a server, a test run, a build with several buildpacks.

    `isolated` launches from a fresh small interpreter over a socket; otherwise this process clones by itself,
    which only a process with one thread may do. A Launcher keeps the skeleton of a workspace from launch to
    launch and reuses it when nothing in it has changed. Close it, or use it as a context manager; what it
    launched ends with it. It may be used from several threads when isolated. `on_step` (direct ones only) is told
    of every step that moves a placed directory, or starts a process, right after it: for a journal. With `keep`
    the skeletons stay on disk when it is closed, for a later one to verify and use: removing a mount point takes the
    kernel milliseconds, and a launch has a dozen.
    """

    def __init__(
        self, *, isolated: bool = True, on_step: Callable[[str, str], None] | None = None, keep: bool = False
    ) -> None:
        self._on_step = on_step
        self._keep = keep
        self._skeletons: dict[str, Skeleton] = {}
        self._remote: Remote | None = None
        if isolated:
            from nsbuild.sandbox.remote import Remote

            self._remote = Remote()

    @classmethod
    def for_caller(cls) -> Launcher:
        """A direct one for a small process with one thread, an isolated one for any other."""
        return cls(isolated=thread_count() > 1 or _resident_kib() > LARGE_KIB)

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the skeletons; end what still runs."""
        if self._remote is not None:
            self._remote.close()
            self._remote = None
        for skeleton in self._skeletons.values():
            if self._keep:
                skeleton.release()
            else:
                skeleton.discard()
        self._skeletons = {}

    def launch(
        self,
        view: View,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
        on_output: Callable[[bytes], None] | None = None,
        on_error: Callable[[bytes], None] | None = None,
        timeout: float | None = None,
        grace: float = 10.0,
        interrupt_grace: float | None = None,
        until: int | None = None,
        limits: Limits | None = None,
        tty: bool = False,
    ) -> Outcome:
        """As `nsbuild.sandbox.launch`."""
        if tty and on_output is not None:
            raise ValueError("tty and on_output exclude each other")
        command = _command(view, argv, env, cwd, tty=tty)
        confinement = None
        if limits is not None:
            from nsbuild.sandbox.confinement import Confinement

            confinement = Confinement(limits)
            command = command.replace(rlimits=confinement.plan.rlimits, cgroup=confinement.directory)
        # From here on a signal is the command's. A handler of ours that raised would lose what has been cloned.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, init.FORWARDED)
        try:
            if tty:
                from nsbuild.sandbox.terminal import Terminal

                stdio: Stdio = Terminal(stdin, stdout, stderr)
            else:
                stdio = Stdio(stdin, stdout, stderr, on_output, on_error)
            with stdio as relays:
                running = self._start(view, command, relays.child)
                relays.close_child_ends()
                outcome = _supervise(running, relays, timeout, grace, interrupt_grace, until)
                return outcome if confinement is None else confinement.measure(outcome)
        except AfterCommandError as error:
            if confinement is not None:
                error.outcome = confinement.measure(error.outcome)
            raise
        finally:
            if confinement is not None:
                confinement.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def start(
        self,
        view: View,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdio: tuple[int, int, int],
    ) -> Running | RemoteRunning:
        """Start `argv` and do not wait: for several at a time, each in a workspace of its own, in the caller's loop.

        Of what is returned, `read` when `fd` is readable, until it returns False; then `finish` gives the Outcome, or
        raises as `launch` does. `kill` sends a signal; `abandon` ends it in any other case. The descriptors of
        `stdio` are the command's as they are, and must be no terminals. The caller blocks the signals whose handlers
        raise.
        """
        return self._start(view, _command(view, argv, env, cwd), stdio)

    def _start(self, view: View, command: init.Command, stdio: tuple[int, int, int]) -> Running | RemoteRunning:
        if self._remote is not None:
            return self._remote.start(view, command, stdio)
        skeleton = self._skeletons.setdefault(view.workspace, Skeleton(view.workspace))
        if self._on_step is not None:
            skeleton.on_step = self._on_step
        return Running.start(view, skeleton, command, stdio)


def _command(
    view: View, argv: Sequence[str], env: Mapping[str, str] | None, cwd: str, *, tty: bool = False
) -> init.Command:
    return init.Command(
        tuple(os.fsencode(word) for word in argv),
        {os.fsencode(name): os.fsencode(value) for name, value in (DEFAULT_ENV if env is None else env).items()},
        cwd,
        seccomp.load(os.uname().machine, view.user_namespaces),
        tty=tty,
    )


def _supervise(
    running: Running | RemoteRunning,
    relays: Stdio,
    timeout: float | None,
    grace: float,
    interrupt_grace: float | None,
    until: int | None,
) -> Outcome:
    """Relay, forward signals (blocked by now), keep the time and watch `until`, until pid 1 is gone."""
    deadline = None if timeout is None else time.monotonic() + timeout
    timed_out = interrupted = stopped = False
    next_signal = signal.SIGTERM
    forwarded: list[int] = []
    signals = kernel.signalfd(init.FORWARDED)
    poll = select.poll()
    for fd in (running.fd, signals, *relays.pumps, *(() if until is None else (until,))):
        poll.register(fd, select.POLLIN)
    try:
        alive = True
        while alive:
            wait = None if deadline is None else min(max(0.0, deadline - time.monotonic()) * 1000, _LONGEST_POLL)
            for fd, _ in poll.poll(wait):
                if fd == signals:
                    (number,) = struct.unpack_from("<I", os.read(signals, 128))
                    if signal.getsignal(number) == signal.SIG_IGN:
                        continue  # nohup: blocked as it is, it arrives all the same
                    forwarded.append(number)
                    running.kill(number)
                    if interrupt_grace is not None and number in _ENDING and not interrupted:
                        interrupted = True
                        deadline = time.monotonic() + interrupt_grace
                        next_signal = signal.SIGKILL
                elif fd == running.fd:
                    alive = running.read()
                elif fd == until:
                    running.kill(signal.SIGKILL)
                    stopped = True
                    poll.unregister(fd)
                elif not relays.pump(fd):
                    poll.unregister(fd)
            if alive and deadline is not None and time.monotonic() >= deadline:
                running.kill(next_signal)
                timed_out = timed_out or not interrupted
                next_signal = signal.SIGKILL
                deadline = time.monotonic() + grace
        try:
            outcome = running.finish()
        finally:
            relays.drain()
        return outcome.replace(timed_out=timed_out, stopped=stopped, forwarded=tuple(forwarded))
    except BaseException:
        running.abandon()
        raise
    finally:
        os.close(signals)
