"""Run a function in a process of its own: another user, another mount namespace, a signal to be survived."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

import prctl

from nsbuild.sandbox import kernel

T = TypeVar("T")

ROOT = os.geteuid() == 0
SOMEBODY = 60717
"""An ordinary user without an account, when the suite is root."""


class Child(Generic[T]):
    """A forked process (one thread) that calls `action` and hands its result over."""

    def __init__(self, action: Callable[[], T]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            answer: tuple[str, object]
            try:
                os.close(reader)
                answer = ("returned", action())
            except BaseException:
                answer = ("raised", traceback.format_exc())
            try:
                with open(writer, "wb") as file:  # noqa: PTH123
                    pickle.dump(answer, file)
            finally:
                os._exit(0)
        os.close(writer)
        self._reader = reader
        self._result: tuple[str, T] | None = None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def result(self, timeout: float = 60) -> T:
        """What `action` returned; raises AssertionError with the traceback when it raised."""
        data = self._read(timeout)
        assert data, "the child ended without an answer"
        kind, value = pickle.loads(data)
        assert kind == "returned", value
        result: T = value
        return result

    def ended(self, timeout: float = 60) -> int:
        """The wait status of a child that is expected to be killed."""
        self._read(timeout)
        return self.status

    def _read(self, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        data = b""
        while True:
            if not select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
                os.kill(self.pid, signal.SIGKILL)
                data = b""
                break
            chunk = os.read(self._reader, 65536)
            data += chunk
            if not chunk:
                break
        os.close(self._reader)
        _, self.status = os.waitpid(self.pid, 0)
        return data


def in_child(action: Callable[[], T], timeout: float = 60) -> T:
    return Child(action).result(timeout)


def become(uid: int, gid: int) -> None:
    """For good, as login and setpriv do. exec would make the process dumpable again; we do not exec."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    prctl.set_dumpable(1)


def private_mounts() -> None:
    """From here on this process can mount what it likes, and nobody else sees it."""
    if os.geteuid() == 0:
        kernel.unshare(kernel.CLONE_NEWNS)
    else:
        uid, gid = os.getuid(), os.getgid()
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{uid} {uid} 1")
        write("/proc/self/gid_map", f"{gid} {gid} 1")
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)


def tmpfs(path: str, flags: int = 0) -> None:
    kernel.mount("tmpfs", path, "tmpfs", flags, "mode=755")


def refuse(error: int, *calls: str) -> None:
    """From here on the kernel answers these system calls with `error`, as an older or stricter one would."""
    import pyseccomp

    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for call in calls:
        rules.add_rule(pyseccomp.ERRNO(error), call)
    rules.load()


def write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        return file.read()


def descriptors() -> dict[int, str]:
    """This process's open descriptors and what they are open on."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own
    return found


def children() -> list[int]:
    """Live and dead children of this process, whichever thread made them."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        try:
            found += [int(pid) for pid in read(f"/proc/self/task/{task}/children").split()]
        except FileNotFoundError:
            continue
    return found


def eventually(condition: Callable[[], bool], timeout: float = 30) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
