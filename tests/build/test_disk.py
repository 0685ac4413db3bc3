"""`--disk`: what a build may take of the disk, and what it does to take more."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from support.processes import eventually, read
from support.sites import Site, snapshot

from nsbuild.disk import DiskWatch
from nsbuild.errors import Refused
from nsbuild.tree import disk_usage

pytest_plugins = ["support.site_fixtures"]

MIB = 1 << 20
MANY = 'for i in 1 2 3 4 5 6; do head -c 1500000 /dev/urandom > "$1/part-$i"; done'
"""9 MB, no file of them large."""


def test_a_build_that_fills_the_disk_is_ended_meanwhile(site: Site) -> None:
    pack = site.buildpack(f"{MANY}; >/tmp/here; sleep 1000")
    result = site.nsbuild(*site.words(site.app(), pack), "--disk", "8M", "--report", "record.json")
    result.refused(13, "bin/compile of ", "--disk allows 8.0M", "M in /app")
    assert json.loads((site.path / "record.json").read_text())["exit_code"] == 13
    assert not site.out.exists()


def test_directories_that_a_build_has_closed_are_counted(site: Site) -> None:
    hidden = 'mkdir "$1/d"; for i in 3 4 5; do eval "exec $i>$1/d/$i"; done; chmod 0 "$1/d"'
    fill = "for i in 3 4 5; do head -c 3000000 /dev/urandom >&$i; done"
    pack = site.buildpack(f"{hidden}; {fill}; sleep 1000")
    site.nsbuild(*site.words(site.app(), pack), "--disk", "8M").refused(13, "--disk allows 8.0M", "M in /app")


def test_what_was_too_much_at_the_end_counts_as_well(site: Site) -> None:
    site.build(site.app(), site.buildpack('echo 1 > "$2/kept"', "small")).ok()
    before = snapshot(site.out)
    result = site.nsbuild(*site.words("app", site.buildpack(MANY)), "--disk", "8M")
    result.refused(13, "bin/compile of ", "--disk allows 8.0M")
    assert snapshot(site.out) == before


def test_one_file_never_gets_larger(site: Site) -> None:
    """Between two looks that is all that holds a build. Most of this one is a hole, for a look to find little."""
    large = 'dd if=/dev/zero of="$2/large" bs=1M seek=7 count=2 2>/dev/null; stat -c %s "$2/large"'
    pack = site.buildpack(f'{large}; head -c 7M /dev/zero > "$2/more"; exit 1')
    result = site.nsbuild(*site.words(site.app(), pack), "--disk", "8M")
    result.refused(13, "M in /tmp/cache")
    assert result.text.split()[-1] == str(8 * MIB)


def test_the_source_alone_may_be_too_much(site: Site) -> None:
    site.app(large=os.urandom(3 * MIB))
    result = site.nsbuild(*site.words("app", site.buildpack("echo never")), "--disk", "2M")
    result.refused(13, "after staging", "M in /app")
    assert "never" not in result.text


def test_a_build_within_it_is_none_the_worse(site: Site) -> None:
    site.nsbuild(*site.words(site.app(), site.buildpack(MANY)), "--disk", "1G").ok()
    assert (site.out / "part-6").stat().st_size == 1500000


def test_tests_are_held_to_it(site: Site) -> None:
    pack = site.buildpack("", test=f"{MANY}; sleep 1000")
    result = site.nsbuild("test", site.app(), "-b", pack, "--disk", "8M")
    result.refused(13, "test of ", "--disk allows 8.0M")


def test_it_is_the_users_alone(site: Site) -> None:
    site.buildpack()
    site.app(**{"nsbuild.toml": 'disk = "1M"'})
    site.nsbuild("build", "app", "-b", "./pack").refused(2, "nsbuild.toml", "`disk`")


@pytest.mark.parametrize("size", ["5X", "", "-1G", "100", "nan", "1e400", "1e30"])
def test_a_size_that_is_none(site: Site, size: str) -> None:
    site.nsbuild(*site.words(site.app(), site.buildpack()), "--disk", size).refused(2, "--disk")


def watch_of(pid: int) -> int:
    children = read(f"/proc/{pid}/task/{pid}/children").split()
    (found,) = [child for child in children if "nsbuild.disk" in read(f"/proc/{child}/cmdline")]
    return int(found)


def test_a_build_is_not_watched_by_nobody(site: Site) -> None:
    """Who kills the process that measures ends the build."""
    process = site.start(*site.words(site.app(), site.buildpack(">/tmp/here; sleep 1000")), "--disk", "1G")
    site.appears("tmp/here")
    os.kill(watch_of(process.pid), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 125
    assert b"keeps --disk has ended" in said.splitlines()[-1]


def test_the_process_that_measures_ends_with_the_build(site: Site) -> None:
    site.leaves = True
    process = site.start(*site.words(site.app(), site.buildpack(">/tmp/here; sleep 1000")), "--disk", "1G")
    site.appears("tmp/here")
    watch = watch_of(process.pid)
    process.kill()
    process.communicate()
    assert eventually(lambda: not os.path.exists(f"/proc/{watch}/cmdline") or not read(f"/proc/{watch}/cmdline"), 20)


# what is measured


def test_usage_is_blocks_of_inodes(tmp_path: Path) -> None:
    (tmp_path / "a/below").mkdir(parents=True)
    (tmp_path / "a/below/file").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "a/below/file", tmp_path / "link")
    with (tmp_path / "hole").open("wb") as hole:
        hole.truncate(1 << 30)
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "fifo")
    used = disk_usage(str(tmp_path))
    assert set(used) == {"a", "link", "hole", "loop", "fifo"} - ({"link"} if "link" not in used else set())
    assert 100_000 <= used["a"] < 200_000
    assert used.get("link", 0) == 0
    assert used["hole"] < MIB


def test_a_tree_that_changes_meanwhile_is_measured_all_the_same(tmp_path: Path) -> None:
    """rename and removal under the walk: no error, and afterwards the truth."""
    stop, begun = threading.Event(), threading.Event()

    def churn() -> None:
        while not stop.is_set():
            begun.set()
            for number in range(20):
                (tmp_path / f"{number}/x/y").mkdir(parents=True, exist_ok=True)
                os.rename(tmp_path / f"{number}/x", tmp_path / f"moved-{number}")
                shutil.rmtree(tmp_path / f"moved-{number}")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert begun.wait(30)
        for _ in range(100):
            disk_usage(str(tmp_path))
    finally:
        stop.set()
        thread.join()
    assert len(disk_usage(str(tmp_path))) == 20


def test_a_watch_of_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    with DiskWatch(str(tmp_path / "nothing"), MIB) as watch, pytest.raises(Refused, match="nothing"):
        watch.measure()
