"""Images in every form they come in, unpacked once into the store; damaged and foreign ones are refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zstandard
from support.meanwhile import meanwhile
from support.processes import ROOT, eventually, in_child
from support.sites import Site
from support.stacks import (
    Layout,
    archive,
    directory,
    hard_link,
    image,
    layer,
    layer_of,
    little_root,
    member,
    symlink,
    tagged,
    tool,
)

from nsbuild.errors import Refused, UsageError
from nsbuild.stack import StackRoot, open_stack_root, stored_stack_root
from nsbuild.stack import store as store_module
from nsbuild.stack.store import Reference, Store
from nsbuild.tree import locks
from nsbuild.user import DEFAULT_UID

pytest_plugins = ["support.site_fixtures"]

FIRST = layer(
    directory("bin"),
    member("bin/bash", b"#!", mode=0o755),
    directory("etc"),
    member("etc/gone", b"x"),
    member("etc/kept", b"first"),
)
SECOND = layer(member("etc/.wh.gone"), member("etc/kept", b"second"), hard_link("etc/also", "etc/kept"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing but whole images is ever in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stacks = tmp_path / "cache/nsbuild/stacks"
    yield stacks
    left = [path.name for path in stacks.glob("*") if path.name != "known" and not path.name.startswith("sha256-")]
    assert not left
    for found in stacks.glob("sha256-*/"):
        assert json.loads((found / "stack.json").read_text())["digest"] == found.name.replace("-", ":")


def check(found: StackRoot, made: Layout) -> None:
    root = Path(found.path)
    assert found.digest == made.id
    assert sorted(path.name for path in (root / "etc").iterdir()) == ["also", "kept"]
    assert (root / "etc/also").read_text() == "second"


def refused(reference: str | Path, *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_stack_root(str(reference))
    for word in (str(reference), *words):
        assert word in caught.value.sentence, caught.value.sentence


# -- forms


def stored_as_they_are(path: Path) -> Layout:
    return image(path, FIRST, SECOND, packed=[FIRST, SECOND])


def zstd(path: Path) -> Layout:
    return image(path, FIRST, SECOND, packed=[zstandard.compress(FIRST), gzip.compress(SECOND)])


def in_two_members(path: Path) -> Layout:
    packed = [gzip.compress(FIRST[:700]) + gzip.compress(FIRST[700:]), SECOND]
    return image(path, FIRST, SECOND, packed=packed)


def for_several_machines(path: Path) -> Layout:
    made = Layout(path)
    other = {**made.image(layer(member("x")), architecture="s390x"), "platform": {"architecture": "s390x"}}
    own = made.image(FIRST, SECOND)
    kept = made.id
    machine = json.loads(made.path_of(kept).read_text())["architecture"]
    unknown = {**other, "platform": {"architecture": "unknown", "os": "unknown"}}
    inner = {"manifests": [other, {**own, "platform": {"architecture": machine}}, unknown]}
    made.index({**made.blob(json.dumps(inner).encode()), "mediaType": "application/vnd.oci.image.index.v1+json"})
    return made


FORMS = [image, stored_as_they_are, zstd, in_two_members, for_several_machines]


@pytest.mark.parametrize("form", FORMS)
def test_oci_layouts(tmp_path: Path, form: Callable[..., Layout]) -> None:
    made = form(tmp_path / "image", FIRST, SECOND) if form is image else form(tmp_path / "image")
    check(open_stack_root(str(made.path)), made)
    check(open_stack_root(f"oci:{made.path}"), made)


@pytest.mark.parametrize("packed", [None, gzip.compress, zstandard.compress])
def test_an_oci_layout_as_one_file(tmp_path: Path, packed: Callable[[bytes], bytes] | None) -> None:
    made = image(tmp_path / "image", FIRST, SECOND)
    file = archive(tmp_path / "image.tar", made.path)
    if packed is not None:
        file.write_bytes(packed(file.read_bytes()))
    check(open_stack_root(str(file)), made)


def test_the_tag_chooses(tmp_path: Path) -> None:
    made = Layout(tmp_path / "im:age")
    other = made.image(layer(directory("bin"), member("bin/bash", mode=0o755)))
    made.index(tagged(other, "other"), tagged(made.image(FIRST, SECOND), "24.04"))
    check(open_stack_root(f"oci:{made.path}:24.04"), made)
    refused(f"oci:{made.path}:24", "'24'", "24.04, other")
    refused(made.path, "24.04")
    refused(f"oci:{made.path}", "other, 24.04")


def docker_archive(path: Path, layers: list[bytes], *, linked: bool = False, images: int = 1) -> tuple[Path, Layout]:
    """As `docker save` before 25: each layer in a directory of its own, one that repeats a link to the first."""
    made = image(path.with_suffix(".twin"), *layers)
    config = made.path_of(made.id).read_bytes()
    entry = {"Config": "config.json", "RepoTags": ["a/b:c"], "Layers": []}
    with tarfile.open(path, "w") as packed:

        def add(name: str, content: bytes = b"", **fields: Any) -> None:
            info, data = member(name, content, **fields)
            packed.addfile(info, io.BytesIO(data))

        for number, content in enumerate(layers):
            name = f"{number}/layer.tar"
            if linked and content in layers[:number]:
                add(name, type=tarfile.SYMTYPE, linkname=f"../{layers.index(content)}/layer.tar")
            else:
                add(name, content)
            entry["Layers"].append(name)  # type: ignore[attr-defined]
        add("config.json", config)
        add("manifest.json", json.dumps([entry] * images).encode())
    return path, made


def test_an_archive_of_docker_save(tmp_path: Path) -> None:
    file, made = docker_archive(tmp_path / "saved.tar", [FIRST, SECOND, FIRST, SECOND], linked=True)
    check(open_stack_root(str(file)), made)
    file, _ = docker_archive(tmp_path / "two.tar", [FIRST], images=2)
    refused(file, "2 images")


def test_what_umoci_and_skopeo_make_of_the_same_image(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """umoci packs and unpacks it, skopeo writes its archives: whiteouts, links, modes and times come out the same."""
    top = little_root(site.path / "root")
    (top / "etc/opaque").mkdir()
    (top / "etc/opaque/old").write_text("old")
    (top / "etc/setuid").write_text("x")
    (top / "etc/closed").mkdir(mode=0o700)
    os.link(top / "etc/os-release", top / "etc/hard")
    os.symlink("/etc/hard", top / "etc/soft")
    site.write("first.tar", layer_of(top))
    second = layer(
        member("etc/opaque/.wh..wh..opq"), member("etc/opaque/new"), member("bin/.wh.ls"), symlink("sbin", "bin")
    )
    site.write("second.tar", second)
    tool(site, "umoci", "init", "--layout", "image")
    tool(site, "umoci", "new", "--image", "image:one")
    for name in ("first.tar", "second.tar"):
        tool(site, "umoci", "raw", "add-layer", "--image", "image:one", name)
    tool(site, "umoci", "unpack", "--rootless", "--image", "image:one", "bundle")
    for kind in ("docker-archive", "oci-archive"):
        tool(site, "skopeo", "--insecure-policy", "copy", "oci:image:one", f"{kind}:{kind}.tar:a/b:c")
    expected = tree(site.path / "bundle/rootfs")
    assert "etc/opaque/new" in expected and "etc/opaque/old" not in expected and "bin/ls" not in expected
    roots = [open_stack_root(str(site.path / name)) for name in ("image", "docker-archive.tar", "oci-archive.tar")]
    assert [tree(Path(root.path)) for root in roots] == [expected] * 3
    assert roots[0].digest == roots[2].digest


def tree(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in top.rglob("*"):
        info = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        time_ = int(info.st_mtime) if path.is_file() else 0
        found[str(path.relative_to(top))] = (info.st_mode, content, time_, path.is_dir() or info.st_nlink)
    return found


# -- the store


def test_an_image_is_unpacked_once_and_found_without_its_layers(tmp_path: Path, cache: Path) -> None:
    made = image(tmp_path / "image", FIRST, SECOND)
    first = open_stack_root(str(made.path))
    inode = os.stat(first.path).st_ino
    copy = archive(tmp_path / "copy.tar", made.path)
    shutil.rmtree(made.path / "blobs")
    assert open_stack_root(str(made.path)) == first
    assert open_stack_root(str(copy)) == first
    assert os.stat(first.path).st_ino == inode
    assert stored_stack_root(made.id) == first
    assert stored_stack_root("sha256:" + "0" * 64) is None
    assert stored_stack_root("../../etc") is None


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    archive(file, image(tmp_path / "one", FIRST).path)
    first = open_stack_root(str(file))
    made = image(tmp_path / "two", FIRST, SECOND)
    archive(file, made.path)
    check(open_stack_root(str(file)), made)
    assert open_stack_root(str(file)) != first


def test_several_at_once_unpack_it_once(tmp_path: Path, cache: Path) -> None:
    made = image(tmp_path / "image", FIRST, SECOND)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: open_stack_root(str(made.path)), range(4)))
    assert found == [found[0]] * 4
    check(found[0], made)


@pytest.mark.parametrize("number", range(2))
def test_what_another_build_has_just_unpacked_is_not_taken_for_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stored = Store(tmp_path)
    (stored.directory / "new-1/root").mkdir(parents=True)
    place = stored.directory / "sha256-1"
    steps = [(store_module, "locked")] if number == 0 else [(locks.fcntl, "flock")]  # type: ignore[attr-defined]
    taken = meanwhile(monkeypatch, steps, 1, lambda: os.rename(stored.directory / "new-1", place))
    assert stored.collect() == []
    assert len(taken) > 1
    assert (place / "root").is_dir()


def test_what_a_killed_one_has_left_is_removed(tmp_path: Path, cache: Path) -> None:
    """Both the process that unpacks and its caller are killed in the middle of a layer that never ends."""
    made = image(tmp_path / "image", FIRST, SECOND)
    big = image(tmp_path / "big", layer(*(member(f"f{number}", b"x" * 100) for number in range(60_000))))
    code = "import sys; from nsbuild.stack import open_stack_root; open_stack_root(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, str(big.path)])
    assert eventually(lambda: any(cache.glob("new-*/root/f1*")), 30)
    process.kill()
    process.wait()
    assert eventually(lambda: not any(_unpacks(pid, str(cache)) for pid in os.listdir("/proc"))), "it has to die, too"
    assert [path for path in cache.glob("sha256-*") if path.is_dir()] == []
    check(open_stack_root(str(made.path)), made)


def test_the_process_that_unpacks_is_killed(tmp_path: Path, cache: Path) -> None:
    big = image(tmp_path / "big", layer(*(member(f"f{number}", b"x" * 100) for number in range(60_000))))
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(open_stack_root, str(big.path))
        assert eventually(lambda: any(cache.glob("new-*/root/f1*")), 30)
        (pid,) = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if _unpacks(pid, str(cache))]
        os.kill(int(pid), signal.SIGKILL)
        with pytest.raises(Refused, match="was killed"):
            going.result()


def _unpacks(pid: str, cache: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd").startswith(cache)
    except OSError:
        return False


@pytest.mark.skipif(not ROOT, reason="needs root")
def test_root_unpacks_as_nobody_elses_user(tmp_path: Path) -> None:
    """A hostile image is never read by root, nor does what it holds belong to somebody who could change it."""
    found = open_stack_root(str(image(tmp_path / "image", FIRST, SECOND).path))
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in Path(found.path).rglob("*")}
    assert owners == {(DEFAULT_UID, DEFAULT_UID)}


# -- what is no image, or a damaged one


def test_places_that_are_no_image(tmp_path: Path) -> None:
    refused(tmp_path / "never", "No such file")
    refused(f"oci:{tmp_path}", "index.json")
    refused(f"oci:{tmp_path}/never:tag", "No such file")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", "neither a directory nor a file")
    for name, content in (
        ("empty", b""),
        ("html", b"<html>no</html>" * 100),
        ("text", b"plain text"),
        ("zeros", bytes(2048)),
        ("gzip", gzip.compress(b"no tar")),
        ("cut", gzip.compress(os.urandom(5000))[:3000]),
        ("xz", b"\xfd7zXZ\0" + bytes(100)),
        ("tar", layer(member("x"))),
    ):
        file = tmp_path / f"{name}.tar"
        file.write_bytes(content)
        refused(file)


def test_a_blob_that_is_no_file(tmp_path: Path) -> None:
    made = image(tmp_path / "image", FIRST)
    path = made.path_of(made.id)
    path.unlink()
    os.mkfifo(path)
    refused(made.path, "no file")
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises((Refused, UsageError), match=r"symbolic links|lacks"):
        open_stack_root(str(made.path))


def test_a_layout_for_another_machine(tmp_path: Path) -> None:
    refused(image(tmp_path / "image", FIRST, architecture="s390x").path, "s390x", "this machine")


@pytest.mark.parametrize("what", ["manifest", "config", "layer", "content"])
def test_a_damaged_blob(tmp_path: Path, what: str) -> None:
    made = image(tmp_path / "image", FIRST, SECOND, packed=[FIRST, SECOND])
    entry = json.loads((made.path / "index.json").read_text())["manifests"][0]
    manifest = json.loads(made.path_of(entry["digest"]).read_text())
    blobs = {
        "manifest": entry,
        "config": manifest["config"],
        "layer": manifest["layers"][1],
        "content": manifest["layers"][0],
    }
    path = made.path_of(blobs[what]["digest"])
    content = path.read_bytes()
    # Half of it; or, for content, one byte of a file, which no tar notices.
    path.write_bytes(content.replace(b"first", b"First") if what == "content" else content[: len(content) // 2])
    refused(made.path)
    path.unlink()
    refused(made.path, "lacks", path.name)


@pytest.mark.parametrize("size", [100, 3000, 9000])
def test_an_archive_that_is_cut_off(tmp_path: Path, size: int) -> None:
    file, _ = docker_archive(tmp_path / "saved.tar", [FIRST, SECOND])
    file.write_bytes(file.read_bytes()[:size])
    refused(file)
    file, _ = docker_archive(tmp_path / "packed.tar", [FIRST, SECOND])
    file.write_bytes(gzip.compress(file.read_bytes())[:-20])
    refused(file, "damaged")


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        '{"manifests": []}',
        '{"manifests": [1]}',
        '{"manifests": [{"digest": "sha256:../../x"}]}',
        "[" * 100_000,
    ],
)
def test_a_malformed_index(tmp_path: Path, index: str) -> None:
    made = image(tmp_path / "image", FIRST)
    (made.path / "index.json").write_text(index)
    refused(made.path)


@pytest.mark.parametrize("config", [{"rootfs": {}}, {"rootfs": {"diff_ids": []}}, {"rootfs": {"diff_ids": ["x"]}}])
def test_a_malformed_configuration(tmp_path: Path, config: dict[str, Any]) -> None:
    refused(image(tmp_path / "image", FIRST, **config).path, "configuration")


@pytest.mark.parametrize(
    "manifest", [[], [{}], {}, [{"Config": "x", "Layers": 1}], [{"Config": "/etc/passwd", "Layers": []}]]
)
def test_a_malformed_manifest_of_docker(tmp_path: Path, manifest: object) -> None:
    file = tmp_path / "saved.tar"
    file.write_bytes(layer(member("manifest.json", json.dumps(manifest).encode())))
    refused(file)


def test_a_member_that_claims_much_memory(tmp_path: Path) -> None:
    """tarfile reads an extended header whole, and a negative size makes it go round in circles."""
    for number, size in enumerate((8 << 40, -512)):
        info = tarfile.TarInfo("x")
        info.size = size
        header = info.tobuf(tarfile.GNU_FORMAT)
        if size > 0:
            header = header[:156] + b"x" + header[157:]
            total = sum(header[:148]) + 8 * 32 + sum(header[156:])
            header = header[:148] + b"%06o\0 " % total + header[156:]
        file = tmp_path / f"{number}.tar"
        file.write_bytes(header + bytes(4096))
        in_child(lambda path=file: refused(path), timeout=60)  # type: ignore[misc]


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    made = image(tmp_path / "image", FIRST)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        Store(tmp_path / "file/stacks").get(Reference("x", str(made.path)))
