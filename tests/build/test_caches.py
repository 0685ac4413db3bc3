"""nsbuild cache ls and rm."""

from __future__ import annotations

import json
import os
import signal

import pytest
from support.processes import eventually, read
from support.sites import Site

pytest_plugins = ["support.site_fixtures"]

FILL = 'head -c 2000000 /dev/zero > "$2/kept"; mkdir -p "$2/closed"; chmod 0 "$2/closed"'


@pytest.fixture
def three(site: Site) -> Site:
    """Of two apps, one of which has two stacks."""
    pack = site.buildpack(FILL)
    site.build(site.app(), pack).ok()
    site.build("app", pack, "--stack", "heroku-22", "--layout", "classic").ok()
    site.build(site.app("other app"), pack, "--app", "named").ok()
    return site


def listed(site: Site) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(site.nsbuild("cache", "ls", "--json").ok().text)
    return found


def test_ls_tells_app_stack_layout_size_and_when(three: Site) -> None:
    app = str(three.path / "app")
    found = listed(three)
    assert sorted((kept["use"]["app"], kept["use"]["stack"], kept["use"]["layout"]) for kept in found) == [  # type: ignore[index]
        (app, "heroku-22", "classic"),
        (app, "heroku-24", "app"),
        ("named", "heroku-24", "app"),
    ]
    assert {kept["bytes"] for kept in found} == {2_000_000}
    lines = three.nsbuild("cache", "ls").ok().text.splitlines()
    assert len(lines) == 3
    (line,) = [line for line in lines if "heroku-22" in line]
    assert f"2.0 MB  20" in line and line.endswith(f"classic  heroku-22  {app}")  # noqa: F541


def test_rm_by_app_key_or_directory(three: Site) -> None:
    (named,) = [kept["key"] for kept in listed(three) if kept["use"]["app"] == "named"]  # type: ignore[index]
    assert three.nsbuild("cache", "rm", str(named)).ok().text == f"removed {named}\n"
    assert len(three.nsbuild("cache", "rm", ".", cwd=three.path / "app").ok().text.splitlines()) == 2
    assert listed(three) == []
    assert [name for name in os.listdir(three.apps) if not name.startswith(".")] == []
    three.build("app", three.path / "pack").ok()
    assert len(listed(three)) == 1


def test_rm_by_age_and_all(three: Site) -> None:
    old = three.caches()[0].parent
    os.utime(old / "about.json", (1_000_000_000, 1_000_000_000))
    assert three.nsbuild("cache", "rm", "--older-than", "30").ok().text == f"removed {old.name}\n"
    assert three.nsbuild("cache", "rm", "--older-than", "30").ok().text == ""
    assert len(three.nsbuild("cache", "rm", "--all").ok().text.splitlines()) == 2
    assert listed(three) == []


def test_what_rm_refuses(three: Site) -> None:
    for words, said in (
        ((), "Name a cache"),
        (("nosuch",), "nosuch"),
        (("named", "nosuch"), "nosuch"),
        (("../.cache",), "../.cache"),
        (("--all", "named"), "--all"),
        (("--older-than", "-1"), "-1"),
    ):
        three.nsbuild("cache", "rm", *words).refused(2, said)
    assert len(listed(three)) == 3


def test_a_cache_of_an_older_version_is_listed_and_removed(site: Site) -> None:
    site.build(site.app(), site.buildpack(FILL)).ok()
    (content,) = site.caches()
    for text in (None, "[]", "{", '{"x": 1}'):
        about = content.parent / "about.json"
        about.unlink(missing_ok=True)
        if text is not None:
            site.write(str(about.relative_to(site.path)), text)
        assert "older nsbuild" in site.nsbuild("cache", "ls").ok().text
    site.nsbuild("cache", "rm", content.parent.name).ok()
    assert not content.parent.exists()


def test_rm_leaves_a_running_builds_copy_alone(three: Site) -> None:
    pack = three.buildpack('>/tmp/here; while [ ! -e /tmp/go ]; do sleep 0.05; done; cat "$2/kept" | wc -c', "slow")
    process = three.start(*three.words("app", pack))
    three.appears("tmp/here")
    three.nsbuild("cache", "rm", "--all").ok()
    (here,) = three.inside("tmp/here")
    three.write(os.path.relpath(here.replace("/here", "/go"), three.path))
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out) == (0, b"2000000\n"), err
    assert len(listed(three)) == 1


def waits_for_a_lock(pid: int) -> bool:
    """`17: -> FLOCK  ADVISORY  WRITE 4711 ...` is of a process that waits for who is above it."""
    lines = [line.split() for line in read("/proc/locks").splitlines()]
    return any(words[1] == "->" and words[5] == str(pid) for words in lines)


def test_rm_takes_its_turn(three: Site) -> None:
    """It waits for who holds the lock, and who waited for its lock finds the cache gone, not itself broken."""
    import fcntl

    (cache, *_) = (path.parent for path in three.caches())
    with (cache / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remover = three.start("cache", "rm", cache.name)
        build = three.start(*three.words("app", three.path / "pack"))
        assert eventually(lambda: waits_for_a_lock(remover.pid), 50)
        assert cache.joinpath("content").is_dir()
    for process in (remover, build):
        _, err = process.communicate(timeout=50)
        assert process.returncode == 0, err
    assert three.nsbuild("cache", "rm", "--all").ok().text.count("removed") >= 2


def test_ctrl_c_while_it_waits(three: Site) -> None:
    import fcntl

    (cache, *_) = (path.parent for path in three.caches())
    with (cache / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remover = three.start("cache", "rm", cache.name)
        assert eventually(lambda: waits_for_a_lock(remover.pid), 50)
        remover.send_signal(signal.SIGINT)
        _, err = remover.communicate(timeout=50)
    assert remover.returncode == 130, err
    assert cache.joinpath("content").is_dir()
