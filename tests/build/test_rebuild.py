"""build --rebuild and --shell-on-failure."""

from __future__ import annotations

import fcntl
import os
import pty
import termios

import pytest
from support.rooms import Output
from support.sites import Site, snapshot
from support.terminals import Terminal

pytest_plugins = ["support.site_fixtures"]


def test_the_second_build_has_the_cache_of_the_first_in_another_workspace(site: Site) -> None:
    pack = site.buildpack(
        """
        echo "[$(cat "$2/number" 2>/dev/null)]"; grep -om1 'build-2[0-9a-f-]*' /proc/self/mountinfo
        number=$(($(cat "$2/number" 2>/dev/null || echo 0) + 1))
        echo $number | tee "$2/number" > "$1/number"
        """
    )
    result = site.build(site.app(), pack, "--rebuild").ok()
    first, one, second, other = result.text.splitlines()
    assert (first, second) == ("[]", "[1]")
    assert one != other
    assert (site.out / "number").read_text() == "2\n"
    record = result.record
    assert (record["cache_hit"], record["first"]["cache_hit"]) == (True, False)
    assert (record["first"]["slug"], record["slug"]["path"]) == (None, str(site.out))
    assert record["id"] != record["first"]["id"]
    assert f"first build took {record['first']['seconds']:.1f} s, the second {record['seconds']:.1f} s" in result.err
    assert site.build("app", pack).ok().record["first"] is None


def test_a_second_build_that_fails_publishes_nothing_but_the_first_ones_cache(site: Site) -> None:
    site.build(site.app(), site.buildpack('echo old > "$1/old"', "before")).ok()
    before = snapshot(site.out)
    pack = site.buildpack('test ! -e "$2/once" || exit 7; touch "$2/once"')
    result = site.build("app", pack, "--rebuild").refused(11, "exited 7")
    assert snapshot(site.out) == before
    assert result.record["first"]["exit_code"] == 0
    assert [path.name for path in site.caches()[0].iterdir()] == ["once"]


def test_a_first_build_that_fails_is_the_end(site: Site) -> None:
    result = site.build(site.app(), site.buildpack("echo once; exit 7"), "--rebuild").refused(11, "exited 7")
    assert result.out == b"once\n"
    assert not site.caches()


def control() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def shelled(site: Site, *packs: object, says: bytes) -> tuple[bytes, int]:
    """What a person sees who types that in the shell of a failing build."""
    terminal = Terminal()
    words = site.words(site.app(), *packs, "--shell-on-failure", "--env", "CONFIG=1")  # type: ignore[arg-type]
    end = terminal.slave
    process = site.start(*words, prepare=control, stdin=end, stdout=end, stderr=end, env={"TERM": "dumb"})
    terminal.started()
    try:
        terminal.output.wait_for(b"leave it with")
        os.write(terminal.master, says + b"\nexit 3\n")
        return terminal.output.rest(), process.wait(timeout=50)
    finally:
        process.kill()


def test_a_shell_in_the_failed_sandbox(site: Site) -> None:
    one = site.buildpack("echo 'export FROM_ONE=yes' > export", "one")
    two = site.buildpack('touch "$1/made-$FROM_ONE"; echo "export FROM_TWO=no" > export; exit 9', "two")
    says = b'echo "=$PWD=$FROM_ONE=$FROM_TWO=$STACK=$(cat /tmp/env/CONFIG)=$(ls -d made*)="; test -t 0 && echo t=ty'
    said, code = shelled(site, one, two, says=says)
    assert b"=/app=yes==heroku-24=1=made-yes=" in said, said
    assert b"t=ty" in said.replace(b"echo t=ty", b"")
    assert code == 11
    assert not site.out.exists()


def test_no_shell_where_nothing_has_failed_in_a_buildpack(site: Site) -> None:
    controller, terminal = pty.openpty()
    words = site.words(site.app(), site.buildpack(), "--shell-on-failure")
    process = site.start(*words, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    said = Output(controller).rest()
    assert process.wait(timeout=50) == 0
    assert b"leave it with" not in said


@pytest.mark.parametrize("word", ["--shell-on-failure"])
def test_without_a_terminal_it_is_refused_before_the_build(site: Site, word: str) -> None:
    assert site.build(site.app(), site.buildpack("echo never"), word).refused(2, "terminal").out == b""
