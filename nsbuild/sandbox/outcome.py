"""How a launch ended, or why it did not begin."""

from __future__ import annotations

from nsbuild.sandbox.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsbuild.sandbox.limits import Usage


class LaunchError(Exception):
    """The command was not started: which step failed, in which call, on what, with which errno.

    `probe.explain` turns it into the restriction and the fix.
    """

    def __init__(self, step: str, call: str, path: str, number: int, text: str) -> None:
        super().__init__(f"{step}: {text}")
        self.step = step
        self.call = call
        self.path = path
        self.errno = number
        self.text = text


class AfterCommandError(Exception):
    """The command has ended, but something it was lent could not be given back: `number` is the errno."""

    def __init__(self, outcome: Outcome, number: int, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.errno = number


class Outcome(Value):
    """How a launch ended.

    `status` is the command's exit status, `signal` what killed it; both None when it was not started, and
    `error` then says why (`not found` or `cannot execute`, and the step that failed). Times are in seconds.
    Bytes read and written are those that reached storage. `stopped`: the launch's `until` has ended it.
    `usage` and `limited` (how each limit is kept, in sentences) are there when limits were given.
    `came_back` tells for every placed directory what was found there afterwards; `kept_beside` where a directory is
    that could not be renamed back because its old path exists again.
    """

    status: int | None
    signal: int | None = None
    error: str = ""
    error_number: int = 0
    timed_out: bool = False
    stopped: bool = False
    forwarded: tuple[int, ...] = ()
    timings: Mapping[str, float] = {}
    max_rss_kib: int = 0
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    came_back: Mapping[str, str] = {}
    usage: Usage | None = None
    limited: tuple[str, ...] = ()
    kept_beside: Mapping[str, str] = {}

    @property
    def exit_code(self) -> int:
        """What a shell would show: the status, 128+n for signal n, 124 for the time limit, 126, 127."""
        if self.timed_out:
            return 124
        if self.signal is not None:
            return 128 + self.signal
        if self.status is not None:
            return self.status
        return 127 if self.error == "not found" else 126
