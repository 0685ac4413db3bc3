"""The buildpacks of a build, one after the other: detect, compile after the exports of those before, report."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from nsbuild import buildpack as api
from nsbuild.build.calls import Calls, ending, shown
from nsbuild.build.options import BuildError
from nsbuild.errors import ExitCode
from nsbuild.tree import open_beneath
from nsbuild.workspace import Workspace


def run_chain(calls: Calls, buildpacks: Sequence[api.Buildpack]) -> None:
    """detect, compile and report of each buildpack in order. Raises BuildError."""
    exports: list[str] = []
    for number, pack in enumerate(buildpacks):
        name = calls.log.record.buildpacks[number].name = detect(calls, pack)
        try:
            compile_(calls, pack, name, exports)
        except BuildError:
            with contextlib.suppress(BuildError):
                report(calls, number, pack)
            raise
        report(calls, number, pack)
        if _has_export(calls.work, number):
            exports.append(f"{pack.path}/export")


def detect(calls: Calls, pack: api.Buildpack) -> str:
    """A configured buildpack must match; what it prints is its name. Raises BuildError."""
    own = Path(pack.reference).name
    if not pack.has("detect"):
        return own
    outcome, printed, said = calls.captured("detect", pack, api.detect(pack, calls.layout))
    calls.check_time("detect", pack, outcome)
    if outcome.exit_code != 0:
        heard = shown(printed + said)
        calls.log.line(f"-----> App not compatible with buildpack: {pack.reference}")
        calls.log.line(" !     Push failed")
        raise BuildError(
            f"The buildpack {pack.reference} does not match this app"
            f" (bin/detect {ending(outcome)}{f', and said: {heard}' if heard else ''}).",
            "Leave it out, or mend the app.",
            ExitCode.NO_BUILDPACK,
        )
    calls.check_build_dir("detect", pack, outcome)
    name = printed.decode("utf-8", "replace").strip() or own
    calls.log.line(f"-----> {name} app detected")
    return name


def compile_(calls: Calls, pack: api.Buildpack, name: str, exports: Sequence[str]) -> None:
    """`exports` are paths in the view. Raises BuildError."""
    outcome = calls.run("compile", pack, api.compile_(pack, calls.layout, exports))
    calls.check_time("compile", pack, outcome)
    if outcome.exit_code != 0:
        calls.log.line(f" !     Push rejected, failed to compile {name} app.")
        raise BuildError(f"bin/compile of {pack.reference} {ending(outcome)}.", code=ExitCode.COMPILE_FAILED)
    calls.check_build_dir("compile", pack, outcome)


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


def _has_export(work: Workspace, number: int) -> bool:
    """The file is read by bash inside the view; here only whether it is there, and a plain file."""
    tmp = os.open(work.directory("tmp"), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fd = open_beneath(tmp, f"buildpacks/{number}/export", os.O_PATH | os.O_NOFOLLOW)
        try:
            return stat.S_ISREG(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
    except OSError:
        return False
    finally:
        os.close(tmp)
