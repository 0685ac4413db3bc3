"""What a person sees of a build, on the screen of a terminal."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sites import Site
from support.terminals import Screen

pytest_plugins = ["support.site_fixtures"]

GO = "n=$((n + 1)); until [ -e /tmp/go$n ]; do sleep 0.05; done; "
"""In a compile: wait until the test says so."""
RUNNING = re.compile(r"^(?!0:00)\d:\d\d  compile ")
"""Our last line, once time has passed."""
LIVE = "  compile "
"""What only our last line has; those that stay begin with `nsbuild: compile`."""


class Watched:
    """A build in front of a person, who has the terminal."""

    def __init__(self, site: Site, *words: str | Path, env: dict[str, str] | None = None, **options: Any) -> None:
        self.site = site
        size = {name: options.pop(name) for name in ("rows", "columns") if name in options}
        self.screen = Screen(**size)
        slave = self.screen.slave
        streams = {"stdin": slave, "stdout": slave, "stderr": slave, **options}
        # PERSON has to be able to open it again (/dev/tty).
        site.own(Path(self.screen.name))
        self.process = site.start(
            *words, env={"TERM": "xterm-256color", **(env or {})}, prepare=_controlled(slave), **streams
        )
        self.screen.started()
        self._gone = 0

    def go(self) -> None:
        """Let the compile go on."""
        self._gone += 1
        self.site.appears("tmp")
        Path(self.site.inside("tmp")[0], f"go{self._gone}").touch()

    def stays_without(self, text: str) -> None:
        """For longer than our last line takes to come."""
        with pytest.raises(AssertionError, match="is not on the screen"):
            self.screen.shows(text, timeout=1.2)

    def ends(self, code: int = 0) -> list[str]:
        lines = self.screen.ends()
        assert self.process.wait(timeout=50) == code, "\n".join(lines)
        assert not self.screen.screen.cursor.hidden
        return lines


def _controlled(slave: int) -> Callable[[], None]:
    def before() -> None:
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    return before


@pytest.fixture
def watch(site: Site) -> Iterator[Callable[..., Watched]]:
    """Starts a build of an app whose compile is this script. A test that has failed leaves none waiting."""
    builds: list[Watched] = []

    def started(script: str, *words: str | Path, **options: Any) -> Watched:
        builds.append(Watched(site, *site.words(site.app(), site.buildpack(script), *words), **options))
        return builds[-1]

    yield started
    for build in builds:
        if build.process.poll() is None:
            build.process.terminate()
            build.process.wait(timeout=50)


Watch = Callable[..., Watched]


def test_the_step_and_its_running_time_are_on_the_last_line(watch: Watch) -> None:
    build = watch(f"echo '-----> Installing'; {GO} echo '       done'; {GO}")
    build.screen.shows("-----> Installing")
    lines = build.screen.shows(RUNNING)
    assert lines[-2] == "-----> Installing"
    build.go()
    lines = build.screen.shows("       done")
    lines = build.screen.shows(LIVE)
    assert lines[-3:-1] == ["-----> Installing", "       done"]
    build.go()
    text = "\n".join(build.ends())
    assert "-----> Installing\n       done\n" in text
    assert not re.search(r"^\d:\d\d  ", text, re.MULTILINE), text


def test_a_progress_bar_of_the_buildpack_is_left_alone(watch: Watch) -> None:
    build = watch(f"printf '       10%%\\r       20%%'; {GO} printf '\\r       done\\n'; {GO}")
    assert build.screen.shows("20%")[-1] == "       20%"
    build.stays_without(LIVE)
    build.go()
    lines = build.screen.shows(LIVE)
    assert lines[-2] == "       done"
    build.go()
    build.ends()


def test_colours_of_the_buildpack_outlive_the_last_line(watch: Watch) -> None:
    build = watch(f"printf '\\033[31mred\\n'; {GO} printf 'still red\\033[0m\\n'")
    build.screen.shows(LIVE)
    build.go()
    lines = build.ends()
    row = lines.index("still red")
    assert build.screen.screen.buffer[row][0].fg == "red"


def test_who_moves_the_cursor_has_the_screen(watch: Watch) -> None:
    """Progress on several lines: ours would go over them."""
    build = watch(f"printf 'a\\nb\\n\\033[2A'; printf 'c\\n'; {GO}")
    build.screen.shows(re.compile("^c$"))
    build.stays_without(LIVE)
    assert build.screen.lines()[-2:] == ["c", "b"]
    build.go()
    build.ends()


def in_order(first: str, seconds: str, second: str, fewer: str) -> None:
    """The slower of two steps comes first; on a busy host that may be either."""
    assert {first, second} == {"First", "Second"} and float(seconds) >= float(fewer)


def test_the_summary(watch: Watch, site: Site) -> None:
    made = 'mkdir "$1/big"; head -c 2500000 /dev/zero >"$1/big/x"'
    build = watch(f"echo '-----> First'; sleep 0.2; echo '-----> Second'; {made}")
    text = "\n".join(build.ends())
    assert re.search(r"^phase +time +buildpack$", text, re.MULTILINE)
    assert re.search(rf"^compile +\d+\.\d s +{site.path}/pack$", text, re.MULTILINE)
    slowest = re.search(r"^slowest +(\w+) \((\d+\.\d) s\)\n +(\w+) \((\d+\.\d) s\)$", text, re.MULTILINE)
    assert slowest is not None, text
    in_order(*slowest.groups())
    assert re.search(r"^contents +2\.5 MB big\n +0\.\d kB \.$", text, re.MULTILINE)
    assert re.search(r"^cache +none yet$", text, re.MULTILINE)
    assert text.splitlines()[-1].startswith(f"nsbuild: built {site.out} (")


def test_a_narrow_terminal(watch: Watch) -> None:
    """Every line of ours that has to stay on one does; the rest is folded, and nothing is lost."""
    build = watch(f"echo '-----> Wait'; {GO}", columns=40)
    build.screen.shows("-----> Wait")
    lines = build.screen.shows(LIVE)
    assert lines[-2] == "-----> Wait" and len(lines[-1]) <= 39
    build.screen.resize(40, 30)
    build.screen.shows(re.compile(rf"^(?!{lines[-1][:4]})\d:\d\d  "))
    build.go()
    text = "\n".join(build.ends())
    assert not re.search(r"^\d:\d\d  ", text, re.MULTILINE), text
    assert build.site.path.name[-8:] in text.replace("\n", "")


@pytest.mark.parametrize("env", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"LC_ALL": "no_SUCH.ISO-8859-1"}, {}])
def test_nothing_of_ours_needs_more_than_ascii(site: Site, env: dict[str, str]) -> None:
    pack = site.buildpack("printf '\\303\\251\\351\\n'", "p\udce9ck")  # a name that is no UTF-8
    build = Watched(site, *site.words(site.app(), pack), env=env)
    build.ends()
    data = build.screen.output.data
    assert b"\xc3\xa9\xe9\r\n" in data  # the buildpack's own, as it is
    assert data.replace(b"\xc3\xa9\xe9", b"").isascii()
    assert b"p\\udce9ck" in data


def test_ctrl_c(watch: Watch) -> None:
    build = watch(f"echo '-----> Wait'; {GO}")
    build.screen.shows(LIVE)
    build.screen.type(b"\x03")
    lines = build.ends(130)
    text = "\n".join(lines)
    assert lines[-1].startswith("nsbuild: Interrupted during bin/compile")
    assert "nsbuild: failed after " in text
    assert not re.search(r"^(\^C)?\d:\d\d  ", text, re.MULTILINE), text
    assert build.screen.screen.cursor.x == 0


def test_output_without_an_end_of_line_stays_whole(watch: Watch) -> None:
    lines = watch("printf 'no end'").ends()
    assert "no end" in lines


def test_what_a_buildpack_is_called_moves_no_cursor(site: Site) -> None:
    pack = site.buildpack("echo made", "pa\x1b[2Jck")
    build = Watched(site, *site.words(site.app(), pack))
    build.ends()
    assert b"\x1b[2J" not in build.screen.output.data
    assert b"pa\\x1b[2Jck" in build.screen.output.data


def test_stdout_is_a_pipe(watch: Watch) -> None:
    """`| tee log` writes to this terminal too: lines in colour, but no last line under its feet."""
    build = watch(f"echo '-----> Made'; {GO}", stdout=subprocess.PIPE)
    build.screen.shows("compile ")
    build.stays_without(LIVE)
    build.go()
    lines = build.ends()
    assert lines[-1].startswith("nsbuild: built ")
    assert b"\x1b7" not in build.screen.output.data and b"\x1b[" in build.screen.output.data
    assert build.process.stdout is not None and build.process.stdout.read() == b"-----> Made\n"


def test_stdout_is_a_file(watch: Watch, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        build = watch(f"printf 'no end'; {GO}", stdout=log)
    build.screen.shows(LIVE)
    build.go()
    build.ends()
    assert (tmp_path / "log").read_bytes() == b"no end"


def test_stderr_is_a_pipe(watch: Watch) -> None:
    build = watch("echo '-----> Made'", stderr=subprocess.PIPE)
    assert build.ends() == ["-----> Made"]
    assert build.process.stderr is not None
    err = build.process.stderr.read()
    assert b"\x1b" not in err and b"nsbuild: built " in err


def test_json_on_a_terminal_is_json(watch: Watch) -> None:
    build = watch("echo made", "--json", columns=4000)
    assert all(line.startswith('{"time": ') for line in build.ends())


def test_plain_lines_end_in_a_short_summary(site: Site) -> None:
    pack = site.buildpack("echo '-----> First'; sleep 0.1; echo '-----> Second'")
    result = site.build(site.app(), pack).ok()
    *_, slowest, contents, cache, last = result.err.splitlines()
    assert re.fullmatch(r"nsbuild: contents: 0\.\d kB \.", contents)
    told = re.fullmatch(r"nsbuild: slowest: (\w+) \((\d+\.\d) s\), (\w+) \((\d+\.\d) s\)", slowest)
    assert told is not None, slowest
    in_order(*told.groups())
    assert cache == "nsbuild: cache: none yet"
    assert last.startswith(f"nsbuild: built {site.out} (")
    assert os.linesep.join(result.text.splitlines()) == "-----> First\n-----> Second"


DOWNLOAD = """
import sys, time
from nsbuild.build import Event
from nsbuild.cli.progress import progress
shown = progress(as_json=False)
for line in sys.stdin:
    name, done, total = line.split()
    shown(Event("download", text=name, done=int(done), total=int(total)))
shown.close()
"""


def test_a_download() -> None:
    screen = Screen(columns=60)
    process = subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD],
        stdin=subprocess.PIPE,
        stdout=screen.slave,
        stderr=screen.slave,
        env={**os.environ, "TERM": "xterm"},
        text=True,
        bufsize=1,
    )
    screen.started()
    assert process.stdin is not None
    process.stdin.write("https://example.org/pack.tgz 2500000 10000000\n")
    assert screen.shows("2.5 MB")[-1] == "[=====               ] 2.5 MB of 10.0 MB  https://example.o"
    process.stdin.write("nobody-knows 3000000 0\n")
    assert screen.shows("nobody-knows")[-1] == "3.0 MB  nobody-knows"
    process.stdin.write("pack.tgz 10000000 10000000\n")
    process.stdin.close()
    assert screen.ends() == ["nsbuild: downloaded pack.tgz (10.0 MB)"]
    assert process.wait(timeout=50) == 0
