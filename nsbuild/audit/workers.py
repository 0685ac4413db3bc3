"""Processes that share the reading: they are forked, and whichever is idle takes the next batch of files."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

from nsbuild.interrupts import ENDING, signals_held
from nsbuild.sandbox.privileges import die_with_parent

_ROOM = 1 << 17
"""Bytes that a batch may have on its way: the kernel cuts off what is beyond. Paths can be longer than that."""


Part = tuple[str, Sequence[str]]
"""Files of one directory: its path from the top of the slug, their names."""
FDS = 16
"""Directories that are kept open, of all batches together, at most. SCM_MAX_FD is 253; a process may have few."""


class Workers:
    """`work(part, dir_fd)` is done for each part of a batch by one of `count` processes forked now, or here. Each
    of them calls `begin()` first, and hands back what `result()` is at the end. Where the user may have no more
    processes, or there is no memory for them, there are fewer, or none.

    Only for a process of one thread.
    """

    def __init__(
        self,
        count: int,
        begin: Callable[[], None],
        work: Callable[[Part, int], None],
        result: Callable[[], object],
    ) -> None:
        self._begin, self._work, self._result = begin, work, result
        # Batches are whole in it, and each is received by one process only.
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)  # send_fds of CPython 3.11 passes its flags over
        self._children: list[tuple[int, int]] = []
        try:
            while len(self._children) < count and self._fork():
                pass
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends those that are left: after `finish` there are none."""
        self._ours.close()
        self._theirs.close()
        for pid, answer in self._children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(answer)
        self._children.clear()

    def _fork(self) -> bool:
        """One process more; False when there can be none."""
        ours = os.getpid()
        try:
            answer, say = os.pipe()
        except OSError:
            return False
        with signals_held():  # a handler of ours would have the other one go on as if it were this process
            try:
                pid = os.fork()
            except OSError:
                os.close(answer)
                os.close(say)
                return False
            if pid == 0:
                os.close(answer)  # else it would wait for itself to read, when nobody else is left
                self._child(say, ours)
            os.close(say)
            self._children.append((pid, answer))
        return True

    def _child(self, say: int, parent: int) -> NoReturn:
        try:
            die_with_parent()
            if os.getppid() != parent:
                os._exit(1)  # it has ended already
            for number in ENDING:
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                    signal.signal(number, signal.SIG_DFL)  # the handlers of our caller are about builds
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            self._ours.close()  # else this process would keep itself from seeing the end
            try:
                self._begin()
                while self._one(self._theirs):
                    pass
                answer = pickle.dumps(self._result(), pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                answer = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
            with open(say, "wb") as file:
                file.write(answer)
        finally:
            os._exit(0)

    def _one(self, received: socket.socket, flags: int = 0) -> bool:
        """Do one batch that is on its way; False when there will be no more, or, with MSG_DONTWAIT, is none."""
        try:
            data, fds, _, _ = socket.recv_fds(received, _ROOM, FDS, flags)
        except BlockingIOError:
            return False
        if not data:
            return False
        try:
            parts: list[Part] = pickle.loads(data)
            if len(fds) < len(parts):  # the kernel leaves out what it cannot install
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            for part, fd in zip(parts, fds, strict=True):
                self._work(part, fd)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def give(self, batch: list[Part], dir_fds: list[int]) -> bool:
        """Hand a batch on. False when all have enough to do, or it cannot be sent: then it is the caller's."""
        data = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)
        if not self._children or len(data) > _ROOM:
            return False
        try:
            return socket.send_fds(self._ours, [data], dir_fds) == len(data)
        except OSError:
            return False

    def finish(self) -> list[Any]:
        """Do what nobody has begun, wait for the others, and return their results.

        Raises what one of them raised; OSError when one was killed.
        """
        self._ours.shutdown(socket.SHUT_WR)
        while self._one(self._theirs, socket.MSG_DONTWAIT):
            pass
        results = []
        while self._children:
            pid, answer = self._children[-1]
            with open(answer, "rb", closefd=False) as file:
                data = file.read()
            self._children.pop()
            os.close(answer)
            os.waitpid(pid, 0)
            try:
                result = pickle.loads(data)
            except (EOFError, pickle.UnpicklingError):  # nothing, or not all of it
                raise OSError(errno.ECANCELED, "A process that read for the audit was killed") from None
            if isinstance(result, Exception):
                raise result
            results.append(result)
        return results
