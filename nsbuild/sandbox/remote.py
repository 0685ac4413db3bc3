"""The caller's side of an isolated Launcher: a fresh interpreter, a socket, one request a launch.

Its other side is `server.py`. A request is a memfd (an environment may be larger than a packet) with the command's
three descriptors and a socket of its own for the answer; when that socket, or the caller, is gone, so is
the command.
"""

from __future__ import annotations

import marshal
import os
import socket
import struct
import sys

from nsbuild.sandbox.outcome import AfterCommandError, LaunchError, Outcome
from nsbuild.sandbox.value import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsbuild.sandbox.init import Command
    from nsbuild.sandbox.view import View

_CODE = """import sys
from importlib import import_module
name, count = sys.argv[1], int(sys.argv[2])
words, sys.path[:] = sys.argv[3:3 + count], sys.argv[3 + count:]
import_module(name).main(*words)"""


def fresh_interpreter(module: str, *words: str) -> tuple[list[str], dict[bytes, bytes]]:
    """What starts `main(*words)` of a module of ours, and its environment: isolated, and finding what we find.

    A spawned interpreter, never a fork of this one: no threads, no handlers, none of its memory.
    """
    paths = [os.path.abspath(path) for path in sys.path if path]
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    argv = [sys.executable, "-I", "-S", "-c", _CODE, module, str(len(words)), *words, own, *paths]
    return argv, _loader_environment()


class Remote:
    """One server process. `start` may be called from several threads."""

    def __init__(self) -> None:
        self._last: tuple[View | None, bytes] = (None, b"")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fd = theirs.fileno()
        argv, environment = fresh_interpreter("nsbuild.sandbox.server", str(fd))
        os.set_inheritable(fd, True)
        try:
            self._pid = os.posix_spawn(argv[0], argv, environment, setsid=True)
        finally:
            theirs.close()

    def start(self, view: View, command: Command, stdio: tuple[int, int, int]) -> RemoteRunning:
        """Send one request. Raises LaunchError when the server is gone."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        body = os.memfd_create("nsbuild-launch")
        try:
            with open(body, "wb", closefd=False) as file:
                marshal.dump((view.workspace, self._packed(view), pack(command)), file)
            socket.send_fds(self._socket, [b"launch"], [body, theirs.fileno(), *stdio])
        except OSError as error:
            ours.close()
            raise LaunchError("launcher", "sendmsg", "", error.errno or 0, "the Launcher is gone") from error
        finally:
            os.close(body)
            theirs.close()
        return RemoteRunning(ours)

    def _packed(self, view: View) -> bytes:
        """The view as it is sent. Most callers launch into one view, again and again."""
        last, packed = self._last
        if last is not view:
            packed = marshal.dumps(pack(view))
            self._last = (view, packed)
        return packed

    def close(self) -> None:
        """End the server; it kills and gives back first."""
        self._socket.close()
        os.waitpid(self._pid, 0)


class RemoteRunning:
    """A launch that a server does for us; used as `Running` is."""

    def __init__(self, answer: socket.socket) -> None:
        self._socket = answer
        self._answer: tuple[object, ...] | None = None
        self.fd = answer.fileno()

    def read(self) -> bool:
        """False once the answer is there."""
        data = self._socket.recv(1 << 20)
        self._answer = marshal.loads(data) if data else ("failed", "launcher", "", "", 0, "the Launcher died")
        return False

    def kill(self, number: int) -> None:
        try:
            self._socket.send(struct.pack("<I", number))
        except OSError:
            return

    def finish(self) -> Outcome:
        """The outcome; raises what the server met."""
        if self._answer is None:
            self.read()
        self._socket.close()
        kind, *detail = self._answer or ("failed",)
        if kind == "outcome":
            outcome: Outcome = unpack(detail[0])
            return outcome
        if kind == "failed":
            step, call, path, number, text = detail
            raise LaunchError(str(step), str(call), str(path), int(str(number)), str(text))
        if kind == "after":
            packed, number, text = detail
            raise AfterCommandError(unpack(packed), int(str(number)), str(text))
        raise OSError(*detail)

    def abandon(self) -> None:
        """Kill the command and wait until the server has given everything back."""
        self.kill(9)
        try:
            self.finish()
        except (LaunchError, AfterCommandError, OSError):
            return


def _loader_environment() -> dict[bytes, bytes]:
    """LD_LIBRARY_PATH as this process was started with: what our interpreter needs, whatever was set since."""
    with open("/proc/self/environ", "rb") as file:  # noqa: PTH123
        variables = dict(entry.split(b"=", 1) for entry in file.read().split(b"\0") if b"=" in entry)
    return {name: variables[name] for name in (b"LD_LIBRARY_PATH",) if name in variables}
