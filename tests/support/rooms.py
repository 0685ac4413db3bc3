"""A workspace for one test, and the ways in which a launch can come about."""

from __future__ import annotations

import errno
import json
import os
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from nsbuild.sandbox import Bind, Launcher, Outcome, Overlay, User, View, compose, read_host
from nsbuild.sandbox import network as _imported_before_the_drop  # noqa: F401
from nsbuild.sandbox import remote as _remote_too  # noqa: F401
from support.processes import ROOT, SOMEBODY, Child, become, descriptors

T = TypeVar("T")

WAYS = ("root", "root-isolated", "root-owned", "root-closed", "user", "user-isolated")
"""root: the launcher is root and the workspace an ordinary user's; owned: the workspace is root's too; closed: it
lies in a directory that only root can enter. user: the launcher is that ordinary user."""
SUBDIRECTORIES = ("app", "tmp", "cache", "env", "var-tmp")
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/app", "LC_ALL": "C.UTF-8"}
PYTHON = "/usr/bin/python3"
"""Inside. The suite's own interpreter may be hidden there."""


class Seen:
    """How a launch ended and what it said (both outputs, through one pipe)."""

    def __init__(self, outcome: Outcome, data: bytes) -> None:
        self.outcome = outcome
        self.data = data

    @property
    def code(self) -> int:
        return self.outcome.exit_code

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "surrogateescape").strip()

    def __repr__(self) -> str:
        return f"Seen({self.outcome!r}, {self.data!r})"


class Output:
    """What comes out of a pipe or a terminal, waited for with patience but not for ever."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.data = b""

    def wait_for(self, text: bytes, timeout: float = 50) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.data:
            assert self.more(deadline), f"{text!r} never came, but {self.data!r}"

    def rest(self, timeout: float = 50) -> bytes:
        """Everything, once nobody holds the other end any more."""
        deadline = time.monotonic() + timeout
        while self.more(deadline):
            continue
        os.close(self._fd)
        return self.data

    def more(self, deadline: float) -> bool:
        """Wait for the next bytes; False at the end."""
        ready = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]
        assert ready, f"still open, after {self.data!r}"
        try:
            chunk = os.read(self._fd, 65536)
        except OSError as error:
            assert error.errno == errno.EIO  # a terminal's way to say so
            chunk = b""
        self.data += chunk
        return bool(chunk)


class Room:
    """One workspace and the user its builds run as."""

    def __init__(self, base: str, way: str, name: str = "workspace") -> None:
        self.base = base
        self.way = way
        self.isolated = way.endswith("-isolated")
        self.as_root = way.startswith("root")
        self.root_on_disk = way == "root-owned"
        self.uid, self.gid = (SOMEBODY, SOMEBODY) if ROOT else (os.getuid(), os.getgid())
        self.keeps_root = False
        """The test leaves a skeleton behind on purpose (it kills the launcher)."""
        parent = base
        if way == "root-closed":
            parent = f"{base}/closed"
            os.mkdir(parent, 0o700)
        self.workspace = f"{parent}/{name}"
        os.mkdir(self.workspace, 0o755)
        for sub in SUBDIRECTORIES:
            os.mkdir(self.host(sub), 0o755)
        os.chmod(self.host("tmp"), 0o1777)
        os.chmod(self.host("var-tmp"), 0o1777)
        self.own(base if way.startswith("user") else self.workspace)

    def host(self, name: str) -> str:
        """Where something of the workspace is on the host."""
        return f"{self.workspace}/{name}"

    def own(self, top: str) -> None:
        """Give a tree to whom it belongs on disk in this way."""
        if not ROOT or self.root_on_disk:
            return
        os.chown(top, self.uid, self.gid)
        for directory, names, files in os.walk(top):
            for item in (*names, *files):
                os.chown(os.path.join(directory, item), self.uid, self.gid, follow_symlinks=False)

    def user(self) -> User:
        return User(self.uid, self.gid, root_on_disk=self.root_on_disk)

    def view(
        self,
        run_path: str = "/app",
        *,
        root: str = "/",
        binds: Sequence[Bind] = (),
        overlays: Sequence[Overlay] = (),
        network: str = "host",
        user_namespaces: bool = True,
    ) -> View:
        places = {run_path: self.host("app"), "/tmp": self.host("tmp")}
        places |= {"/tmp/cache": self.host("cache"), "/tmp/env": self.host("env")}
        points = [*places, *(bind.path for bind in binds), *(overlay.path for overlay in overlays)]
        return compose(
            read_host(root, points),
            workspace=self.workspace,
            user=self.user(),
            home=run_path,
            places=places,
            binds=binds,
            overlays=overlays,
            network=network,
            user_namespaces=user_namespaces,
            var_tmp=self.host("var-tmp"),
        )

    def enter(self) -> None:
        """Become whoever launches in this way; in a child, for good."""
        if os.geteuid() == 0 and not self.as_root:
            become(self.uid, self.gid)

    def start(self, action: Callable[[Launcher], T], *, before: Callable[[], None] | None = None) -> Child[T]:
        """Call `action` with a launcher in a child. `before` runs there first, as the suite's own user."""

        def run() -> T:
            if before is not None:
                before()
            self.enter()
            opened = descriptors()
            with Launcher(isolated=self.isolated) as launcher:
                result = action(launcher)
            assert descriptors() == opened, "the launcher has left descriptors open"
            return result

        return Child(run)

    def run(self, action: Callable[[Launcher], T], *, before: Callable[[], None] | None = None) -> T:
        return self.start(action, before=before).result()

    def launch(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] = ENV,
        cwd: str | None = None,
        before: Callable[[], None] | None = None,
        timeout: float | None = None,
        grace: float = 10.0,
        **options: Any,
    ) -> Seen:
        """One launch of a shell script (or of words), with `options` for the view."""
        return self.run(
            lambda launcher: self.seen(launcher, command, env=env, cwd=cwd, timeout=timeout, grace=grace, **options),
            before=before,
        )

    def begin(self, command: str, **options: Any) -> tuple[Child[Outcome], Output]:
        """Start a shell script in a launch of its own; both its outputs are one pipe, which ends with it."""
        reader, writer = os.pipe()
        view = self.view()

        def action(launcher: Launcher) -> Outcome:
            argv = ["bash", "-c", command]
            return launcher.launch(view, argv, env=ENV, cwd="/app", stdout=writer, stderr=writer)

        child = self.start(action, **options)
        os.close(writer)
        return child, Output(reader)

    def seen(
        self,
        launcher: Launcher,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] = ENV,
        cwd: str | None = None,
        timeout: float | None = None,
        grace: float = 10.0,
        **options: Any,
    ) -> Seen:
        """As `launch`, for an `action` that has a launcher already."""
        chunks: list[bytes] = []
        outcome = launcher.launch(
            self.view(**options),
            ["bash", "-c", command] if isinstance(command, str) else command,
            env=env,
            cwd=cwd or options.get("run_path", "/app"),
            on_output=chunks.append,
            timeout=timeout,
            grace=grace,
        )
        return Seen(outcome, b"".join(chunks))

    def text(self, command: str | Sequence[str], **options: Any) -> str:
        """What a command that must succeed says."""
        seen = self.launch(command, **options)
        assert seen.code == 0, seen
        return seen.text

    def python(self, code: str, **options: Any) -> Any:
        """What a Python program inside prints as JSON."""
        return json.loads(self.text([PYTHON, "-I", "-c", f"import ctypes, errno, json, os, sys\n{code}"], **options))


def reason_against(way: str, base: str) -> str:
    """Why this way cannot be gone here; empty when it can."""
    if way.startswith("root") and not ROOT:
        return "needs root"
    if way == "root-owned" and (reason := unmappable(base)):
        return reason
    if way == "user-isolated" and ROOT:
        import prctl

        needed = [sys.executable, os.__file__, prctl.__file__, __file__]
        if hidden := [path for path in needed if not _readable_by_all(path)]:
            return f"an ordinary user cannot read {hidden[0]}"
    return ""


def unmappable(path: str) -> str:
    """Why what root owns there cannot be shown as somebody else's; empty when it can."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (5, 12):
        return "Linux before 5.12 has no idmapped mounts"
    kind = filesystem(path)
    return "" if kind in ("ext4", "xfs", "btrfs", "f2fs") else f"{kind} cannot be mounted idmapped"


def filesystem(path: str) -> str:
    """The type of the filesystem that holds a path."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8") as file:  # noqa: PTH123
        for line in file:
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1]
    return "?"


def _readable_by_all(path: str) -> bool:
    path = os.path.realpath(path)
    bits = 0o4
    while True:
        if not os.stat(path).st_mode & bits:
            return False
        if path == "/":
            return True
        path, bits = os.path.dirname(path), 0o1
