"""CACHE_DIR and the layout that has filled it: never given to another, by real buildpacks, kills and hostile ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rollout.fleets import NODE, Fleet, fresh, offline
from support.processes import ROOT, in_child
from support.sites import BUILDPACKS, PERSON, holding

from nsbuild.rollout import cache

pytest_plugins = ["support.builder_fixtures", "rollout.fleet_fixtures"]

REAL: dict[str, tuple[str | dict[str, str], str]] = {
    "python": ({"requirements.txt": "editables\n"}, "Restoring cache"),
    "node": (NODE, "Restoring cache: node_modules"),
    "inline": ("plain", "Build 2 of this cache"),
    "procfile": ("plain", ""),
}
"""The app for each buildpack of ours, and what it says when it finds its cache."""


@pytest.mark.parametrize("pack", sorted(path.name for path in BUILDPACKS.iterdir()))
def test_direct_namespace_direct(fleet: Fleet, pack: str) -> None:
    """Each finds a cache that it has made itself, or none. (Python's takes its time: not twice there.)"""
    builder = fleet.builder
    app, restored = REAL[pack]
    copied = builder.site.copy(BUILDPACKS / pack, f"packs/{pack}")
    bind, env = offline(builder)
    said = []
    paths = ("direct", "namespace", "direct") if pack == "python" else ("direct", "namespace", "namespace", "direct")
    for path in paths:
        fresh(builder, app)
        result = fleet.compile("--path", path, *bind, pack=copied, env=env, timeout=300).ok()
        said.append(result.text)
        assert result.record["path"] == path
        if path == "namespace":
            for top in (builder.cache, builder.build):
                assert holding(top, os.fsencode(builder.build)) == []
        # What says whose content it is, whatever the buildpack keeps.
        mark = builder.cache / f"left-by-{path}"
        other = "left-by-namespace" if path == "direct" else "left-by-direct"
        assert not (builder.cache / other).exists()
        mark.touch()
        builder.own(mark)
        assert (cache.TAG in os.listdir(builder.cache)) == (path == "namespace")
    if restored:
        again = [now == before for before, now in zip(("", *paths), paths, strict=False)]
        assert [restored in text for text in said] == again, said


@pytest.fixture
def room(tmp_path: Path) -> Path:
    made = tmp_path / "cache"
    made.mkdir()
    return made


def filled(top: Path, *names: str) -> None:
    for name in names:
        (top / name).mkdir(parents=True)
        (top / name / "file").write_text(name)


def content(top: Path) -> set[str]:
    return {name for name in os.listdir(top) if not name.startswith(".nsbuild-")}


def test_what_no_namespace_has_seen_is_not_touched(room: Path) -> None:
    filled(room, "a")
    before = room.stat()
    cache.give_direct(str(room))
    assert (room.stat().st_mtime_ns, os.listdir(room)) == (before.st_mtime_ns, ["a"])


def test_the_builders_own_stays_until_the_namespace_has_succeeded(room: Path) -> None:
    filled(room, "own")
    used = cache.give_namespace(str(room), "app", None)
    filled(Path(used), "new")
    assert (room / "own/file").exists()
    cache.drop(str(room), used)
    assert os.listdir(room) == ["own"] and cache.layout_of(str(room)) == "direct"
    used = cache.give_namespace(str(room), "app", None)
    assert os.listdir(used) == []
    filled(Path(used), "new")
    cache.keep(str(room), used, "app")
    assert sorted(os.listdir(room)) == [cache.TAG, "new"] and cache.layout_of(str(room)) == "app"
    assert cache.give_namespace(str(room), "app", None) == str(room)
    assert cache.give_namespace(str(room), "app:/workspace", None) != str(room)
    cache.give_direct(str(room))
    assert os.listdir(room) == []


def test_a_tag_that_a_buildpack_has_removed_is_put_back(room: Path) -> None:
    used = cache.give_namespace(str(room), "app", None)
    cache.keep(str(room), used, "app")
    (room / cache.TAG).unlink()
    cache.keep(str(room), str(room), "app")
    assert cache.layout_of(str(room)) == "app"


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to("/etc/hostname"),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.write_text("app\n" * 5000),
        lambda path: path.write_text(""),
    ],
)
def test_a_tag_that_is_none_makes_it_nobodys(room: Path, make: Callable[[Path], None]) -> None:
    filled(room, "a")
    make(room / cache.TAG)
    assert cache.layout_of(str(room)) not in ("direct", "app")
    used = cache.give_namespace(str(room), "app", None)
    assert used != str(room)
    cache.keep(str(room), used, "app")
    assert os.listdir(room) == [cache.TAG] and cache.layout_of(str(room)) == "app"
    shutil.rmtree(room)
    room.mkdir()
    filled(room, "a")
    make(room / cache.TAG)
    cache.give_direct(str(room))
    assert os.listdir(room) == []


def test_closed_directories_and_links_that_lead_out(ground: str) -> None:
    room, outside = Path(ground) / "room", Path(ground) / "outside"
    room.mkdir()
    filled(outside, "precious")

    def action() -> None:
        if ROOT:
            os.setresuid(PERSON, PERSON, PERSON)
        used = Path(cache.give_namespace(str(room), "app", None))
        filled(used, "closed")
        (used / "closed").chmod(0o500)
        (used / "out").symlink_to(outside)
        cache.keep(str(room), str(used), "app")
        assert (room / "closed").stat().st_mode & 0o777 == 0o500
        cache.give_direct(str(room))

    if ROOT:
        os.chown(room, PERSON, PERSON)
    in_child(action)
    assert os.listdir(room) == [] and (outside / "precious/file").exists()


@pytest.mark.parametrize("step", range(8))
def test_who_is_killed_between_leaves_what_nobody_uses(room: Path, step: int) -> None:
    """At each call that changes anything, while a namespace's content replaces the builder's own, or the reverse."""
    filled(room, "own", "own-2")
    used = cache.give_namespace(str(room), "app", None)
    filled(Path(used), "new", "new-2")

    def killed_in(work: Callable[[], None]) -> None:
        left = [step]

        def counting(known: Callable[..., object]) -> Callable[..., object]:
            def call(*words: object, **more: object) -> object:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(0)
                return known(*words, **more)

            return call

        os.rename, cache.remove_tree = counting(os.rename), counting(cache.remove_tree)  # type: ignore[attr-defined, assignment]
        work()

    def child(work: Callable[[], None]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                killed_in(work)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    child(lambda: cache.keep(str(room), used, "app"))
    names = content(room)
    layout = cache.layout_of(str(room))
    if layout == "direct":
        assert names == {"own", "own-2"}
    if layout == "app":
        assert names == {"new", "new-2"}
    ready = cache.give_namespace(str(room), "app", None)
    if ready != str(room):
        filled(Path(ready), "new", "new-2")
        cache.keep(str(room), ready, "app")
    child(lambda: cache.give_direct(str(room)))
    layout, names = cache.layout_of(str(room)), content(room)
    assert (layout, names) == ("app", {"new", "new-2"}) or layout == "none" or (layout, names) == ("direct", set())
