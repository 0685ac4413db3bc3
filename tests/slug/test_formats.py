"""Every format of a slug: what went in comes out, the same tree gives the same bytes, the last slug survives."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from support.processes import ROOT, Child, eventually, in_child, private_mounts
from support.sites import Site

from nsbuild.errors import Interrupted, Refused
from nsbuild.sandbox import Launcher, Outcome, User, kernel
from nsbuild.slug import Image, Output, as_directory, prepare, sizes, tar, unpack, write_tree
from nsbuild.slug.archive import TIME
from nsbuild.user import build_user
from nsbuild.workspace import workspace

pytest_plugins = ["support.site_fixtures"]

FILES = {"tgz": "slug.tgz", "tar.zst": "slug.tar.zst", "squashfs": "slug.squashfs", "oci": "image"}
BUILDER = User(60717, 60717) if ROOT else User(os.getuid(), os.getgid())


def made(app: Path, output: Path, format_: str) -> str:
    """The digest of a slug that is put in place."""
    prepared = prepare(str(app), Output(output, format_), None, image=Image(process_types={"web": "x"}))
    prepared.commit()
    prepared.discard()
    return prepared.slug.digest


@pytest.fixture
def place(ground: str) -> Path:
    """A directory that the builder may use, too."""
    if ROOT:
        os.chown(ground, BUILDER.uid, BUILDER.gid)
    return Path(ground)


def awkward(top: Path) -> Path:
    """All that a build may leave, and that can be archived."""
    app = top / "app"
    (app / "empty").mkdir(parents=True)
    (app / "Procfile").write_text("web: x\n")
    (app / "data").write_bytes(b"0123456789" * 30_000)
    (app / "zero").touch()
    os.link(app / "data", app / "also")
    (app / "d").mkdir()
    os.link(app / "data", app / "d/again")
    (app / "tool").write_text("#!/bin/sh\n")
    (app / "tool").chmod(0o4755)
    (app / "shared").write_text("x")
    (app / "shared").chmod(0o664)
    long = app
    for _ in range(3):
        long = long / ("n" * 120)
    long.mkdir(parents=True)
    (long / ("f" * 250)).write_text("long")
    with open(os.fsencode(app) + b"/caf\xe9", "w") as file:  # noqa: PTH123
        file.write("latin-1")
    with open(os.fsencode(app) + b"/" + b"\xe9" * 200, "w") as file:  # noqa: PTH123
        file.write("latin-1")
    (app / "with\nnewline and space").write_text("x")
    (app / "absolute").symlink_to("/somewhere/else")
    (app / "long link").symlink_to("/" + "x/../" * 60 + "y")
    (app / "up").symlink_to("../../etc")
    with (app / "sparse").open("wb") as holes:
        holes.truncate(300_000)
        holes.seek(200_000)
        holes.write(b"data")
    (app / "closed").mkdir()
    (app / "closed/file").write_text("closed")
    (app / "closed/file").chmod(0)
    (app / "closed").chmod(0)
    (app / "read-only").mkdir()
    (app / "read-only/file").write_text("r")
    (app / "read-only/file").chmod(0o400)
    (app / "read-only").chmod(0o555)
    return app


def described(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Names, types, permissions, links and contents, by one who may read everything."""
    found: dict[bytes, tuple[object, ...]] = {}
    groups: dict[int, bytes] = {}

    def look(directory: bytes, relative: bytes) -> None:
        mode = os.lstat(directory).st_mode
        os.chmod(directory, 0o700)
        for name in sorted(os.listdir(directory)):
            path, key = directory + b"/" + name, relative + name
            info = os.lstat(path)
            content: object = None
            if stat.S_ISREG(info.st_mode):
                os.chmod(path, 0o600)
                content = hashlib.sha256(open(path, "rb").read()).hexdigest()  # noqa: PTH123
                os.chmod(path, stat.S_IMODE(info.st_mode))
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            first = groups.setdefault(info.st_ino, key)
            kept = 0o7777 if stat.S_ISDIR(info.st_mode) else 0o777
            permissions = 0 if stat.S_ISLNK(info.st_mode) else info.st_mode & kept
            found[key] = (stat.S_IFMT(info.st_mode), permissions, first, content)
            if stat.S_ISDIR(info.st_mode):
                look(path, key + b"/")
        os.chmod(directory, stat.S_IMODE(mode))

    look(os.fsencode(top), b"")
    return found


@pytest.mark.parametrize("format_", FILES)
def test_what_went_in_comes_out(place: Path, format_: str) -> None:
    app = awkward(place)
    expected = described(app)
    slug = place / FILES[format_]
    made(app, slug, format_)
    assert described(app) == expected, "the tree is as it was"
    with workspace(place / "workspaces", BUILDER) as work:
        unpack(slug, work)
        assert described(Path(work.directory("app"))) == expected
        info = os.stat(work.directory("app"))
        assert (info.st_uid, info.st_gid) == (BUILDER.uid, BUILDER.gid)


@pytest.mark.parametrize(("format_", "reader"), [("tgz", "tar"), ("tar.zst", "tar"), ("squashfs", "unsquashfs")])
def test_the_tools_of_others_read_it(place: Path, format_: str, reader: str) -> None:
    app = awkward(place)
    slug, out = place / FILES[format_], place / "out"
    made(app, slug, format_)
    out.mkdir()
    decompress = {"tgz": "gzip -dc", "tar.zst": "zstd -dc"}.get(format_)
    script = (
        f"{decompress} slug | tar -xpf - -C out --no-same-owner" if decompress else "unsquashfs -q -n -f -d out slug"
    )
    slug.rename(place / "slug")
    subprocess.run(["bash", "-o", "pipefail", "-c", script], cwd=place, check=True, stdout=subprocess.DEVNULL)
    assert described(out) == described(app)
    if format_ == "squashfs":
        listed = subprocess.run(["unsquashfs", "-lln", "slug"], cwd=place, capture_output=True, check=True).stdout
        lines = [line.split() for line in listed.splitlines() if b"squashfs-root" in line]
        assert lines[0][3] == b"1980-01-01"
        assert {line[1] for line in lines} == {b"0/0"}


@pytest.mark.parametrize("reader", ["GNU tar", "tarfile"])
def test_a_round_trip_with_diff(place: Path, reader: str) -> None:
    app, out = awkward(place), place / "out"
    for closed in ("closed", "closed/file"):
        (app / closed).chmod(0o700)  # for diff to read
    made(app, place / "slug.tgz", "tgz")
    if reader == "tarfile":
        with tarfile.open(place / "slug.tgz") as archive:
            archive.extraction_filter = lambda member, path: member  # later ones refuse absolute links
            archive.extractall(out)
    else:
        out.mkdir()
        subprocess.run(["tar", "-xpf", place / "slug.tgz", "-C", out], check=True)
    argv = ["diff", "-r", "--no-dereference", str(app), str(out)]
    assert subprocess.run(argv, capture_output=True, check=False).stdout == b""
    (out / "with\nnewline and space").write_text("y")
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 1, "diff sees it"


@pytest.mark.parametrize("format_", FILES)
def test_extended_attributes_are_left_out_and_told(place: Path, format_: str) -> None:
    app = place / "app"
    (app / "bin").mkdir(parents=True)
    for name in ("bin/tool", "plain"):
        (app / name).write_text(name)
    try:
        os.setxattr(app / "bin/tool", "user.origin", b"https://example.com")
    except OSError as error:
        pytest.skip(f"{place} has no extended attributes: {error.strerror}")
    image = Image(process_types={"web": "x"})
    prepared = prepare(str(app), Output(place / FILES[format_], format_), None, image=image)
    prepared.commit()
    prepared.discard()
    assert prepared.bare == ["bin/tool"]
    with workspace(place / "workspaces", BUILDER) as work:
        unpack(place / FILES[format_], work)
        assert os.listxattr(f"{work.directory('app')}/bin/tool") == []
    os.removexattr(app / "bin/tool", "user.origin")
    again = prepare(str(app), Output(place / "again", format_), None, image=image)
    again.discard()
    assert (again.bare, again.slug.digest) == ([], prepared.slug.digest)


def test_tarfile_reads_it(place: Path) -> None:
    app = awkward(place)
    made(app, place / "slug.tgz", "tgz")
    with tarfile.open(place / "slug.tgz") as archive:
        members = archive.getmembers()
        data = archive.extractfile("./sparse")
        assert data is not None and data.read() == (app / "sparse").read_bytes()
    assert {(member.uid, member.gid, member.mtime) for member in members} == {(0, 0, TIME)}
    assert {os.fsencode(member.name).removeprefix(b"./") for member in members} == {b".", *described(app)}
    assert [member.linkname for member in members if member.islnk()] == ["./also", "./also"]
    assert next(member for member in members if member.name == "./tool").mode == 0o755


@pytest.mark.parametrize("format_", FILES)
def test_the_same_tree_gives_the_same_bytes(place: Path, format_: str) -> None:
    """Another directory, time of files and of day, umask, locale, time zone and number of processors."""
    digests = []
    for number in range(2):
        top = place / f"number-{number}"
        top.mkdir()
        script = (
            "import os, sys; os.umask(int(sys.argv[4], 8));"
            "from pathlib import Path; from nsbuild.slug import Output, prepare;"
            "made = prepare(sys.argv[1], Output(Path(sys.argv[2]), sys.argv[3]), None);"
            "made.commit(); made.discard(); print(made.slug.digest)"
        )
        app = awkward(top)
        for path in (app / "Procfile", app / "d", app):
            os.utime(path, (number * 10**9, number * 10**9))
        words = ["taskset", "-c", "0"] if number else []
        env = {"LC_ALL": ("C", "C.UTF-8")[number], "TZ": ("UTC", "Asia/Tokyo")[number], "PATH": os.environ["PATH"]}
        env |= {"SOURCE_DATE_EPOCH": "1"} if number else {}
        argv = [
            *words,
            sys.executable,
            "-I",
            "-c",
            script,
            str(app),
            str(top / "out"),
            format_,
            ("022", "077")[number],
        ]
        digests.append(subprocess.run(argv, env=env, check=True, capture_output=True, text=True).stdout)
        time.sleep(1.1 * (1 - number))  # what they would write of the time of day is in seconds
    assert digests[0] == digests[1] != ""


def test_a_source_keeps_the_time_that_its_bytecode_names(place: Path) -> None:
    """Else Python would compile it at every boot."""
    app = place / "app"
    app.mkdir()
    for name in ("zz", "AA", "hashed", "changed", "alone"):
        (app / f"{name}.py").write_text("x = 1\n")
        os.utime(app / f"{name}.py", (1_600_000_000, 1_600_000_000.5))
    compile_ = "import py_compile as p, sys; p.compile('zz.py'); p.compile('AA.py'); p.compile('changed.py');"
    compile_ += "p.compile('hashed.py', invalidation_mode=p.PycInvalidationMode.CHECKED_HASH)"
    env = {"PATH": os.environ["PATH"]}
    subprocess.run(["/usr/bin/python3", "-c", compile_], cwd=app, check=True, env=env)
    os.utime(app / "changed.py", (1_700_000_000, 1_700_000_000))
    made(app, place / "slug.tgz", "tgz")
    with tarfile.open(place / "slug.tgz") as archive:
        times = {member.name: member.mtime for member in archive if member.mtime != TIME}
    assert times == {"./zz.py": 1_600_000_000, "./AA.py": 1_600_000_000}


def test_what_cannot_be_archived_is_left_out_and_told(place: Path) -> None:
    app = place / "app"
    app.mkdir()
    os.mkfifo(app / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(app / "socket"))
        prepared = prepare(str(app), Output(place / "slug.tgz", "tgz"), None)
    prepared.discard()
    assert prepared.slug.left_out == ["fifo", "socket"]


def test_a_watcher_sees_everything_once_in_the_same_pass(place: Path) -> None:
    app = awkward(place)
    (app / "large").write_bytes(os.urandom(3_000_000))
    seen: dict[str, bytes] = {}
    links: set[str] = set()

    def watch(path: str, info: os.stat_result, data: bytes) -> None:
        seen[path] = seen.get(path, b"") + data
        links.update({path} if stat.S_ISLNK(info.st_mode) else ())

    contents = write_tree(str(app), lambda data: None, watcher=watch)
    assert seen["large"] == (app / "large").read_bytes()
    assert (seen["absolute"], seen["empty"], seen["d/again"]) == (b"/somewhere/else", b"", b"")
    assert seen["closed/file"] == b"closed"
    assert set(map(os.fsencode, seen)) == set(described(app))
    assert sum(map(len, (data for path, data in seen.items() if path not in links))) == contents.bytes


def test_sizes_are_by_top_directory_each_inode_once(place: Path) -> None:
    app = place / "app"
    (app / "b/c").mkdir(parents=True)
    (app / "a").write_bytes(bytes(10))
    (app / "b/c/d").write_bytes(bytes(200))
    os.link(app / "b/c/d", app / "b/again")
    (app / "b/link").symlink_to("c")
    assert sizes(str(app)) == {".": 10, "b": 200}
    prepared = prepare(str(app), Output(place / "slug.tar.zst", "tar.zst"), None)
    prepared.discard()
    assert prepared.slug.sizes == {".": 10, "b": 200}


# -- the last slug survives


def limited(action: Callable[[], None]) -> int:
    """The errno that `action` meets on a filesystem of 1 MB, mounted over `small`."""
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.parametrize("format_", FILES)
def test_a_full_disk_leaves_the_last_slug_and_nothing_beside(place: Path, format_: str) -> None:
    small, app = place / "small", place / "app"
    small.mkdir()
    app.mkdir()
    (app / "Procfile").write_text("web: x\n")

    def attempt() -> tuple[int, list[str], str, str]:
        private_mounts()
        kernel.mount("tmpfs", str(small), "tmpfs", 0, "size=1m")
        first = made(app, small / "slug", format_)
        (app / "noise").write_bytes(os.urandom(5_000_000))
        error = limited(lambda: void(made(app, small / "slug", format_)))
        (app / "noise").unlink()
        kept = made(app, small / "other", format_)
        return error, sorted(os.listdir(small)), first, kept

    error, names, first, kept = in_child(attempt)
    assert error == errno.ENOSPC
    assert names == ["other", "slug"]
    assert first == kept


@pytest.mark.parametrize("format_", FILES)
def test_a_full_disk_is_no_damaged_slug(place: Path, format_: str) -> None:
    small, app = place / "small", place / "app"
    small.mkdir()
    app.mkdir()
    (app / "noise").write_bytes(os.urandom(5_000_000))
    slug = place / FILES[format_]
    made(app, slug, format_)

    def attempt() -> str:
        private_mounts()
        kernel.mount("tmpfs", str(small), "tmpfs", 0, "size=1m,mode=777")
        with workspace(small, User(os.getuid(), os.getgid())) as work:
            try:
                unpack(slug, work)
            except Refused as refused:
                return refused.sentence
        return "unpacked"

    assert in_child(attempt).startswith(f"There is no room to unpack {slug}: ")


def void(_: object) -> None:
    return


@pytest.mark.parametrize("format_", FILES)
def test_a_killed_build_leaves_the_last_slug_and_the_next_one_collects(
    place: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, slug = place / "app", place / FILES[format_]
    app.mkdir()
    (app / "Procfile").write_text("web: x\n")
    made(app, slug, format_)
    before = digest_of(slug)
    with (app / "noise").open("wb") as hole:
        hole.truncate(1 << 40)  # read for longer than anybody waits
    child = Child(lambda: made(app, slug, format_))
    assert eventually(lambda: any(".nsbuild-" in entry.name for entry in os.scandir(place)))
    child.signal(signal.SIGKILL)
    child.ended()
    left = [entry.name for entry in os.scandir(place) if ".nsbuild-" in entry.name]
    # mksquashfs, whose input has ended, removes what it has made.
    assert len(left) == 1 or format_ == "squashfs", "it was killed while it wrote"
    assert digest_of(slug) == before
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 3600)
    (app / "noise").unlink()
    assert eventually(lambda: (made(app, slug, format_) != "") and not list(place.glob(".*.nsbuild-*")))
    assert digest_of(slug) == before


def digest_of(slug: Path) -> list[tuple[str, str]]:
    files = [slug] if slug.is_file() else sorted(path for path in slug.rglob("*") if path.is_file())
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


# -- images


def inspect(image: Path, *words: str) -> dict[str, Any]:
    argv = ["skopeo", "inspect", *words, f"oci:{image}"]
    found: dict[str, Any] = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    return found


def test_skopeo_and_umoci_accept_the_image(place: Path) -> None:
    app = place / "app"
    (app / ".profile.d").mkdir(parents=True)
    (app / "Procfile").write_text("web: x\n")
    image = Image("/srv/app", "app", "heroku-24", {"web": "./serve $PORT", "worker": "w"}, {"A": "default"})
    prepared = prepare(str(app), Output(place / "image", "oci"), None, image=image)
    prepared.commit()
    prepared.discard()
    inspected = json.loads(
        subprocess.run(["skopeo", "inspect", f"oci:{place}/image"], check=True, capture_output=True).stdout
    )
    assert inspected["Digest"] == prepared.slug.digest
    assert inspected["Labels"]["io.nsbuild.run-path"] == "/srv/app"
    config = json.loads(
        subprocess.run(
            ["skopeo", "inspect", "--config", f"oci:{place}/image"], check=True, capture_output=True
        ).stdout
    )["config"]
    assert config["WorkingDir"] == "/srv/app" and {"HOME=/srv/app", "A=default"} <= set(config["Env"])
    assert config["Cmd"] == ["bash", "-c", "./serve $PORT"]
    words = ["umoci", "unpack", "--rootless", "--image", f"{place}/image:latest", f"{place}/bundle"]
    subprocess.run(words, check=True, capture_output=True)
    assert (place / "bundle/rootfs/srv/app/Procfile").read_text() == "web: x\n"
    # A copy by skopeo checks every digest.
    words = ["skopeo", "copy", "-q", f"oci:{place}/image", f"dir:{place}/copy"]
    subprocess.run(words, check=True, capture_output=True)


def test_the_entrypoint_boots_as_a_dyno_does(place: Path) -> None:
    """What the config says is run where the layer is."""
    app = place / "app"
    (app / ".profile.d").mkdir(parents=True)
    (app / ".profile.d/a.sh").write_text("export BOOTED=$A\n")
    image = Image(process_types={"web": "echo $BOOTED $PORT"}, config_vars={"A": "yes"})
    prepare(str(app), Output(place / "image", "oci"), None, image=image).commit()
    config = json.loads(
        subprocess.run(
            ["skopeo", "inspect", "--config", f"oci:{place}/image"], check=True, capture_output=True
        ).stdout
    )["config"]
    env = dict(variable.split("=", 1) for variable in config["Env"])
    words = [*config["Entrypoint"], *config["Cmd"]]
    assert subprocess.run(words, cwd=app, env=env, check=True, capture_output=True).stdout == b"yes 5000\n"


def test_a_stack_is_the_layer_below(place: Path) -> None:
    app, stack = place / "app", place / "stack"
    app.mkdir()
    (stack / "usr/bin").mkdir(parents=True)
    (stack / "usr/bin/bash").write_text("bash")
    (app / "Procfile").touch()
    prepared = prepare(str(app), Output(place / "image", "oci"), None, image=Image(stack_root=stack))
    prepared.commit()
    prepared.discard()
    words = ["umoci", "unpack", "--rootless", "--image", f"{place}/image:latest", f"{place}/bundle"]
    subprocess.run(words, check=True, capture_output=True)
    assert (place / "bundle/rootfs/usr/bin/bash").read_text() == "bash"
    assert (place / "bundle/rootfs/app/Procfile").exists()


# -- what is no slug


def largest(slug: Path) -> Path:
    files = [slug] if slug.is_file() else [path for path in slug.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("output", ["slug.tgz", "slug.tar.zst", "slug.squashfs", "oci:image"])
def test_a_slug_that_is_damaged_is_refused_in_one_sentence(site: Site, output: str) -> None:
    site.app(Procfile="web: x\n", data=os.urandom(300_000))
    site.build(site.path / "app", site.buildpack(), output=output).ok()
    slug = site.path / output.removeprefix("oci:")
    file = largest(slug)
    whole = file.read_bytes()
    broken_ways = [whole[: len(whole) // 2], whole[:100]]
    if output != "slug.squashfs":  # which has no checksums
        broken_ways.append(whole[:5000] + bytes(2000) + whole[7000:])
    for broken in broken_ways:
        file.write_bytes(broken)
        site.run(output, "--", "true").refused(125, slug.name, "is not a slug")
    file.write_bytes(whole)
    site.run(output, "--", "true").ok()


def test_what_is_no_slug_is_said(site: Site) -> None:
    contents = {"text": b"hello\n", "empty": b"", "zip": b"PK\3\4" + bytes(100), "gz": gzip.compress(b"hello")}
    for name, content in contents.items():
        site.run(site.write(name, content), "--", "true").refused(125, name, "is not a slug")
    image = site.write("image/oci-layout", "{}").parent
    for index in ("[]", "{}", '{"manifests": [{"digest": "sha256:../../../etc/passwd"}]}', "[" * 100_000):
        site.write("image/index.json", index)
        site.run(image, "--", "true").refused(125, "image", "OCI layout is damaged")


@pytest.mark.parametrize("format_", ["tgz", "tar.zst"])
@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../evil", tar.FILE, b""),
        ("/etc/evil", tar.FILE, b""),
        ("/var/tmp/evil", tar.FILE, b""),
        ("x", tar.SYMLINK, b"/var/tmp"),
        ("x", tar.SYMLINK, b"../../.."),
        ("h", tar.HARD_LINK, b"/etc/passwd"),
        ("c", b"3", b""),
        ("b", b"4", b""),
    ],
)
def test_no_member_gets_out(site: Site, format_: str, name: str, kind: bytes, link: bytes) -> None:
    """What a link leads to is written through it by the next member."""
    data = tar.member(name.encode(), kind, 0o644, 0, link=link) + tar.member(b"x/evil", tar.FILE, 0o644, 0) + tar.END
    packed = gzip.compress(data) if format_ == "tgz" else zstandard.compress(data)
    slug = site.write(f"hostile.{format_}", packed)
    before = sorted(os.listdir(site.path))
    result = site.run(slug, "--", "true")
    assert result.code in (0, 125) and "Traceback" not in result.err
    assert sorted(os.listdir(site.path)) == before
    assert not [path for path in ("/evil", "/etc/evil", "/var/tmp/evil", "/var/evil") if os.path.lexists(path)]


def test_an_interrupt_that_ended_tar_is_no_fault_of_the_slug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends it to both, and tar ends first."""
    ended = Outcome(None, signal=signal.SIGINT, forwarded=(signal.SIGINT,))
    monkeypatch.setattr(Launcher, "launch", lambda *given, **options: ended)
    with tarfile.open(tmp_path / "slug.tgz", "w:gz") as slug:
        slug.addfile(tarfile.TarInfo("a"))
    with pytest.raises(Interrupted), as_directory(tmp_path / "slug.tgz", build_user(str(tmp_path)), str(tmp_path)):
        pass
