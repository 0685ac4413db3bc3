"""`nsbuild exec --tty`, as a person uses it: a shell where the app is at its run path."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import ROOT
from support.sites import Site
from support.terminals import Terminal

pytest_plugins = ["support.site_fixtures"]


class Desk:
    """A person, or root, at a terminal, with an app."""

    def __init__(self, site: Site, root: bool) -> None:
        self.site = site
        self.root = root
        self.app = site.app("app")
        self.env = {"XDG_STATE_HOME": str(site.mkdir("root-state" if root else "state"))}
        if root:
            os.chown(self.env["XDG_STATE_HOME"], 0, 0)

    def exec(self, terminal: Terminal, *words: str) -> subprocess.Popen[bytes]:
        """`nsbuild exec --tty` at the terminal."""
        process = self.site.start(
            "exec",
            "--tty",
            "--build-dir",
            self.app,
            "--",
            *words,
            env=self.env,
            root=self.root,
            prepare=_control,
            stdin=terminal.slave,
            stdout=terminal.slave,
            stderr=terminal.slave,
        )
        terminal.started()
        return process


def _control() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture(params=["person", "root"])
def desk(request: pytest.FixtureRequest, site: Site) -> Iterator[Desk]:
    if request.param == "root" and not ROOT:
        pytest.skip("needs root")
    yield Desk(site, request.param == "root")


def test_a_debugging_shell(desk: Desk) -> None:
    terminal = Terminal(33, 111)
    before = terminal.modes()
    inode = desk.app.stat().st_ino
    process = desk.exec(terminal, "bash", "--norc", "-i")
    terminal.says(b"$ ")
    assert b"job control" not in terminal.output.data
    terminal.type(b"pwd; tty; stty size; ls\r")
    terminal.says(b"\n/app\r\n/dev/pts/0\r\n33 111\r\nProcfile\r\n")
    terminal.runs_cat()
    terminal.type(b"\x03")
    terminal.says(b"$ ")
    terminal.type(b"echo status $?\r")
    terminal.says(b"status 130\r\n")
    terminal.resize(44, 55)
    # The signal takes its way; where the size never came this would not end.
    terminal.type(b"until stty size | grep -x '44 5[5]'; do sleep 0.05; done; echo made > made\r")
    terminal.says(b"\n44 55\r\n")
    terminal.type(b"exit 7\r")
    assert process.wait(50) == 7
    assert terminal.modes() == before
    terminal.output.rest()
    assert (desk.app.stat().st_ino, Path(desk.app, "made").read_text()) == (inode, "made\n")


def test_it_ends_by_a_signal(desk: Desk) -> None:
    """The terminal is itself again, and the app where it was."""
    terminal = Terminal()
    before = terminal.modes()
    process = desk.exec(terminal, "sh", "-c", "echo ready; exec sleep 60")
    terminal.says(b"ready")
    assert terminal.raw()
    process.send_signal(signal.SIGTERM)
    assert process.wait(50) == 128 + signal.SIGTERM
    assert terminal.modes() == before
    assert (desk.app / "Procfile").exists()
    terminal.output.rest()


def test_without_a_terminal_it_is_refused(desk: Desk) -> None:
    words = ("exec", "--tty", "--build-dir", desk.app, "--", "touch", "/app/ran")
    desk.site.nsbuild(*words, env=desk.env, root=desk.root).refused(125, "--tty needs terminals")
    assert not (desk.app / "ran").exists()


def test_compile_has_none(site: Site) -> None:
    pack = site.buildpack("true")
    words = ("compile", "--tty", pack, site.app(), site.mkdir("cache"))
    site.nsbuild(*words).refused(125, "There is no option --tty.")
