"""Slug and cache: put in place at once or not at all, whoever looks, fails or builds at the same time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest
from support.sites import Site, ordinary, snapshot

from nsbuild import slug

pytest_plugins = ["support.site_fixtures"]

COUNT = 'n=$(($(cat "$2/n" 2>/dev/null || echo 0) + 1)); echo $n > "$2/n"; echo $n > "$1/n"; echo build $n'


def inodes(top: Path) -> set[tuple[int, int]]:
    return {(info.st_dev, info.st_ino) for path in top.rglob("*") if path.is_file() for info in [path.lstat()]}


# -- the output


def test_a_new_slug_replaces_the_last_one(site: Site) -> None:
    pack = site.buildpack(COUNT + '; [ $n = 1 ] && touch "$1/first" || true')
    for output in (site.out, site.path / "slug.tgz"):
        for _ in range(2):
            site.build(site.app(), pack, output=output, timeout=30).ok()
    assert (site.out / "n").read_text() == "2\n"
    assert not (site.out / "first").exists()
    with tarfile.open(site.path / "slug.tgz") as archive:
        assert "./first" not in archive.getnames()


@pytest.mark.parametrize("name", ["out", "slug.tgz"])
def test_a_failing_build_leaves_slug_and_cache_as_they_were(site: Site, name: str) -> None:
    good = site.buildpack(COUNT)
    site.build(site.app(), good, output=site.path / name).ok()
    before = snapshot(site.path / name), [snapshot(path) for path in site.caches()]
    spoil = 'rm -rf "$1"/* "$2"/*; echo spoilt > "$2/n"; '
    for number, scripts in enumerate(
        (
            {"compile_": spoil + "exit 1"},
            {"compile_": spoil, "release": "exit 1"},
            {"compile_": spoil, "release": "echo '{'"},
            {"compile_": spoil + "kill -9 $$"},
            {"compile_": spoil + 'rm -rf "$1"'},
            {"compile_": spoil, "detect": "exit 1"},
        )
    ):
        bad = site.buildpack(name=f"bad{number}", **scripts)
        assert site.build(site.app(), good, bad, output=site.path / name).code in (10, 11, 12)
        assert (snapshot(site.path / name), [snapshot(path) for path in site.caches()]) == before, scripts


def test_a_reader_never_sees_half_a_slug(site: Site) -> None:
    """Two generations of many files; whoever opens the directory finds all of one generation."""
    pack = site.buildpack(COUNT + '; mkdir "$1/d"; for i in $(seq 300); do echo $n > "$1/d/$i"; done')
    site.build(site.app(), pack).ok()
    torn: list[str] = []
    gone: list[str] = []
    looks = 0
    done = threading.Event()

    def look() -> None:
        nonlocal looks
        while not done.is_set():
            try:
                top = os.open(site.out, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError as error:
                gone.append(str(error))
                continue
            try:
                names = os.listdir(f"/proc/self/fd/{top}/d")
                marks = {Path(f"/proc/self/fd/{top}/d/{name}").read_text() for name in names[::10]}
                if len(names) != 300 or len(marks) != 1:
                    torn.append(f"{len(names)} files of {marks}")
            except FileNotFoundError:
                pass  # the old slug, which is being removed under our descriptor
            finally:
                os.close(top)
            looks += 1

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(3):
            site.build(site.app(), pack).ok()
    finally:
        done.set()
        reader.join()
    assert looks > 10
    assert not gone and not [text for text in torn if not text.startswith("0 ")][3:], (gone, torn)


def test_what_a_killed_build_left_beside_is_removed_by_the_next(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    app, output = site.app(), slug.Output(site.out, "directory")
    left = site.write(".out.nsbuild-0123456789ab/file").parent
    other = site.write(".out.mine/file")
    now = time.time()
    slug.prepare(str(site.copy(app, "one")), output, None).discard()
    assert left.exists(), "it may be another build's that has not locked it yet"
    monkeypatch.setattr("time.time", lambda: now + 3600)
    prepared = slug.prepare(str(site.copy(app, "two")), output, None)
    slug.prepare(str(site.copy(app, "three")), output, None).discard()
    assert not left.exists()
    assert other.exists()
    prepared.commit()
    prepared.discard()
    assert (site.out / "Procfile").exists()


def test_a_slug_that_is_being_copied_from_another_filesystem_is_not_taken_for_a_leftover(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, output = site.app(), slug.Output(site.out, "directory")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", refuse)
        copied = slug.prepare(str(site.copy(app, "one")), output, None)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 3600)
    slug.prepare(str(site.copy(app, "two")), output, None).discard()
    copied.commit()
    copied.discard()
    assert (site.out / "Procfile").exists()


def test_what_a_killed_build_left_beside_the_cache_is_removed_by_the_next(site: Site) -> None:
    site.build(site.app(), site.buildpack()).ok()
    (cache,) = site.caches()
    left = site.write(f"{cache.parent.relative_to(site.path)}/new-0123456789ab/file").parent
    site.build(site.path / "app", site.path / "pack").ok()
    assert not left.exists()


def test_only_an_empty_directory_or_a_slug_is_replaced(site: Site) -> None:
    site.mkdir("out")
    site.build(site.app(), site.buildpack()).ok()
    site.build(site.app("app"), site.path / "pack").ok()
    site.write("photos/holiday.jpg", "precious")
    before = snapshot(site.path / "photos")
    site.write("file", "precious")
    site.symlink("link", "out")
    site.mkdir("dir.tgz")
    for name in ("app/main.tgz", "app/main.tar.zst"):
        site.write(name, "print('precious')\n")
    site.symlink("link.squashfs", "out")
    for output, *words in (
        ("photos", "other things"),
        ("file", "is a file"),
        ("link", "is a symlink"),
        ("dir.tgz", "is a directory"),
        ("file/below/out", "is a file"),
        ("app", "is the source"),
        ("app/main.tgz", "no tgz archive"),
        ("app/main.tar.zst", "no tar.zst archive"),
        ("link.squashfs", "is a symlink"),
        ("oci:photos", "other things"),
        ("oci:file", "is a file"),
        ("oci:image:tag", "a colon"),
        ("x.zip", "in .zip, which nsbuild does not write"),
        ("x.tar.xz", "in .tar.xz, which nsbuild does not write"),
        (".", "is the directory you are in"),
        ("home", "is your home"),
        ("/", "holds the directory you are in"),
    ):
        site.build(site.path / "app", site.path / "pack", output=output).refused(2, output, *words)
    assert snapshot(site.path / "photos") == before
    assert (site.path / "file").read_text() == "precious"
    assert (site.path / "app/main.tgz").read_text() == "print('precious')\n"


def test_an_archive_is_replaced_by_one_of_its_own_format(site: Site) -> None:
    app, pack = site.app(), site.buildpack()
    for name in ("slug.tgz", "slug.tar.zst", "slug.squashfs", "oci:image"):
        for _ in range(2):
            site.build(app, pack, output=name).ok()
    site.write("empty.tgz")
    site.build(app, pack, output="empty.tgz").ok()
    before = snapshot(site.path / "slug.tgz")
    os.rename(site.path / "slug.tgz", site.path / "other.squashfs")
    site.build(app, pack, output="other.squashfs").refused(2, "no squashfs archive")
    os.rename(site.path / "other.squashfs", site.path / "slug.tgz")
    assert {**snapshot(site.path / "slug.tgz")}["."][3] == before["."][3]


def test_without_mksquashfs_a_squashfs_is_refused_before_the_build(site: Site) -> None:
    """A PATH of links to everything else."""
    tools = site.mkdir("tools")
    for directory in ("/usr/sbin", "/usr/bin"):
        for entry in os.scandir(directory):
            if entry.name != "mksquashfs" and not os.path.lexists(tools / entry.name):
                (tools / entry.name).symlink_to(entry.path)
    result = site.build(site.app(), site.buildpack(), output="x.squashfs", env={"PATH": str(tools)})
    result.refused(2, "x.squashfs", "needs mksquashfs", "squashfs-tools")
    assert result.out == b""


@ordinary
def test_an_output_that_cannot_be_written_is_said_before_the_build(site: Site) -> None:
    closed = site.mkdir("closed")
    app, pack = site.app(), site.buildpack("echo compiled")
    for mode in (0o555, 0o300, 0o600):
        closed.chmod(mode)
        result = site.build(app, pack, output=closed / "out").refused(2, str(closed), "may not read and write")
        assert result.out == b""


def test_missing_parents_of_the_output_are_made(site: Site) -> None:
    site.build(site.app(), site.buildpack(), output=site.path / "a/b/slug.tar.gz").ok()
    assert (site.path / "a/b/slug.tar.gz").is_file()


def test_an_archive_has_everything_and_the_digest_is_its_own(site: Site) -> None:
    app = site.app(Procfile="web: x\n", data="1" * 5000)
    os.link(app / "data", app / "again")
    site.symlink("app/link", "/absolute/target")
    site.write("app/bin/tool", "x", 0o755)
    site.mkdir("app/empty")
    path = site.path / "slug.tgz"
    result = site.build(app, site.buildpack(), output=path).ok()
    marker = subprocess.run(["tar", "-xOzf", path, "./.nsbuild-slug"], capture_output=True, check=True).stdout
    assert result.record["slug"] == {
        "path": str(path),
        "format": "tgz",
        "bytes": path.stat().st_size,
        "digest": f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
        "sizes": {".": len("web: x\n") + 5000 + len(marker), "bin": 1},
        "left_out": [],
    }
    listed = subprocess.run(["tar", "-tvzf", path], capture_output=True, check=True, text=True).stdout
    assert "link -> /absolute/target" in listed and "./empty/" in listed
    assert " link to ./" in listed
    assert "-rwxr-xr-x" in listed
    with tarfile.open(path) as archive:
        assert {(member.uid, member.gid, member.uname) for member in archive} == {(0, 0, "")}


def test_extended_attributes_do_not_get_into_an_archive_without_a_word(site: Site) -> None:
    script = "import os, sys; os.setxattr(sys.argv[1], 'user.origin', b'x')"
    pack = site.buildpack(f"""echo x >"$1/tool"; python3 -c "{script}" "$1/tool" """)
    done = site.build(site.app(), pack, output=site.path / "slug.tgz").ok()
    said = "Extended attributes are left out of the slug: 1 files have some, tool for one."
    assert said in done.err and said in done.record["warnings"]


def test_the_same_tree_gives_the_same_archive(site: Site) -> None:
    app = site.app(Procfile="web: x\n", b="1", a="2", c="3")
    os.link(app / "a", app / "d")
    slugs = [slug.prepare(str(app), slug.Output(site.path / f"{name}.tgz", "tgz"), None) for name in ("one", "two")]
    assert slugs[0].slug.digest == slugs[1].slug.digest != ""
    for prepared in slugs:
        prepared.discard()


def test_the_marker_says_where_the_slug_runs(site: Site) -> None:
    site.build(site.app(), site.buildpack()).ok()
    marker = json.loads((site.out / ".nsbuild-slug").read_text())
    assert (marker["schema"], marker["run_path"], marker["layout"]) == (1, "/app", "app")


# -- the cache


def test_the_cache_is_kept_from_build_to_build(site: Site) -> None:
    app, pack = site.app(), site.buildpack(COUNT)
    hits = [site.build(app, pack) for _ in range(3)]
    assert [hit.ok().out for hit in hits] == [b"build 1\n", b"build 2\n", b"build 3\n"]
    assert [hit.record["cache_hit"] for hit in hits] == [False, True, True]
    assert "cache: used" not in hits[0].err and "cache: used" in hits[1].err


def test_caches_are_kept_apart_by_app_stack_and_layout(site: Site) -> None:
    one, two, pack = site.app("one"), site.app("two"), site.buildpack(COUNT)
    assert site.build(one, pack).ok().out == b"build 1\n"
    for different in (
        (two,),
        (one, "--stack", "other"),
        (one, "--layout", "classic"),
        (one, "--run-path", "/workspace"),
        (one, "--app", "a-name"),
        (one, "--cache", str(site.path / "elsewhere")),
    ):
        source, *options = different
        for expected in (b"build 1\n", b"build 2\n"):
            assert site.build(str(source), pack, *map(str, options)).ok().out == expected, different
    assert site.build(two, pack, "--app", "a-name").ok().out == b"build 3\n"
    assert site.build(one, pack).ok().out == b"build 2\n"


def test_the_slug_shares_no_inode_with_the_cache_or_the_source(site: Site) -> None:
    """Buildpacks link; what is published must not change with what the next build does to its cache."""
    app = site.app(Procfile="web: x\n", data="1")
    pack = site.buildpack('echo 1 > "$1/made"; ln -f "$1/made" "$1/data" "$2"; ln -f "$1/made" "$1/twice"')
    for _ in range(2):
        site.build(app, pack).ok()
        (cache,) = site.caches()
        assert (cache / "made").read_text() == "1\n" and (cache / "data").read_text() == "1"
        assert not inodes(site.out) & inodes(cache)
        assert not inodes(site.out) & inodes(app)
        assert not inodes(cache) & inodes(app)
        assert (site.out / "made").stat().st_ino == (site.out / "twice").stat().st_ino


def test_a_build_works_on_a_private_copy_of_the_cache(site: Site) -> None:
    """In-place appends of a build that fails do not reach the kept one."""
    site.build(site.app(), site.buildpack('echo kept > "$2/file"')).ok()
    (cache,) = site.caches()
    before = snapshot(cache)
    site.build(site.app(), site.buildpack('echo more >> "$2/file"; exit 1', "bad")).refused(11)
    assert snapshot(cache) == before


def test_two_builds_at_once_share_a_cache_and_none_is_torn(site: Site) -> None:
    """Private copies, the last success wins."""
    script = """
        who=$(cat "$3/WHO"); mkdir -p "$2/d"; rm -f "$2"/d/*
        for i in $(seq 200); do echo $who > "$2/d/$i"; echo $who > "$1/$i"; done
        """
    app, pack = site.app(), site.buildpack(script)
    running = [
        site.start(*site.words(app, pack, "--env", f"WHO={number}"), stdout=subprocess.DEVNULL) for number in range(4)
    ]
    for process in running:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    (cache,) = site.caches()
    for top in (cache / "d", site.out):
        marks = {path.read_text() for path in top.iterdir() if path.name.isdigit()}
        assert len(marks) == 1, marks
        assert len([path for path in top.iterdir() if path.name.isdigit()]) == 200


def test_a_cache_of_any_tree_comes_back(site: Site) -> None:
    """Mode-0 files, closed directories, sparse files, links, odd names, and paths beyond PATH_MAX."""
    script = r"""
        cd "$2"; if [ -e made ]; then stat -c '%a %n' closed secret; readlink link; exit; fi
        touch made; echo 1 > secret; mkdir closed; touch closed/in; chmod 0 secret; chmod 555 closed
        ln -s /nowhere link; truncate -s 1T sparse; touch $'odd\n\xff'; mkfifo pipe
        for i in $(seq 30); do d=$(head -c 200 /dev/zero | tr '\0' x); mkdir $d; cd $d; done
        """
    app, pack = site.app(), site.buildpack(script)
    site.build(app, pack).ok()
    assert site.build(app, pack).ok().text.split() == ["555", "closed", "0", "secret", "/nowhere"]
    site.build(app, site.buildpack('chmod 755 "$2/closed"; rm -rf "$2"', "clean")).ok()


def test_the_workspace_may_be_on_another_filesystem(site: Site) -> None:
    elsewhere = Path("/dev/shm")
    if elsewhere.stat().st_dev == site.path.stat().st_dev or os.statvfs(elsewhere).f_flag & os.ST_NOEXEC:
        pytest.skip("needs a second filesystem where programs run")
    app, pack = site.app(), site.buildpack(COUNT)
    place = elsewhere / f"nsbuild-{os.urandom(6).hex()}"
    try:
        for expected in (b"build 1\n", b"build 2\n"):
            assert site.build(app, pack, "--workspace-dir", str(place)).ok().out == expected
        assert os.listdir(place) == []
    finally:
        shutil.rmtree(place)
    assert (site.out / "n").read_text() == "2\n"
