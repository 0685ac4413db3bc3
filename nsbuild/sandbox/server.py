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
from typing import Any

from nsbuild.sandbox import init
from nsbuild.sandbox.outcome import AfterCommandError, LaunchError
from nsbuild.sandbox.running import Running
from nsbuild.sandbox.skeleton import Skeleton
from nsbuild.sandbox.value import pack, unpack


def main(fd: str) -> None:
    """Serve until the caller closes its end, then kill what is left and give everything back."""
    for number in init.FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    with socket.socket(fileno=int(fd)) as control:
        control.set_inheritable(False)
        _Server(control).serve()


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._skeletons: dict[str, Skeleton] = {}
        self._launches: dict[int, tuple[Running, socket.socket]] = {}
        """By status pipe and by answer socket: both lead to the launch."""

    def serve(self) -> None:
        try:
            while True:
                for fd, _ in self._poll.poll():
                    if fd == self._control.fileno():
                        if not self._accept():
                            return
                    elif fd in self._launches:
                        self._attend(fd)
        finally:
            for running, answer in {id(both): both for both in self._launches.values()}.values():
                running.abandon()
                answer.close()
            for skeleton in self._skeletons.values():
                skeleton.discard()

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
            with open(body, "rb") as file:  # noqa: PTH123
                view, command = (unpack(part) for part in marshal.load(file))
            skeleton = self._skeletons.setdefault(view.workspace, Skeleton(view.workspace))
            running = Running.start(view, skeleton, command, (stdio[0], stdio[1], stdio[2]))
        except LaunchError as error:
            _answer(answer, "failed", error.step, error.call, error.path, error.errno, error.text)
        except OSError as error:
            _answer(answer, "error", error.errno or 0, error.strerror or str(error), error.filename)
        else:
            self._launches[running.fd] = self._launches[answer.fileno()] = (running, answer)
            self._poll.register(running.fd, select.POLLIN)
            self._poll.register(answer, select.POLLIN)
        finally:
            for fd in stdio:
                os.close(fd)
        return True

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
        except AfterCommandError as error:
            _answer(answer, "after", pack(error.outcome), error.errno, str(error))
        except LaunchError as error:
            _answer(answer, "failed", error.step, error.call, error.path, error.errno, error.text)


def _answer(answer: socket.socket, *message: Any) -> None:
    with answer:
        try:
            answer.send(marshal.dumps(message))
        except OSError:
            return  # nobody waits for it any more
