"""`nsbuild shell` and `run --tty`: a dyno at a person's terminal."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import termios
from pathlib import Path

import pytest
from support.processes import eventually
from support.sites import Site, snapshot
from support.terminals import Terminal

pytest_plugins = ["support.site_fixtures"]


def at(terminal: Terminal, site: Site, *words: str | Path) -> subprocess.Popen[bytes]:
    slave = terminal.slave

    def control() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = site.start(*words, prepare=control, env={"TERM": "vt220"}, stdin=slave, stdout=slave, stderr=slave)
    terminal.started()
    return process


def runs(site: Site, *words: str) -> bool:
    """Whether a process in a sandbox has these arguments."""
    wanted = repr("".join(f"{word}\0" for word in words).encode())
    return any(line.endswith(f": {wanted}") for line in site.processes())


def a_slug(site: Site, archive: bool) -> Path:
    site.app(
        **{"Procfile": "web: test -t 0 && test -t 1 && echo at $TERM $PORT\n", ".profile": "export BOOTED=yes\n"}
    )
    if not archive:
        return site.path / "app"
    site.build(site.path / "app", site.buildpack(), output=site.path / "slug.tgz").ok()
    return site.path / "slug.tgz"


@pytest.mark.parametrize("archive", [False, True], ids=["directory", "archive"])
def test_a_shell_in_a_slug(site: Site, archive: bool) -> None:
    path = a_slug(site, archive)
    before = snapshot(path)
    terminal = Terminal(33, 111)
    modes = terminal.modes()
    process = at(terminal, site, "shell", path, "--env", "A=set")
    terminal.says(b"$ ")
    assert b"job control" not in terminal.output.data
    terminal.type(b"echo $PWD $BOOTED $DYNO $TERM $A; stty size; tty\r")
    terminal.says(b"/app yes run.1 vt220 set\r\n33 111\r\n/dev/pts/0\r\n")
    terminal.type(b"sleep 99\r")
    terminal.says(b"sleep 99\r\n")
    assert eventually(lambda: runs(site, "sleep", "99")), "only then is it in the foreground"
    terminal.type(b"\x03")
    terminal.says(b"$ ")
    terminal.type(b"echo status $?; sleep 99 & jobs\r")
    terminal.says(b"status 130\r\n")
    terminal.says(b"Running")
    terminal.resize(44, 55)
    terminal.type(b"until stty size | grep '^44 55$'; do sleep 0.1; done\r")
    terminal.says(b"44 55\r\n")
    terminal.type(b"echo spoilt > Procfile; echo new > new; exit 7\r")
    assert process.wait(50) == 7
    assert terminal.modes() == modes
    terminal.output.rest()
    assert snapshot(path) == before


def test_a_process_type_at_a_terminal(site: Site) -> None:
    terminal = Terminal()
    process = at(terminal, site, "run", "--tty", a_slug(site, archive=False), "web")
    terminal.says(b"at vt220 5000\r\n")
    assert process.wait(50) == 0
    terminal.output.rest()


def test_without_tty_it_has_no_terminal(site: Site) -> None:
    terminal = Terminal()
    process = at(terminal, site, "run", a_slug(site, archive=False), "web")
    assert process.wait(50) == 1
    assert terminal.output.rest() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_terminal_back(site: Site, number: signal.Signals) -> None:
    terminal = Terminal()
    modes = terminal.modes()
    process = at(terminal, site, "run", "--tty", a_slug(site, archive=False), "--", "sleep", "60")
    terminal.becomes_raw()
    assert eventually(lambda: runs(site, "sleep", "60"))
    process.send_signal(number)
    assert process.wait(50) == 128 + number
    assert terminal.modes() == modes
    terminal.output.rest()


def test_without_a_terminal_it_is_refused(site: Site) -> None:
    path = a_slug(site, archive=False)
    site.nsbuild("shell", path).refused(125, "terminals on stdin and stdout")
    site.run(path, "--tty").refused(125, "--tty")
    site.nsbuild("shell", site.path / "nowhere").refused(125, "nowhere", "does not exist")
    site.nsbuild("shell", path, "--port", "5").refused(125, "--port")
    assert site.nsbuild("shell").code == 125
