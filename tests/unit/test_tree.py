"""Every guard of nsbuild.tree has a test here that fails without it.

They run as root and as an ordinary user. What only an ordinary user meets (permissions) runs in a child that
has dropped to `nobody` when the suite is root; what needs a mount runs in a mount namespace of its own.
"""

import ctypes
import errno
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsbuild import tree
from nsbuild.tree import beneath, copy, links, remove, replace
from nsbuild.tree.descent import Descent, identity
from nsbuild.tree.walk import listings

NOBODY = 65534
ROOT = os.geteuid() == 0


@pytest.fixture
def ground() -> Iterator[str]:
    """A directory an unprivileged child can reach and write too; removed without the code under test."""
    path = tempfile.mkdtemp(prefix="tree-", dir="/var/tmp")
    if ROOT:
        os.chown(path, NOBODY, NOBODY)
    yield path
    subprocess.run(["chmod", "-R", "u+rwx", path], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["rm", "-rf", path], check=True)


def child(action: Callable[[], None], prepare: Callable[[], None]) -> None:
    """Run `action` in a forked child after `prepare`; fail as it fails. OSError in `prepare` skips."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        verdict = ""
        try:
            try:
                prepare()
            except OSError as error:
                verdict = f"skip{error}"
            else:
                action()
        except BaseException:
            verdict = "fail" + traceback.format_exc()
        finally:
            os.write(writer, verdict.encode(errors="replace")[:60000])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        verdict = stream.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    if verdict.startswith("skip"):
        pytest.skip(f"neither another user nor a mount namespace to be had here: {verdict[4:]}")
    if verdict:
        pytest.fail(verdict[4:])


def as_user(action: Callable[[], None]) -> None:
    """Run `action` as somebody whom permissions stop."""

    def drop() -> None:
        if ROOT:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)

    child(action, drop)


def with_mounts(action: Callable[[], None]) -> None:
    """Run `action` where it may mount."""

    def unshare() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        uid, gid = os.geteuid(), os.getegid()
        newns, newuser = 0x20000, 0x10000000
        if libc.unshare(newns | (0 if ROOT else newuser)):
            raise OSError(ctypes.get_errno(), "unshare")
        if not ROOT:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        if libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None):  # MS_REC | MS_PRIVATE
            raise OSError(ctypes.get_errno(), "mount")

    child(action, unshare)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def write(path: str, data: bytes = b"") -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)


def read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1 << 24)
    finally:
        os.close(fd)


def dig(path: str, depth: int, name: str, data: bytes = b"") -> None:
    """A chain of `depth` directories called `name`, in the deepest a file `end`."""
    os.mkdir(path)
    fd = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    end = os.open("end", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
    os.write(end, data)
    os.close(end)
    os.close(fd)


def bottom(path: str, name: str) -> tuple[int, bytes]:
    """How deep the chain is, and what its `end` holds."""
    depth = 0
    fd = os.open(path, os.O_RDONLY)
    with suppress(FileNotFoundError):
        while True:
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
            depth += 1
    end = os.open("end", os.O_RDONLY, dir_fd=fd)
    data = os.read(end, 100)
    os.close(end)
    os.close(fd)
    return depth, data


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """openat2 as a kernel without it answers (ENOSYS), or an old seccomp filter (EPERM)."""

    def refused(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(beneath, "openat2", refused)
    monkeypatch.setattr(remove, "openat2", refused)


def after_stat(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[str], None]) -> None:
    """Somebody meddles between the look at a name and the use of it."""
    real = os.stat

    def stat_then_meddle(path: str, *, dir_fd: int, follow_symlinks: bool) -> os.stat_result:
        info = real(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        meddle(path)
        return info

    monkeypatch.setattr(os, "stat", stat_then_meddle)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """What hangs fails."""

    def late(*_: object) -> None:
        raise AssertionError(f"still running after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- remove_tree -------------------------------------------------------------------------------------------


def test_remove_what_is_not_there(ground: str) -> None:
    tree.remove_tree(f"{ground}/none")
    tree.remove_tree(f"{ground}/none/deeper")


@pytest.mark.parametrize("path", ["", "/", ".", "a/..", "a/."])
def test_remove_wants_a_name(path: str) -> None:
    with pytest.raises(OSError) as caught:
        tree.remove_tree(path)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("fallback", [None, errno.ENOSYS, errno.EPERM])
def test_remove_does_not_follow_links(ground: str, monkeypatch: pytest.MonkeyPatch, fallback: int | None) -> None:
    if fallback:
        refuse(monkeypatch, fallback)
    write(f"{ground}/outside/file", b"keep")
    write(f"{ground}/t/a/file")
    os.symlink("../outside", f"{ground}/t/out")
    os.symlink(f"{ground}/outside/file", f"{ground}/t/a/file2")
    os.symlink("t", f"{ground}/link")
    tree.remove_tree(f"{ground}/link/")
    assert sorted(os.listdir(ground)) == ["outside", "t"]
    tree.remove_tree(f"{ground}/t")
    assert os.listdir(ground) == ["outside"]
    assert read(f"{ground}/outside/file") == b"keep"


def test_remove_beneath_a_descriptor_follows_no_link_on_the_way(ground: str) -> None:
    write(f"{ground}/outside/file", b"keep")
    os.mkdir(f"{ground}/t")
    os.symlink("../outside", f"{ground}/t/app")
    fd = os.open(f"{ground}/t", os.O_RDONLY)
    with pytest.raises(OSError) as caught:
        tree.remove_tree("app/file", dir_fd=fd)
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert read(f"{ground}/outside/file") == b"keep"
    tree.remove_tree("app", dir_fd=fd)
    assert os.listdir(fd) == []
    os.close(fd)


@pytest.mark.parametrize("fallback", [None, errno.ENOSYS])
def test_remove_a_directory_swapped_for_a_link(
    ground: str, monkeypatch: pytest.MonkeyPatch, fallback: int | None
) -> None:
    """Between the look and the open: the open itself must refuse."""
    if fallback:
        refuse(monkeypatch, fallback)
    write(f"{ground}/outside/file", b"keep")
    write(f"{ground}/t/a/file")
    real = remove._unlink

    def swap(dir_fd: int, name: str) -> bool:
        gone = real(dir_fd, name)
        if name == "a" and not gone:
            os.rename("a", "b", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            os.symlink("../outside", "a", dir_fd=dir_fd)
        return gone

    monkeypatch.setattr(remove, "_unlink", swap)
    tree.remove_tree(f"{ground}/t")
    assert os.listdir(ground) == ["outside"]
    assert read(f"{ground}/outside/file") == b"keep"


def test_remove_directories_that_forbid_it(ground: str) -> None:
    def action() -> None:
        write(f"{ground}/t/shut/deep/file")
        write(f"{ground}/t/read-only/file")
        write(f"{ground}/t/blind/file")
        os.mkdir(f"{ground}/t/empty", 0)
        os.chmod(f"{ground}/t/shut/deep", 0)
        os.chmod(f"{ground}/t/shut", 0)
        os.chmod(f"{ground}/t/read-only", 0o555)
        os.chmod(f"{ground}/t/blind", 0o600)
        os.chmod(f"{ground}/t", 0o500)
        tree.remove_tree(f"{ground}/t")
        assert os.listdir(ground) == []

    as_user(action)


def test_remove_leaves_the_directory_around_it_alone(ground: str) -> None:
    def action() -> None:
        write(f"{ground}/around/t/file")
        os.chmod(f"{ground}/around", 0o555)
        with pytest.raises(PermissionError) as caught:
            tree.remove_tree(f"{ground}/around/t")
        assert caught.value.filename == f"{ground}/around/t"
        assert stat.S_IMODE(os.stat(f"{ground}/around").st_mode) == 0o555

    as_user(action)


@pytest.mark.parametrize("filesystem", ["bind", "tmpfs", "root"])
def test_remove_stops_at_a_mount_point(ground: str, filesystem: str) -> None:
    def action() -> None:
        write(f"{ground}/outside/file", b"keep")
        os.makedirs(f"{ground}/t/a/mnt")
        target = f"{ground}/t" if filesystem == "root" else f"{ground}/t/a/mnt"
        if filesystem == "tmpfs":
            mount("-t", "tmpfs", "none", target)
            write(f"{target}/file", b"keep")
        else:  # the same filesystem: the device number does not tell
            mount("--bind", f"{ground}/outside", target)
        with pytest.raises(OSError) as caught:
            tree.remove_tree(f"{ground}/t")
        assert (caught.value.errno, caught.value.filename) == (errno.EXDEV, target)
        assert read(f"{target}/file") == b"keep"

    with_mounts(action)


def test_remove_stops_at_a_mount_point_without_openat2(ground: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def action() -> None:
        refuse(monkeypatch, errno.ENOSYS)
        os.makedirs(f"{ground}/t/mnt")
        mount("-t", "tmpfs", "none", f"{ground}/t/mnt")
        write(f"{ground}/t/mnt/file", b"keep")
        with pytest.raises(OSError) as caught:
            tree.remove_tree(f"{ground}/t")
        assert (caught.value.errno, caught.value.filename) == (errno.EXDEV, f"{ground}/t/mnt")
        assert read(f"{ground}/t/mnt/file") == b"keep"

    with_mounts(action)


def test_remove_while_another_does_too(ground: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        write(f"{ground}/t/{name}/deep/file")
    real = os.listdir

    def gone_meanwhile(fd: int) -> list[str]:
        names = real(fd)
        if "file" in names:
            os.unlink("file", dir_fd=fd)
        if "b" in names:
            shutil.rmtree(f"{ground}/t/b")
        return names

    monkeypatch.setattr(os, "listdir", gone_meanwhile)
    tree.remove_tree(f"{ground}/t")
    assert real(ground) == []


def test_remove_while_another_still_writes(ground: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(f"{ground}/t/a/file")
    real = os.rmdir
    late = ["late"]

    def rmdir(name: str, *, dir_fd: int) -> None:
        if late:
            write(f"{ground}/t/a/{late.pop()}")
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", rmdir)
    tree.remove_tree(f"{ground}/t")
    assert os.listdir(ground) == []


# --- depth and descriptors ---------------------------------------------------------------------------------


def test_deeper_than_path_max_with_few_descriptors(ground: str) -> None:
    name = "d" * 200

    def action() -> None:
        few_descriptors()
        dig(f"{ground}/t", 5000, name, b"deep down")
        tree.copy_tree(f"{ground}/t", f"{ground}/copy")
        assert bottom(f"{ground}/copy", name) == (5000, b"deep down")
        assert tree.tree_size(f"{ground}/copy") == (9, 5001)
        assert len(listed(f"{ground}/copy")[0]) == 1
        assert tree.break_hard_links(f"{ground}/copy") == 0
        tree.remove_tree(f"{ground}/copy")
        tree.remove_tree(f"{ground}/t")
        assert os.listdir(ground) == []

    as_user(action)


def test_branches_all_the_way_down(ground: str) -> None:
    """Going up past the window and down again: `..` must be the directory that was left."""

    def action() -> None:
        few_descriptors()
        os.mkdir(f"{ground}/t")
        path = f"{ground}/t"
        for depth in range(100):
            for side in ("a", "z"):
                write(f"{path}/{side}/file", str(depth).encode())
            path = f"{path}/m"
            os.mkdir(path)
        report = tree.copy_tree(f"{ground}/t", f"{ground}/copy")
        assert (report.files, report.directories) == (200, 300)
        subprocess.run(["diff", "-r", f"{ground}/t", f"{ground}/copy"], check=True)
        tree.remove_tree(f"{ground}/t")
        tree.remove_tree(f"{ground}/copy")
        assert os.listdir(ground) == []

    as_user(action)


def test_one_chain_after_another(ground: str) -> None:
    """What is open again after going up counts too."""

    def action() -> None:
        few_descriptors()
        os.mkdir(f"{ground}/t")
        for side in "abc":
            dig(f"{ground}/t/{side}", 100, "d")
        assert tree.tree_size(f"{ground}/t") == (0, 306)

    as_user(action)


def test_a_directory_moved_during_the_walk(ground: str) -> None:
    path = f"{ground}/t" + "/d" * 30
    os.makedirs(path)
    os.mkdir(f"{ground}/elsewhere")
    with Descent(f"{ground}/t", os.open(f"{ground}/t", os.O_RDONLY)) as descent:
        for _ in range(30):
            descent.enter("d", os.open("d", os.O_RDONLY, dir_fd=descent.fd))
        # The level above is closed by now, and `..` leads elsewhere.
        os.rename(f"{ground}/t" + "/d" * 5, f"{ground}/elsewhere/d")
        with pytest.raises(OSError) as caught:
            while True:
                os.close(descent.leave()[1])
    assert caught.value.errno == errno.ESTALE


def test_nothing_stays_open(ground: str) -> None:
    before = os.listdir("/proc/self/fd")
    dig(f"{ground}/t", 50, "d")
    os.mkfifo(f"{ground}/t/fifo")
    tree.copy_tree(f"{ground}/t", f"{ground}/copy")
    tree.tree_size(f"{ground}/copy")
    write(f"{ground}/file/is")
    for bad in (f"{ground}/none", f"{ground}/file/is"):
        with pytest.raises(OSError):
            tree.copy_tree(bad, f"{ground}/copy2")
    with pytest.raises(OSError):
        tree.copy_tree(f"{ground}/t", f"{ground}/copy")
    fd = os.open(ground, os.O_RDONLY)
    for bad in ("t", "t/fifo"):
        with pytest.raises(OSError):
            tree.read_beneath(fd, bad, 10)
    os.close(fd)
    tree.remove_tree(f"{ground}/t")
    assert os.listdir("/proc/self/fd") == before


# --- copy_tree ---------------------------------------------------------------------------------------------


def test_copy_keeps_modes_times_and_links(ground: str) -> None:
    write(f"{ground}/s/bin/tool", b"#!/bin/sh\n")
    os.chmod(f"{ground}/s/bin/tool", 0o751)
    os.symlink("/nowhere/../x", f"{ground}/s/dangling")
    os.makedirs(f"{ground}/s/shared")
    os.chmod(f"{ground}/s/shared", 0o1777)
    for path in ("bin/tool", "dangling", "bin", "shared", "."):
        os.utime(f"{ground}/s/{path}", ns=(10**18 + 3, 10**18 + 7), follow_symlinks=False)
    report = tree.copy_tree(f"{ground}/s", f"{ground}/d")
    assert (report.files, report.directories, report.symlinks, report.bytes) == (1, 2, 1, 10)
    assert report.left_out == []
    assert os.readlink(f"{ground}/d/dangling") == "/nowhere/../x"
    for path in ("bin/tool", "dangling", "bin", "shared", "."):
        old, new = os.lstat(f"{ground}/s/{path}"), os.lstat(f"{ground}/d/{path}")
        assert (old.st_mode, old.st_mtime_ns) == (new.st_mode, new.st_mtime_ns), path


def test_copy_into_an_empty_directory_only(ground: str) -> None:
    write(f"{ground}/s/file", b"x")
    os.mkdir(f"{ground}/d")
    tree.copy_tree(f"{ground}/s", f"{ground}/d")
    assert read(f"{ground}/d/file") == b"x"
    os.mkdir(f"{ground}/empty")
    os.symlink("empty", f"{ground}/link")
    write(f"{ground}/file")
    for name, number in (("d", errno.ENOTEMPTY), ("link", errno.ENOTDIR), ("file", errno.ENOTDIR)):
        with pytest.raises(OSError) as caught:
            tree.copy_tree(f"{ground}/s", f"{ground}/{name}")
        assert (caught.value.errno, caught.value.filename) == (number, f"{ground}/{name}")


def test_copy_does_not_follow_links(ground: str) -> None:
    write(f"{ground}/outside/secret")
    os.mkdir(f"{ground}/s")
    os.symlink("../outside", f"{ground}/s/out")
    os.symlink("s", f"{ground}/link")
    tree.copy_tree(f"{ground}/s", f"{ground}/d")
    assert os.readlink(f"{ground}/d/out") == "../outside"
    fd = os.open(f"{ground}/s", os.O_RDONLY)
    for source, target, src_dir_fd, dst_dir_fd in (
        (f"{ground}/link/", f"{ground}/d2", None, None),
        ("out", f"{ground}/d2", fd, None),
        (f"{ground}/s", "out/d2", None, fd),
    ):
        with pytest.raises(OSError) as caught:
            tree.copy_tree(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    os.close(fd)
    assert not os.path.exists(f"{ground}/d2")
    assert os.listdir(f"{ground}/outside") == ["secret"]


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_copy_of_an_entry_swapped_for_a_link(ground: str, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    write(f"{ground}/outside/secret", b"secret")
    write(f"{ground}/s/{'it/x' if kind == 'directory' else 'it'}", b"x")

    def swap(name: str) -> None:
        if name == "it":
            os.rename(f"{ground}/s/it", f"{ground}/was")
            os.symlink(f"../outside{'' if kind == 'directory' else '/secret'}", f"{ground}/s/it")

    with monkeypatch.context() as patched:
        after_stat(patched, swap)
        with pytest.raises(OSError) as caught:
            tree.copy_tree(f"{ground}/s", f"{ground}/d")
    assert caught.value.filename == f"{ground}/s/it"
    assert os.listdir(f"{ground}/d") == []


def test_copy_of_a_file_swapped_for_a_fifo_does_not_hang(ground: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(f"{ground}/s/it", b"x")

    def swap(name: str) -> None:
        if name == "it":
            os.unlink(f"{ground}/s/it")
            os.mkfifo(f"{ground}/s/it")

    with monkeypatch.context() as patched, within(60):
        after_stat(patched, swap)
        with pytest.raises(OSError) as caught:
            tree.copy_tree(f"{ground}/s", f"{ground}/d")
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, f"{ground}/s/it")


def test_copy_leaves_out_what_is_no_file(ground: str) -> None:
    os.makedirs(f"{ground}/s/a")
    os.mkfifo(f"{ground}/s/a/fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{ground}/s/socket")
    expected = [("a/fifo", "a FIFO"), ("socket", "a socket")]
    if ROOT:
        with suppress(PermissionError):  # root of a container may not
            os.mknod(f"{ground}/s/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            expected.insert(1, ("null", "a device"))
    with within(60):
        report = tree.copy_tree(f"{ground}/s", f"{ground}/d")
    assert report.left_out == expected
    assert os.listdir(f"{ground}/d") == ["a"]


def test_copy_shares_no_inode_and_keeps_links_within(ground: str) -> None:
    write(f"{ground}/s/a", b"one")
    os.mkdir(f"{ground}/s/deep")
    os.link(f"{ground}/s/a", f"{ground}/s/deep/b")
    os.link(f"{ground}/s/a", f"{ground}/elsewhere")
    report = tree.copy_tree(f"{ground}/s", f"{ground}/d")
    a, b = os.stat(f"{ground}/d/a"), os.stat(f"{ground}/d/deep/b")
    assert (a.st_ino, a.st_nlink) == (b.st_ino, 2)
    assert a.st_ino != os.stat(f"{ground}/s/a").st_ino
    assert (report.files, report.bytes) == (2, 3)
    with open(f"{ground}/d/deep/b", "ab") as file:  # noqa: PTH123
        file.write(b" and two")
    assert read(f"{ground}/s/a") == b"one"
    assert read(f"{ground}/d/a") == b"one and two"


def test_links_beyond_path_max_become_copies(ground: str) -> None:
    name = "d" * 200
    dig(f"{ground}/s", 30, name, b"deep")
    fd = os.open(f"{ground}/s", os.O_RDONLY)
    for _ in range(30):
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.link("end", "end2", src_dir_fd=fd, dst_dir_fd=fd)
    os.link("end", f"{ground}/s/top", src_dir_fd=fd)
    os.close(fd)
    report = tree.copy_tree(f"{ground}/s", f"{ground}/d")
    assert (report.files, report.bytes) == (3, 12)
    assert bottom(f"{ground}/d", name) == (30, b"deep")


def test_a_link_is_made_only_to_the_copy_itself(ground: str) -> None:
    """The destination is somebody's who may put another file where the first copy was."""
    write(f"{ground}/d/first", b"x")
    write(f"{ground}/secret", b"secret")
    known = identity(os.stat(f"{ground}/d/first"))
    with Descent(f"{ground}/d", os.open(f"{ground}/d", os.O_RDONLY)) as descent:
        assert copy.link_again(descent, ("first", known), "second")
        os.unlink(f"{ground}/d/first")
        os.link(f"{ground}/secret", f"{ground}/d/first")
        assert not copy.link_again(descent, ("first", known), "third")
    assert sorted(os.listdir(f"{ground}/d")) == ["first", "second"]


def test_copy_drops_set_id_bits_of_files(ground: str) -> None:
    write(f"{ground}/s/tool")
    os.chmod(f"{ground}/s/tool", 0o7755)
    assert os.stat(f"{ground}/s/tool").st_mode & 0o4000
    tree.copy_tree(f"{ground}/s", f"{ground}/d")
    assert stat.S_IMODE(os.stat(f"{ground}/d/tool").st_mode) == 0o755


def test_copy_keeps_any_name(ground: str) -> None:
    names = [b"\xff\xfe", b"a\nb", b"\xc3\xa9", b" ", b"-rf", b"a:b,c", b"n" * 255]
    for name in names:
        write(os.fsdecode(os.fsencode(ground) + b"/s/d" + name[:250] + b"/" + name), name)
        os.symlink(b"\xff" + name, os.fsencode(ground) + b"/s/l" + name[:250])
    tree.copy_tree(f"{ground}/s", f"{ground}/d")
    for name in names:
        assert read(os.fsdecode(os.fsencode(ground) + b"/d/d" + name[:250] + b"/" + name)) == name
        assert os.readlink(os.fsencode(ground) + b"/d/l" + name[:250]) == b"\xff" + name
    tree.remove_tree(f"{ground}/d")
    assert not os.path.exists(f"{ground}/d")


def test_copy_of_read_only_directories(ground: str) -> None:
    def action() -> None:
        write(f"{ground}/s/a/b/file")
        os.chmod(f"{ground}/s/a/b", 0o555)
        os.chmod(f"{ground}/s/a", 0o555)
        os.chmod(f"{ground}/s", 0o555)
        tree.copy_tree(f"{ground}/s", f"{ground}/d")
        for path in ("a/b", "a", "."):
            assert stat.S_IMODE(os.stat(f"{ground}/d/{path}").st_mode) == 0o555
        assert os.path.exists(f"{ground}/d/a/b/file")

    as_user(action)


@pytest.mark.parametrize("what", ["directory", "file", "source", "search"])
def test_copy_names_what_cannot_be_read(ground: str, what: str) -> None:
    def action() -> None:
        write(f"{ground}/s/a/b/file")
        path = f"{ground}/s" + {"directory": "/a/b", "file": "/a/b/file", "source": "", "search": "/a/b"}[what]
        os.chmod(path, 0o400 if what == "search" else 0)
        with pytest.raises(PermissionError) as caught:
            tree.copy_tree(f"{ground}/s", f"{ground}/d")
        assert caught.value.filename == (f"{ground}/s/a/b/file" if what == "search" else path)
        assert stat.S_IMODE(os.stat(path).st_mode) == (0o400 if what == "search" else 0)

    as_user(action)


def test_copy_skips(ground: str) -> None:
    for path in (".git/config", "a/.git/config", "a/keep", "link-is-no-directory"):
        write(f"{ground}/s/{path}")
    os.symlink("a", f"{ground}/s/l")
    asked: list[tuple[str, bool]] = []

    def skip(path: str, directory: bool) -> bool:
        asked.append((path, directory))
        return path == ".git" or path == "a/.git/config"

    tree.copy_tree(f"{ground}/s", f"{ground}/d", skip=skip)
    assert sorted(asked) == [
        (".git", True),
        ("a", True),
        ("a/.git", True),
        ("a/.git/config", False),
        ("a/keep", False),
        ("l", False),
        ("link-is-no-directory", False),
    ]
    assert sorted(os.listdir(f"{ground}/d")) == ["a", "l", "link-is-no-directory"]
    assert os.listdir(f"{ground}/d/a/.git") == []


def test_skipped_directories_need_not_be_readable(ground: str) -> None:
    def action() -> None:
        write(f"{ground}/s/.git/config")
        os.chmod(f"{ground}/s/.git", 0)
        tree.copy_tree(f"{ground}/s", f"{ground}/d", skip=lambda path, _: path == ".git")
        assert os.listdir(f"{ground}/d") == []

    as_user(action)


def test_copy_into_itself_ends(ground: str) -> None:
    write(f"{ground}/s/file")
    os.mkdir(f"{ground}/s/work")
    with within(60):
        report = tree.copy_tree(f"{ground}/s", f"{ground}/s/work/copy")
    assert report.left_out == [("work/copy", "the copy itself")]
    assert sorted(os.listdir(f"{ground}/s/work/copy")) == ["file", "work"]
    assert os.listdir(f"{ground}/s/work/copy/work") == []


@pytest.mark.parametrize("way", ["best", "copy_file_range", "read"])
@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3 * 1024 * 1024 + 5])
def test_copy_of_contents(ground: str, monkeypatch: pytest.MonkeyPatch, way: str, size: int) -> None:
    def refused(*_: object, **__: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "no")

    if way != "best":
        monkeypatch.setattr("fcntl.ioctl", refused)
    if way == "read":
        monkeypatch.setattr(os, "copy_file_range", refused)
    data = os.urandom(size)
    write(f"{ground}/s/file", data)
    tree.copy_tree(f"{ground}/s", f"{ground}/d")
    assert read(f"{ground}/d/file") == data


def test_copy_file_range_that_says_zero(ground: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    monkeypatch.setattr(copy._Copier, "_cloned", lambda *_: False)
    data = os.urandom(300_000)
    write(f"{ground}/s/file", data)
    tree.copy_tree(f"{ground}/s", f"{ground}/d")
    assert read(f"{ground}/d/file") == data


def test_copy_keeps_holes(ground: str) -> None:
    write(f"{ground}/s/file", b"start")
    fd = os.open(f"{ground}/s/file", os.O_WRONLY)
    os.pwrite(fd, b"middle", 1 << 30)
    os.ftruncate(fd, 1 << 40)
    os.close(fd)
    with within(60):
        report = tree.copy_tree(f"{ground}/s", f"{ground}/d")
    info = os.stat(f"{ground}/d/file")
    assert (info.st_size, report.bytes) == (1 << 40, 1 << 40)
    assert info.st_blocks * 512 < 1 << 20
    fd = os.open(f"{ground}/d/file", os.O_RDONLY)
    assert (os.pread(fd, 5, 0), os.pread(fd, 7, 1 << 30)) == (b"start", b"middle\0")
    os.close(fd)


@pytest.mark.parametrize("change", ["grows", "shrinks"])
def test_copy_of_a_file_that_changes_ends(ground: str, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    data = os.urandom(3 * 1024 * 1024)
    write(f"{ground}/s/file", data)
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    monkeypatch.setattr(copy._Copier, "_cloned", lambda *_: False)
    real = os.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        block = real(fd, count, offset)
        if change == "grows":
            with Path(f"{ground}/s/file").open("ab") as file:
                file.write(bytes(2 << 20))
        else:
            os.truncate(f"{ground}/s/file", 1 << 20)
        return block

    with within(60), monkeypatch.context() as patched:
        patched.setattr(os, "pread", pread)
        tree.copy_tree(f"{ground}/s", f"{ground}/d")
    assert read(f"{ground}/d/file") == (data if change == "grows" else data[: 1 << 20])


def test_copy_passes_over_what_vanishes(ground: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c/x"):
        write(f"{ground}/s/{name}")
    os.symlink("x", f"{ground}/s/l")
    os.mkdir(f"{ground}/s/e")

    def vanish(name: str) -> None:
        if name in ("b", "l", "c"):
            subprocess.run(["rm", "-r", f"{ground}/s/{name}"], check=True)
        if name == "a":
            os.rmdir(f"{ground}/s/e")

    with monkeypatch.context() as patched:
        after_stat(patched, vanish)
        tree.copy_tree(f"{ground}/s", f"{ground}/d")
    assert os.listdir(f"{ground}/d") == ["a"]


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_copy_for_an_owner(ground: str) -> None:
    write(f"{ground}/s/a/file", b"x")
    os.link(f"{ground}/s/a/file", f"{ground}/s/b")
    write(f"{ground}/victim")
    victim = os.stat(f"{ground}/victim").st_uid
    os.symlink("../victim", f"{ground}/s/link")
    os.chmod(f"{ground}/s/a", 0o2755)
    tree.copy_tree(f"{ground}/s", f"{ground}/d", owner=(1234, 4321))
    for path in (".", "a", "a/file", "b", "link"):
        info = os.lstat(f"{ground}/d/{path}")
        assert (info.st_uid, info.st_gid) == (1234, 4321), path
    assert os.stat(f"{ground}/d/b").st_nlink == 2
    assert stat.S_IMODE(os.stat(f"{ground}/d/a").st_mode) == 0o2755
    assert os.stat(f"{ground}/victim").st_uid == victim


def test_copy_to_a_full_disk_names_the_file(ground: str) -> None:
    def action() -> None:
        write(f"{ground}/s/a/small", b"x")
        write(f"{ground}/s/b/big", os.urandom(3 << 20))
        os.mkdir(f"{ground}/small")
        mount("-t", "tmpfs", "-o", "size=1m", "none", f"{ground}/small")
        with pytest.raises(OSError) as caught:
            tree.copy_tree(f"{ground}/s", f"{ground}/small/d")
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, f"{ground}/small/d/b/big")
        tree.remove_tree(f"{ground}/small/d")

        with pytest.raises(OSError) as caught:
            tree.write_atomic(f"{ground}/small/file", bytes(3 << 20))
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, f"{ground}/small/file")
        assert os.listdir(f"{ground}/small") == []

    with_mounts(action)


def test_copy_to_another_filesystem(ground: str) -> None:
    def action() -> None:
        data = os.urandom(300_000)
        write(f"{ground}/s/file", data)
        os.mkdir(f"{ground}/m")
        mount("-t", "tmpfs", "none", f"{ground}/m")
        tree.copy_tree(f"{ground}/s", f"{ground}/m/d")
        assert read(f"{ground}/m/d/file") == data

    with_mounts(action)


NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
LEAVES = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=200), st.integers(0, 0o777).map(lambda mode: mode | 0o400)),
    st.tuples(st.just("link"), st.binary(min_size=1, max_size=30).filter(lambda b: b"\0" not in b), st.none()),
)
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=4),
    lambda below: st.dictionaries(NAMES, st.one_of(LEAVES, below), max_size=4),
    max_leaves=12,
)


def plant(path: bytes, plan: dict[bytes, object]) -> None:
    os.mkdir(path)
    for name, what in plan.items():
        place = path + b"/" + name
        if isinstance(what, dict):
            plant(place, what)
        else:
            assert isinstance(what, tuple)
            kind, data, mode = what
            if kind == "link":
                os.symlink(data, place)
            else:
                write(os.fsdecode(place), data)
                os.chmod(place, mode)
    os.chmod(path, 0o500 | len(plan))
    os.utime(path, ns=(len(plan), 10**18 + len(plan)))


def portrait(path: bytes) -> object:
    info = os.lstat(path)
    about = (stat.S_IFMT(info.st_mode), stat.S_IMODE(info.st_mode), info.st_mtime_ns)
    if stat.S_ISLNK(info.st_mode):
        return about, os.readlink(path)
    if stat.S_ISREG(info.st_mode):
        return about, read(os.fsdecode(path))
    return about, {name: portrait(path + b"/" + name) for name in os.listdir(path)}


def test_any_tree_is_copied_as_it_is(ground: str) -> None:
    @given(TREES)
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def holds(plan: dict[bytes, object]) -> None:
        source, target = f"{ground}/s", f"{ground}/d"
        plant(os.fsencode(source), plan)
        try:
            tree.copy_tree(source, target)
            assert portrait(os.fsencode(target)) == portrait(os.fsencode(source))
            assert tree.tree_size(target) == tree.tree_size(source)
        finally:
            tree.remove_tree(source)
            tree.remove_tree(target)
        assert os.listdir(ground) == []

    holds()


# --- tree_size ---------------------------------------------------------------------------------------------


def test_size_of_a_tree(ground: str) -> None:
    write(f"{ground}/t/a/file", b"12345")
    os.link(f"{ground}/t/a/file", f"{ground}/t/again")
    os.symlink("/etc", f"{ground}/t/link")
    os.truncate(f"{ground}/t/a/file", 1000)
    assert tree.tree_size(f"{ground}/t") == (1000, 4)
    os.symlink("t", f"{ground}/link")
    with pytest.raises(NotADirectoryError):
        tree.tree_size(f"{ground}/link")


def test_size_of_what_may_not_be_read(ground: str) -> None:
    def action() -> None:
        write(f"{ground}/t/shut/file", b"12345")
        write(f"{ground}/t/file", b"1")
        os.chmod(f"{ground}/t/shut", 0)
        assert tree.tree_size(f"{ground}/t") == (1, 2)

    as_user(action)


# --- listings ----------------------------------------------------------------------------------------------


def listed(path: str, *, unlock: bool = False) -> tuple[set[str], set[str], set[str]]:
    """Paths of files and of others, and directories that were closed."""
    files, others, closed = set(), set(), set()
    with Descent(path, os.open(path, os.O_RDONLY)) as descent:
        for listing in listings(descent, unlock=unlock):
            files |= {descent.relative(name) for name in listing.files}
            others |= {descent.relative(name) for name in listing.others}
            closed |= {descent.relative()} if listing.closed else set()
    return files, others, closed


def test_listings_of_a_tree(ground: str) -> None:
    write(f"{ground}/t/a/b/file", b"1")
    write(f"{ground}/t/c/file", b"1")
    write(f"{ground}/t/file", b"1")
    os.mkdir(f"{ground}/t/a/empty")
    os.symlink("a", f"{ground}/t/directory")
    os.mkfifo(f"{ground}/t/c/fifo")
    assert listed(f"{ground}/t") == ({"a/b/file", "c/file", "file"}, {"directory", "c/fifo"}, set())


@pytest.mark.parametrize("mode", [0, 0o400, 0o100])
def test_listings_of_directories_that_forbid_it(ground: str, mode: int) -> None:
    def action() -> None:
        write(f"{ground}/t/a/shut/file", b"1")
        write(f"{ground}/t/a/shut/below/file", b"1")
        os.chmod(f"{ground}/t/a/shut", mode)
        assert listed(f"{ground}/t") == (set(), {"a/shut"}, set())
        assert listed(f"{ground}/t", unlock=True) == ({"a/shut/file", "a/shut/below/file"}, set(), {"a/shut"})
        assert stat.S_IMODE(os.stat(f"{ground}/t/a/shut").st_mode) == mode

    as_user(action)


def test_listings_of_a_directory_that_vanishes(ground: str) -> None:
    write(f"{ground}/t/a/file", b"1")
    write(f"{ground}/t/b/file", b"1")
    seen = []
    with Descent(f"{ground}/t", os.open(f"{ground}/t", os.O_RDONLY)) as descent:
        for listing in listings(descent):
            seen.append((descent.relative(), listing.files))
            shutil.rmtree(f"{ground}/t/a", ignore_errors=True)
    assert seen == [("", []), ("b", ["file"])]


@pytest.mark.parametrize("unlock", [False, True])
def test_listings_of_a_directory_in_whose_place_is_something_else(ground: str, unlock: bool) -> None:
    def action() -> None:
        write(f"{ground}/t/a/file", b"1")
        write(f"{ground}/t/b/file", b"1")
        write(f"{ground}/t/c/file", b"1")
        seen: list[tuple[str, list[str], list[str]]] = []
        with Descent(f"{ground}/t", os.open(f"{ground}/t", os.O_RDONLY)) as descent:
            for listing in listings(descent, unlock=unlock):
                if not seen:
                    shutil.rmtree(f"{ground}/t/a")
                    os.symlink("c", f"{ground}/t/a")
                    shutil.rmtree(f"{ground}/t/b")
                    write(f"{ground}/t/b", b"1")
                    os.chmod(f"{ground}/t/b", 0o600)
                seen.append((descent.relative(), listing.files, listing.others))
        assert seen == [("", [], []), ("", [], ["a"]), ("", [], ["b"]), ("c", ["file"], [])]
        assert stat.S_IMODE(os.stat(f"{ground}/t/b").st_mode) == 0o600

    as_user(action)


# --- break_hard_links --------------------------------------------------------------------------------------


def test_break_hard_links(ground: str) -> None:
    def action() -> None:
        write(f"{ground}/cache/file", b"shared")
        os.chmod(f"{ground}/cache/file", 0o640)
        os.utime(f"{ground}/cache/file", ns=(5, 10**18 + 5))
        os.makedirs(f"{ground}/t/deep")
        for name in ("a", "deep/b", "deep/c"):
            os.link(f"{ground}/cache/file", f"{ground}/t/{name}")
        write(f"{ground}/t/own", b"own")
        os.link(f"{ground}/t/own", f"{ground}/t/deep/own")
        os.symlink("a", f"{ground}/t/link")
        write(f"{ground}/t/single", b"1")
        own, single = os.stat(f"{ground}/t/own").st_ino, os.stat(f"{ground}/t/single").st_ino
        os.chmod(f"{ground}/t/deep", 0o555)
        os.utime(f"{ground}/t/deep", ns=(7, 10**18 + 7))

        assert tree.break_hard_links(f"{ground}/t") == 1

        new, old = os.stat(f"{ground}/t/a"), os.stat(f"{ground}/cache/file")
        assert new.st_ino != old.st_ino
        assert (old.st_nlink, new.st_nlink) == (1, 3)
        assert new.st_ino == os.stat(f"{ground}/t/deep/b").st_ino == os.stat(f"{ground}/t/deep/c").st_ino
        assert (new.st_mode, new.st_mtime_ns) == (old.st_mode, old.st_mtime_ns)
        assert read(f"{ground}/t/deep/b") == b"shared"
        assert (os.stat(f"{ground}/t/own").st_ino, os.stat(f"{ground}/t/own").st_nlink) == (own, 2)
        assert os.stat(f"{ground}/t/single").st_ino == single
        deep = os.stat(f"{ground}/t/deep")
        assert (stat.S_IMODE(deep.st_mode), deep.st_mtime_ns) == (0o555, 10**18 + 7)
        assert sorted(os.listdir(f"{ground}/t/deep")) == ["b", "c", "own"]
        assert tree.break_hard_links(f"{ground}/t") == 0

    as_user(action)


def test_break_hard_links_that_fails_leaves_nothing_beside(ground: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(f"{ground}/t/a", b"x")
    os.link(f"{ground}/t/a", f"{ground}/outside")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(links, "copy_contents", full)
    with pytest.raises(OSError) as caught:
        tree.break_hard_links(f"{ground}/t")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, f"{ground}/t/a")
    assert os.listdir(f"{ground}/t") == ["a"]


# --- open_beneath, read_beneath ----------------------------------------------------------------------------


@pytest.fixture(params=[None, errno.ENOSYS, errno.EPERM], ids=["openat2", "ENOSYS", "EPERM"])
def beneath_fd(request: pytest.FixtureRequest, ground: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A directory `t` with an outside, with openat2 and without."""
    if request.param:
        refuse(monkeypatch, request.param)
    write(f"{ground}/outside/secret", b"secret")
    write(f"{ground}/t/a/file", b"hello")
    for name, target in (("dir", "../outside"), ("abs", "/etc"), ("a/file2", "file"), ("inside", "a")):
        os.symlink(target, f"{ground}/t/{name}")
    os.symlink("/proc/self/fd", f"{ground}/t/magic")
    fd = os.open(f"{ground}/t", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    "path",
    [
        "dir/secret",
        "abs/passwd",
        "a/file2",
        "inside/file",
        "magic/0",
        "../outside/secret",
        "/etc/passwd",
        "a/..",
    ],
)
def test_open_beneath_refuses(beneath_fd: int, path: str) -> None:
    for flags in (os.O_RDONLY, os.O_PATH):
        with pytest.raises(OSError) as caught:
            tree.open_beneath(beneath_fd, path, flags)
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR, errno.EXDEV)
        assert caught.value.filename == path


def test_open_beneath_opens(beneath_fd: int) -> None:
    for path in ("a/file", "./a//file"):
        fd = tree.open_beneath(beneath_fd, path, os.O_RDONLY)
        assert os.read(fd, 10) == b"hello"
        assert not os.get_inheritable(fd)
        os.close(fd)
    for path in (".", "a/"):
        os.close(tree.open_beneath(beneath_fd, path, os.O_RDONLY | os.O_DIRECTORY))
    link = tree.open_beneath(beneath_fd, "a/file2", os.O_PATH | os.O_NOFOLLOW)
    assert stat.S_ISLNK(os.fstat(link).st_mode)
    os.close(link)
    os.close(tree.open_beneath(beneath_fd, "a/new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    assert stat.S_IMODE(os.stat("a/new", dir_fd=beneath_fd).st_mode) == 0o600
    os.close(tree.open_beneath(beneath_fd, "a/file", os.O_RDONLY, 0o600))


def test_open_beneath_says_what_open_says(beneath_fd: int) -> None:
    for path, number in (("", errno.ENOENT), ("none", errno.ENOENT), ("a/file/x", errno.ENOTDIR)):
        with pytest.raises(OSError) as caught:
            tree.open_beneath(beneath_fd, path, os.O_RDONLY)
        assert caught.value.errno == number
    with pytest.raises(NotADirectoryError):
        tree.open_beneath(beneath_fd, "a/file/", os.O_RDONLY)
    with pytest.raises(ValueError):
        tree.open_beneath(beneath_fd, "a/file\0x", os.O_RDONLY)


def test_open_beneath_beyond_path_max(ground: str) -> None:
    dig(f"{ground}/t", 30, "d" * 200, b"deep")
    fd = os.open(f"{ground}/t", os.O_RDONLY)
    assert tree.read_beneath(fd, ("d" * 200 + "/") * 30 + "end", 10) == b"deep"
    with pytest.raises(OSError) as caught:
        tree.open_beneath(fd, "n" * 256, os.O_RDONLY)
    assert caught.value.errno == errno.ENAMETOOLONG
    os.close(fd)


def test_read_beneath(beneath_fd: int, ground: str) -> None:
    assert tree.read_beneath(beneath_fd, "a/file", 5) == b"hello"
    assert tree.read_beneath(beneath_fd, "a/none", 5) is None
    assert tree.read_beneath(beneath_fd, "none/none", 5) is None
    os.mkfifo(f"{ground}/t/fifo")
    with within(60):
        for path, number in (("a/file", errno.EFBIG), ("a", errno.EINVAL), ("fifo", errno.EINVAL)):
            with pytest.raises(OSError) as caught:
                tree.read_beneath(beneath_fd, path, 4)
            assert (caught.value.errno, caught.value.filename) == (number, path)
    with pytest.raises(OSError):
        tree.read_beneath(beneath_fd, "dir/secret", 100)


def test_read_beneath_of_a_file_that_grows(ground: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(f"{ground}/file", b"123")
    fd = os.open(ground, os.O_RDONLY)
    real = os.fstat

    def grow(file: int) -> os.stat_result:
        info = real(file)
        os.truncate(f"{ground}/file", 1 << 30)
        return info

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", grow)
        with pytest.raises(OSError) as caught:
            tree.read_beneath(fd, "file", 1000)
    assert caught.value.errno == errno.EFBIG
    os.close(fd)


# --- putting in place --------------------------------------------------------------------------------------


def test_write_atomic(ground: str) -> None:
    path = f"{ground}/file"
    before = os.umask(0o077)
    try:
        tree.write_atomic(path, b"one")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
        tree.write_atomic(path, b"two", 0o600)
    finally:
        os.umask(before)
    assert (read(path), stat.S_IMODE(os.stat(path).st_mode)) == (b"two", 0o600)
    write(f"{ground}/victim", b"keep")
    os.symlink("victim", f"{ground}/link")
    tree.write_atomic(f"{ground}/link", b"three")
    assert (read(f"{ground}/link"), read(f"{ground}/victim")) == (b"three", b"keep")
    assert sorted(os.listdir(ground)) == ["file", "link", "victim"]


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_write_atomic_that_fails(ground: str, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    write(f"{ground}/file", b"before")

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, full)
        with pytest.raises(OSError) as caught:
            tree.write_atomic(f"{ground}/file", b"after")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, f"{ground}/file")
    assert os.listdir(ground) == ["file"]
    assert read(f"{ground}/file") == b"before"


def test_fsync_directory(ground: str) -> None:
    tree.fsync_directory(ground)
    with pytest.raises(OSError):
        tree.fsync_directory(f"{ground}/none")


def test_replace_directory(ground: str) -> None:
    write(f"{ground}/new/file", b"1")
    assert tree.replace_directory(f"{ground}/new", f"{ground}/out") is None
    write(f"{ground}/new/file", b"2")
    assert tree.replace_directory(f"{ground}/new", f"{ground}/out/") == f"{ground}/new"
    assert (read(f"{ground}/out/file"), read(f"{ground}/new/file")) == (b"2", b"1")


def test_replace_directory_is_one_step(ground: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rename(2) at all: there is no moment without `out`."""
    write(f"{ground}/new/file", b"2")
    write(f"{ground}/out/file", b"1")
    monkeypatch.delattr(os, "rename")
    tree.replace_directory(f"{ground}/new", f"{ground}/out")
    assert read(f"{ground}/out/file") == b"2"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("fails", [False, True])
def test_replace_directory_without_exchange(
    ground: str, monkeypatch: pytest.MonkeyPatch, number: int, fails: bool
) -> None:
    write(f"{ground}/new/file", b"2")
    write(f"{ground}/out/file", b"1")

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(replace, "_renameat2", refused)
    if not fails:
        kept = tree.replace_directory(f"{ground}/new", f"{ground}/out")
        assert kept is not None and os.path.dirname(kept) == ground
        assert (read(f"{ground}/out/file"), read(f"{kept}/file")) == (b"2", b"1")
        assert not os.path.exists(f"{ground}/new")
        return
    real = os.rename

    def rename(source: str, target: str) -> None:
        if source.endswith("/new"):
            raise OSError(errno.EIO, "broken")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError):
        tree.replace_directory(f"{ground}/new", f"{ground}/out")
    assert sorted(os.listdir(ground)) == ["new", "out"]
    assert read(f"{ground}/out/file") == b"1"


def test_replace_directory_replaces_directories_only(ground: str) -> None:
    write(f"{ground}/new/file", b"2")
    write(f"{ground}/plain", b"keep")
    write(f"{ground}/real/file", b"keep")
    os.symlink("real", f"{ground}/link")
    for old in ("plain", "link", "link/"):
        with pytest.raises(NotADirectoryError):
            tree.replace_directory(f"{ground}/new", f"{ground}/{old}")
    with pytest.raises(FileNotFoundError):
        tree.replace_directory(f"{ground}/none", f"{ground}/real")
    with pytest.raises(NotADirectoryError):
        tree.replace_directory(f"{ground}/plain", f"{ground}/real")
    assert read(f"{ground}/real/file") == b"keep"
