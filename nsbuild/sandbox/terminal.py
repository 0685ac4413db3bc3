"""A terminal for the command (`--tty`): a new pty of the view's own devpts, which the launcher relays.

pid 1 makes the pty and sends its master to the launcher over a socket, which stands for the command's stdin and
stdout until then. The caller's terminal is in raw mode meanwhile: keys are bytes that the pty's line discipline
makes signals of, once. Loaded only when it is asked for.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios

from nsbuild.sandbox import kernel
from nsbuild.sandbox.stdio import Stdio, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any

    from nsbuild.sandbox.init import Descriptors
else:
    import _signal as signal

_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441  # asm-generic; Python has no names for them
_SIGNALS = (signal.SIGWINCH, signal.SIGCONT)
_CHUNK = 65536


def open_inside(given: Descriptors) -> Descriptors:
    """In pid 1: what the command gets in place of the socket, once the launcher is ready for it."""
    with socket.socket(fileno=given.stdin) as launcher:
        master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        # By the master and not by a path. pid 1 leads a session: the terminal must not become its own.
        peer = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        slave = fcntl.fcntl(peer, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(peer)
        errors = slave if os.path.samestat(os.fstat(given.stderr), os.fstat(given.stdin)) else given.stderr
        launcher.sendmsg([b"m"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", master))])
        os.close(master)
        if not launcher.recv(1):
            os._exit(125)
    return given.replace(stdin=slave, stdout=slave, stderr=errors)


def make_controlling() -> None:
    """In the command, which leads a session: its stdin is the session's terminal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal(Stdio):
    """The launcher's side, used as `Stdio` is. What is to be watched changes, so one epoll descriptor stands for it.

    Blocks SIGWINCH and SIGCONT; the caller restores its signal mask. Raises ValueError without a terminal.
    """

    def __init__(self, stdin: int, stdout: int, stderr: int) -> None:
        if not (os.isatty(stdin) and os.isatty(stdout)):
            raise ValueError("a terminal for the command needs terminals on stdin and stdout to relay to")
        self._stdin, self._stdout = stdin, stdout
        self._saved: list[Any] | None = None
        self._master = -1
        self._typed = b""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._socket, theirs = socket.socketpair()
        child = theirs.detach()
        self._opened = [child]
        self.child = (child, child, child if os.isatty(stderr) else stderr)
        self._signals = kernel.signalfd(_SIGNALS)
        self._epoll = select.epoll()
        self._epoll.register(self._socket, select.EPOLLIN)
        self._epoll.register(self._signals, select.EPOLLIN)
        self.pumps = {self._epoll.fileno(): lambda _: None}

    def pump(self, fd: int) -> bool:
        """Attend to whatever is ready. Never ends before the launch does."""
        for ready, events in self._epoll.poll(0):
            if ready == self._socket.fileno():
                self._begin()
            elif ready == self._signals:
                os.read(self._signals, 128)
                if self._master >= 0 and _in_foreground(self._stdin):
                    # After a stop: the caller's shell has had the terminal.
                    self._make_raw()
                    self._copy_size()
            elif self._master < 0:
                continue  # hung up, a moment ago
            elif ready == self._stdin:
                self._take_input()
            elif ready == self._master:
                if events & select.EPOLLOUT:
                    self._give_input()
                if events & (select.EPOLLIN | select.EPOLLHUP):
                    self._show()
        return True

    def drain(self) -> None:
        """What the command has written and nobody has read. Every writer is dead."""
        while self._show():
            continue

    def __exit__(self, *_: object) -> None:
        if self._saved is not None and _in_foreground(self._stdin):
            try:
                # Not TCSAFLUSH: what has been typed ahead is for whoever comes next.
                termios.tcsetattr(self._stdin, termios.TCSANOW, self._saved)
            except termios.error:
                pass  # the terminal is gone
        self.close_child_ends()
        self._close_master()
        self._socket.close()
        os.close(self._signals)
        self._epoll.close()

    def _begin(self) -> None:
        """The pty is there, and pid 1 waits: make both terminals what they must be, and let it go on."""
        self._epoll.unregister(self._socket)
        _, ancillary, _, _ = self._socket.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        if not ancillary:
            return  # it has failed, and says so elsewhere
        (self._master,) = struct.unpack("i", ancillary[0][2])
        os.set_blocking(self._master, False)
        try:
            saved = termios.tcgetattr(self._stdin)
            termios.tcsetattr(self._master, termios.TCSANOW, saved)
            self._saved = saved
            self._make_raw()
            self._copy_size()
        except termios.error as error:
            raise OSError(*error.args) from None
        self._epoll.register(self._master, select.EPOLLIN)
        self._epoll.register(self._stdin, select.EPOLLIN)
        try:
            self._socket.send(b"g")
        except BrokenPipeError:
            return  # killed meanwhile

    def _make_raw(self) -> None:
        """As cfmakeraw(3)."""
        assert self._saved is not None
        modes = [*self._saved[:6], list(self._saved[6])]
        modes[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.INPCK | termios.ISTRIP | termios.INLCR
            | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        modes[1] &= ~termios.OPOST
        modes[2] = modes[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        modes[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._stdin, termios.TCSANOW, modes)

    def _copy_size(self) -> None:
        # The kernel tells the foreground group inside when it has changed.
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, fcntl.ioctl(self._stdin, termios.TIOCGWINSZ, bytes(8)))

    def _take_input(self) -> None:
        try:
            self._typed = os.read(self._stdin, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._typed = b""
        if self._typed:
            self._give_input()
        else:
            self._hang_up()

    def _give_input(self) -> None:
        """Never waits: a command that echoes what it does not read would wait for us."""
        try:
            self._typed = self._typed[os.write(self._master, self._typed) :]
        except BlockingIOError:
            pass
        self._epoll.modify(self._stdin, 0 if self._typed else select.EPOLLIN)
        self._epoll.modify(self._master, select.EPOLLIN | (select.EPOLLOUT if self._typed else 0))

    def _show(self) -> bool:
        """Pass one chunk of output on; False when there is none."""
        if self._master < 0:
            return False
        try:
            data = os.read(self._master, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            # EIO: pid 1 keeps the pty open, so everything inside has ended.
            self._hang_up()
            return False
        try:
            write_all(self._stdout, data)
        except OSError:
            self._hang_up()
        return True

    def _hang_up(self) -> None:
        """No more input or output: the command gets what a terminal's end brings, SIGHUP, and may live on."""
        self._epoll.unregister(self._stdin)
        self._close_master()

    def _close_master(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


def _in_foreground(terminal: int) -> bool:
    """Else its modes are the shell's by now, and changing them would stop us."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return True  # it is not the terminal of our session; there is no background
