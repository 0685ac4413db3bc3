"""The Launcher process: takes requests from a socket until it closes, launches, answers.

Many launches at a time, one thread: the end of each shows on its status pipe.
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import socket
import struct
import time
from typing import Any

from nsbuild.sandbox import init
from nsbuild.sandbox.ahead import Ahead, MountTable, can_be_made_ahead
from nsbuild.sandbox.outcome import AfterCommandError, LaunchError
from nsbuild.sandbox.running import Running
from nsbuild.sandbox.skeleton import Skeleton
from nsbuild.sandbox.value import pack, unpack
from nsbuild.sandbox.view import View


def main(fd: str) -> None:
    """Serve until the caller closes its end, then kill what is left and give everything back."""
    for number in init.FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    with socket.socket(fileno=int(fd)) as control:
        control.set_inheritable(False)
        _Server(control).serve()


_MOST_AHEAD = 8
"""Views made ahead at a time: each is a process."""


class _Workspace:
    """What is remembered of a workspace between two launches."""

    def __init__(self, path: str) -> None:
        self.skeleton = Skeleton(path)
        self.packed = b""
        self.view: View | None = None
        """The last view, and as it was sent: `packed`."""
        self.again = False
        """Whether that view was launched into twice, and so may well be again."""
        self.ahead: Ahead | None = None

    def discard_ahead(self) -> None:
        if self.ahead is not None:
            self.ahead.discard()
            self.ahead = None


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._workspaces: dict[str, _Workspace] = {}
        self._launches: dict[int, tuple[Running, socket.socket]] = {}
        """By status pipe and by answer socket: both lead to the launch."""
        self._mounts = MountTable()
        self._wanted: set[_Workspace] = set()
        """Whose view is to be made ahead as soon as there is nothing else to do."""

    def serve(self) -> None:
        try:
            while True:
                ready = self._poll.poll(0 if self._wanted else None)
                if not ready:
                    self._make_ahead()
                for fd, _ in ready:
                    if fd == self._control.fileno():
                        if not self._accept():
                            return
                    elif fd in self._launches:
                        self._attend(fd)
        finally:
            for running, answer in {id(both): both for both in self._launches.values()}.values():
                running.abandon()
                answer.close()
            for workspace in self._workspaces.values():
                workspace.discard_ahead()
                workspace.skeleton.discard()
            self._mounts.close()

    def _accept(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, 64, 5)
        if not data:
            return False
        body, answer_fd, *stdio = fds
        for fd in fds:
            os.set_inheritable(fd, False)
        answer = socket.socket(fileno=answer_fd)
        try:
            os.lseek(body, 0, os.SEEK_SET)
            with open(body, "rb", closefd=False) as file:
                path, packed, order = marshal.load(file)
            running = self._start(path, packed, unpack(order), body, (stdio[0], stdio[1], stdio[2]))
        except LaunchError as error:
            _answer(answer, "failed", error.step, error.call, error.path, error.errno, error.text)
        except OSError as error:
            _answer(answer, "error", error.errno or 0, error.strerror or str(error), error.filename)
        else:
            self._launches[running.fd] = self._launches[answer.fileno()] = (running, answer)
            self._poll.register(running.fd, select.POLLIN)
            self._poll.register(answer, select.POLLIN)
        finally:
            for fd in (body, *stdio):
                os.close(fd)
        return True

    def _start(
        self, path: str, packed: bytes, command: init.Command, body: int, stdio: tuple[int, int, int]
    ) -> Running:
        began = time.monotonic()
        workspace = self._workspaces.setdefault(path, _Workspace(path))
        repeated = packed == workspace.packed
        if workspace.view is None or not repeated:
            workspace.packed, workspace.view = packed, unpack(marshal.loads(packed))
        view: View = workspace.view
        workspace.again = repeated and can_be_made_ahead(view)
        self._wanted.discard(workspace)
        if self._mounts.changed():
            for other in self._workspaces.values():
                other.discard_ahead()
        ahead = workspace.ahead
        if ahead is not None and repeated and not command.tty and not command.rlimits and ahead.fits():
            workspace.ahead = None
            return ahead.give(body, command, stdio, began)
        workspace.discard_ahead()
        return Running.start(view, workspace.skeleton, command, stdio)

    def _make_ahead(self) -> None:
        """For one workspace, in which nothing runs now. When it fails, the launch itself will say why."""
        workspace = self._wanted.pop()
        if workspace.view is None or sum(1 for one in self._workspaces.values() if one.ahead) >= _MOST_AHEAD:
            return
        try:
            workspace.ahead = Ahead(workspace.view, workspace.skeleton)
        except (LaunchError, OSError):
            return

    def _attend(self, fd: int) -> None:
        running, answer = self._launches[fd]
        if fd == running.fd:
            if not running.read():
                self._finish(running, answer)
            return
        data = answer.recv(4)
        if data:
            running.kill(struct.unpack("<I", data)[0])
        else:
            running.kill(signal.SIGKILL)
            self._poll.unregister(answer)

    def _finish(self, running: Running, answer: socket.socket) -> None:
        for fd in (running.fd, answer.fileno()):
            del self._launches[fd]
            try:
                self._poll.unregister(fd)
            except KeyError:
                continue  # the caller has gone before
        try:
            _answer(answer, "outcome", pack(running.finish()))
            workspace = self._workspaces[running.workspace]
            if workspace.again:
                self._wanted.add(workspace)
        except AfterCommandError as error:
            _answer(answer, "after", pack(error.outcome), error.errno, str(error))
        except LaunchError as error:
            _answer(answer, "failed", error.step, error.call, error.path, error.errno, error.text)
        running.let_go()


def _answer(answer: socket.socket, *message: Any) -> None:
    with answer:
        try:
            answer.send(marshal.dumps(message))
        except OSError:
            return  # nobody waits for it any more
