"""A process of a slug that is started to see whether it boots, and ended again."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nsbuild.runtime.together import GRACE, signals_blocked
from nsbuild.sandbox import Launcher, View

LISTENS = 60.0
"""Seconds in which a web process must listen: https://devcenter.heroku.com/articles/limits#boot-timeout"""
LIVES = 5.0
"""Seconds after which any other process counts as booted."""
_TICK = 0.1
_KEPT = 1 << 16


@dataclass(frozen=True)
class Booted:
    """`status` is the exit status when it ended by itself, else None; `said` what it printed, the end of it."""

    well: bool
    status: int | None
    said: bytes


def boot_once(
    launcher: Launcher, view: View, argv: Sequence[str], env: Mapping[str, str], port: int | None
) -> Booted:
    """Start `argv` until it listens on `port`, or without one until it has lived for a while or ended with 0. Then it
    gets SIGTERM, and 10 seconds later SIGKILL. Raises LaunchError, AfterCommandError, OSError.
    """
    ours, theirs = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.set_blocking(ours, False)
    said = bytearray()
    with signals_blocked(), contextlib.ExitStack() as stack:
        stack.callback(os.close, ours)
        try:
            running = launcher.start(view, argv, env=env, cwd=env["HOME"], stdio=(null, theirs, theirs))
        finally:
            os.close(null)
            os.close(theirs)
        stack.push(lambda kind, *_: running.abandon() if kind is not None else None)

        def passes(seconds: float, enough: bool = False) -> bool:
            """Wait; False once it has ended. With `enough`, until it listens at the latest."""
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                ready, _, _ = select.select([running.fd, ours], [], [], _TICK)
                _drain(ours, said)
                if running.fd in ready and not running.read():
                    return False
                _check_signals()
                if enough and port is not None and _listens(port):
                    return True
                if ours in ready and running.fd not in ready:
                    time.sleep(_TICK / 10)  # its end of the pipe may be closed for good
            return True

        alive = passes(LIVES if port is None else LISTENS, enough=True)
        well = alive and (port is None or _listens(port))
        if alive:
            running.kill(signal.SIGTERM)
            if passes(GRACE):
                running.kill(signal.SIGKILL)
        outcome = running.finish()
        _drain(ours, said)
        if alive:
            return Booted(well, None, bytes(said))
        return Booted(port is None and outcome.exit_code == 0, outcome.exit_code, bytes(said))


def free_port() -> int:
    """One that nobody listens on; somebody may, until it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.settimeout(1)
            if probe.connect_ex((host, port)) == 0:
                return True
    return False


def _check_signals() -> None:
    """They are blocked; raised once everything has been ended."""
    if signal.sigpending() & {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}:
        raise KeyboardInterrupt


def _drain(fd: int, said: bytearray) -> None:
    try:
        while data := os.read(fd, 65536):
            said += data
            del said[:-_KEPT]
    except BlockingIOError:
        return
    except OSError as error:
        if error.errno != errno.EIO:
            raise
