"""`nsbuild run` with several processes: a dyno each, one output, one end."""

from __future__ import annotations

import os
import pty
import re
import resource
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.processes import eventually
from support.rooms import Output
from support.sites import App, Result, Site, free_port, snapshot

pytest_plugins = ["support.site_fixtures"]

WAIT = "sleep 60 & wait"
UP = ">/tmp/$DYNO; "
LAST = f"{UP}until [ -e /tmp/go ]; do sleep 0.05; done; "
"""In the one that ends first: it waits until the others are UP (`in_turn`)."""


def two(site: Site, web: str, worker: str, **more: str) -> Path:
    """A slug whose Procfile has the worker first, and a release that must never run by itself."""
    lines = {"worker": worker, "release": "echo released; exit 9", "web": web, **more}
    return site.app("slug", Procfile="".join(f"{name}: {command}\n" for name, command in lines.items()))


def start(site: Site, *words: str | Path, **options: object) -> subprocess.Popen[bytes]:
    return site.start("run", *words, **{"stderr": subprocess.STDOUT, **options})  # type: ignore[arg-type]


def finish(process: subprocess.Popen[bytes]) -> Result:
    out, err = process.communicate(timeout=40)
    return Result(process.returncode, out or b"", (err or b"").decode())


def in_turn(site: Site, *words: str | Path, up: tuple[str, ...], last: str, **options: Any) -> Result:
    """Run it; `last` goes on once the others are `up`."""
    process = site.start("run", *words, **options)
    for name in (*up, last):
        site.appears(f"tmp/{name}")
    (waiting,) = site.inside(f"tmp/{last}")
    Path(waiting).with_name("go").touch()
    return finish(process)


# -- what runs, and with which environment


def test_all_but_release_run_with_ports_and_names(site: Site) -> None:
    tell = f"echo $DYNO $PORT $A; {UP}{WAIT}"
    path = two(site, tell, tell, cron=f"{LAST}echo $PORT; exit 4")
    words = (path, "--all", "--port", "7000", "--env", "A=set")
    result = in_turn(site, *words, up=("web.1", "worker.1"), last="cron.1")
    assert result.code == 4
    assert sorted(result.text.splitlines()) == [
        "cron.1   | 7200",
        "web.1    | web.1 7000 set",
        "worker.1 | worker.1 7100 set",
    ]
    said = result.err.splitlines()
    assert said[0] == "nsbuild: Starting web.1 (PORT 7000), worker.1 (PORT 7100), cron.1 (PORT 7200)."
    assert said[1] == "nsbuild: cron.1 ended with status 4; ending the others."
    assert sorted(said[2:]) == [f"nsbuild: {name}.1 was ended by SIGTERM." for name in ("web", "worker")]


def test_several_of_a_type(site: Site) -> None:
    path = two(site, f"echo $DYNO $PORT; {UP}{WAIT}", f"{LAST}echo $PORT")
    result = in_turn(site, path, "worker", "web=3", up=("web.1", "web.2", "web.3"), last="worker.1")
    lines = result.ok().text.splitlines()
    expected = [f"web.{number}    | web.{number} {4999 + number}" for number in (1, 2, 3)]
    assert sorted(lines) == [*expected, "worker.1 | 5100"]


def test_one_in_the_plain_form_has_no_prefix_and_one_of_a_formation_has(site: Site) -> None:
    path = two(site, "echo plain", "x")
    assert site.run(path).ok().out == b"plain\n"
    result = site.run(path, "web=1").ok()
    assert result.out == b"web.1 | plain\n"


def test_release_runs_when_it_is_named(site: Site) -> None:
    path = two(site, WAIT, WAIT)
    assert site.run(path, "release").code == 9
    result = site.run(path, "release", "web")
    assert result.code == 9 and "release.1 | released" in result.text


def test_each_has_its_own_files_and_its_own_tmp(site: Site) -> None:
    look = "touch mine-$DYNO /tmp/mine-$DYNO; until mkdir /dev/shm/x; do :; done; sleep 1; ls -d mine-* /tmp/*"
    path = two(site, look, look)
    before = snapshot(path)
    result = site.run(path, "--all")
    for name in ("web", "worker"):
        if f"{name}.1 ended with status 0" in result.err:
            shown = [line.split(" | ")[1] for line in result.text.splitlines() if line.startswith(name)]
            assert shown == [f"/tmp/mine-{name}.1", f"mine-{name}.1"]
    assert "ended with status 0" in result.err
    assert snapshot(path) == before


def test_an_archive_is_unpacked_for_all_and_written_by_none(site: Site) -> None:
    source = two(site, "echo web >> data; sleep 1; cat data", f"echo worker >> data; {WAIT}")
    site.write("slug/data", "good\n")
    archive = site.path / "slug.tgz"
    site.build(source, site.buildpack(), output=archive).ok()
    digest = archive.read_bytes()
    for options in ([], ["--read-only"]):
        result = site.run(archive, "--all", *options).ok()
        lines = result.text.splitlines()
        assert [line for line in lines if line.startswith("web")][-1] == f"web.1    | {'good' if options else 'web'}"
    assert archive.read_bytes() == digest


# -- the end


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("no-such", 127)])
def test_when_one_ends_the_others_end_and_its_status_counts(site: Site, command: str, code: int) -> None:
    path = two(site, f"trap 'echo graceful; exit 1' TERM; echo up; {UP}{WAIT}", f"{LAST}{command}")
    result = in_turn(site, path, "--all", up=("web.1",), last="worker.1")
    assert result.code == code
    assert [line for line in result.text.splitlines() if line.startswith("web")] == [
        "web.1    | up",
        "web.1    | graceful",
    ]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_a_signal_ends_all_with_sigterm(site: Site, number: signal.Signals, code: int) -> None:
    script = f"trap 'echo graceful; exit 1' TERM; trap 'echo wrong' INT HUP; >/tmp/$DYNO; {WAIT}"
    process = start(site, two(site, script, script), "--all")
    site.appears("tmp/web.1")
    site.appears("tmp/worker.1")
    os.killpg(process.pid, number)
    result = finish(process)
    assert result.code == code
    lines = result.text.splitlines()
    assert {"web.1    | graceful", "worker.1 | graceful"} <= set(lines) and "wrong" not in result.text
    assert f"nsbuild: {number.name}: ending all." in lines


def test_other_signals_go_to_each(site: Site) -> None:
    script = "trap 'echo usr1; exit 0' USR1; >/tmp/$DYNO; while :; do sleep 0.1; done"
    process = start(site, two(site, script, script), "--all")
    site.appears("tmp/web.1")
    site.appears("tmp/worker.1")
    process.send_signal(signal.SIGUSR1)
    result = finish(process)
    assert result.code == 0 and "| usr1" in result.text


def test_kill_9_leaves_nothing_running_and_gc_removes_the_workspaces(site: Site) -> None:
    script = f"trap '' HUP TERM; setsid sleep 100 & >/tmp/$DYNO; {WAIT}"
    process = start(site, two(site, script, script), "web=2", "worker")
    for name in ("web.1", "web.2", "worker.1"):
        site.appears(f"tmp/{name}")
    process.kill()
    process.communicate(timeout=50)
    assert eventually(lambda: not site.processes()), site.processes()
    left = sorted(site.apps.glob(".workspaces/build-*"))
    assert len(left) == 3
    assert site.nsbuild("gc").ok().text.splitlines() == [f"removed {path}" for path in left]


def test_nohup(site: Site) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(site, two(site, ">/tmp/$DYNO; sleep 1; exit 8", WAIT), "--all", prepare=ignore)
    site.appears("tmp/web.1")
    process.send_signal(signal.SIGHUP)
    assert finish(process).code == 8


# -- what they print


def test_lines_stay_whole_and_every_byte_is_there(site: Site) -> None:
    """Two that write as fast as they can, one without a last newline, both with bytes of any kind."""
    script = (
        "import os,sys; n=sys.argv[1].encode(); [os.write(1, b'%s\\xff\\0 %d\\r\\n' % (n, i)) for i in range(20000)]"
    )
    path = two(
        site,
        f"python3 -c \"{script}; os.write(2, b'the end')\" web; {UP}{WAIT}",
        f'python3 -c "{script}" worker; {LAST}printf last',
    )
    with (site.path / "output").open("w+b") as output:  # nobody reads a pipe before both have written
        in_turn(site, path, "--all", up=("web.1",), last="worker.1", stdout=output).ok()
    result = Result(0, (site.path / "output").read_bytes(), "")
    lines = result.out.split(b"\n")
    for name in (b"web", b"worker"):
        mine = [line.partition(b" | ")[2] for line in lines if line.startswith(name + b".1 ")]
        assert mine[:20000] == [b"%s\xff\x00 %d\r" % (name, number) for number in range(20000)]
        assert mine[20000:] == [b"the end" if name == b"web" else b"last"]
    assert lines[-1] == b""


def test_a_line_without_an_end_is_not_kept_in_memory(site: Site) -> None:
    path = two(site, "head -c 100000000 /dev/zero | tr '\\0' x", WAIT)

    def little_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (600_000_000, 600_000_000))

    done = site.run(path, "--all", prepare=little_memory).ok()
    pieces = [line.removeprefix(b"web.1    | ") for line in done.out.splitlines()]
    assert sum(map(len, pieces)) == 100_000_000 and len(pieces[0]) == 65536


def test_who_ignores_sigterm_is_killed_also_when_nobody_reads(site: Site) -> None:
    """An output that cannot be written holds nothing up for ever."""
    process = site.start("run", two(site, f"trap '' TERM; {UP}yes", f"{UP}{WAIT}"), "--all")
    site.appears("tmp/web.1")
    site.appears("tmp/worker.1")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=50) == 143  # nobody has read a byte
    said = finish(process).err.splitlines()
    assert "nsbuild: web.1 has not ended 10 seconds after SIGTERM: it is killed." in said
    assert "nsbuild: worker.1 was ended by SIGTERM." in said


def test_a_reader_that_leaves_ends_them(site: Site) -> None:
    process = start(site, two(site, f"yes & >/tmp/here; {WAIT}", WAIT), "--all", stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=50) == 141
    assert process.stderr is not None and b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_full_disk_is_said(site: Site) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        result = site.run(two(site, f"echo x; {WAIT}", WAIT), "--all", stdout=full)
    result.refused(123, "stdout", "No space left")


@pytest.mark.parametrize(("env", "colours"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_on_a_terminal(site: Site, env: dict[str, str], colours: bool) -> None:
    controller, terminal = pty.openpty()
    path = two(site, f"test -t 0 -o -t 1 || echo up; {UP}{WAIT}", LAST)
    screen = {"stdout": terminal, "stderr": subprocess.DEVNULL, "env": {"TERM": "xterm", **env}}
    in_turn(site, path, "--all", up=("web.1",), last="worker.1", **screen).ok()
    os.close(terminal)
    said = Output(controller).rest()
    assert re.search(rb"\x1b\[36mweb\.1    \| \x1b\[0mup\r\n" if colours else rb"^web\.1    \| up\r\n", said)
    assert (b"\x1b" in said) == colours


# -- misuse


def test_misuse_is_125(site: Site) -> None:
    path = two(site, "x", "y")
    site.run(path, "web", "absent").refused(125, "absent", "release, web, worker", "after --")
    site.run(path, "python", "-c", "x").refused(125, "-c")
    for words, said in (
        (("web", "web=2"), "twice"),
        (("web=0",), "web=0"),
        (("web=x", "worker"), "web=x"),
        (("web=101",), "web=101"),
        (("--all", "web"), "one of the three"),
        (("web", "--", "true"), "one of the three"),
        (("--all", "--", "true"), "one of the three"),
        (("--all", "--tty"), "terminal"),
        (("--all", "--port", "65500"), "65535"),
    ):
        site.run(path, *words).refused(125, said)
    site.run(site.app("empty", x=""), "--all").refused(125, "no process type")
    site.write("slug/Procfile", "web: x\nnonsense\n")
    site.run(path, "--all").refused(125, "line 2")


# -- real ones


def test_two_real_web_servers(apps: dict[str, App]) -> None:
    """gunicorn twice, from one slug, and both end in peace."""
    app, port = apps["flask-web"], free_port(2)
    app.first.ok()
    before = snapshot(app.directory)
    process = start(app.site, app.directory, "web=2", "--port", str(port))
    found: set[bytes] = set()

    def answer() -> bool:
        for number in (port, port + 1):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{number}/health", timeout=5) as response:
                    found.add(b"%d %s" % (number, response.read()))
            except OSError:
                continue
        return len(found) == 2 or process.poll() is not None

    try:
        assert eventually(answer, 30) and len(found) == 2, process.communicate()[0]
        process.send_signal(signal.SIGTERM)
        result = finish(process)
    finally:
        process.kill()
    assert result.code == 143
    for name in ("web.1", "web.2"):
        assert f"nsbuild: {name} ended with status 0." in result.text
        assert re.search(rf"^{re.escape(name)} \| .*Listening at", result.text, re.MULTILINE)
    assert snapshot(app.directory) == before
