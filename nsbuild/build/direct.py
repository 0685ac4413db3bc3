"""The direct path of a build: its scripts run without a sandbox, on the host's own paths, as a builder runs them.

BUILD_DIR, CACHE_DIR and ENV_DIR are the workspace's directories; HOME is the run path, where a platform has a
directory that buildpacks may write to. Who runs nsbuild sees to that one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from nsbuild.build.options import BuildOptions
from nsbuild.errors import UsageError
from nsbuild.sandbox import Launcher, Layout, Outcome, View
from nsbuild.workspace import Workspace

NAME = "direct"
_SANDBOX_ONLY = {
    "network": "host",
    "user_namespaces": True,
    "stack_root": None,
    "disk": None,
    "secrets": (),
    "ssh": False,
    "shell_on_failure": False,
    "reproducible": False,
    "layout": "app",
}
"""What nothing would keep, or what has no meaning, and the value that asks for nothing."""


def check_direct(options: BuildOptions) -> None:
    """Raises UsageError for what only a sandbox can keep."""
    asked = [name for name, harmless in _SANDBOX_ONLY.items() if getattr(options, name) not in (harmless, [])]
    asked += ["bind" for source, path in options.binds if os.path.abspath(source) != path]
    if asked:
        names = {"user_namespaces": "no-userns", "secrets": "secret"}
        name = names.get(asked[0], asked[0].replace("_", "-"))
        raise UsageError(f"--{name} cannot be kept on the direct path.", "Leave it out.")


def direct_layout(work: Workspace, run_path: str) -> Layout:
    """The workspace's own directories."""
    return Layout(NAME, work.directory("app"), work.directory("cache"), work.directory("env"), run_path)


def direct_variables(work: Workspace) -> dict[str, str]:
    """What keeps the files of a build that has no /tmp of its own together."""
    return {"TMPDIR": work.directory("tmp"), "XDG_CACHE_HOME": work.directory("tmp/.cache")}


class DirectLauncher(Launcher):
    """Runs commands as they are: of a View it takes the user only."""

    def __init__(self, work: Workspace) -> None:
        super().__init__(isolated=False)
        self._work = work

    def launch(self, view: View, argv: Any, **how: Any) -> Outcome:
        """As `Launcher.launch`."""
        try:
            return super().launch(view, argv, **how)
        except FileNotFoundError as error:
            return Outcome(None, None, "not found", error.errno or 0)
        except PermissionError as error:
            return Outcome(None, None, "cannot execute", error.errno or 0)

    def _start(self, view: View, command: Any, stdio: tuple[int, int, int]) -> Any:
        return _Running(self._work, command.argv, command.env, command.cwd, stdio)


class _Running:
    """One command in a process group of its own, supervised as a sandbox's process 1 is."""

    def __init__(
        self,
        work: Workspace,
        argv: tuple[bytes, ...],
        env: Mapping[bytes, bytes],
        cwd: str,
        stdio: tuple[int, int, int],
    ) -> None:
        as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            as_user = {"user": work.user.uid, "group": work.user.gid, "extra_groups": []}

        def unblock() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

        def start(words: tuple[bytes, ...]) -> subprocess.Popen[bytes]:
            stdin, stdout, stderr = stdio
            return subprocess.Popen(
                words,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=env,
                cwd=cwd,
                start_new_session=True,
                umask=0o022,
                preexec_fn=unblock,
                **as_user,
            )

        self._work = work
        self._began = time.monotonic()
        try:
            self._process = start(argv)
        except OSError as error:
            if error.errno != 8:  # ENOEXEC: a script without #!, which shells run with sh
                raise
            self._process = start((b"/bin/sh", *argv))
        self.fd = os.pidfd_open(self._process.pid)

    def read(self) -> bool:
        """False: it has ended."""
        return False

    def kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def finish(self) -> Outcome:
        """What it has left in the background ends with it, as its files do."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._process.pid, 0)
        os.close(self.fd)
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        return Outcome(
            code if code >= 0 else None,
            -code if code < 0 else None,
            timings={"run": time.monotonic() - self._began},
            max_rss_kib=usage.ru_maxrss,
            user_seconds=usage.ru_utime,
            system_seconds=usage.ru_stime,
            came_back={
                "/tmp" if name == "tmp" else self._work.directory(name): _kind(self._work.directory(name))
                for name in ("app", "cache", "env", "tmp")
            },
        )

    def abandon(self) -> None:
        self.finish()


def _kind(path: str) -> str:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return "missing"
    names = {stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFREG: "file"}
    return names.get(stat.S_IFMT(mode), "special file")
