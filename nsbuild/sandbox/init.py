"""The child's side of a launch: identity map, mounts, pivot, privileges, pid 1, exec.

Runs in the process that `kernel.clone` made, as the user of the view, with every namespace new. Whatever it
imports must be imported before: after the pivot the interpreter's own files are gone.
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import struct

from nsbuild.sandbox import kernel, mounts, privileges
from nsbuild.sandbox.value import Value
from nsbuild.sandbox.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping
    from typing import NoReturn
else:
    import _signal as signal  # without the enums of `signal`: 4 ms

FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)
_TO_THE_GROUP = (signal.SIGINT, signal.SIGQUIT)
"""What a terminal would send to the whole foreground group: a shell alone waits for its child to end."""


class Command(Value):
    """What pid 1 runs. `env` and `argv` are bytes, as the kernel takes them; `filter` is the seccomp program.

    `rlimits` are (resource, value) for the command, `cgroup` is the directory of the one it is to be in. With `tty`
    its stdin and stdout are a socket, over which the launcher gets the master of a new pty (`terminal.py`).
    """

    argv: tuple[bytes, ...]
    env: Mapping[bytes, bytes]
    cwd: str
    filter: bytes
    rlimits: tuple[tuple[int, int], ...] = ()
    cgroup: str = ""
    tty: bool = False


class Descriptors(Value):
    """What the child was given: stdio of the command, the status pipe, the pipe by which the launcher says go."""

    stdin: int
    stdout: int
    stderr: int
    status: int
    go: int


def send(fd: int, *message: str | int) -> None:
    """One message to the launcher: below PIPE_BUF, so it arrives whole."""
    body = marshal.dumps(message)
    os.write(fd, struct.pack("<I", len(body)) + body)


def run(
    view: View,
    skeleton: str,
    given_mounts: Mapping[str, int],
    status: int,
    before_pivot: Callable[[], None] | None,
    orders: Callable[[], tuple[Command, Descriptors]],
) -> NoReturn:
    """Become pid 1 of the view and never return. `orders` gives the command once everything is ready for it.

    `given_mounts` are detached mounts that a privileged launcher took, by `mount_key`; the skeleton's is `root`.
    """
    step = mounts.Step()
    try:
        os.setsid()
        _map_identity(view, step)
        if before_pivot is not None:
            step.name = "network"
            before_pivot()
        mounts.see(view, skeleton, given_mounts, step)
        step.name = "drop privileges"
        privileges.drop_all()
        privileges.die_with_parent()
        command, given = orders()
        if not os.read(given.go, 1) or select.select([given.go], [], [], 0)[0]:
            os._exit(125)  # the launcher died before it could take us with it, or before others knew of us
        privileges.hide_command_line()
        privileges.set_dumpable(False)
        if command.tty:
            from nsbuild.sandbox import terminal  # there already: the launcher has loaded it, for us

            step.name = "open a terminal"
            given = terminal.open_inside(given)
        step.name = "start the command"
        _be_init(command, given)
    except BaseException as error:
        number = error.errno if isinstance(error, OSError) else 0
        call = getattr(error, "call", type(error).__name__)
        path = getattr(error, "path", "") or getattr(error, "filename", None) or ""
        send(status, "failed", step.name, call, str(path), number or 0, str(error)[:1000])
    os._exit(125)


def _map_identity(view: View, step: mounts.Step) -> None:
    # The identity: under a map to 0, tar and apt believe they are root, chown and fail.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{view.user.uid} {view.user.uid} 1"),
        ("gid_map", f"{view.user.gid} {view.user.gid} 1"),
    ):
        step.name = name
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _be_init(command: Command, given: Descriptors) -> NoReturn:
    """pid 1: start the command, reap everything, forward what comes from outside, end with the command."""
    try:
        pid = _fork(command, given) if command.tty or command.rlimits else _spawn(command, given)
    except _CannotStart as failure:
        send(given.status, "cannot", failure.step, failure.errno)
        os._exit(125)
    send(given.status, "started")
    try:
        os.chdir("/")
    except PermissionError:
        pass  # it has closed / to everybody already; where we are is of no use to it
    while True:
        info = signal.sigwaitinfo(signal.valid_signals())
        if info.si_signo == signal.SIGCHLD:
            status = _reap(pid)
            if status is not None:
                send(given.status, "exited", status)
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)
        elif info.si_pid == 0 and info.si_signo in FORWARDED:
            # 0: the sender is outside. Anybody inside can signal the command without our help.
            group = info.si_signo in _TO_THE_GROUP
            try:
                (os.killpg if group else os.kill)(pid, info.si_signo)
            except ProcessLookupError:
                continue


def _reap(command: int) -> int | None:
    """Every child that has ended (orphans are ours); the command's wait status once it is among them."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == command:
            status = ended


def close_all_but(keep: list[int]) -> None:
    low = 3
    for fd in keep:
        kernel.close_range(low, fd - 1)
        low = fd + 1
    kernel.close_range(low, 0x7FFFFFFF)


class _CannotStart(Exception):
    """The command was not started: the step that failed, and its errno."""

    def __init__(self, step: str, errno: int) -> None:
        super().__init__(step)
        self.step = step
        self.errno = errno


def _spawn(command: Command, given: Descriptors) -> int:
    """The command's pid. The usual way: a vfork, which copies nothing of this interpreter's memory.

    What posix_spawn cannot do in the child is done here first, and inherited.
    """
    stdio = [_above(fd) for fd in (given.stdin, given.stdout, given.stderr)]
    _let_go([given.status, *stdio])
    os.umask(0o022)
    step = "chdir"
    try:
        os.chdir(command.cwd)
        step = "seccomp"
        if command.filter:
            kernel.seccomp_set_filter(command.filter)
        step = "exec"
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
        pid = _first_that_starts(
            command,
            lambda path, argv: os.posix_spawn(
                path,
                argv,
                command.env,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                # Python ignores SIGPIPE and SIGXFSZ, and a caller may ignore more; execve keeps that.
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            ),
        )
    except OSError as error:
        raise _CannotStart(step, error.errno or 0) from None
    for fd in stdio:
        os.close(fd)
    return pid


def _let_go(keep: list[int]) -> None:
    """Hold nothing that was inherited but `keep`: the command's pipes would not end when it closes them."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    close_all_but(sorted(set(keep)))


def _fork(command: Command, given: Descriptors) -> int:
    """The command's pid, where something must happen in the child that posix_spawn has no word for."""
    result_r, result_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(result_r)
        _exec(command, given, result_w)
    # A terminal stays open: the command may close it and open /dev/tty again.
    _let_go([given.status, result_r, *((given.stdin,) if command.tty else ())])
    failure = os.read(result_r, 4096)
    os.close(result_r)
    if failure:
        raise _CannotStart(*marshal.loads(failure))
    return pid


def _exec(command: Command, given: Descriptors, result: int) -> NoReturn:
    step = "setsid"
    try:
        os.setsid()
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            # Python ignores SIGPIPE and SIGXFSZ, and a caller may ignore more; execve keeps that.
            signal.signal(number, signal.SIG_DFL)
        _take_stdio(given)
        if command.tty:
            from nsbuild.sandbox import terminal

            step = "terminal"
            terminal.make_controlling()
        if result != 3:
            os.dup2(result, 3, inheritable=False)
            result = 3
        close_all_but([3])
        os.umask(0o022)
        step = "chdir"
        os.chdir(command.cwd)
        step = "limits"
        _limit(command.rlimits)
        step = "seccomp"
        if command.filter:
            kernel.seccomp_set_filter(command.filter)
        step = "exec"
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _first_that_starts(command, lambda path, argv: os.execve(path, argv, command.env))
    except OSError as error:
        os.write(result, marshal.dumps((step, error.errno or 0)))
    except BaseException as error:
        os.write(result, marshal.dumps((f"{step}: {error!r}"[:500], 0)))
    os._exit(125)


def _limit(rlimits: tuple[tuple[int, int], ...]) -> None:
    if not rlimits:
        return
    import resource  # there already: the launcher has loaded it, for us

    for number, value in rlimits:
        # Lower is always allowed, higher never.
        _, hard = resource.getrlimit(number)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def _take_stdio(given: Descriptors) -> None:
    # Out of the way first: one of them may be 0, 1 or 2 already, in another order.
    moved = [_above(fd) for fd in (given.stdin, given.stdout, given.stderr)]
    for number, fd in enumerate(moved):
        os.dup2(fd, number)


def _above(fd: int) -> int:
    """A duplicate that is not 0, 1 or 2."""
    low = []
    while (fd := os.dup(fd)) < 3:
        low.append(fd)
    return fd


def _first_that_starts(command: Command, start: Callable[[bytes, tuple[bytes, ...]], int]) -> int:
    """As execvp(3): the first of the PATH that can be started, with sh for a script without #!."""
    program = command.argv[0]
    if not program:
        raise FileNotFoundError(errno.ENOENT, "not found")
    candidates = [program]
    if b"/" not in program:
        path = command.env.get(b"PATH", b"/usr/local/bin:/usr/bin:/bin")
        candidates = [os.path.join(directory or b".", program) for directory in path.split(b":")]
    worst: OSError = FileNotFoundError(errno.ENOENT, "not found")
    for candidate in candidates:
        try:
            os.stat(candidate)  # a start that fails is a process all the same
            return start(candidate, command.argv)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                # Shells and execvp(3) run it with sh, and so do builders.
                return start(b"/bin/sh", (b"sh", candidate, *command.argv[1:]))
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                worst = error
    raise worst
