"""How BUILD_DIR and CACHE_DIR get into the view and come back: adopted, bound, refused; and nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.builders import Builder
from support.processes import ROOT, SOMEBODY, become, private_mounts
from support.rooms import Output
from support.sites import NSBUILD, PERSON, Result, as_root, ordinary

from nsbuild.sandbox import kernel

pytest_plugins = ["support.builder_fixtures"]

WAIT = 'echo ready; while [ ! -e "$3/go" ]; do sleep 0.02; done; '


class Under:
    """A compile that is under way, and goes on at `go`."""

    def __init__(self, builder: Builder, script: str, *options: str) -> None:
        self.builder = builder
        builder.pack(WAIT + script)
        words = builder.words("--report", builder.path / "record.json", *options)
        self.process = builder.start(*words)
        assert self.process.stdout is not None
        Output(os.dup(self.process.stdout.fileno())).wait_for(b"ready")

    def go(self) -> Result:
        (self.builder.env / "go").touch()
        out, err = self.process.communicate(timeout=50)
        (self.builder.env / "go").unlink()
        return Result(self.process.returncode, out, err.decode())


@pytest.fixture
def memory(builder: Builder) -> Iterator[Path]:
    """A directory on a tmpfs, of the builder's."""
    path = Path(tempfile.mkdtemp(prefix="wrap-", dir="/dev/shm"))
    path.chmod(0o755)
    builder.own(path)
    yield path
    left = os.listdir(path)
    shutil.rmtree(path)
    assert not [name for name in left if name.startswith(".nsbuild")], left


def how(builder: Builder, *options: str, **more: Any) -> tuple[str, str]:
    """What became of BUILD_DIR and of CACHE_DIR, after a compile that writes into both."""
    builder.pack('cat "$1/source"; echo 1 > "$1/made"; echo 2 > "$2/made"')
    result = builder.compile("--verbose", *options, **more).ok()
    assert result.out == b"precious"
    found = result.record["attached"]
    ways = [found[os.path.realpath(path)] for path in (builder.build, builder.cache)]
    for path, way in zip((builder.build, builder.cache), ways, strict=True):
        assert f"{os.path.realpath(path)}: {way.replace(': ', ', since ', 1)}." in result.err
    return ways[0], ways[1]


def written(builder: Builder) -> None:
    assert (builder.build / "made").read_text() == "1\n"
    assert (builder.cache / "made").read_text() == "2\n"
    builder.intact()


# -- auto, adopt and bind, and why


def test_auto_adopts_what_can_be_renamed(builder: Builder) -> None:
    assert how(builder) == ("adopt: it can be renamed",) * 2
    written(builder)
    assert how(builder, "--attach", "adopt") == ("adopt: it can be renamed",) * 2
    written(builder)


def test_bind_when_it_is_asked_for(builder: Builder) -> None:
    assert how(builder, "--attach", "bind") == ("bind: it was asked for",) * 2
    written(builder)


def move(builder: Builder, name: str) -> Path:
    """BUILD_DIR is somewhere else."""
    parent = builder.site.mkdir(name)
    builder.names.add(name.split("/")[0])
    builder.build = builder.build.rename(parent / "build")
    return parent


def test_a_parent_that_cannot_be_written(person: Builder) -> None:
    parent = move(person, "closed")
    parent.chmod(0o555)
    build, cache = how(person)
    assert build == f"bind: {parent} cannot be written, so nothing in it can be renamed" and "adopt" in cache
    written(person)
    person.compile("--attach", "adopt").refused(125, "cannot be adopted", "cannot be written", "--attach auto")
    person.intact()


@as_root
def test_a_sticky_parent_of_somebody_elses(person: Builder) -> None:
    parent = move(person, "sticky")
    os.chown(parent, 0, 0)
    parent.chmod(0o1777)
    assert how(person)[0] == "adopt: it can be renamed", "BUILD_DIR is ours"
    os.chown(person.build, 0, 0)
    person.build.chmod(0o777)
    os.chown(person.build / "made", 0, 0)
    (person.build / "made").chmod(0o666)
    assert how(person)[0] == f"bind: {parent} is sticky, and {person.build} is not yours"
    written(person)


@as_root
@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_somebody_elses_directory_in_a_parent_of_ours(person: Builder, mode: int) -> None:
    """rename(2) writes into a directory that changes parents."""
    person.pack('cat "$1/source"; touch "$1/made" 2>/dev/null && echo " written"')
    os.chown(person.build, SOMEBODY + 7, SOMEBODY + 7)
    person.build.chmod(mode)
    result = person.compile()
    assert result.out == (b"precious written\n" if mode == 0o777 else b"precious")
    assert person.attached(result)[0] == ("adopt" if mode == 0o777 else "bind")
    person.intact()


def test_a_directory_without_write_permission_of_its_own(person: Builder) -> None:
    person.pack('cat "$1/source"; touch "$1/made" 2>/dev/null; chmod 755 "$1"; touch "$1/made"')
    person.build.chmod(0o555)
    result = person.compile().ok()
    assert result.record["attached"][str(person.build)] == f"bind: {person.build} has no write permission of its own"
    assert (person.build / "made").exists()
    person.intact()


def test_modes_survive(builder: Builder) -> None:
    """A directory is made writable to be renamed, and then is what it was."""
    for mode in (0o700, 0o500 if builder.as_root else 0o711, 0o2775, 0o1777):
        builder.build.chmod(mode)
        builder.pack('stat -c %a "$1"')
        result = builder.compile().ok()
        assert result.text.strip() == f"{mode:o}" and builder.attached(result)[0] == "adopt"
        assert stat.S_IMODE(builder.build.stat().st_mode) == mode
        builder.intact()


def in_mounts(builder: Builder, mount: Callable[[], None]) -> Callable[[], None]:
    """Mounts of nsbuild's own, made before it starts."""

    def prepare() -> None:
        private_mounts()
        mount()
        if builder.as_root and os.geteuid() != 0:
            raise RuntimeError("root was lost")

    return prepare


def onto_itself(path: Path) -> Callable[[], None]:
    return lambda: kernel.mount(str(path), str(path), "", kernel.MS_BIND)


def test_a_mount_point(builder: Builder) -> None:
    build, cache = how(builder, prepare=in_mounts(builder, onto_itself(builder.build)))
    assert build == f"bind: {builder.build} is a mount point, which cannot be renamed" and "adopt" in cache
    written(builder)
    build, cache = how(builder, prepare=in_mounts(builder, onto_itself(builder.cache)))
    assert cache == f"bind: {builder.cache} is a mount point, which cannot be renamed" and "adopt" in build
    written(builder)


def test_a_mount_inside(builder: Builder) -> None:
    data = builder.site.write("build/data/hidden", "hidden").parent
    shown = builder.site.write("data/file", "mounted").parent
    builder.own(builder.build, shown)
    builder.names.add("data")
    builder.pack('cat "$1/data/file"; echo more >> "$1/data/file"')
    prepare = in_mounts(builder, lambda: kernel.mount(str(shown), str(data), "", kernel.MS_BIND))
    result = builder.compile(prepare=prepare).ok()
    assert result.out == b"mounted"
    assert result.record["attached"][str(builder.build)] == f"bind: something is mounted below {builder.build}"
    assert (shown / "file").read_text() == "mountedmore\n" and (data / "hidden").read_text() == "hidden"
    builder.intact()


def test_the_cache_on_another_filesystem(builder: Builder, memory: Path) -> None:
    builder.cache = memory / "cache"
    builder.cache.mkdir()
    builder.own(builder.cache)
    build, cache = how(builder)
    assert cache == f"bind: {builder.cache} is on another file system, or mount of one, than the workspace"
    assert "adopt" in build
    written(builder)
    builder.compile("--attach", "adopt").refused(125, "CACHE_DIR cannot be adopted", "another file system")


def test_build_dir_on_a_tmpfs(builder: Builder, memory: Path) -> None:
    """The workspace is made beside it, so that it can be renamed, and is removed."""
    builder.build = Path(shutil.copytree(builder.build, memory / "build"))
    builder.own(builder.build)
    builder.inode = builder.build.stat().st_ino
    build, cache = how(builder)
    assert build == "adopt: it can be renamed" and "another file system" in cache
    written(builder)
    builder.cache = memory / "cache"
    builder.pack('ln "$1/source" "$2/linked"')
    assert builder.attached(builder.compile().ok()) == ["adopt", "adopt"]
    assert (builder.cache / "linked").samefile(builder.build / "source")
    builder.compile("--bind", "/nonexistent").refused(125, "/nonexistent")
    builder.intact()
    assert sorted(os.listdir(memory)) == ["build", "cache"]


def test_a_symlinked_build_dir(builder: Builder) -> None:
    link = builder.site.symlink("link", str(builder.build))
    builder.names.add("link")
    real, builder.build = builder.build, link
    assert how(builder)[0] == "adopt: it can be renamed"
    assert os.readlink(link) == str(real)
    written(builder)


def test_a_workspace_where_it_is_wanted(builder: Builder) -> None:
    place = builder.site.mkdir("work")
    builder.own(place)
    builder.names.add("work")
    assert how(builder, "--workspace-dir", str(place)) == ("adopt: it can be renamed",) * 2
    assert os.listdir(place) == []
    assert builder.workspaces() == []
    written(builder)


@pytest.mark.parametrize("full", ["build", "state"])
def test_a_full_disk(person: Builder, full: str) -> None:
    """Refused in a sentence; nothing is moved, or it works all the same."""
    small = person.site.mkdir("small")
    person.pack("echo ran")
    script = person.site.write(
        "script",
        f"""
        mkdir -p small/build small/state; echo precious > small/build/source
        [ {full} = state ] || export XDG_STATE_HOME=$PWD/state
        [ {full} = build ] || export XDG_STATE_HOME=$PWD/small/state
        build={"small/build" if full == "build" else "build"}
        "$@" compile pack $build cache env || exit
        head -c 10000000 /dev/zero > small/fill 2>/dev/null; for i in $(seq 150); do mkdir small/d$i 2>/dev/null; done
        "$@" compile pack $build cache env; echo "code $?"
        ls -A small | grep -v ^d; cat small/build/source; ls -A small/build
        """,
    )

    def prepare() -> None:
        private_mounts()
        kernel.mount("tmpfs", str(small), "tmpfs", 0, "mode=777,size=1m,nr_inodes=150")
        if os.geteuid() == 0:
            become(PERSON, PERSON)

    done = subprocess.run(
        ["bash", script, *NSBUILD],
        cwd=person.path,
        env=person.site.environment(),
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-6:] == ["code 125", "build", "fill", "state", "precious", "source"], done
    assert "No space left on device" in done.stderr and len(done.stderr.splitlines()) == 1
    assert done.stdout.startswith("ran\ncode 125")
    person.names |= {"small", "script", "state"}
    person.intact()


def test_it_is_gone(person: Builder) -> None:
    person.pack("echo ran")
    shutil.rmtree(person.build)
    person.compile().refused(125, f"BUILD_DIR {person.build} does not exist")
    assert not person.build.exists()


def test_unreadable(person: Builder) -> None:
    person.pack("echo ran")
    for mode in (0, 0o300):
        person.build.chmod(mode)
        person.compile().refused(125, str(person.build), "Permission denied")
    person.build.chmod(0o755)
    person.cache.chmod(0)
    result = person.compile()
    assert result.code in (0, 125)
    assert stat.S_IMODE(person.cache.stat().st_mode) == 0
    person.intact()


# -- root


def foreign(builder: Builder, name: str) -> None:
    os.chown(builder.site.write(name), SOMEBODY + 7, SOMEBODY + 7)


@as_root
@pytest.mark.parametrize("place", ["build/sub", "cache/sub"])
@pytest.mark.parametrize("attach", ["adopt", "bind"])
def test_root_is_refused_what_belongs_to_two(builder: Builder, place: str, attach: str) -> None:
    if not builder.as_root:
        pytest.skip("an ordinary user's files are that user's")
    foreign(builder, f"{place}/theirs")
    builder.own(builder.path / place)
    os.chown(builder.path / place / "theirs", SOMEBODY + 7, SOMEBODY + 7)
    builder.pack("echo ran")
    result = builder.compile("--attach", attach).refused(125, "sub/theirs", f"uid {SOMEBODY + 7}", "chown")
    assert result.out == b""
    builder.intact()


@as_root
@ordinary
def test_a_cache_of_the_users_beside_a_build_dir_of_roots() -> None:
    from support.sites import new_site, remove_site

    site = new_site("wrap")
    try:
        builder = Builder(site, "root-owned")
        os.chown(builder.cache, PERSON, PERSON)
        builder.pack("echo ran")
        builder.compile().refused(125, str(builder.cache), f"uid {PERSON}")
        builder.pack('touch "$1/made" "$2/made"; stat -c %u "$1" "$2/made"')
        result = builder.compile("--user", str(PERSON)).ok()
        assert result.text.split() == [str(PERSON)] * 2
        assert builder.attached(result) == ["adopt", "bind"]
        assert "unlike BUILD_DIR" in result.record["attached"][str(builder.cache)]
        assert (builder.build / "made").stat().st_uid == 0
        assert (builder.cache / "made").stat().st_uid == PERSON
        builder.intact()
    finally:
        remove_site(site)


@as_root
@pytest.mark.parametrize("user", ["root", "0", "0:0", "no-such-user", "1:x", f"{SOMEBODY}:0"])
def test_never_as_root(builder: Builder, user: str) -> None:
    builder.pack("echo ran")
    assert builder.compile("--user", user).refused(125, "--user").out == b""
    builder.intact()


# -- what a compile leaves at /app


@pytest.mark.parametrize("attach", ["adopt", "bind"])
def test_app_removed_and_made_again(builder: Builder, attach: str) -> None:
    builder.pack('rm -rf "$1" 2>/dev/null; mkdir -p "$1"; echo other > "$1/source"')
    result = builder.compile("--attach", attach)
    assert (builder.build / "source").read_text() == "other\n"
    assert (builder.build.stat().st_ino == builder.inode) == (attach == "bind")
    assert result.code == 0 and builder.left() == []


def test_a_symlink_is_given_back_as_it_is(builder: Builder) -> None:
    outside = builder.site.write("outside/file", "untouched").parent
    builder.names.add("outside")
    builder.pack(f'rm -rf "$1"; ln -s {outside} "$1"')
    builder.compile().ok()
    assert os.readlink(builder.build) == str(outside)
    assert (outside / "file").read_text() == "untouched" and os.listdir(outside) == ["file"]
    assert builder.left() == []


def test_a_file_is_given_back_as_it_is(builder: Builder) -> None:
    builder.pack('rm -rf "$1"; echo file > "$1"')
    builder.compile().ok()
    assert builder.build.read_text() == "file\n"
    assert builder.left() == []
    builder.compile().refused(125, str(builder.build), "not a directory")


def test_nothing_is_given_back_as_it_is(builder: Builder) -> None:
    builder.pack('rm -rf "$1"')
    builder.compile().ok()
    assert not os.path.lexists(builder.build)
    assert builder.left() == []


@pytest.mark.parametrize(
    "script",
    [
        'chmod 0 "$1" "$2"',
        'chmod 0 "$1" "$2" /tmp /',
        'mkdir -m 0 "$1/closed" "$2/closed"; touch "$1/x"; chmod 0 "$1/x"; chmod 555 "$1"',
        "mv /tmp /elsewhere; mkdir /tmp; mv /elsewhere/cache /tmp/cache",
    ],
)
def test_closed_doors(builder: Builder, script: str) -> None:
    builder.pack(script)
    builder.compile().ok()
    assert builder.build.stat().st_ino == builder.inode
    assert builder.left() == []
    if "chmod 0" in script and "closed" not in script:
        assert stat.S_IMODE(builder.build.stat().st_mode) == stat.S_IMODE(builder.cache.stat().st_mode) == 0
    builder.build.chmod(0o755)
    builder.intact()


def test_the_way_to_the_cache_made_a_link(builder: Builder) -> None:
    """/tmp leads out: what lies there is not taken for the cache."""
    outside = builder.site.write("outside/cache/file", "untouched").parent.parent
    builder.names.add("outside")
    builder.pack(f"mv /tmp /elsewhere; ln -s {outside} /tmp")
    builder.compile()
    assert (outside / "cache/file").read_text() == "untouched"
    builder.intact()


# -- others who are at it


def test_a_path_that_exists_again_is_not_overwritten(builder: Builder) -> None:
    under = Under(builder, 'echo built > "$1/built"')
    assert not builder.build.exists()
    builder.site.write("build/other", "somebody's")
    result = under.go()
    kept = Path(f"{builder.build}.nsbuild-recovered")
    assert result.code == 0
    assert result.last == f"nsbuild: {builder.build} exists again; what was built is in {kept}."
    assert os.listdir(builder.build) == ["other"]
    assert sorted(os.listdir(kept)) == ["built", "source"]
    builder.names.add(kept.name)
    assert builder.left() == []


@pytest.mark.parametrize("attach", ["adopt", "bind"])
def test_two_on_one_build_dir_exclude_each_other(builder: Builder, attach: str) -> None:
    under = Under(builder, "true", "--attach", attach)
    second = builder.compile("--attach", attach)
    assert second.refused(125, "in use by another nsbuild").out == b""
    builder.exec("true").refused(125, "in use by another nsbuild")
    assert under.go().code == 0
    builder.intact()


@pytest.mark.parametrize("attach", ["adopt", "bind"])
def test_two_with_one_cache_take_turns(builder: Builder, attach: str) -> None:
    under = Under(builder, 'echo first > "$2/file"', "--attach", attach)
    second = builder.site.mkdir("second")
    builder.own(second)
    builder.names.add("second")
    pack = builder.pack('cat "$2/file"', "reads")
    words: list[str | Path] = ["compile", "--attach", attach, pack, second, builder.cache]
    waiting = builder.start(*words)
    assert waiting.stderr is not None
    Output(os.dup(waiting.stderr.fileno())).wait_for(b"waiting")
    interrupted = builder.start(*words)
    assert interrupted.stderr is not None
    interrupted.send_signal(signal.SIGTERM)
    interrupted.communicate(timeout=50)
    assert under.go().code == 0
    assert waiting.communicate(timeout=50)[0] == b"first\n"
    assert list(builder.state.glob("nsbuild/turns/*")) == []
    builder.intact()


@contextmanager
def flock(path: Path) -> Iterator[None]:
    import fcntl

    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield
    os.close(fd)


def test_a_builder_that_locks_the_cache_itself(person: Builder) -> None:
    person.pack("echo ran")
    with flock(person.cache):
        assert person.compile().ok().out == b"ran\n"


# -- what cannot be given back


def test_a_parent_that_is_closed_meanwhile(person: Builder) -> None:
    """123, the record tells of the command, and recover finishes once the reason is gone."""
    parent = move(person, "parent")
    under = Under(person, 'echo built > "$1/built"; exit 5')
    parent.chmod(0o555)
    result = under.go().refused(123, str(person.build), "Permission denied", "nsbuild recover", "ended with 5")
    assert not person.build.exists()
    pack = person.pack("echo ran", "other")
    other = person.site.mkdir("second")
    person.names.add("second")
    result = person.nsbuild("compile", pack, other, person.cache).ok()
    assert "cannot be recovered" in result.err and result.out == b"ran\n", "others are not held up"
    person.compile().refused(125, str(person.build), "nsbuild recover")
    person.nsbuild("recover").refused(125, str(person.build))
    parent.chmod(0o755)
    assert person.nsbuild("recover").ok().text == f"{person.build} is back\n"
    assert (person.build / "built").read_text() == "built\n"
    person.intact()


def test_the_record_of_what_cannot_be_given_back(person: Builder) -> None:
    import json

    parent = move(person, "parent")
    under = Under(person, "exit 5")
    parent.chmod(0o555)
    under.go().refused(123)
    record = json.loads((person.path / "record.json").read_text())
    assert (record["exit_code"], record["path"], record["phases"][0]["exit_code"]) == (123, "namespace", 5)
    assert "Permission denied" in record["result"]
    parent.chmod(0o755)
    person.nsbuild("recover").ok()
    person.intact()


def test_a_parent_that_is_removed_meanwhile(builder: Builder) -> None:
    """The cache is given back all the same."""
    parent = move(builder, "parent")
    under = Under(builder, 'echo built > "$1/built"; echo x > "$2/x"')
    parent.rmdir()
    under.go().refused(123, str(builder.build), "No such file or directory", "nsbuild recover")
    assert os.listdir(builder.cache) == ["x"]
    parent.mkdir()
    builder.site.own(parent)
    assert builder.nsbuild("recover").ok().text == f"{builder.build} is back\n"
    assert (builder.build / "built").read_text() == "built\n"
    builder.intact()


def test_the_cache_cannot_be_given_back(builder: Builder) -> None:
    """BUILD_DIR is given back all the same."""
    parent = builder.site.mkdir("caches")
    builder.names.add("caches")
    builder.cache = builder.cache.rename(parent / "cache")
    under = Under(builder, 'echo x > "$2/x"')
    parent.rmdir()
    under.go().refused(123, str(builder.cache))
    assert builder.build.stat().st_ino == builder.inode
    parent.mkdir()
    builder.site.own(parent)
    builder.nsbuild("recover").ok()
    assert (builder.cache / "x").read_text() == "x\n"
    builder.intact()


def test_a_launch_that_fails_when_it_is_half_attached(person: Builder) -> None:
    """The cache vanishes between the look and the rename: BUILD_DIR comes back."""
    from support.processes import in_child

    from nsbuild.sandbox.skeleton import Skeleton
    from nsbuild.wrap import WrapOptions, compile_

    person.pack("echo ran")

    def action() -> str:
        os.environ.update(person.environment())
        if ROOT:
            become(PERSON, PERSON)
        place = Skeleton._place
        placed: list[object] = []

        def failing(self: Skeleton, operation: object) -> None:
            if len(placed) == 1:
                raise FileNotFoundError(2, "vanished", "cache")
            placed.append(operation)
            place(self, operation)  # type: ignore[arg-type]

        Skeleton._place = failing  # type: ignore[method-assign]
        try:
            compile_(str(person.path / "pack"), str(person.build), str(person.cache), "", {}, WrapOptions())
        except FileNotFoundError as error:
            return str(error.filename)
        return "it ran"

    assert in_child(action) == "cache"
    person.intact()


def test_a_failed_launch_whose_give_back_fails(person: Builder) -> None:
    """A workspace that is thrown away is not, while BUILD_DIR is in it."""
    from support.processes import in_child

    from nsbuild.errors import Refused
    from nsbuild.sandbox.skeleton import Skeleton
    from nsbuild.wrap import WrapOptions, compile_

    parent = move(person, "parent")
    work = person.site.mkdir("work")
    person.names.add("work")
    person.pack("echo ran")

    def action() -> str:
        os.environ.update(person.environment())
        if ROOT:
            become(PERSON, PERSON)
        place = Skeleton._place

        def closing(self: Skeleton, operation: object) -> None:
            place(self, operation)  # type: ignore[arg-type]
            if not person.build.exists():
                parent.chmod(0o555)
                raise OSError(5, "Input/output error", "somewhere")

        Skeleton._place = closing  # type: ignore[method-assign]
        options = WrapOptions(workspace_dir=str(work), fallback="direct")
        try:
            compile_(str(person.path / "pack"), str(person.build), str(person.cache), "", {}, options)
        except Refused as error:
            return str(error)
        return "it ran"

    said = in_child(action)
    assert "could not be put back" in said and "nsbuild recover" in said
    parent.chmod(0o755)
    assert person.nsbuild("recover").ok().text.endswith(f"{person.build} is back\n")
    assert os.listdir(work) == []
    person.intact()
