"""`build --rollout`: whole builds, direct and in the namespace, with a way back and with a shadow."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rollout import files
from support.processes import eventually
from support.refusals import no_user_namespaces
from support.sites import APPS, BUILDPACKS, Result, Site, snapshot

from nsbuild.build import BuildOptions, Record
from nsbuild.build.cache import Cache, CacheUse
from nsbuild.rollout import Ledger, Outcome
from nsbuild.rollout.builds import BuildCandidate, build_decided
from nsbuild.rollout.noted import Asked
from nsbuild.rollout.scratch import Scratch
from nsbuild.sandbox import app_layout

pytest_plugins = ["support.site_fixtures"]


class Platform:
    """A site whose builds are rolled out."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.flags = files.write(site.path / "flags.json", files.document(percentage=files.share(10000)))
        self.flags.chmod(0o644)
        self.state = site.home / ".local/state/nsbuild/rollout"

    def build(self, source: Path, *words: str | Path, path: str, **more: Any) -> Result:
        decided = ("--rollout", str(self.flags), "--app", "app-1", "--path", path)
        return self.site.build(source, *words, *decided, **more)

    def rows(self) -> list[Outcome]:
        return list(Ledger(self.state).outcomes())

    def candidate(self) -> Outcome:
        assert eventually(lambda: any(row.shadow for row in self.rows()), 300), "the candidate never ended"
        assert eventually(lambda: not (self.state.parent / ".copies").exists(), 300)
        return next(row for row in reversed(self.rows()) if row.shadow)


@pytest.fixture
def platform(site: Site) -> Platform:
    return Platform(site)


def test_direct_is_on_the_hosts_paths_and_the_namespace_at_the_run_path(platform: Platform) -> None:
    site = platform.site
    tell = 'echo "$1" > "$1/where"; echo "$HOME" >> "$1/where"; echo "$1" >> "$2/made-at"; cp "$2/made-at" "$1"'
    app, pack = site.app(), site.buildpack(tell, release="echo default_process_types:")
    seen = {}
    for path in ("direct", "namespace", "direct"):
        result = platform.build(app, pack, path=path).ok()
        assert result.record["path"] == path == result.record["rollout"]["path"]
        assert result.record["path_reason"] == "the rollout's decision (override)"
        seen[path] = (site.out / "where").read_text().split()
        made_at = (site.out / "made-at").read_text().splitlines()
        assert all((one == "/app") == (path == "namespace") for one in made_at), "each its own cache"
    assert seen["namespace"] == ["/app", "/app"]
    build_dir, home = seen["direct"]
    assert build_dir.startswith(str(site.apps)) and build_dir.endswith("/app") and home == "/app"
    assert result.record["layout"] == "direct" and result.record["cache_hit"]
    assert [(row.path, row.arm, row.result, row.exit_code) for row in platform.rows()] == [
        (path, path, "succeeded", 0) for path in ("direct", "namespace", "direct")
    ]
    assert all(row.slug_bytes and row.leaks == 0 for row in platform.rows())


def test_a_direct_build_ends_as_any_other(platform: Platform) -> None:
    """A failure, a time limit, what cannot be run, a script without #!, a process left behind."""
    site = platform.site
    app = site.app()
    for script, code in (("exit 3", 11), ("exec sleep 60", 13), ("kill -9 $$", 11)):
        limit = ("--timeout", "1s") if "sleep" in script else ()
        result = platform.build(app, site.buildpack(script), *limit, path="direct")
        assert result.refused(code).code == platform.rows()[-1].exit_code == code
    pack = site.buildpack("#!/no/such/interpreter")
    platform.build(app, pack, path="direct").refused(11, "not found")
    site.write("pack/bin/compile", "echo by sh\nsleep 300 &\n", 0o755)
    assert b"by sh\n" in platform.build(app, pack, path="direct").ok().out


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(5, "Input/output error"), 125)])
def test_what_no_build_should_end_with_is_noted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def failing(*words: object, **options: object) -> Record:
        raise error

    monkeypatch.setattr("nsbuild.rollout.builds.build", failing)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    flags = files.write(tmp_path / "flags.json", files.document(percentage=files.share(10000)))
    with pytest.raises(type(error)):
        build_decided(Asked(str(flags), "app-1", path="direct"), tmp_path)
    (row,) = Ledger(tmp_path / "state/nsbuild/rollout").outcomes()
    assert (row.arm, row.result, row.exit_code) == ("direct", "failed", code)


def test_the_kernel_refuses_and_it_is_built_directly(platform: Platform) -> None:
    site = platform.site
    app, pack = site.app(), site.buildpack('echo x > "$1/ran"')
    result = platform.build(app, pack, path="namespace", prepare=no_user_namespaces).ok()
    assert (site.out / "ran").exists()
    assert "building directly, without a sandbox: " in result.err and "max_user_namespaces" in result.err
    (row,) = platform.rows()
    assert (row.path, row.arm, row.result, row.exit_code) == ("namespace", "direct", "fallback", 0)
    assert "user namespace" in row.fallback and result.record["path_reason"] == row.fallback
    assert result.record["path"] == "direct"


def test_a_killed_build_is_direct_and_in_no_ledger(platform: Platform) -> None:
    site = platform.site
    platform.flags.write_text("{broken")
    Path(f"{platform.flags}.kill").touch()
    result = platform.build(site.app(), site.buildpack('echo "$1" > "$1/where"'), "--rescue", path="shadow").ok()
    assert (site.out / "where").read_text() != "/app\n"
    told = result.record["rollout"]
    assert (told["path"], told["reason"], told["result"]) == ("direct", "kill", "succeeded")
    assert not platform.state.exists()


def test_rescue(platform: Platform) -> None:
    site = platform.site
    app = site.app()
    only_there = site.buildpack('[ "$1" != /app ] || { rm -f "$1/Procfile"; exit 3; }', "only-there")
    platform.build(app, only_there, path="namespace").refused(11)
    result = platform.build(app, only_there, "--rescue", path="namespace").ok()
    assert "failed in the namespace" in result.err and (site.out / "Procfile").exists()
    in_both = site.buildpack("exit 3", "in-both")
    platform.build(app, in_both, "--rescue", path="namespace").refused(11)
    found = [(row.arm, row.result, row.exit_code, row.namespace_exit_code) for row in platform.rows()]
    assert found == [("namespace", "failed", 11, None), ("direct", "rescued", 0, 11), ("direct", "failed", 11, 11)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("format_", ["tgz", "tar.zst"])
def test_the_shipped_slug_is_the_same_with_and_without_a_shadow(platform: Platform, format_: str) -> None:
    """The candidate has its own copy of the source and of its cache, and is compared with what was shipped."""
    site = platform.site
    source = site.copy(APPS / "plain", "source")
    packs = [BUILDPACKS / "inline", BUILDPACKS / "procfile"]
    for directory in (source, source / "bin"):
        subprocess.run(["touch", "-d", "2024-01-01", directory], check=True)
    before = snapshot(source)
    slugs = []
    for path in ("namespace", "direct", "shadow"):
        output = site.path / f"{path}.{format_}"
        caches = site.path / f"caches-{path}"
        if path == "shadow":
            subprocess.run(["cp", "-a", site.path / "caches-namespace", caches], check=True)
        result = platform.build(source, *packs, "--cache", str(caches), output=output, path=path).ok()
        slugs.append(output)
    told = result.record["rollout"]["shadow"]
    assert told["copied_bytes"] > 0
    row = platform.candidate()
    listed = [
        subprocess.run(["tar", "-tf", slug], check=True, capture_output=True).stdout.split(b"\n") for slug in slugs
    ]
    assert listed[1] == listed[2]
    contents = []
    for slug in slugs[1:]:
        top = site.mkdir(f"unpacked-{slug.name}")
        subprocess.run(["tar", "-xf", slug, "-C", top], check=True)
        contents.append({name: fact[3] for name, fact in snapshot(top, times=False).items()})
    assert contents[0] == contents[1]
    assert snapshot(source) == before
    # Its cache is that of a second build: it counts on where the shipped one begins.
    assert (row.result, row.exit_code, row.diff) == ("different", 0, {"real": 1})
    assert [(one.arm, one.shadow) for one in platform.rows()[-2:]] == [("direct", False), ("namespace", True)]


@pytest.mark.parametrize("format_", ["tgz", "tar.zst", "squashfs"])
def test_the_bytes_of_the_shipped_slug_are_the_same_and_there_before_the_candidate(
    platform: Platform, format_: str
) -> None:
    """With a buildpack that leaves no time of its own; the candidate waits until the slug has been looked at."""
    site = platform.site
    go = site.mkdir("go")
    wait = f'[ "$1" != /app ] || while [ ! -e {go}/on ]; do sleep 0.05; done'
    times = 'find "$1" -exec touch -h -d 2024-01-01 {} +'
    pack = site.buildpack(f'echo made > "$1/made"; {wait}; {times}')
    app, digests = site.app(), []
    for path in ("direct", "shadow"):
        output = site.path / f"{path}.{format_}"
        words = ("--bind", f"{go}:{go}")
        platform.build(app, pack, *words, output=output, path=path).ok()
        digests.append(digest(output))
    assert digests[0] == digests[1]
    assert not any(row.shadow for row in platform.rows()), "it is still at it"
    (go / "on").touch()
    assert platform.candidate().result == "same"
    assert digest(output) == digests[1]


@pytest.mark.parametrize(
    ("there", "expected"), [("exit 5", ("failed", 11)), ("exec sleep 60", ("timed out", 13)), (":", ("same", 0))]
)
def test_what_becomes_of_a_builds_candidate(platform: Platform, there: str, expected: tuple[str, int]) -> None:
    site = platform.site
    pack = site.buildpack(f'echo made > "$1/made"; if [ "$1" = /app ]; then {there}; fi')
    limit = ("--shadow-timeout", "15s") if "sleep" in there else ()
    platform.build(site.app(), pack, *limit, path="shadow").ok()
    assert (site.out / "made").exists()
    row = platform.candidate()
    assert (row.result, row.exit_code) == expected
    told = platform.state / "candidates" / f"{row.decision}.txt"
    assert told.exists() == (row.result != "same")
    if told.exists():
        head, *lines = told.read_text().splitlines()
        assert head.startswith(f"app-1: {row.result}, exit {row.exit_code}")
        assert lines[0] == "-----> Test app detected" and not any("/packs/" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rollout", "FLAGS"), "--rollout needs --app"),
        (("--rescue",), "--rescue is for --rollout"),
        (("--rollout", "FLAGS", "--app", "a b"), "or a space"),
        (("--rollout", "FLAGS", "--app", "a", "--path", "up"), "'up' is no path"),
        (("--rollout", "FLAGS", "--app", "a", "--network", "none"), "--network cannot be kept on the direct path"),
        (("--rollout", "FLAGS", "--app", "a", "--rebuild"), "--rebuild and --rollout exclude each other"),
        (("--rollout", "FLAGS", "--app", "a", "--layout", "classic"), "--layout cannot be kept"),
        (("--rollout", "FLAGS", "--app", "a", "--no-userns"), "--no-userns cannot be kept"),
    ],
)
def test_bad_input_is_one_sentence(platform: Platform, words: tuple[str, ...], said: str) -> None:
    site = platform.site
    given = [str(platform.flags) if word == "FLAGS" else word for word in words]
    result = site.build(site.app(), site.buildpack("echo ran"), *given).refused(2, said)
    assert result.out == b"" and not site.out.exists()
    assert not (platform.state / "ledger.sqlite").exists() or not platform.rows()


def test_the_cache_is_copied_for_a_candidate_while_nobody_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = tmp_path / "caches"
    options = BuildOptions(app="app", cache_dir=str(caches), output=str(tmp_path / "slug"))
    kept = Cache(caches, CacheUse("app", options.stack, app_layout(options.run_path).name))
    kept.content.mkdir(parents=True)
    (kept.content / "file").touch()
    (tmp_path / "source").mkdir()
    tried: list[str] = []
    copy = Scratch.copy

    def trying(self: Scratch, source: str, name: str, **more: Any) -> str:
        if name.startswith("caches/"):
            tried.append(name)
            with (kept.content.parent / "lock").open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return copy(self, source, name, **more)

    monkeypatch.setattr(Scratch, "copy", trying)
    build: Any = SimpleNamespace(noted=None, options=options, source=tmp_path / "source", buildpacks=[])
    scratch = Scratch(tmp_path / "scratch")
    BuildCandidate(build, 60.0, scratch)
    assert len(tried) == 1 and Path(scratch.path, tried[0], "file").exists()
    scratch.remove()
