"""Kernels and policies that refuse a call: what a launch does instead, and what it tells."""

from __future__ import annotations

import errno
import os
import time

import pytest
from support.processes import ROOT, SOMEBODY, become, in_child, private_mounts, refuse, tmpfs, write
from support.rooms import Room

from nsbuild.sandbox import Bind, Launcher, LaunchError, kernel
from nsbuild.sandbox.skeleton import Skeleton

pytest.importorskip("pyseccomp", reason="pyseccomp emulates the other kernels")


def with_locked_submounts() -> None:
    """Flags that somebody else's mount has come with may not be dropped by a remount."""
    private_mounts()
    tmpfs("/srv")
    os.chmod("/srv", 0o777)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC | kernel.MS_NOATIME
    for name in ("locked", "a b", "c\nd\\e", "hidden"):
        os.mkdir(f"/srv/{name}")
        tmpfs(f"/srv/{name}", flags)
        os.chmod(f"/srv/{name}", 0o777)
    tmpfs("/srv/hidden")  # the one below cannot be remounted by path
    os.chmod("/srv/hidden", 0o777)


def test_before_mount_setattr_the_host_is_read_only_all_the_same(either: Room) -> None:
    source = f"{either.base}/source"
    os.makedirs(f"{source}/sub")
    either.own(source)

    def before() -> None:
        with_locked_submounts()
        tmpfs(f"{source}/sub")
        os.chmod(f"{source}/sub", 0o777)
        refuse(errno.ENOSYS, "mount_setattr")

    script = r"""
touch /srv/x /srv/locked/x '/srv/a b/x' $'/srv/c\nd\\e/x' /srv/hidden/x /srv-bound/x /srv-bound/sub/x
chmod u+w /etc/passwd
[ "$(ls -d /usr /srv/locked)" ] && touch /app/f /tmp/f /var/tmp/f && echo writable
"""
    seen = either.launch(script, binds=[Bind("/srv-bound", source)], before=before)
    assert seen.code == 0
    assert seen.text.count("Read-only file system") == 8, seen.text
    assert seen.text.endswith("writable")


def test_before_mount_setattr_nothing_reaches_a_shared_host(ground: str) -> None:
    room = Room(ground, "root" if ROOT else "user")

    def before() -> None:
        private_mounts()
        kernel.mount("none", "/", "", kernel.MS_REC | 1 << 20)
        refuse(errno.ENOSYS, "mount_setattr")

    def action(launcher: Launcher) -> tuple[int, int]:
        with open("/proc/self/mountinfo", encoding="utf-8") as file:  # noqa: PTH123
            known = len(file.readlines())
        code = room.seen(launcher, "true").code
        with open("/proc/self/mountinfo", encoding="utf-8") as file:  # noqa: PTH123
            return code, len(file.readlines()) - known

    assert room.run(action, before=before) == (0, 0)


def test_a_root_that_cannot_be_pivoted_away(either: Room) -> None:
    """An initramfs."""
    write(either.host("app/f"), "mine")
    script = "ls /..; stat -c %d-%i / /..; unshare -Ur id -u; cat f"
    text = either.text(script, before=lambda: refuse(errno.EINVAL, "pivot_root"))
    lines = text.splitlines()
    assert "app" in lines
    assert "lost+found" not in lines
    inodes = [line for line in lines if line.count("-") == 1 and line.replace("-", "").isdigit()]
    assert len(inodes) == 2
    assert inodes[0] == inodes[1]
    assert "0" in lines
    assert lines[-1].endswith("mine")


def test_another_refusal_of_pivot_root_is_an_error(simple: Room) -> None:
    assert told(simple, lambda: refuse(errno.EPERM, "pivot_root")) == ("pivot_root", "pivot_root", errno.EPERM)


def told(room: Room, before: object) -> tuple[str, str, int]:
    def action(launcher: Launcher) -> tuple[str, str, int]:
        try:
            room.seen(launcher, "true")
        except LaunchError as error:
            return error.step, error.call, error.errno
        return "it ran", "", 0

    assert callable(before)
    return room.run(action, before=before)


def test_a_masked_proc_is_bound_instead(simple: Room) -> None:
    """Containers mount over parts of /proc, and the kernel then allows no new one that would show them."""

    def before() -> None:
        private_mounts()
        tmpfs("/proc/fs")

    text = simple.text(
        "ls -A /proc/fs; cat /proc/self/status | grep ^CapEff; touch /proc/fs/x 2>&1; true", before=before
    )
    assert "CapEff:\t0000000000000000" in text
    assert "Read-only file system" in text or "Permission denied" in text


def test_a_proc_that_is_refused_for_another_reason_is_told(simple: Room) -> None:
    step, call, number = told(simple, lambda: refuse(errno.EPERM, "fsmount"))
    assert (call, number) == ("fsmount", errno.EPERM)
    assert step


def test_before_close_range_descriptors_are_closed_all_the_same(either: Room) -> None:
    def before() -> None:
        for _ in range(10):
            os.set_inheritable(os.open("/etc/passwd", os.O_RDONLY), True)
        refuse(errno.ENOSYS, "close_range")

    code = "print(json.dumps(sorted(int(name) for name in os.listdir('/proc/self/fd'))))"
    assert either.python(code, before=before) == [0, 1, 2, 3]


@pytest.mark.parametrize("which", ["user", "mnt", "pid", "ipc", "uts", "net"])
def test_no_namespaces_left(ground: str, which: str) -> None:
    """The limits of an outer user namespace, where an ordinary user may set them."""
    room = Room(ground, "user")

    def before() -> None:
        if ROOT:
            become(SOMEBODY, SOMEBODY)
        private_mounts()
        write(f"/proc/sys/user/max_{which}_namespaces", "0")

    def action(launcher: Launcher) -> tuple[str, str, int]:
        try:
            room.seen(launcher, "true", network="none")
        except LaunchError as error:
            return error.step, error.call, error.errno
        return "it ran", "", 0

    assert room.run(action, before=before) == ("clone", "clone", errno.ENOSPC)
    assert sorted(os.listdir(room.workspace)) == ["app", "cache", "env", "tmp", "var-tmp"]


@pytest.mark.parametrize("call", ["clone", "open_tree", "move_mount", "fsopen", "mount", "setresuid"])
def test_a_refused_call_is_named_and_everything_is_given_back(either: Room, call: str) -> None:
    if call in ("mount", "setresuid") and not either.as_root:
        pytest.skip("only a launch by root makes this call")
    error = told(either, lambda: refuse(errno.EPERM, call))
    assert error[1].split()[0] == call or call == "setresuid"
    assert error[2] == errno.EPERM
    assert sorted(os.listdir(either.workspace)) == ["app", "cache", "env", "tmp", "var-tmp"]


def test_a_child_that_fails_before_it_is_told_to_go_on_tells_why(simple: Room) -> None:
    """It waits for a journal to be written, and its pipe may be gone by then."""

    def action(launcher: Launcher) -> tuple[str, int]:
        skeleton = launcher._skeletons[simple.workspace] = Skeleton(simple.workspace)
        skeleton.on_step = lambda step, about: time.sleep(0.3) if step == "cloned" else None
        try:
            simple.seen(launcher, "true")
        except LaunchError as error:
            return error.call, error.errno
        return "it ran", 0

    assert simple.run(action, before=lambda: refuse(errno.EPERM, "fsopen")) == ("fsopen", errno.EPERM)


def test_a_journal_that_cannot_be_written_stops_the_launch(either: Room) -> None:
    def action(launcher: Launcher) -> str:
        skeleton = launcher._skeletons[either.workspace] = Skeleton(either.workspace)

        def on_step(step: str, about: str) -> None:
            if step == "cloned":
                raise OSError(errno.ENOSPC, "no space for the journal")

        skeleton.on_step = on_step
        try:
            either.seen(launcher, "echo ran >/app/ran")
        except OSError as error:
            return str(error.strerror)
        return "it ran"

    assert either.run(action) == "no space for the journal"
    assert os.listdir(either.host("app")) == []
    assert sorted(os.listdir(either.workspace)) == ["app", "cache", "env", "tmp", "var-tmp"]


def test_a_process_that_is_not_dumpable_is_told(simple: Room) -> None:
    def before() -> None:
        simple.enter()
        import prctl

        prctl.set_dumpable(0)

    def action() -> tuple[str, int]:
        before()
        try:
            with Launcher(isolated=False) as launcher:
                simple.seen(launcher, "true")
        except LaunchError as error:
            return error.step, error.errno
        return "it ran", 0

    assert in_child(action) == ("setgroups", errno.EACCES)
