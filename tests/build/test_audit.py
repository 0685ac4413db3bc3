"""Every build is audited for its own places."""

from __future__ import annotations

import re

import pytest
from support.sites import Site

pytest_plugins = ["support.site_fixtures"]

WORKSPACE = "$(sed -n 's/^[0-9 :]* \\(\\/[^ ]*\\)\\/root \\/ .*/\\1/p' /proc/self/mountinfo | head -n 1)"
FORMATS = pytest.mark.parametrize("output", ["slug", "slug.tgz", "slug.tar.zst", "slug.squashfs", "oci:image"])


def found(record: dict[str, object]) -> set[tuple[str, str, str]]:
    findings = record["audit"]
    assert isinstance(findings, list)
    return {(one["file"], one["kind"], one["place"]) for one in findings}


@FORMATS
def test_in_any_format(site: Site, output: str) -> None:
    pack = site.buildpack(
        """
        printf '#!/tmp/cache/python\\n' >"$1/tool"; chmod +x "$1/tool"
        ln -s "$2/lib" "$1/lib"
        { head -c 3000000 /dev/zero; echo /tmp/env; } >"$1/large.bin"
        echo /tmp/cached >"$1/other.txt"
        touch "$1/empty"; ln "$1/other.txt" "$1/again.txt"
        """
    )
    scheme, _, name = output.rpartition(":")
    place = site.path / name
    done = site.build(site.app(), pack, output=f"{scheme}:{place}" if scheme else place).ok()
    assert found(done.record) == {
        ("tool", "shebang", "/tmp/cache"),
        ("lib", "symlink", "/tmp/cache"),
        ("large.bin", "binary", "/tmp/env"),
    }
    assert "audit: 2 breaks, 1 cosmetic in 3 of" in done.err
    counted = site.nsbuild("audit", place, "--path", "/tmp/cache", "--path", "/tmp/env")
    assert re.findall(r"of \d+ files", counted.text) == re.findall(r"of \d+ files", done.err)
    assert "first lib (symlink): it holds /tmp/cache; nsbuild audit SLUG shows all." in done.err


@FORMATS
def test_a_file_of_several_names(site: Site, output: str) -> None:
    """It is told as what it breaks under any of them, in either way of reading a slug."""
    pack = site.buildpack(
        """
        mkdir "$1/a" "$1/lib"
        echo /tmp/cache >"$1/a.txt"; ln "$1/a.txt" "$1/lib/x.pth"; ln "$1/a.txt" "$1/a/y.txt"
        { head -c 3000000 /dev/zero | tr '\\0' x; echo ' /tmp/env'; } >"$1/large"; ln "$1/large" "$1/lib/large.sh"
        """
    )
    scheme, _, name = output.rpartition(":")
    place = site.path / name
    done = site.build(site.app(), pack, output=f"{scheme}:{place}" if scheme else place).ok()
    assert found(done.record) == {("lib/x.pth", "pth", "/tmp/cache"), ("lib/large.sh", "script", "/tmp/env")}
    assert {one["writer"] for one in done.record["audit"]} == {str(pack)}
    if output != "slug":  # in which they are files of their own
        counted = site.nsbuild("audit", place, "--path", "/tmp/cache", "--path", "/tmp/env")
        assert "2 breaks in 2 of" in counted.text


def test_who_wrote_it(site: Site) -> None:
    first = site.buildpack('echo /tmp/cache >"$1/a.txt"; echo /tmp/cache >"$1/b.txt"; sleep 0.1', "first")
    second = site.buildpack('echo again >>"$1/b.txt"; sleep 0.1', "second")
    source = site.app()
    site.write("app/own.txt", "/tmp/cache")
    record = site.build(source, first, second).ok().record
    assert {one["file"]: one["writer"] for one in record["audit"]} == {
        "a.txt": str(first),
        "b.txt": str(second),
        "own.txt": "",
    }


def test_fail_puts_nothing_in_place(site: Site) -> None:
    good = site.buildpack("true", "good")
    bad = site.buildpack('echo /tmp/cache >"$1/x.pth"', "bad")
    site.build(site.app(), good).ok()
    done = site.build(site.app(), bad, "--audit", "fail")
    assert done.code == 14
    assert "found 1 place that would break the app at run time, first x.pth (pth): it holds /tmp/cache." in done.err
    assert not (site.out / "x.pth").exists()
    assert found(done.record) == {("x.pth", "pth", "/tmp/cache")}


def test_fail_is_for_what_breaks(site: Site) -> None:
    pack = site.buildpack('echo /tmp/cache >"$1/x.txt"')
    site.build(site.app(), pack, "--audit", "fail").ok()


def test_off(site: Site) -> None:
    pack = site.buildpack('echo /tmp/cache >"$1/x.pth"')
    done = site.build(site.app(), pack, "--audit", "off").ok()
    assert done.record["audit"] == [] and "audit:" not in done.err


def test_the_classic_layout_does_what_classic_always_does(site: Site) -> None:
    pack = site.buildpack('echo "$1/src" >"$1/x.pth"')
    record = site.build(site.app(), pack, "--layout", "classic").ok().record
    ((file, kind, place),) = found(record)
    assert (file, kind) == ("x.pth", "pth") and place.startswith("/tmp/build_")
    assert site.build(site.app(), pack).ok().record["audit"] == []


def test_the_workspace_on_the_host(site: Site) -> None:
    """A build can read it in /proc/self/mountinfo."""
    pack = site.buildpack(f'echo "{WORKSPACE}/app" >"$1/x.pth"')
    record = site.build(site.app(), pack).ok().record
    assert {(file, kind) for file, kind, _ in found(record)} == {("x.pth", "pth")}


def test_the_places_of_who_builds(site: Site) -> None:
    """A build is not told them, but an argument or a config var may."""
    site.mkdir("own tmp")
    app = site.app("app", **{"home.txt": f"{site.home}/x", "tmp.txt": f"file://{site.path}/own%20tmp/x", "x": "/tmp"})
    done = site.build(app, site.buildpack(), env={"TMPDIR": f"{site.path}/own tmp"}).ok()
    assert found(done.record) == {
        ("home.txt", "text", str(site.home)),
        ("tmp.txt", "text", f"{site.path}/own tmp"),
    }


def test_the_cache_of_a_build_is_audited_too(site: Site) -> None:
    pack = site.buildpack('mkdir "$2/lib"; echo "$1 $2" >"$2/lib/x.pth"')
    site.build(site.app(), pack, "--layout", "classic").ok()
    (cache,) = site.caches()
    done = site.nsbuild("audit", cache)
    assert done.code == 14 and "lib/x.pth: /tmp/build_" in done.text and "lib/x.pth: /tmp/codon/tmp " in done.text
    assert "2 breaks in 1 of " in done.text
