"""The record that `--report` writes."""

from __future__ import annotations

import os
import platform
import re

from support.sites import PERSON, Site

import nsbuild

pytest_plugins = ["support.site_fixtures"]


def test_the_record_of_a_build(site: Site) -> None:
    pack = site.buildpack(
        "i=0; while [ $i -lt 30000 ]; do i=$((i + 1)); done; sleep 0.1",
        report="""echo '{"version": "1.2", "cached": false, "count": 3, "nothing": null}'""",
        release="echo '--- {}'",
    )
    record = site.build(site.app(), pack).ok().record
    assert record["schema"] == 1
    assert (record["layout"], record["run_path"], record["path"]) == ("app", "/app", "namespace")
    assert record["path_reason"]
    assert (record["nsbuild"], record["kernel"]) == (nsbuild.__version__, platform.release())
    assert (record["source"], record["stack"]) == (str(site.path / "app"), "heroku-24")
    assert (record["result"], record["exit_code"]) == ("succeeded", 0)
    assert record["uid"] == (PERSON or 12000)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["started"])
    assert re.fullmatch(r"[0-9a-f]{8}", record["id"])
    assert record["process_types"] == {"web": "sleep 60", "hello": "echo hello"}
    assert record["warnings"] == record["sweep"] == record["audit"] == []
    (found,) = record["buildpacks"]
    assert (found["reference"], found["name"]) == (str(pack), "Test")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", found["digest"])
    assert found["report"] == {"version": "1.2", "cached": False, "count": 3, "nothing": None}
    slug = record["slug"]
    assert (slug["path"], slug["format"]) == (str(site.out), "directory")
    assert slug["bytes"] == sum(path.stat().st_size for path in site.out.rglob("*") if path.is_file())


def test_the_phases_have_times_and_resources(site: Site) -> None:
    pack = site.buildpack("i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; sleep 0.2")
    record = site.build(site.app(), pack).ok().record
    compile_ = next(phase for phase in record["phases"] if phase["name"] == "compile")
    assert compile_["buildpack"] == str(pack)
    assert (compile_["exit_code"], compile_["signal"]) == (0, None)
    assert 0.2 < compile_["seconds"] < record["seconds"] < 30
    assert 0.05 < compile_["user_seconds"] < compile_["seconds"]
    assert compile_["max_rss_kib"] > 500
    assert set(compile_["timings"]) >= {"prepare", "start", "run"}
    assert sum(compile_["timings"].values()) < compile_["seconds"] + 0.01
    assert sum(phase["seconds"] for phase in record["phases"]) <= record["seconds"] + 0.01


def test_the_digest_is_of_the_buildpack(site: Site) -> None:
    one, same = site.buildpack("true", "one"), site.buildpack("true", "same")
    other = site.buildpack("true # other", "other")
    site.write("same/.git/HEAD", "left out")
    record = site.build(site.app(), one, same, other).ok().record
    digests = [found["digest"] for found in record["buildpacks"]]
    assert digests[0] == digests[1] != digests[2]


def test_it_is_written_after_failures_too_and_replaced_in_one_step(site: Site) -> None:
    site.write("record.json", "old")
    linked = site.symlink("linked.json", "elsewhere")
    words = [*site.words(site.app(), site.buildpack("exit 1")), "--report"]
    assert site.nsbuild(*words, "record.json").code == 11
    assert site.nsbuild(*words, linked).code == 11
    assert '"exit_code": 11' in (site.path / "record.json").read_text()
    assert not linked.is_symlink() and not (site.path / "elsewhere").exists()
    assert sorted(path.name for path in site.path.iterdir()) == ["app", "home", "linked.json", "pack", "record.json"]


def test_a_source_of_any_bytes(site: Site) -> None:
    name = os.fsdecode(b"\xff app\n")
    site.write(f"{name}/Procfile", "web: x\n")
    record = site.build(site.path / name, site.buildpack()).ok().record
    assert record["source"] == str(site.path / name)
