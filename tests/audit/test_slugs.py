"""`nsbuild audit` and `nsbuild diff` of slugs: every format, and whatever may have happened to one."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard
from support.sites import PERSON, App, Site

from nsbuild.audit.audit import AuditOptions, audit
from nsbuild.errors import UsageError

pytest_plugins = ["support.site_fixtures"]

OUTPUTS = ("slug", "slug.tgz", "slug.tar.zst", "slug.squashfs", "oci:image")
FORMATS = pytest.mark.parametrize("output", OUTPUTS)
PACK = """
printf '#!%s/bin/python\\n' "$1" >"$1/tool"; chmod +x "$1/tool"
echo "$2" >"$1/closed.txt"; chmod 0 "$1/closed.txt"
mkdir "$1/shut"; echo "$2" >"$1/shut/x.pth"; chmod 0 "$1/shut"
"""


def placed(site: Site, output: str) -> str:
    scheme, _, name = output.rpartition(":")
    return f"{scheme}:{site.path / name}" if scheme else str(site.path / name)


def audited(site: Site, *words: str | Path) -> dict[tuple[str, str], str]:
    """(file, kind) and the place of every finding."""
    done = site.nsbuild("audit", "--json", *words)
    assert done.code in (0, 14) and not done.err, done.err
    report = json.loads(done.out)
    assert report["path"] == str(words[0])
    assert (done.code == 14) == bool(report["counts"]["breaks"])
    return {(one["file"], one["kind"]): one["writer"] for one in report["findings"]}


@FORMATS
def test_a_slug_of_any_format_is_audited(site: Site, output: str) -> None:
    """It says itself where it runs, and what is closed in it is read where it is unpacked."""
    slug = placed(site, output)
    words = ("--run-path", "/home/vcap/app", "--report", "record.json")
    pack = site.buildpack(PACK)
    site.build(site.app(), pack, *words, output=slug).ok()
    found = {("tool", "interpreter-missing"): "", ("closed.txt", "text"): "", ("shut/x.pth", "pth"): ""}
    closed = () if output != "slug" or PERSON == 0 else ("closed.txt", "shut/x.pth")
    left = {key: writer for key, writer in found.items() if key[0] not in closed}
    assert audited(site, slug).keys() == left.keys()
    assert set(audited(site, slug, "--record", "record.json").values()) == {str(pack)}


@FORMATS
def test_a_slug_of_any_format_is_compared(site: Site, output: str) -> None:
    pack = site.buildpack('echo "$1" >"$1/where.txt"; date +%N >"$1/now.txt"; echo same >"$1/same.txt"')
    one, other = placed(site, f"{output.rpartition(':')[0]}:a-{output.rpartition(':')[2]}".lstrip(":")), "b.tgz"
    site.build(site.app(), pack, output=one).ok()
    site.build("app", pack, "--layout", "classic", output=other).ok()
    done = site.nsbuild("diff", "--json", one, other)
    assert done.code == 1, done.err
    changes = json.loads(done.out)["changes"]
    found = {change["path"]: change["kind"] for change in changes if not change["ignored"]}
    assert found == {"where.txt": "path only", "now.txt": "real"}
    assert site.nsbuild("diff", one, one).ok().text.startswith("the same")


def test_a_cache_is_audited(apps: dict[str, App]) -> None:
    """Of a build at /app nothing in it remembers a place that is not there at run time."""
    app = apps["issue-1006"]
    app.first.ok()
    (cache,) = [path for path in app.site.caches() if "issue-1006" in str(path)]
    assert audited(app.site, cache) == {}


@pytest.mark.parametrize("name", ["issue-1006", "flask-web", "editable-root", "plain"])
def test_a_real_app_has_no_trace(apps: dict[str, App], name: str) -> None:
    app = apps[name]
    assert audited(app.site, app.archive) == {}
    assert audited(app.site, app.directory, "--path", str(app.site.path)) == {}


# -- what is no slug


def tar(*members: tarfile.TarInfo) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return file.getvalue()


def member(name: str, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
    made.size = 0 if link else 5
    return made


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.tgz", tar(member("a"))[:-9], "is not a slug: it is truncated"),
        ("x.tgz", b"\x1f\x8b\x08\0" + bytes(100), "is not a slug"),
        ("x.tar.zst", b"\x28\xb5\x2f\xfd" + os.urandom(100), "is not a slug"),
        ("x.squashfs", b"hsqs" + bytes(2000), "is not a slug"),
        ("x.tgz", tar(member("../../outside")), "is not a slug"),
        ("x.tgz", tar(member("d", "/var/tmp"), member("d/outside")), "is not a slug"),
        ("x.txt", b"hello", "is not a slug: it is in no format"),
        ("image/oci-layout", b"{}", "its OCI layout is damaged"),
        ("app/.nsbuild-slug", b"[" * 100_000, "does not say where it runs"),
        ("app/.nsbuild-slug", b'"run_path"', "does not say where it runs"),
    ],
    # Not the bytes, which hold the time: processes that began in two seconds would not have the same tests.
    ids=[
        "truncated",
        "gzip of zeros",
        "random zstd",
        "zeroed squashfs",
        "upwards",
        "through a link",
        "text",
        "no index",
        "deep marker",
        "no object",
    ],
)
def test_what_is_no_slug_is_one_sentence(site: Site, name: str, content: bytes, said: str) -> None:
    site.write(name, content)
    path = site.path / name.partition("/")[0]
    for words in (("audit", path), ("diff", path, site.home)):
        done = site.nsbuild(*words).refused(2, said)
        assert done.out == b"" and done.err.count("\n") == 1
    assert not Path("/var/tmp/outside").exists()


@pytest.mark.parametrize("name", ["x.tgz", "x.tar.zst"])
def test_a_bomb_ends_where_it_is_said(site: Site, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tarfile.TarInfo("zeros")
    large.size = 64 << 20
    content = tar(large)
    slug = site.write(name, content if name == "x.tgz" else zstandard.compress(gzip.decompress(content)))
    monkeypatch.setattr(sys.modules["nsbuild.slug.unpack"], "MOST", 16 << 20)
    with pytest.raises(
        UsageError, match=r"is not a slug: it cannot be decompressed \(it unpacks to more than 0 GiB\)"
    ):
        audit(slug, AuditOptions(workspace_dir=str(site.path / "work")))


def test_a_bomb_of_squashfs_is_not_unpacked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.path / "tree").mkdir()
    with (site.path / "tree/zeros").open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mksquashfs", site.path / "tree", site.path / "x.squashfs", "-quiet"], check=True)
    site.own(site.path / "x.squashfs")
    options = AuditOptions(workspace_dir=str(site.path / "work"))
    assert audit(site.path / "x.squashfs", options).files == 1
    monkeypatch.setattr(sys.modules["nsbuild.slug.unpack"], "MOST", 16 << 20)
    with pytest.raises(UsageError, match="is not a slug: it unpacks to more than"):
        audit(site.path / "x.squashfs", options)


def test_a_loop_a_fifo_and_nothing(site: Site) -> None:
    site.symlink("loop", "loop")
    os.mkfifo(site.path / "fifo")
    for name, said in (("loop", "loop"), ("fifo", "neither a file nor a directory"), ("nothing", "No such file")):
        site.nsbuild("audit", name).refused(2, name, said)
        site.nsbuild("diff", name, "home").refused(2, name, said)


@pytest.mark.parametrize("content", ["", "[]", '{"audit": [{}]}', '{"audit": 5}', "[" * 100_000])
def test_what_is_no_record(site: Site, content: str) -> None:
    site.write("record.json", content)
    site.nsbuild("audit", "home", "--record", "record.json").refused(2, "record.json is no record of a build")
    site.nsbuild("audit", "home", "--record", "nothing").refused(2, "The record nothing cannot be read")
