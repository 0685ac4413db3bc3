"""A shadow: direct is shipped, byte for byte and when it would have been; its candidate is built and compared."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from rollout.fleets import Fleet, fresh, offline
from support.builders import Builder
from support.processes import Child, descriptors, eventually
from support.refusals import no_user_namespaces
from support.sites import BUILDPACKS, CHAINS, snapshot

from nsbuild.errors import UsageError
from nsbuild.rollout import Outcome, slots
from nsbuild.rollout import candidate as candidates
from nsbuild.rollout.noted import Asked, Noted
from nsbuild.rollout.scratch import Scratch
from nsbuild.rollout.shadow import Candidate, prepare

pytest_plugins = ["support.builder_fixtures", "rollout.fleet_fixtures"]

REAL = """
step() { echo "-----> $*"; }
step "building"
mkdir -p "$1/bin" "$2/kept" "$1/.profile.d"
printf '#!%s/bin/sh\\n' "$1" > "$1/bin/tool"; chmod 755 "$1/bin/tool"
echo "number $(($(cat "$2/kept/count" 2>/dev/null || echo 0) + 1))" > "$1/number"
echo "$(($(cat "$2/kept/count" 2>/dev/null || echo 0) + 1))" > "$2/kept/count"
ln -s "$1/bin/tool" "$1/link"
cat "$3/SECRET" | tr -d '\\0' > "$1/of-the-env-dir"
echo "export TOOLS=$1/bin" >> "$(dirname "$0")/../export"
echo done >&2
"""
"""A compile like a real one: BUILD_DIR's path in a file and a link, a cache that counts, an export."""


@pytest.fixture
def shadow(person: Builder) -> Fleet:
    made = Fleet(person)
    made.set(0, 10000)
    return made


def afterwards(builder: Builder, pack: Path) -> list[dict[str, tuple[object, ...]]]:
    return [snapshot(top, times=False) for top in (builder.build, builder.cache, builder.env, pack)]


def processes_of(fleet: Fleet) -> list[int]:
    """The candidate's process, and its guardian."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words, environ = (Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
        if b"nsbuild.rollout.candidate" in words and os.fsencode(fleet.builder.state) in environ:
            found.append(int(pid))
    return found


def test_what_is_shipped_is_the_same_with_and_without(everywhere: Fleet) -> None:
    """And the candidate, built from copies taken before, differs in nothing but the path."""
    fleet, builder = everywhere, everywhere.builder
    pack = builder.pack(REAL)
    clean = {top: builder.path / f"clean-{top.name}" for top in (builder.build, builder.cache, pack)}
    builder.names |= {path.name for path in clean.values()}
    for top, kept in clean.items():
        subprocess.run(["cp", "-a", top, kept], check=True)
    fleet.set(0)
    direct = fleet.compile().ok()
    expected = afterwards(builder, pack)
    for top, kept in clean.items():
        for path in top.iterdir():
            subprocess.run(["rm", "-rf", path], check=True)
        subprocess.run(["cp", "-aT", kept, top], check=True)
    fleet.set(0, 10000)
    shipped = fleet.compile().ok()
    assert (shipped.out, shipped.err) == (direct.out, direct.err)
    assert afterwards(builder, pack) == expected
    row = fleet.candidate()
    assert afterwards(builder, pack) == expected
    assert (row.path, row.arm, row.result, row.exit_code, row.fallback) == ("shadow", "namespace", "same", 0, "")
    assert row.diff == {"path only": 2}
    first, second, _ = fleet.rows()
    assert (first.path, second.path, second.arm, second.result) == ("direct", "shadow", "direct", "succeeded")
    assert row.decision == second.decision
    told = shipped.record["rollout"]
    assert (told["path"], told["result"], shipped.record["path"]) == ("shadow", "succeeded", "direct")
    assert told["shadow"]["copied_bytes"] > 0 and told["shadow"]["copied_seconds"] >= 0
    builder.intact()


def test_a_candidate_starts_after_the_shipped_build_was_delivered(tmp_path: Path) -> None:
    """`wait_for_the_end` returns once the process could be waited for, which nobody has done yet."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(7)
    os.close(reader)
    process = os.pidfd_open(pid)
    waited = tmp_path / "waited"

    def wait() -> int:
        os.close(writer)
        candidates.wait_for_the_end(process)
        waited.touch()
        return 0

    waiting = Child(wait)
    time.sleep(0.2)
    assert not waited.exists()
    os.close(writer)
    assert waiting.result() == 0 and waited.exists()
    assert os.waitpid(pid, os.WNOHANG) == (pid, 7 << 8), "it can be waited for"


def test_the_builder_has_everything_while_the_candidate_is_still_at_it(shadow: Fleet) -> None:
    """Status, end of both outputs, and it may remove what it gave: the candidate has its own."""
    builder = shadow.builder
    pack = builder.pack('echo made > "$1/made"; [ "$1" != /app ] || while [ ! -e /go/on ]; do sleep 0.05; done')
    go = builder.site.mkdir("go")
    builder.names.add("go")
    result = shadow.compile("--bind", f"{go}:/go").ok()
    assert [row.shadow for row in shadow.rows()] == [False]
    kept = builder.path / "moved"
    builder.names.add("moved")
    for top in (builder.build, pack, builder.env):
        shutil.copytree(top, kept / top.name)
        shutil.rmtree(top)
    assert result.record["exit_code"] == 0
    (go / "on").touch()
    assert shadow.candidate().result == "same"


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ('echo other > "$1/made"', ("different", 0, {"real": 1})),
        ("exit 5", ("failed", 5, None)),
        ("exec sleep 60", ("timed out", 124, None)),
        ('chmod 0 "$1/made"', ("crashed", 0, None)),
        ("kill -9 $$", ("failed", 137, None)),
    ],
)
def test_what_becomes_of_a_candidate(
    shadow: Fleet, there: str, expected: tuple[str, int, dict[str, int] | None]
) -> None:
    """The shipped build neither knows nor cares."""
    shadow.builder.pack(f'echo made > "$1/made"; if [ "$1" = /app ]; then {there}; fi')
    result = shadow.compile("--shadow-timeout", "1s" if "sleep" in there else "1m").ok()
    assert (result.err, (shadow.builder.build / "made").read_text()) == ("", "made\n")
    row = shadow.candidate()
    assert (row.result, row.exit_code, row.diff) == expected
    assert (row.fallback != "") == (row.result == "crashed")
    assert (told_of(shadow, row) != "") == (row.result == "different")
    assert row.result != "different" or "content   made" in told_of(shadow, row)
    assert shadow.rows()[0].result == "succeeded"
    shadow.builder.intact()


@pytest.mark.parametrize("app", CHAINS)
def test_real_apps_and_buildpacks(shadow: Fleet, app: str) -> None:
    """pip's and npm's work differs in paths and in what is derived from them: the candidate's is the same.

    But for what runs after a Python that was shipped for the builder's own path: that would fail elsewhere.
    """
    builder = shadow.builder
    fresh(builder, app)
    words, env = offline(builder)
    for number, pack in enumerate(CHAINS[app]):
        copied = builder.site.copy(BUILDPACKS / pack, f"packs/{pack}")
        shadow.compile(*words, pack=copied, env=env, timeout=300).ok()
        row = shadow.candidate()
        if number and app == "issue-1006":
            assert row.result == "skipped" and "BUILD_DIR's own path in .heroku/python/bin/" in row.fallback
        else:
            assert (row.result, row.exit_code) == ("same", 0), (pack, row, told_of(shadow, row))
        assert sum(1 for one in shadow.rows() if one.shadow) == number + 1
        if pack == "python":
            assert row.diff is not None and row.diff["path only"] > 10, "two Pythons, made in two places"
        if (copied / "export").exists():
            words += ["--with-export", copied / "export"]


def told_of(fleet: Fleet, row: Outcome) -> str:
    """What is kept of a candidate for people."""
    told = fleet.state / "candidates" / f"{row.decision}.txt"
    return told.read_text() if told.exists() else ""


def test_why_a_candidate_was_not_built_can_be_read(shadow: Fleet) -> None:
    """The end of what it has printed, however much that is; its standard input is empty."""
    noise = 'head -c 3000000 /dev/zero | tr "\\0" x | fold -w 99; echo; printf "a\\377b\\n"'
    shadow.builder.pack(f'[ "$1" != /app ] || {{ {noise}; echo "[$(cat)$(readlink /proc/self/fd/0)]" >&2; exit 3; }}')
    result = shadow.compile().ok()
    assert (result.out, result.err) == (b"", "")
    head, *lines = told_of(shadow, shadow.candidate()).splitlines()
    assert head == "app-1: failed, exit 3"
    assert lines[-2:] == ["a\\xffb", "[/dev/null]"] and set(lines[:-3]) == {"x" * 99}
    assert 500 < len(lines) < 1000


def test_failing_in_both(shadow: Fleet) -> None:
    shadow.builder.pack('[ "$1" = /app ] && exit 5; exit 4')
    assert shadow.compile().code == 4
    assert (shadow.candidate().result, shadow.candidate().exit_code) == ("failed", 5)


def test_what_only_the_namespace_can_build_differs(shadow: Fleet) -> None:
    shadow.builder.pack('[ "$1" = /app ] || exit 4')
    assert shadow.compile().code == 4
    assert (shadow.candidate().result, shadow.candidate().exit_code, shadow.candidate().diff) == (
        "different",
        0,
        None,
    )


def test_a_kernel_that_refuses_the_candidate(shadow: Fleet) -> None:
    shadow.builder.pack('echo made > "$1/made"')
    result = shadow.compile(prepare=no_user_namespaces).ok()
    assert result.err == "" and (shadow.builder.build / "made").exists()
    row = shadow.candidate()
    assert row.result == "skipped" and "max_user_namespaces" in row.fallback


def test_a_disk_without_room_for_copies_costs_only_the_shadow(shadow: Fleet) -> None:
    shadow.builder.pack('echo made > "$1/made"')
    state = shadow.builder.state / "nsbuild"
    state.mkdir(parents=True)
    (state / ".copies").write_text("a file")
    shadow.builder.own(shadow.builder.state)
    result = shadow.compile().ok()
    assert "there will be no shadow" in result.err and len(result.err.splitlines()) == 1
    assert sorted((row.result, row.shadow) for row in shadow.rows()) == [("skipped", True), ("succeeded", False)]
    assert "copies: File exists" in shadow.builder.nsbuild("rollout", "status", "--rollout", shadow.flags).ok().text


def test_only_so_many_candidates_are_at_work_at_once(shadow: Fleet) -> None:
    """One too many is skipped, at no cost to its build, and said in the ledger; the end of one makes room."""
    builder = shadow.builder
    builder.pack('[ "$1" != /app ] || while [ ! -e /go/on ]; do sleep 0.05; done')
    go = builder.site.mkdir("go")
    builder.names.add("go")
    for _ in range(slots.most()):
        shadow.compile("--bind", f"{go}:/go").ok()
    result = shadow.compile("--bind", f"{go}:/go").ok()
    assert (result.out, result.err) == (b"", "")
    (row,) = (row for row in shadow.rows() if row.shadow)
    assert row.result == "skipped" and f"{slots.most()} candidates are at work" in row.fallback
    assert result.record["rollout"]["shadow"]["problem"] == row.fallback
    (go / "on").touch()
    shadow.candidate()
    shadow.compile("--bind", f"{go}:/go").ok()
    assert shadow.candidate().result == "same"
    assert [row.result for row in shadow.rows() if row.shadow].count("skipped") == 1


@pytest.mark.parametrize("error", [UsageError("No such thing."), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_candidate_that_is_not_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def make(scratch: Scratch) -> Candidate:
        raise error

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = descriptors()
    noted = Noted(Asked(str(tmp_path / "none"), "app"), {}, lambda sentence: None, {})
    with pytest.raises(type(error)), prepare(noted, str(tmp_path / "work"), pytest.fail, make):
        pass
    assert descriptors() == before and not list((tmp_path / "work").iterdir())


def test_a_call_of_a_chain_that_cannot_be_repeated_elsewhere_is_skipped(shadow: Fleet) -> None:
    """What the buildpack before it has left works where the builder builds, and nowhere else."""
    builder = shadow.builder
    first = builder.pack('printf "#!%s/sh\\n" "$1" > "$1/tool"; chmod 755 "$1/tool"; cp /bin/sh "$1/sh"', "first")
    builder.site.write("build/not-ours", "#!/no/such/interpreter", 0o755)
    second = builder.pack('"$1/tool"; cp "$1/tool" "$1/again"', "second")
    for pack, result in ((first, "same"), (second, "skipped")):
        shadow.compile(pack=pack).ok()
        row = shadow.candidate()
        assert row.result == result, (row, told_of(shadow, row))
    assert row.fallback.startswith("buildpacks before it have left BUILD_DIR's own path in tool (shebang)")
    builder.site.write("export", f'export PATH="{builder.build}:$PATH"')
    (builder.build / "tool").unlink()
    (builder.build / "again").unlink()
    third = builder.pack('echo > "$1/third"', "third")
    for words, result in ((("--with-export", builder.path / "export"), "skipped"), ((), "same")):
        shadow.compile(*words, pack=third).ok()
        assert shadow.candidate().result == result
    builder.names.add("export")


def test_a_candidate_that_is_killed_leaves_what_gc_removes(shadow: Fleet) -> None:
    shadow.builder.pack('echo made > "$1/made"; [ "$1" != /app ] || { touch "$1/begun"; exec sleep 60; }')
    shadow.compile().ok()
    workspaces = shadow.builder.state / "nsbuild"
    # It has the lowest priority there is: on a busy host that takes its time.
    assert eventually(lambda: bool(list(workspaces.glob("workspaces/*/*/root/app/begun"))), 300)
    for pid in processes_of(shadow):
        with contextlib.suppress(ProcessLookupError):  # a guardian ends with whom it watches
            os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not processes_of(shadow))
    assert list(workspaces.glob(".copies/*"))
    shadow.builder.nsbuild("gc").ok()
    assert not list(workspaces.glob(".copies/*"))
    assert [row.result for row in shadow.rows()] == ["succeeded"]


def test_it_has_the_lowest_priority(shadow: Fleet) -> None:
    shadow.builder.pack('cut -d" " -f41 /proc/self/stat > "$1/policy"; : > "$1/made"')
    shadow.compile().ok()
    assert shadow.candidate().diff == {"real": 1}, "SCHED_OTHER is 0, SCHED_IDLE is 5"
    assert (shadow.builder.build / "policy").read_text() == "0\n"


def test_the_secrets_of_the_environment_are_in_no_argument_and_no_environment(shadow: Fleet) -> None:
    go = shadow.builder.site.mkdir("go")
    shadow.builder.names.add("go")
    shadow.builder.pack('[ "$1" != /app ] || while [ ! -e /go/on ]; do sleep 0.05; done')
    shadow.compile("--bind", f"{go}:/go", env={"TOKEN": "hunter2"}).ok()
    assert eventually(lambda: bool(processes_of(shadow)), 300)
    for pid in processes_of(shadow):
        for name in ("cmdline", "environ"):
            assert b"hunter2" not in Path(f"/proc/{pid}/{name}").read_bytes()
    (go / "on").touch()
    assert shadow.candidate().result == "same"
