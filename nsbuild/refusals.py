"""What the kernel and the disk say, as errors a person can act on."""

from __future__ import annotations

from types import TracebackType

from nsbuild.errors import FULL, AfterCommand, NsbuildError, Refused
from nsbuild.sandbox import AfterCommandError, LaunchError


class Refusals:
    """A context that turns LaunchError, AfterCommandError and OSError into NsbuildError.

    Set `ran` once the command has run: what fails then is an `after`. `full` is the fix for a full disk.
    """

    def __init__(
        self,
        full: str = "Free some space, or give another --workspace-dir.",
        after: type[NsbuildError] = AfterCommand,
    ) -> None:
        self.ran = False
        self._full = full
        self._after = after

    def __enter__(self) -> Refusals:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, LaunchError):
            from nsbuild.sandbox.probe import explain

            raise explain(error) from error
        if isinstance(error, AfterCommandError):
            fix = self._full if error.errno in FULL else ""
            raise self._after(f"{error} (the command ended with {error.outcome.exit_code}).", fix) from error
        if isinstance(error, OSError):
            raise self._of(error) from error

    def _of(self, error: OSError) -> NsbuildError:
        place = f"{error.filename}: " if error.filename else ""
        fix = self._full if error.errno in FULL else ""
        return (self._after if self.ran else Refused)(f"{place}{error.strerror or error}.", fix)
