"""`build --reproducible` and `nsbuild verify`: the same source gives the same slug."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.sites import BUILDPACKS, CHAINS, App, Result, Site, from_wheels, snapshot

from nsbuild.slug import Image, Output, prepare

pytest_plugins = ["support.site_fixtures"]

WRITES = """
{ echo "$SOURCE_DATE_EPOCH $PYTHONHASHSEED"; env | grep -v ^_= | sort; cat "$2/kept" 2>/dev/null; } >"$1/env"
echo kept >"$2/kept"
"""


@pytest.mark.parametrize("app", CHAINS)
def test_a_real_app_twice_is_one_slug_in_every_format(
    site: Site, apps: dict[str, App], app: str, tmp_path: Path
) -> None:
    """Another workspace, cache, home and time. Each of the two slugs is packed in all formats."""
    first = apps[app]
    first.first.ok()
    offline, env = from_wheels(site)
    packs = [BUILDPACKS / pack for pack in CHAINS[app]]
    second = site.build(first.source, *packs, "--reproducible", *map(str, offline), env=env, timeout=300).ok()
    assert second.record["id"] != first.first.record["id"] and not second.record["cache_hit"]
    digests: dict[str, set[str]] = {}
    for number, tree in enumerate((first.directory, site.out)):
        for format_ in ("tgz", "tar.zst", "squashfs", "oci"):
            output = Output(tmp_path / f"{number}.{format_}", format_)
            prepared = prepare(str(tree), output, None, image=Image(process_types={"web": "x"}))
            prepared.discard()
            digests.setdefault(format_, set()).add(prepared.slug.digest)
    differences = site.nsbuild("diff", first.directory, site.out)
    assert {format_: len(found) for format_, found in digests.items()} == dict.fromkeys(digests, 1), differences.text
    assert differences.code == 0


def environment(site: Site, *words: str, source: Path | None = None, **env: str) -> list[str]:
    site.build(source or site.path / "app", site.path / "pack", "--reproducible", *words, env=env).ok()
    return (site.out / "env").read_text().splitlines()


def test_what_a_build_is_told(site: Site) -> None:
    site.buildpack(WRITES)
    site.app()
    first = environment(site)
    assert first[0] == "315532801 0" and "REQUEST_ID=00000000" in first
    assert environment(site) == first, "nothing of a cache"
    words = ("--pass-env", "SOURCE_DATE_EPOCH")
    assert environment(site, *words, SOURCE_DATE_EPOCH="1700000000")[0] == "1700000000 0"
    assert "SOURCE_DATE_EPOCH" not in site.build("app", site.path / "pack").ok().text


def test_the_time_is_that_of_the_commit(site: Site) -> None:
    site.buildpack(WRITES)
    app = site.app()
    date = {"GIT_COMMITTER_DATE": "1600000000 +0000", "GIT_AUTHOR_DATE": "1500000000 +0000"}
    words = ["-c", "user.name=x", "-c", "user.email=x", "-c", f"safe.directory={app}", "-C", str(app)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run(["git", *words, *command], check=True, env={**site.environment(), **date})
    for path in app.rglob("*"):
        site.own(path)
    assert environment(site)[0] == "1600000000 0"


def test_in_the_classic_layout_the_place_is_always_the_same(site: Site) -> None:
    site.buildpack('echo "$@" >"$1/env"')
    site.app()
    assert environment(site, "--layout", "classic") == ["/tmp/build_00000000 /tmp/codon/tmp/cache /tmp/env_00000000"]


def test_it_does_not_go_with_rebuild(site: Site) -> None:
    site.build(site.app(), site.buildpack("echo never"), "--rebuild", "--reproducible").refused(2, "--reproducible")


def verify(site: Site, *words: str) -> Result:
    return site.nsbuild("verify", "app", "-b", site.path / "pack", *words)


def test_verify_says_the_same(site: Site) -> None:
    site.buildpack('echo kept >"$2/kept"; echo one >"$1/one"')
    before = snapshot(site.app())
    done = verify(site).ok()
    assert "nsbuild: the same slug twice: 3 entries, sha256:" in done.last
    assert snapshot(site.path / "app") == before
    assert site.caches() == [] and not site.out.exists()
    told = json.loads(verify(site, "--json").ok().text.splitlines()[-1])
    assert (told["kind"], told["same"], told["diff"]["same"]) == ("verified", True, 3)
    assert told["digests"][0] == told["digests"][1]


def test_verify_says_what_differs(site: Site) -> None:
    site.buildpack('date +%N >"$1/now"; date >"$1/page.html"; sleep 1')
    site.app()
    done = verify(site, "--report", "record.json")
    assert done.code == 1
    assert "real (1)\n    content   now: " in done.err and "timestamp (1)\n    content   page.html" in done.err
    record = json.loads((site.path / "record.json").read_text())
    assert record["slug"] is None and record["first"]["id"] != record["id"]


def test_verify_says_that_only_times_of_sources_differ(site: Site) -> None:
    """Bytecode that goes by them keeps them in the slug: heads differ too, unless somebody has patched them."""
    head = "import struct,sys,os; at = int(os.stat(sys.argv[1]).st_mtime)"
    site.buildpack(
        f"""
        echo 'x = 1' >"$1/a.py"; sleep 1.1; touch "$1/a.py"
        python3 -c '{head}; open(sys.argv[1] + "c", "wb").write(struct.pack("<4sIII", b"....", 0, at, 6))' "$1/a.py"
        """
    )
    site.app()
    done = verify(site)
    assert done.code == 1 and "timestamp (1)\n    content   a.pyc" in done.err


def test_verify_fails_as_a_build_does(site: Site) -> None:
    site.buildpack("exit 3")
    site.app()
    verify(site).refused(11, "exited 3")
    site.nsbuild("verify", "nowhere").refused(2, "nowhere does not exist")
