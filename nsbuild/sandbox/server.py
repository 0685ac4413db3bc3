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


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._skeletons: dict[str, Skeleton] = {}
        self._launches: dict[int, tuple[Running, socket.socket]] = {}
        """By status pipe and by answer socket: both lead to the launch."""
        self._mounts = MountTable()
        self._views: dict[str, tuple[bytes, View]] = {}
        """The last view of each workspace, as it was sent and as it is."""
        self._ahead: dict[str, Ahead] = {}
        self._repeated: dict[str, bool] = {}
        """Whether that view was launched into twice, and so may well be again."""
        self._wanted: set[str] = set()
        """What is to be made ahead as soon as there is nothing else to do."""

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
            for ahead in self._ahead.values():
                ahead.discard()
            for skeleton in self._skeletons.values():
                skeleton.discard()
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
                workspace, packed, order = marshal.load(file)
            running = self._start(workspace, packed, unpack(order), body, (stdio[0], stdio[1], stdio[2]))
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
        self, workspace: str, packed: bytes, command: init.Command, body: int, stdio: tuple[int, int, int]
    ) -> Running:
        began = time.monotonic()
        skeleton = self._skeletons.setdefault(workspace, Skeleton(workspace))
        last = self._views.get(workspace)
        again = last is not None and last[0] == packed
        view: View = last[1] if last is not None and again else unpack(marshal.loads(packed))
        self._views[workspace] = (packed, view)
        self._wanted.discard(workspace)
        self._repeated[workspace] = again and can_be_made_ahead(view)
        if self._mounts.changed():
            for other in list(self._ahead):
                self._ahead.pop(other).discard()
        ahead = self._ahead.pop(workspace, None)
        if ahead is not None:
            if again and not command.tty and not command.rlimits and ahead.fits():
                return ahead.give(body, command, stdio, began)
            ahead.discard()
        return Running.start(view, skeleton, command, stdio)

    def _make_ahead(self) -> None:
        """For one workspace, in which nothing runs now. When it fails, the launch itself will say why."""
        workspace = self._wanted.pop()
        if len(self._ahead) >= _MOST_AHEAD:
            return
        try:
            self._ahead[workspace] = Ahead(self._views[workspace][1], self._skeletons[workspace])
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
            workspace = running.workspace
            if self._repeated[workspace]:
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
