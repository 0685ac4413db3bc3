"""The direct path: a buildpack run as the builder runs it today, without a sandbox."""

from __future__ import annotations

import errno
import os
import time

from nsbuild.buildpack.exports import with_exports
from nsbuild.sandbox.init import FORWARDED
from nsbuild.sandbox.outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence

    from nsbuild.wrap.plan import Request, WrapOptions
else:
    import _signal as signal

_GRACE = 10.0


def directly(request: Request, environ: Mapping[str, str], options: WrapOptions) -> Outcome:
    """What was asked for, as the builder calls it: the host's own paths, `--with-export` and `--timeout` kept."""
    argv = request.argv
    if request.buildpack:
        directories = [request.build_dir, request.cache_dir, *([request.env_dir] if request.env_dir else [])]
        argv = (f"{request.buildpack}/bin/compile", *directories)
    exports = [path for path in options.exports if os.path.isfile(path)]
    return run_directly(with_exports(exports, argv), environ, options.timeout)


def run_directly(argv: Sequence[str], environ: Mapping[str, str], timeout: float | None) -> Outcome:
    """Run `argv` with the caller's own environment, stdio and working directory, and wait for it.

    Signals that another process sends are passed on; those of a terminal reach the command by themselves.
    """
    watched = {*FORWARDED, signal.SIGCHLD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        began = time.monotonic()
        try:
            pid = _spawn(argv, environ)
        except OSError as error:
            missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
            return Outcome(None, None, "not found" if missing else "cannot execute", error.errno or 0)
        deadline = None if timeout is None else began + timeout
        next_signal, timed_out = signal.SIGTERM, False
        forwarded: list[int] = []
        while True:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                break
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            info = signal.sigwaitinfo(watched) if left is None else signal.sigtimedwait(watched, left)
            if info is None:
                os.kill(pid, next_signal)
                next_signal, timed_out = signal.SIGKILL, True
                deadline = time.monotonic() + _GRACE
            elif info.si_signo != signal.SIGCHLD and info.si_code <= 0:
                forwarded.append(info.si_signo)
                os.kill(pid, info.si_signo)
        code = os.waitstatus_to_exitcode(status)
        return Outcome(
            code if code >= 0 else None,
            -code if code < 0 else None,
            timed_out=timed_out,
            forwarded=tuple(forwarded),
            timings={"run": time.monotonic() - began},
            max_rss_kib=usage.ru_maxrss,
            user_seconds=usage.ru_utime,
            system_seconds=usage.ru_stime,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _spawn(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    ignored = (signal.SIGPIPE, signal.SIGXFSZ)  # by Python
    try:
        return os.posix_spawnp(argv[0], list(argv), environ, setsigmask=(), setsigdef=ignored)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        # A script without #!: shells run it with sh, and so do builders.
        return os.posix_spawn("/bin/sh", ["sh", *argv], environ, setsigmask=(), setsigdef=ignored)
