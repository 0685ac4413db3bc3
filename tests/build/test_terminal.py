"""What a person sees, and what a pipe gets."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess

import pytest
from support.rooms import Output
from support.sites import NSBUILD, Site

import nsbuild

pytest_plugins = ["support.site_fixtures"]

COMMANDS = (
    "build",
    "cache",
    "compile",
    "config",
    "detect",
    "doctor",
    "exec",
    "gc",
    "recover",
    "run",
    "shell",
    "test",
)


def on_a_terminal(site: Site, env: dict[str, str], script: str = "echo step") -> bytes:
    """Everything that a build says with stdout and stderr on one terminal."""
    controller, terminal = pty.openpty()
    words = site.words(site.app(), site.buildpack(script))
    process = site.start(*words, stdout=terminal, stderr=terminal, env={"TERM": "xterm", **env})
    os.close(terminal)
    try:
        return Output(controller).rest()
    finally:
        process.wait(timeout=50)


def test_a_terminal_gets_colours(site: Site) -> None:
    said = on_a_terminal(site, {})
    assert re.search(rb"\x1b\[\d+mnsbuild: built ", said)
    assert b"step" in said


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_unless_it_is_asked_not_to(site: Site, env: dict[str, str]) -> None:
    assert b"\x1b" not in on_a_terminal(site, env)


def test_a_pipe_gets_plain_lines(site: Site) -> None:
    result = site.build(site.app(), site.buildpack(), env={"TERM": "xterm", "FORCE_COLOR": ""}).ok()
    assert "\x1b" not in result.err


def test_a_build_never_holds_the_terminal(site: Site) -> None:
    """Whoever has it could read keystrokes."""
    said = on_a_terminal(
        site, {}, "test -t 0 || test -t 1 || test -t 2 || echo none; (: </dev/tty) 2>/dev/null || echo no tty"
    )
    assert b"none\r\n" in said and b"no tty\r\n" in said


def test_version(site: Site) -> None:
    assert site.nsbuild("--version").ok().text == f"nsbuild, version {nsbuild.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(site: Site, command: str) -> None:
    result = site.nsbuild(command, "--help").ok()
    assert result.text.startswith(f"Usage: nsbuild {command}")
    assert not result.err
    top = site.nsbuild("--help").ok().text
    assert re.search(rf"^  {command} +\S", top, re.MULTILINE), top


def test_help_tells_every_exit_code_of_a_wrapper(site: Site) -> None:
    for command in ("exec", "run"):
        text = " ".join(site.nsbuild(command, "--help").ok().text.split())
        assert "128+n" in text and "125" in text


def test_help_goes_to_a_reader_that_leaves(site: Site) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = site.start("build", "--help", stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=50)
    assert b"Traceback" not in err and b"Exception" not in err


def test_closed_standard_streams(site: Site) -> None:
    """As a supervisor may start it."""
    app, pack = site.app(), site.buildpack("echo compiled")
    script = shlex.join([*NSBUILD, "build", str(app), "-b", str(pack), "-o", str(site.out)])
    for closing in ("<&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(["bash", "-c", f"{script} {closing}"], env=site.environment(), check=False)
        assert done.returncode == 0, closing
