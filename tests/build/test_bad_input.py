"""Bad input and bad days: the right exit code, one sentence with thing, place and fix, nothing lost, nothing left."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import ROOT, become, private_mounts, write
from support.sites import NSBUILD, PERSON, Result, Site, as_root, ordinary, snapshot

from nsbuild.sandbox import kernel

pytest_plugins = ["support.site_fixtures"]


@pytest.fixture
def built(site: Site) -> Site:
    """A site with an app, a buildpack, a slug and a cache, which must all be there at the end as they are now."""
    site.build(site.app(), site.buildpack('echo kept > "$2/kept"')).ok()
    return site


def lost_nothing(site: Site, before: dict[str, tuple[object, ...]]) -> None:
    """Locks and directories on the way aside, whose times change."""
    after = state(site)
    assert {name: after.get(name) for name in before} == before


def state(site: Site) -> dict[str, tuple[object, ...]]:
    trees = [site.out, site.path / "app", site.path / "pack", *site.caches()]
    return {f"{top}:{name}": facts for top in trees for name, facts in snapshot(top).items()}


# -- what was named


def test_no_such_source(built: Site) -> None:
    before = state(built)
    pack = built.path / "pack"
    absent = built.build("nowhere", pack).refused(2, "nowhere", "does not exist", "Give")
    assert absent.err.count("\n") == 1  # nothing had begun: the sentence is all
    built.build(built.write("file"), pack).refused(2, "file", "neither a directory nor an archive")
    built.build("", pack).refused(2)
    lost_nothing(built, before)


def test_an_empty_source(site: Site) -> None:
    site.mkdir("app")
    site.build("app", site.buildpack()).refused(10, str(site.path / "app"), "empty")
    site.write("app/.git/HEAD")
    site.mkdir("app/sub")
    result = site.build("app", site.path / "pack").refused(10, "empty")
    assert result.record["exit_code"] == 10
    assert not site.out.exists()


def test_no_buildpack(built: Site) -> None:
    before = state(built)
    built.nsbuild("build", "app").refused(2, "buildpack")
    built.build("app", built.path / "nowhere").refused(2, str(built.path / "nowhere"), "does not exist")
    built.build("app", built.write("file")).refused(2, "file", "is not a directory")
    lost_nothing(built, before)


def test_a_buildpack_without_compile(built: Site) -> None:
    before = state(built)
    built.write("empty/bin/detect", "#!/bin/sh", 0o755)
    built.build("app", built.path / "pack", built.path / "empty").refused(2, str(built.path / "empty"), "bin/compile")
    built.mkdir("strange/bin/compile")
    built.build("app", built.path / "strange").refused(2, "bin/compile")
    lost_nothing(built, before)


@pytest.mark.parametrize("locked", ["app/secret", "app/sub/secret", "app/closed/", "pack/secret", "pack/bin/helper"])
@ordinary
def test_an_unreadable_file(built: Site, locked: str) -> None:
    path = built.path / locked
    if locked.endswith("/"):
        built.mkdir(locked).chmod(0)
    else:
        built.write(locked, "x", 0)
    result = built.build("app", built.path / "pack").refused(125, str(path), "Permission denied", "readable")
    assert result.record["exit_code"] == 125
    path.chmod(0o700)
    assert (built.out / "Procfile").exists()


def test_detect_fails(built: Site) -> None:
    before = state(built)
    pack = built.buildpack(name="picky", detect="echo No Gemfile here.; echo and why >&2; exit 1")
    result = built.build("app", built.path / "pack", pack)
    result.refused(10, str(pack), "bin/detect", "exited 1", "No Gemfile here.", "and why")
    assert result.record["exit_code"] == 10
    endings = {"kill -9 $$": "signal 9", "exit 255": "exited 255"}
    for detect, words in endings.items():
        built.build("app", built.buildpack(name="picky", detect=detect)).refused(10, words)
    pack = built.buildpack(name="picky", detect="#!/nonexistent")
    built.build("app", pack).refused(125, "cannot be run: No such file or directory")
    lost_nothing(built, before)


def test_compile_fails(built: Site) -> None:
    before = state(built)
    pack = built.buildpack('echo doing; echo " !     reason" >&2; rm -rf "$1"/* "$2"/*; exit 17', "bad")
    result = built.build("app", pack)
    result.refused(11, "bin/compile", str(pack), "exited 17")
    assert " !     Push rejected, failed to compile Test app.\n" in result.err
    assert result.out == b"doing\n !     reason\n"
    assert result.record["exit_code"] == 11
    (phase,) = [phase for phase in result.record["phases"] if phase["name"] == "compile"]
    assert (phase["exit_code"], phase["signal"]) == (17, None)
    assert "17" in result.record["result"]
    lost_nothing(built, before)


@pytest.mark.parametrize("number", [9, 11, 15, 2, 1])
def test_compile_is_killed_by_a_signal(built: Site, number: int) -> None:
    """Its own, not ours: no interruption of the build."""
    before = state(built)
    result = built.build("app", built.buildpack(f"exec /bin/sh -c 'kill -{number} $$'", "bad"))
    result.refused(11, f"signal {number}")
    (phase,) = [phase for phase in result.record["phases"] if phase["name"] == "compile"]
    assert (phase["exit_code"], phase["signal"]) == (None, number)
    lost_nothing(built, before)


def test_compile_cannot_be_run(built: Site) -> None:
    before = state(built)
    for script, words in {"#!/nonexistent/bash": "not found", "#!/etc": "cannot execute"}.items():
        built.build("app", built.buildpack(script, "bad")).refused(11, "could not be run", words)
    lost_nothing(built, before)


def test_compile_kills_everything_it_can(built: Site) -> None:
    before = state(built)
    built.build("app", built.buildpack("kill -9 -1; kill -9 1; exit 4", "bad")).refused(11, "exited 4")
    lost_nothing(built, before)


def test_the_time_limit(built: Site) -> None:
    before = state(built)
    slow = built.buildpack("echo slow; sleep 1000 & wait", "slow", detect=None)
    result = built.build("app", slow, "--timeout", "5s")
    result.refused(13, str(slow), "5 seconds", "--timeout")
    assert result.out == b"slow\n"
    assert result.record["exit_code"] == 13
    hung = built.buildpack(name="hung", detect="sleep 1000")
    built.build("app", hung, "--timeout", "0.5s").refused(13, "bin/detect")
    hung = built.buildpack(name="late", detect=None, report="sleep 1000")
    built.build("app", hung, "--timeout", "5s").ok()
    built.build("app", built.path / "pack").ok()
    lost_nothing(built, {name: facts for name, facts in before.items() if name.startswith(str(built.path / "app"))})


def test_an_output_that_is_a_file(built: Site) -> None:
    before = state(built)
    path = built.write("taken", "precious")
    result = built.build("app", built.path / "pack", output=path).refused(2, str(path), "is a file", ".tgz")
    assert result.out == b""
    assert path.read_text() == "precious"
    lost_nothing(built, before)


def test_a_report_that_cannot_be_written_is_said_before_the_build(built: Site) -> None:
    before = state(built)
    for report in ("nowhere/record.json", "app"):
        result = built.nsbuild(*built.words("app", built.path / "pack"), "--report", report)
        result.refused(2, "--report", report)
        assert result.out == b""
    lost_nothing(built, before)


def test_a_bind_that_does_not_exist(built: Site) -> None:
    built.build("app", built.path / "pack", "--bind", "/nonexistent/thing").refused(2, "/nonexistent/thing")
    built.build("app", built.path / "pack", "--bind", f"{built.path}:relative").refused(2, "relative", "absolute")


@pytest.mark.parametrize("path", ["relative", "/", "/tmp/app", "/app/../x", "/proc/x", "/etc/passwd/x", "/bin/app"])
def test_a_run_path_that_cannot_be(built: Site, path: str) -> None:
    result = built.build("app", built.path / "pack", f"--run-path={path}")
    if path == "/bin/app" and not Path("/bin").is_symlink():
        result.ok()
    else:
        assert result.code in (2, 125)
        result.refused(result.code, path.rpartition("/")[0] if path in ("/etc/passwd/x", "/bin/app") else repr(path))


def test_bad_words(built: Site) -> None:
    before = state(built)
    pack = built.path / "pack"
    for words in (
        ["--no-such-option"],
        ["--timeout", "soon"],
        ["--timeout", "-1s"],
        ["--timeout", "0"],
        ["--timeout", "99999999999999h"],
        ["--layout", "other"],
        ["--network", "some"],
        ["--env", "=value-of-nothing"],
        ["--env", "a/b=c"],
        ["--env", f"{'x' * 300}=c"],
        ["--env-file", "nowhere.env"],
        ["--env-dir", "nowhere"],
        ["--user", "me"] if PERSON else ["--user", "0"],
        ["--report"],
        ["one too many"],
    ):
        result = built.build("app", pack, *words)
        result.refused(2)
        assert result.out == b""
    assert built.nsbuild("build").code == 2
    assert built.nsbuild("no-such-command").code == 2
    assert built.nsbuild().code == 2
    lost_nothing(built, before)


def test_a_secret_is_never_repeated(site: Site) -> None:
    app, pack = site.app(), site.buildpack()
    site.write("bad.env", "OK=1\nhunter2-without-equals\n")
    for words in (
        ["--env", "hunter2"],
        ["--env", "=hunter2"],
        ["--env", "a/b=hunter2"],
        ["--env-file", str(site.path / "bad.env")],
        ["--env=hunter2", "--no-such-option"],
    ):
        result = site.build(app, pack, *words).refused(2)
        assert "hunter2" not in result.err
    site.build(app, pack, "--env-file", str(site.path / "bad.env")).refused(2, "bad.env line 2")


# -- the machine


def full(path: Path, size: str) -> Callable[[], None]:
    """A small filesystem of its own over `path`, for one process and its children."""

    def prepare() -> None:
        if os.geteuid() != 0 and PERSON == 0:
            raise AssertionError("unreachable")
        private_mounts()
        kernel.mount("tmpfs", str(path), "tmpfs", 0, f"size={size},mode=777")

    return prepare


@ordinary
@pytest.mark.parametrize("what", ["workspace", "output", "cache", "archive", "app"])
def test_the_disk_is_full(built: Site, what: str) -> None:
    before = state(built)
    small = built.mkdir("small")
    pack = built.buildpack('head -c 3000000 /dev/urandom > "$1/big"; cp "$1/big" "$2/big"', "big")
    options: list[str] = []
    output = built.path / "new"
    if what in ("workspace", "app"):
        options = ["--workspace-dir", str(small / "work")]
    elif what == "cache":
        options = ["--cache", str(small / "cache"), "--workspace-dir", str(built.path / "work")]
    else:
        output = small / ("slug.tgz" if what == "archive" else "slug")
    if what == "workspace":
        built.write("app/large", os.urandom(3_000_000))
        before |= snapshot(built.path / "app")
        before = state(built)
    result = built.build("app", pack, *options, output=output, prepare=full(small, "1m"))
    if what == "app":
        # The buildpack met it first.
        result.refused(11, "bin/compile")
        assert b"No space left on device" in result.out
    else:
        result.refused(125, "No space left on device", "Free some space", str(small))
        assert result.record["exit_code"] == 125
    assert not (built.path / "new").exists()
    lost_nothing(built, before)


@ordinary
def test_a_full_disk_costs_neither_the_last_slug_nor_the_last_cache(site: Site) -> None:
    """Both on the small filesystem, the second build too large for it."""
    small = site.mkdir("small")
    site.app(size="100000")
    pack = site.buildpack('head -c $(cat "$1/size") /dev/urandom > "$1/big"; cp "$1/size" "$2/"')
    script = site.write(
        "script",
        f"""
        set -e
        build() {{ "$@" build app -b {pack} -o small/out --cache small/cache --workspace-dir work; }}
        build "$@"; echo 5000000 > app/size; echo code $(build "$@" 2>&1 | tail -1)
        echo now; cat small/out/size; echo; ls -A small small/cache/*/; cat small/cache/*/content/size
        """,
    )

    def prepare() -> None:
        full(small, "2m")()
        if os.geteuid() == 0:
            become(PERSON, PERSON)

    done = subprocess.run(
        ["bash", script, *NSBUILD],
        cwd=site.path,
        env=site.environment(),
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No space left on device" in done.stdout, done
    now = done.stdout.partition("now\n")[2]
    assert now.split()[0] == now.split()[-1] == "100000"
    assert "new-" not in now and ".nsbuild-" not in now.replace(".nsbuild-slug", "")


@ordinary
@as_root
def test_a_cache_of_somebody_elses(built: Site) -> None:
    before = state(built)
    theirs = built.mkdir("theirs")
    os.chown(theirs, 0, 0)
    theirs.chmod(0o777)
    result = built.build("app", built.path / "pack", "--cache", str(theirs))
    result.refused(125, str(theirs), "belongs to uid 0", "--cache")
    assert list(theirs.iterdir()) == []
    (content,) = built.caches()
    os.chown(content, 0, 0)
    built.build("app", built.path / "pack").refused(125, "belongs to uid 0")
    os.chown(content, PERSON, PERSON)
    closed = built.mkdir("closed/cache")
    closed.parent.chmod(0)
    os.chown(closed.parent, 0, 0)
    built.build("app", built.path / "pack", "--cache", str(closed)).refused(125, str(closed), "Permission denied")
    lost_nothing(built, {name: facts for name, facts in before.items() if "content" not in name})


@ordinary
def test_a_cache_that_cannot_be_made(built: Site) -> None:
    before = state(built)
    built.mkdir("closed").chmod(0o555)
    for cache in (built.path / "closed/cache", built.write("file") / "cache"):
        built.build("app", built.path / "pack", "--cache", str(cache)).refused(125, str(cache), "--cache")
    for work in (built.path / "closed/work", built.path / "file/work"):
        built.build("app", built.path / "pack", "--workspace-dir", str(work)).refused(
            125, str(work), "--workspace-dir"
        )
    lost_nothing(built, before)


@ordinary
def test_a_workspace_where_nothing_may_be_executed(built: Site) -> None:
    small = built.mkdir("small")

    def prepare() -> None:
        private_mounts()
        kernel.mount("tmpfs", str(small), "tmpfs", kernel.MS_NOEXEC, "mode=777")

    result = built.build("app", built.path / "pack", "--workspace-dir", str(small), prepare=prepare)
    result.refused(125, str(small), "noexec", "--workspace-dir")


def no_user_namespaces() -> None:
    """As on a host that has turned them off; written inside an outer user namespace, which may."""
    uid, gid = PERSON, PERSON if os.geteuid() == 0 else os.getgid()
    if os.geteuid() == 0:
        become(uid, gid)
    kernel.unshare(kernel.CLONE_NEWUSER)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{uid} {uid} 1")
    write("/proc/self/gid_map", f"{gid} {gid} 1")
    write("/proc/sys/user/max_user_namespaces", "0")


@ordinary
def test_user_namespaces_are_refused(built: Site) -> None:
    before = state(built)
    result = built.build("app", built.path / "pack", prepare=no_user_namespaces)
    result.refused(125, "user namespace", "max_user_namespaces")
    assert result.out == b""
    assert result.record["exit_code"] == 125
    lost_nothing(built, before)
    result = built.run(built.out, "hello", prepare=no_user_namespaces)
    result.refused(125, "user namespace", "max_user_namespaces")
    lost_nothing(built, before)


@ordinary
def test_no_home(site: Site) -> None:
    """An account without one, and no HOME: no directory called ~ is made."""
    app, pack = site.app(), site.buildpack()
    words = ["env", "-u", "HOME", *NSBUILD, "build", str(app), "-b", str(pack), "-o", "out"]

    def run(*more: str) -> Result:
        options: dict[str, Any] = {"user": PERSON, "group": PERSON, "extra_groups": []} if ROOT else {}
        done = subprocess.run(
            [*words, *more], cwd=site.path, env=site.environment(), capture_output=True, check=False, **options
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    if ROOT:
        run().refused(125, "home", "HOME")
    run("--cache", "cache").ok()
    assert not (site.path / "~").exists()


def test_a_record_of_every_failure_has_its_sentence(site: Site) -> None:
    result = site.build(site.app(), site.buildpack("exit 1")).refused(11)
    assert result.last == f"nsbuild: {result.record['result']}"
    assert json.loads(json.dumps(result.record))["schema"] == 1
