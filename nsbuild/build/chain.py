"""The buildpacks of a build, one after the other: detect, compile after the exports of those before, report."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nsbuild import buildpack as api
from nsbuild.build.calls import Calls, ending, shown
from nsbuild.build.options import BuildError
from nsbuild.build.staging import Staged
from nsbuild.errors import ExitCode
from nsbuild.tree import open_beneath
from nsbuild.workspace import Workspace


def run_chain(calls: Calls, staged: Staged, *, for_tests: bool = False) -> Sequence[api.Buildpack]:
    """detect, compile and report of each buildpack in order; returns those that were used. Raises BuildError.

    For tests it is `bin/test-compile` where there is one, and no report.
    """
    buildpacks, names = _first_match(calls, staged.buildpacks) if staged.detected else (staged.buildpacks, [])
    for number, pack in enumerate(buildpacks):
        name = calls.log.record.buildpacks[number].name = names[number] if names else detect(calls, pack)
        try:
            compile_(calls, pack, name, for_tests=for_tests)
        except BuildError:
            if for_tests:
                raise
            with contextlib.suppress(BuildError):
                report(calls, number, pack)
            raise
        if not for_tests:
            report(calls, number, pack)
        if _has_export(calls.work, pack):
            calls.exports.append(f"{pack.path}/export")
    return buildpacks


def detect_all(calls: Calls, staged: Staged) -> None:
    """detect of each buildpack, in order; the record has the names of those that would be used. Raises BuildError."""
    if staged.detected:
        _, names = _first_match(calls, staged.buildpacks)
    else:
        names = [detect(calls, pack) for pack in staged.buildpacks]
    for record, name in zip(calls.log.record.buildpacks, names, strict=True):
        record.name = name


def _first_match(calls: Calls, buildpacks: Sequence[api.Buildpack]) -> tuple[list[api.Buildpack], list[str]]:
    """The buildpack of a default set that is used, and its name; the record forgets the others. Raises BuildError."""
    found = [(number, pack, _detected(calls, pack)) for number, pack in enumerate(buildpacks)]
    matching = [(number, pack, answer.name) for number, pack, answer in found if answer.name is not None]
    if not matching:
        tried = ", ".join(Path(pack.reference).name for pack in buildpacks)
        raise BuildError(
            f"No buildpack matches this app. Tried: {tried}.", "Name one with --buildpack.", ExitCode.NO_BUILDPACK
        )
    number, pack, name = matching[0]
    if len(matching) > 1:
        several = ", ".join(Path(each.reference).name for _, each, _ in matching)
        calls.log.warn(f"Several buildpacks match this app ({several}); the first is used. --buildpack names others.")
    calls.log.record.buildpacks[:] = [calls.log.record.buildpacks[number]]
    calls.log.line(f"-----> {name} app detected")
    return [pack], [name]


@dataclass(frozen=True)
class _Answer:
    """What bin/detect has printed as the app's name, None when it does not match; `why`, in a message."""

    name: str | None
    why: str = ""


def _detected(calls: Calls, pack: api.Buildpack) -> _Answer:
    own = Path(pack.reference).name
    if not pack.has("detect"):
        return _Answer(own)
    outcome, printed, said = calls.captured("detect", pack, api.detect(pack, calls.layout))
    calls.check_time("detect", pack, outcome)
    if outcome.error:
        # An answer it is not: neither of this app's nor of any other's.
        raise BuildError(
            f"bin/detect of {pack.reference} cannot be run: {os.strerror(outcome.error_number)}.",
            "Is its first line right, and is that interpreter where the build looks for it?",
            ExitCode.REFUSED,
        )
    if outcome.exit_code != 0:
        heard = shown(printed + said)
        return _Answer(None, f"bin/detect {ending(outcome)}{f', and said: {heard}' if heard else ''}")
    calls.check_build_dir("detect", pack, outcome)
    return _Answer(printed.decode("utf-8", "replace").strip() or own)


def detect(calls: Calls, pack: api.Buildpack) -> str:
    """A configured buildpack must match; what it prints is its name. Raises BuildError."""
    answer = _detected(calls, pack)
    if answer.name is None:
        calls.log.line(f"-----> App not compatible with buildpack: {pack.reference}")
        calls.log.line(" !     Push failed")
        raise BuildError(
            f"The buildpack {pack.reference} does not match this app ({answer.why}).",
            "Leave it out, or mend the app.",
            ExitCode.NO_BUILDPACK,
        )
    if pack.has("detect"):
        calls.log.line(f"-----> {answer.name} app detected")
    return answer.name


def compile_(calls: Calls, pack: api.Buildpack, name: str, *, for_tests: bool = False) -> None:
    """After the exports of those before it. Raises BuildError."""
    script = "test-compile" if for_tests and pack.has("test-compile") else "compile"
    outcome = calls.run(script, pack.reference, api.compile_(pack, calls.layout, calls.exports, script))
    calls.check_time(script, pack, outcome)
    if outcome.exit_code != 0:
        calls.log.line(f" !     Push rejected, failed to compile {name} app.")
        raise BuildError(f"bin/{script} of {pack.reference} {ending(outcome)}.", code=ExitCode.COMPILE_FAILED)
    calls.check_build_dir(script, pack, outcome)


def report(calls: Calls, number: int, pack: api.Buildpack) -> None:
    """After success and failure alike; a report's own failure never fails a build."""
    if not pack.has("report"):
        return
    try:
        outcome, printed, _ = calls.captured("report", pack, api.report(pack, calls.layout))
    except BuildError as error:
        calls.log.warn(str(error))
        return
    calls.check_build_dir("report", pack, outcome)
    try:
        if outcome.exit_code != 0:
            raise api.ReportError(ending(outcome))
        calls.log.record.buildpacks[number].report = api.parse_report(printed)
    except api.ReportError as error:
        calls.log.warn(f"bin/report of {pack.reference} was of no use: {error}.")


def _has_export(work: Workspace, pack: api.Buildpack) -> bool:
    """The file is read by bash inside the view; here only whether it is there, and a plain file."""
    tmp = os.open(work.directory("tmp"), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fd = open_beneath(tmp, f"buildpacks/{Path(pack.path).name}/export", os.O_PATH | os.O_NOFOLLOW)
        try:
            return stat.S_ISREG(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
    except OSError:
        return False
    finally:
        os.close(tmp)
