"""A view that is made before it is asked for.

Most of a launch is making namespaces and mounts, and a server that launches into one view again and again can do
that between two launches. What is ready is used only when the next request is for the very same view and nothing
on the host has changed; it holds nothing that a command has touched.
"""

from __future__ import annotations

import marshal
import os
import select
import socket

from nsbuild.sandbox import init
from nsbuild.sandbox.running import Child, Running, network_of
from nsbuild.sandbox.skeleton import Skeleton
from nsbuild.sandbox.value import unpack
from nsbuild.sandbox.view import Bind, Overlay, Place, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def can_be_made_ahead(view: View) -> bool:
    """Not by root, which takes mounts for another user; not where something is mounted on what is placed later, or
    an overlay is written to.
    """
    places = [operation.path for operation in view.operations if isinstance(operation, Place)]
    mounted = [operation for operation in view.operations if not isinstance(operation, Place)]
    return (
        os.geteuid() != 0
        and not any(isinstance(operation, Overlay) for operation in mounted)
        and not any(operation.path.startswith(f"{place}/") for operation in mounted for place in places)
    )


class MountTable:
    """Tells when the host's mounts have changed: the kernel marks /proc/self/mountinfo then."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLERR | select.POLLPRI)
        self.changed()

    def changed(self) -> bool:
        """Since the last call."""
        return any(events & (select.POLLERR | select.POLLPRI) for _, events in self._poll.poll(0))

    def close(self) -> None:
        os.close(self._fd)


class Ahead:
    """One view, made in a process that waits for a command. Raises what a launch raises."""

    def __init__(self, view: View, skeleton: Skeleton) -> None:
        self._view = view
        self._skeleton = skeleton
        skeleton.verify(view)
        self._sources = _identities(view)
        before_pivot = network_of(view)
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def body(mounts: Mapping[str, int], status: int, go: int) -> None:
            # Nothing of the launches that go on meanwhile: their ends are not to wait for this process.
            init.close_all_but(sorted((status, go, theirs.fileno())))

            def orders() -> tuple[init.Command, init.Descriptors]:
                data, fds, _, _ = socket.recv_fds(theirs, 16, 4)
                if not data:
                    os._exit(0)
                theirs.close()
                request, *stdio = fds
                os.lseek(request, 0, os.SEEK_SET)
                with open(request, "rb") as file:  # noqa: PTH123
                    command: init.Command = unpack(marshal.load(file)[2])
                return command, init.Descriptors(stdio[0], stdio[1], stdio[2], status, go)

            init.run(view, skeleton.path, mounts, status, before_pivot, orders)

        try:
            self._child = Child(view, skeleton, body, before_pivot is not None)
        except BaseException:
            self._orders.close()
            raise
        finally:
            theirs.close()
        try:
            self._child.hold_mounts()
        except BaseException:
            self.discard()
            raise

    def fits(self) -> bool:
        """Whether a launch into its view would still make just this."""
        failed = bool(select.select([self._child.status], [], [], 0)[0])
        return not failed and _identities(self._view) == self._sources

    def give(self, request: int, command: init.Command, stdio: tuple[int, int, int], began: float) -> Running:
        """Place what the view places, and hand over the command: one without terminal and rlimits, which need modules
        that the process has not loaded. `request` is a file as a Launcher sends it.
        """
        self._skeleton.take()
        try:
            try:
                self._skeleton.place(self._view)
                socket.send_fds(self._orders, [b"launch"], [request, *stdio])
            except BaseException:
                self.discard()
                raise
            self._orders.close()
            return Running(self._child, self._skeleton, command, began)
        except BaseException:
            self._skeleton.give_back()
            raise

    def discard(self) -> None:
        """It is not wanted after all."""
        self._orders.close()
        self._child.end()


def _identities(view: View) -> list[tuple[int, int] | None]:
    """Which files and directories of the host the view binds."""
    found: list[tuple[int, int] | None] = []
    for operation in view.operations:
        if isinstance(operation, Bind):
            try:
                info = os.stat(operation.source)
                found.append((info.st_dev, info.st_ino))
            except OSError:
                found.append(None)
    return found
