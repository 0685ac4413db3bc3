"""What reaches a build of the source, the buildpacks and the config vars, and that none of them is changed."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from support.sites import PERSON, Site, as_root, snapshot

pytest_plugins = ["support.site_fixtures"]


def test_git_is_left_out_at_any_depth(site: Site) -> None:
    app = site.app()
    for name in (".git/config", "vendor/lib/.git/HEAD", "sub/.git", ".gitignore", "sub/git", "sub/.github/x"):
        site.write(f"app/{name}", "x")
    site.build(app, site.buildpack('find "$1" -path "*git*" | sort')).ok()
    found = {str(path.relative_to(site.out)) for path in site.out.rglob("*git*")}
    assert found == {".gitignore", "sub/git", "sub/.github"}


def test_symlinks_modes_times_and_hard_links_are_kept(site: Site) -> None:
    app = site.app()
    for mode in (0o644, 0o755, 0o600, 0o444, 0o640, 0o777):
        site.write(f"app/mode-{mode:o}", "x", mode)
    site.symlink("app/link", "mode-644")
    site.symlink("app/dangling", "/nonexistent/target")
    site.symlink("app/up", "../outside")
    os.link(site.write("app/one", "the same"), app / "two")
    closed = site.mkdir("app/closed")
    closed.chmod(0o500)
    os.utime(app / "one", (1_000_000_000, 1_000_000_000))
    look = 'cd "$1" && stat -c "%n %a %h %Y" one two closed mode-*; readlink link dangling up'
    seen = site.build(app, site.buildpack(look))
    lines = seen.ok().text.splitlines()
    assert lines[:3] == ["one 644 2 1000000000", "two 644 2 1000000000", lines[2]]
    assert lines[2].startswith("closed 500 ")
    for mode in (0o644, 0o755, 0o600, 0o444, 0o640, 0o777):
        assert any(line.startswith(f"mode-{mode:o} {mode:o} ") for line in lines), lines
        assert stat.S_IMODE((site.out / f"mode-{mode:o}").stat().st_mode) == mode
    assert lines[-3:] == ["mode-644", "/nonexistent/target", "../outside"]
    assert os.readlink(site.out / "dangling") == "/nonexistent/target"
    assert (site.out / "one").stat().st_ino == (site.out / "two").stat().st_ino
    assert stat.S_IMODE((site.out / "closed").stat().st_mode) == 0o500


def test_names_of_any_bytes_come_through(site: Site) -> None:
    app = site.app(**{"Procfile": "a: b\n"})
    for raw in (b"new\nline", b"\xff\xfe", "höhe".encode(), b"colon:comma,", b"-rf", b" "):
        site.write(f"app/{os.fsdecode(raw)}", "x")
    pack = site.buildpack()
    site.build(app, pack).ok()
    names = {os.fsencode(path.name) for path in site.out.iterdir()}
    assert {b"new\nline", b"\xff\xfe", "höhe".encode(), b"colon:comma,", b"-rf", b" "} <= names
    site.build(app, pack, output=site.path / "slug.tgz").ok()
    listed = site.run(site.path / "slug.tgz", "--", "ls", "-b").ok()
    assert b"\\377\\376" in listed.out and b"new\\nline" in listed.out


@pytest.mark.parametrize("fails", [False, True])
def test_source_and_buildpacks_are_not_changed(site: Site, fails: bool) -> None:
    """Even by a buildpack that tries, through what it sees of them."""
    app = site.app(Procfile="web: x\n", data="1")
    site.write("app/bin/run", "x", 0o600)
    os.link(app / "data", app / "linked")
    pack = site.buildpack(
        f"""
        echo more >> "$1/data"; chmod 777 "$1/bin/run"; rm "$1/Procfile"; mkdir "$1/new"
        echo "export A=1" >> export; echo >> bin/compile; rm bin/detect; touch new
        mkdir -p "$2/kept"; exit {int(fails)}
        """,
        release="echo --- {}",
    )
    pack.joinpath("bin/release").chmod(0o644)
    site.write("pack/export", "export STALE=1\n")
    site.write("pack/.git/HEAD", "x")
    before = snapshot(app), snapshot(pack)
    assert site.build(app, pack).code == (11 if fails else 0)
    assert (snapshot(app), snapshot(pack)) == before


def test_what_cannot_be_copied_is_left_out_and_said(site: Site) -> None:
    app = site.app()
    os.mkfifo(app / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(app / "socket"))
        site.own(app / "fifo", app / "socket")
        result = site.build(app, site.buildpack()).ok()
    assert len(result.record["warnings"]) == 2
    assert "fifo" in result.err and "socket" in result.err
    assert not (site.out / "fifo").exists()


def test_setuid_bits_do_not_reach_the_slug(site: Site) -> None:
    app = site.app()
    site.write("app/source-setuid", "x", 0o4755)
    pack = site.buildpack('touch "$1/made"; chmod 6755 "$1/made" "$1/source-setuid"')
    for output in (site.out, site.path / "slug.tgz"):
        site.build(app, pack, output=output).ok()
    assert stat.S_IMODE((site.out / "made").stat().st_mode) == 0o755
    listed = subprocess.run(["tar", "-tvzf", site.path / "slug.tgz"], capture_output=True, check=True, text=True)
    assert "s" not in "".join(line[:10] for line in listed.stdout.splitlines())


def test_a_stale_export_is_removed(site: Site) -> None:
    one, two = site.buildpack("ls export 2>&1 || true", "one"), site.buildpack('echo "[${STALE-unset}]"', "two")
    site.write("one/export", "export STALE=1\n")
    assert "[unset]" in site.build(site.app(), one, two).ok().text
    one.joinpath("export").unlink()
    site.write("one/export/something", "")
    assert "[unset]" in site.build(site.path / "app", one, two).ok().text


def test_scripts_without_the_x_bit_are_run(site: Site) -> None:
    pack = site.buildpack("echo compiled", release="echo 'default_process_types: {extra: echo 1}'")
    for script in ("detect", "compile", "release"):
        (pack / "bin" / script).chmod(0o644)
    result = site.build(site.app(), pack).ok()
    assert b"compiled" in result.out
    assert result.record["process_types"]["extra"] == "echo 1"


def test_one_buildpack_twice_and_by_a_relative_path(site: Site) -> None:
    pack = site.buildpack('echo "at $PWD"')
    site.app()
    result = site.nsbuild("build", "app", "-b", "pack", "-b", f"../{site.path.name}/pack/", "-o", "out")
    assert result.ok().out == b"at /tmp/buildpacks/0\nat /tmp/buildpacks/1\n"
    assert pack.is_dir()


def test_the_default_output_is_beside_nothing_else(site: Site) -> None:
    """./NAME.tgz, and a second build from within the source does not pack the first one's slug."""
    app = site.app(Procfile="web: x\n")
    pack = site.buildpack('ls -A "$1"')
    for _ in range(2):
        result = site.nsbuild("build", ".", "-b", pack, cwd=app).ok()
        assert result.out == b"Procfile\n"
    assert sorted(path.name for path in app.iterdir()) == ["Procfile", "app.tgz"]


def test_a_cache_and_workspaces_within_the_source_are_not_staged(site: Site) -> None:
    app = site.app(Procfile="web: x\n")
    pack = site.buildpack('ls -A "$1"; echo 1 > "$2/kept"')
    for _ in range(2):
        result = site.nsbuild(
            "build", ".", "-b", pack, "--cache", "cache", "--workspace-dir", "work", "-o", "out", cwd=app
        ).ok()
        assert result.out == b"Procfile\n"
    assert result.err.count("cache: used") == 1


def test_the_source_may_be_a_symlink(site: Site) -> None:
    site.app()
    link = site.symlink("link", "app")
    result = site.build(link, site.buildpack()).ok()
    assert result.record["source"] == str(site.path / "app")


@as_root
def test_root_builds_a_users_source_as_that_user(site: Site) -> None:
    pack = site.buildpack("id -u; id -g; id -G; grep CapEff /proc/self/status")
    result = site.build(site.app(), pack, root=True)
    uid, gid, groups, capabilities = result.ok().text.splitlines()
    assert (uid, gid, groups) == (str(PERSON), str(PERSON), str(PERSON))
    assert int(capabilities.split()[1], 16) == 0
    assert {path.lstat().st_uid for path in site.out.rglob("*")} == {PERSON}


@as_root
def test_root_may_say_as_whom(site: Site) -> None:
    app, pack = site.app(), site.buildpack("id -u")
    assert site.build(app, pack, "--user", "4711:4712", root=True).ok().out == b"4711\n"
    for user in ("0", "root", "0:0", "12:0", "nobody-of-that-name", "-1"):
        site.build(app, pack, f"--user={user}", root=True).refused(2, "user")


@as_root
def test_root_leaves_the_same_owner_whether_renamed_or_copied(site: Site) -> None:
    """The workspace on another filesystem than the output."""
    app, pack = site.app(), site.buildpack('echo 1 > "$1/made"')
    elsewhere = Path("/dev/shm")
    if elsewhere.stat().st_dev == site.path.stat().st_dev or os.statvfs(elsewhere).f_flag & os.ST_NOEXEC:
        pytest.skip("needs a second filesystem where programs run")
    site.build(app, pack, "--workspace-dir", str(elsewhere / site.path.name), root=True).ok()
    assert {path.lstat().st_uid for path in site.out.rglob("*")} == {PERSON}
