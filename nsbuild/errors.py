"""Every error a user can meet: a code, one sentence that names the thing and the place, and the fix."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from enum import IntEnum

FULL = (errno.ENOSPC, errno.EDQUOT)
"""A disk that is full, and a user's quota that is used up."""


def said_full(lines: Iterable[str]) -> int:
    """Which of FULL a tool (LC_ALL=C) has complained of; 0 for neither."""
    return next((number for number in FULL if any(os.strerror(number) in line for line in lines)), 0)


class ExitCode(IntEnum):
    """Every exit status of ours. `compile`, `exec` and `run` otherwise give the command's own, or 128+n."""

    OK = 0
    TESTS_FAILED = 1
    """`test`: the app was built, and its tests failed."""
    DIFFERENT = 1
    """`diff`, `verify`: the two are not the same."""
    NEEDS_CARE = 1
    """`lint`: something in it is known to have broken other buildpacks."""
    FAILING = 1
    """`rollout check`: the namespace does worse, and the rollout is stopped."""
    USAGE = 2
    """Bad arguments, or no such source or buildpack."""
    UNFIT = 3
    """`lint`: it cannot work (root, a system directory). Not 2, which is usage for every command."""
    INCONCLUSIVE = 3
    """`rollout check`: too little is known to go on, or something is on its way."""
    NO_BUILDPACK = 10
    COMPILE_FAILED = 11
    RELEASE_FAILED = 12
    LIMIT = 13
    """`build`: its time or size limit."""
    AUDIT = 14
    AFTER_COMMAND = 123
    """`compile`, `exec`, `run`: nsbuild failed after the command had run."""
    TIMEOUT = 124
    """`compile`, `exec`, `run`: the time limit."""
    REFUSED = 125
    """Refused, or failed ourselves, before the command ran (kernel, disk full, misuse)."""
    CANNOT_EXECUTE = 126
    NOT_FOUND = 127
    INTERRUPTED = 130


class NsbuildError(Exception):
    """What went wrong, for a person.

    `sentence` names the thing, the place and the reason; `fix`, when there is one, is what to do about it.
    `code` is what the process exits with.
    """

    code: ExitCode = ExitCode.REFUSED

    def __init__(self, sentence: str, fix: str = "", code: ExitCode | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.fix = fix
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.sentence} {self.fix}".rstrip()


class UsageError(NsbuildError):
    """Bad arguments, or a source or buildpack that is not there."""

    code = ExitCode.USAGE


class Refused(NsbuildError):
    """We could not, or would not: the kernel, the disk, somebody else's directory."""

    code = ExitCode.REFUSED


class AfterCommand(NsbuildError):
    """The command has run; what came after it failed."""

    code = ExitCode.AFTER_COMMAND


class Interrupted(NsbuildError):
    """A person or a supervisor asked us to stop."""

    code = ExitCode.INTERRUPTED
