"""Ctrl-C, SIGTERM, SIGHUP and SIGKILL in every phase: 130, nothing lost and nothing left."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.processes import eventually
from support.sites import Result, Site, snapshot

pytest_plugins = ["support.site_fixtures"]

# Not touch: bash ignores a SIGINT that a child survives which it is waiting for.
HANG = ">/tmp/here; sleep 100"
PHASES = ("stage", "detect", "compile", "report", "release", "slug")


@pytest.fixture
def built(site: Site) -> Site:
    site.build(site.app(), site.buildpack('echo kept > "$2/kept"')).ok()
    return site


def state(site: Site) -> dict[str, tuple[object, ...]]:
    trees = [site.out, site.path / "app", site.path / "pack", *site.caches()]
    return {f"{top}:{name}": facts for top in trees for name, facts in snapshot(top).items()}


def in_phase(site: Site, phase: str, *words: str) -> subprocess.Popen[bytes]:
    """A build that is now in the middle of this phase, and would be for long."""
    scripts = {phase: HANG} if phase in ("detect", "report", "release") else {}
    # To read a hole of a terabyte takes a slug for ever; a build whose staging was over too soon hangs all the same.
    compile_ = {"compile": HANG, "stage": HANG, "slug": 'truncate -s 1T "$1/large"'}.get(phase, "")
    pack = site.buildpack(compile_, f"hanging-{phase}", **scripts)
    if phase == "stage":
        for number in range(2000):
            (site.path / f"app/many-{number}").write_bytes(b"x")
    output = site.path / "slug.tgz" if phase == "slug" else site.out
    process = site.start(*site.words("app", pack, *words, output=output), "--report", "record.json")
    if phase == "stage":
        assert eventually(lambda: any(site.apps.glob(".workspaces/build-*/app/many-1*")), 50)
    elif phase == "slug":
        assert eventually(lambda: any(site.path.glob(".slug.tgz.nsbuild-*")), 50)
    else:
        site.appears("tmp/here")
    return process


def finish(process: subprocess.Popen[bytes], timeout: float = 30) -> Result:
    out, err = process.communicate(timeout=timeout)
    return Result(process.returncode, out, err.decode())


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c(built: Site, phase: str) -> None:
    before = state(built)
    process = in_phase(built, phase)
    os.killpg(process.pid, signal.SIGINT)
    result = finish(process).refused(130, "nterrupted")
    if phase not in ("stage", "slug"):
        assert f"bin/{phase}" in result.last
        assert str(built.path / f"hanging-{phase}") in result.last
    record = (built.path / "record.json").read_text()
    assert '"exit_code": 130' in record
    assert not (built.path / "slug.tgz").exists()
    for path in (built.path / "app").glob("many-*"):
        path.unlink()
    after = state(built)
    changed = [name for name, facts in before.items() if after.get(name) != facts and not name.endswith("app:.")]
    assert not changed


@pytest.mark.parametrize("script", ["test-compile", "test-setup", "test"])
def test_ctrl_c_in_tests(built: Site, script: str) -> None:
    before = state(built)
    scripts = {"test": "true", script: HANG}
    built.write("testing/app.json", json.dumps({"scripts": {} if script == "test-compile" else scripts}))
    pack = built.buildpack(name="tests", **({"test-compile": HANG} if script == "test-compile" else {}), test="true")
    process = built.start("test", "testing", "-b", pack)
    built.appears("tmp/here")
    os.killpg(process.pid, signal.SIGINT)
    finish(process).refused(130, "nterrupted", script)
    after = state(built)  # with a cache for tests, once all have compiled
    assert {name: after.get(name) for name in before} == before


def test_ctrl_c_in_detect_alone(built: Site) -> None:
    before = state(built)
    process = built.start("detect", "app", "-b", built.buildpack(name="slow", detect=HANG))
    built.appears("tmp/here")
    os.killpg(process.pid, signal.SIGINT)
    result = finish(process).refused(130, "bin/detect")
    assert result.out == b""
    assert state(built) == before


def test_ctrl_c_in_the_second_build_of_two(built: Site) -> None:
    """The slug is the last one, the cache the first build's."""
    before = snapshot(built.out)
    pack = built.buildpack(f'if [ -e "$2/once" ]; then {HANG}; fi; touch "$2/once"', "again")
    process = built.start(*built.words("app", pack), "--rebuild", "--report", "record.json")
    built.appears("tmp/here")
    os.killpg(process.pid, signal.SIGINT)
    finish(process).refused(130, "bin/compile")
    assert snapshot(built.out) == before
    assert sorted(path.name for path in built.caches()[0].iterdir()) == ["kept", "once"]
    record = json.loads((built.path / "record.json").read_text())
    assert (record["exit_code"], record["first"]["exit_code"]) == (130, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_nsbuild_alone(built: Site, number: signal.Signals) -> None:
    for phase in ("stage", "compile"):
        process = in_phase(built, phase)
        process.send_signal(number)
        finish(process).refused(130, "nterrupted")


def test_the_command_gets_the_signal_once_and_may_clean_up(site: Site) -> None:
    pack = site.buildpack("trap 'echo caught' TERM; >/tmp/here; for i in $(seq 20); do sleep 0.1; done")
    process = site.start(*site.words(site.app(), pack))
    site.appears("tmp/here")
    process.send_signal(signal.SIGTERM)
    result = finish(process).refused(130, "bin/compile")
    assert result.out.count(b"caught") == 1
    assert not site.out.exists()


def test_two_signals_at_once(built: Site) -> None:
    for phase in ("stage", "compile"):
        process = in_phase(built, phase)
        process.send_signal(signal.SIGTERM)
        os.killpg(process.pid, signal.SIGINT)
        finish(process).refused(130, "nterrupted")
        assert not built.litter()


def test_other_signals_are_passed_on_and_end_nothing(site: Site) -> None:
    pack = site.buildpack("trap 'echo usr1; exit 0' USR1; >/tmp/here; while :; do sleep 0.1; done")
    process = site.start(*site.words(site.app(), pack))
    site.appears("tmp/here")
    process.send_signal(signal.SIGUSR1)
    assert finish(process).ok().out == b"usr1\n"


@pytest.mark.parametrize("phase", ["stage", "compile", "slug"])
def test_kill_9(built: Site, phase: str) -> None:
    """The workspace stays, for gc; everything else is as it was, and no process survives."""
    before = state(built)
    process = in_phase(built, phase)
    process.kill()
    process.communicate(timeout=50)
    assert eventually(lambda: not built.processes()), built.processes()
    (left,) = built.apps.glob(".workspaces/build-*")
    for path in (built.path / "app").glob("many-*"):
        path.unlink()
    after = state(built)
    assert not [name for name, facts in before.items() if after.get(name) != facts and not name.endswith("app:.")]
    result = built.nsbuild("gc").ok()
    assert result.text == f"removed {left}\n"
    assert built.nsbuild("gc").ok().text == ""
    for path in built.path.glob(".slug.tgz.nsbuild-*"):
        path.unlink()  # the next build to the same output removes it: test_output.py
    built.build("app", built.path / "pack").ok()
    assert built.caches()[0].joinpath("kept").exists()


def test_gc_removes_what_was_being_fetched_or_unpacked(site: Site) -> None:
    """Nothing that somebody holds, and no buildpack that is in use."""
    cache = "home/.cache/nsbuild"
    left = [
        site.mkdir(f"{cache}/buildpacks/trees/new-0123/tree/bin"),
        site.mkdir(f"{cache}/stacks/new-4567/root/usr"),
    ]
    kept = site.mkdir(f"{cache}/stacks/sha256-1/root")
    held = site.mkdir(f"{cache}/stacks/new-held/root")
    lock = os.open(held.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = site.nsbuild("gc").ok().text.splitlines()
    finally:
        os.close(lock)
    assert said == [f"removed {left[0].parents[1]}", f"removed {left[1].parents[1]}"]
    assert kept.is_dir() and held.is_dir() and not left[0].exists() and not left[1].exists()
    assert site.nsbuild("gc").ok().text == f"removed {held.parent}\n"


def test_gc_leaves_running_builds_alone(site: Site) -> None:
    process = in_phase_of(site)
    assert site.nsbuild("gc").ok().text == ""
    elsewhere = site.mkdir("elsewhere/build-20200101-000000-00000000/app/closed")
    elsewhere.chmod(0)
    other = site.mkdir("elsewhere/other")
    result = site.nsbuild("gc", site.path / "elsewhere", site.apps / ".workspaces").ok()
    assert result.text == f"removed {elsewhere.parents[1]}\n"
    assert other.exists()
    process.send_signal(signal.SIGTERM)
    finish(process).refused(130)


def test_a_directory_that_workspaces_were_made_in_stays(site: Site) -> None:
    """It was named by the user, who may have made it."""
    own = site.mkdir("own")
    app, pack = site.app(), site.buildpack()
    site.build(app, pack, "--workspace-dir", str(own)).ok()
    site.nsbuild("run", site.out, "--workspace-dir", str(own), "--", "true").ok()
    assert list(own.iterdir()) == []
    process = in_phase(site, "compile", "--workspace-dir", str(own))
    process.kill()
    process.communicate(timeout=50)
    assert eventually(lambda: not site.processes()), site.processes()
    (left,) = own.iterdir()
    assert site.nsbuild("gc", own).ok().text == f"removed {left}\n"
    assert list(own.iterdir()) == []


def in_phase_of(site: Site) -> subprocess.Popen[bytes]:
    site.app()
    return in_phase(site, "compile")


@pytest.mark.parametrize("phase", ["stage", "compile"])
def test_nohup(site: Site, phase: str) -> None:
    """A terminal that closes does not end a build that was told to stay."""

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    app = site.app()
    if phase == "stage":
        for number in range(2000):
            (app / f"many-{number}").write_bytes(b"x")
    process = site.start(*site.words(app, site.buildpack(">/tmp/here; sleep 0.5")), prepare=ignore)
    if phase == "stage":
        assert eventually(lambda: any(site.apps.glob(".workspaces/build-*/app/many-1*")), 50)
    else:
        site.appears("tmp/here")
    process.send_signal(signal.SIGHUP)
    finish(process).ok()


def test_who_ignores_sigchld(site: Site) -> None:
    """Some supervisors do; it is inherited, and the kernel then forgets how a process has ended."""

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    finish(site.start(*site.words(site.app(), site.buildpack("true")), prepare=ignore)).ok()
    failing = site.words(site.app(), site.buildpack("exit 7", "failing"))
    finish(site.start(*failing, prepare=ignore)).refused(11, "exited 7")


def test_a_command_that_ignores_the_signal_is_killed_ten_seconds_later(site: Site) -> None:
    """However often it was asked meanwhile."""
    pack = site.buildpack("trap '' INT TERM; >/tmp/here; while :; do sleep 1; done")
    process = site.start(*site.words(site.app(), pack))
    site.appears("tmp/here")
    asked = 0
    while process.poll() is None and asked < 60:
        process.send_signal(signal.SIGTERM)
        asked += 1
        time.sleep(1)
    assert process.poll() is not None, "it lives as long as it is asked to end"
    finish(process).refused(130, "nterrupted")
    assert asked > 1


def test_running_a_slug_passes_signals_on(built: Site) -> None:
    process = built.start("run", built.out, "--", "sh", "-c", "trap 'exit 3' TERM; >/tmp/here; sleep 100 & wait")
    built.appears("tmp/here")
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 3
    process = built.start("run", built.out, "--", "sh", "-c", ">/tmp/here; exec sleep 100")
    built.appears("tmp/here")
    os.killpg(process.pid, signal.SIGINT)
    assert finish(process).code == 130
    assert not Path(built.home / ".cache/nsbuild/apps/.workspaces").exists()


def test_a_path_that_is_not_there_is_said(site: Site) -> None:
    site.nsbuild("gc", "nowhere").refused(2, "nowhere", "--workspace-dir")
    site.nsbuild("recover", "nowhere").refused(2, "nowhere")
    site.nsbuild("recover", site.app()).ok()
