"""The candidate's own process: waits until the shipped build has been delivered, builds, compares, notes, removes."""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nsbuild.audit import Severity
from nsbuild.audit.audit import AuditOptions, audit
from nsbuild.audit.diff import Diff, DiffOptions, diff
from nsbuild.audit.normal import Difference
from nsbuild.build.events import Event
from nsbuild.errors import NsbuildError
from nsbuild.printable import printable
from nsbuild.rollout.arms import renamed
from nsbuild.rollout.decision import CRASHED, DIFFERENT, FAILED, SAME, SKIPPED, TIMED_OUT
from nsbuild.rollout.noted import record_candidate
from nsbuild.rollout.output import Output
from nsbuild.rollout.shadow import DELIVERED, JOB, LOCK, SLOT
from nsbuild.sandbox.outcome import LaunchError
from nsbuild.sandbox.value import unpack
from nsbuild.slug import format_of
from nsbuild.slug import unpack as unpack_slug
from nsbuild.user import build_user
from nsbuild.workspace import Workspace, collect_orphans, remove_locked
from nsbuild.wrap.plan import WrapOptions
from nsbuild.wrap.wrap import compile_


@dataclass(frozen=True)
class Built:
    """A candidate that was built, or not: `problem` is ours, when it has no exit code of its own; `skipped` is why it
    was not tried.

    `places` are where either was built, `slug` what was built, `shipped` what was shipped (empty: nothing was).
    """

    exit_code: int
    timed_out: bool = False
    problem: str = ""
    skipped: str = ""
    slug: str = ""
    shipped: str = ""
    places: tuple[str, ...] = ()
    run_path: str = "/app"
    more: Mapping[str, Any] = field(default_factory=dict)


class _Late(Exception):
    """The time limit, while slugs were compared."""


def main() -> None:
    """What `nsbuild.rollout.shadow.spawn` starts."""
    with open(JOB, "rb", closefd=False) as file:
        job = marshal.load(file)
    # Standard input, of the buildpack as well: had it been closed, whatever is opened next would be that.
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, JOB)
    os.close(nothing)
    os.set_inheritable(SLOT, False)  # ours alone
    wait_for_the_end(DELIVERED)
    # The lowest priority there is, and with it the idle class of I/O: ioprio_set(2).
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    path = Path(job["path"])
    output: Output | None = None
    started, began = time.time(), time.monotonic()
    try:
        output = Output(f"{path}/output")
        built = _KINDS[job["kind"]](job)
        result, more = judge(built, job["timeout"] - (time.monotonic() - began))
    except Exception as error:
        result, more = CRASHED, {"fallback": f"{type(error).__name__}: {error}"[:500]}
    try:
        seconds = round(time.monotonic() - began, 3)
        told = more.pop("differences", "")
        if output is not None and result in (FAILED, TIMED_OUT):
            with contextlib.suppress(OSError):
                told = output.end()
        record_candidate(job["decided"], result, told, started=started, seconds=seconds, **more)
    finally:
        remove_locked(path.parent, str(path), LOCK)
        collect_orphans(path.parent)


def wait_for_the_end(process: int) -> None:
    """Until whoever waits for the process of this pidfd can have its status."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.poll()
    os.close(process)


def judge(built: Built, left: float) -> tuple[str, dict[str, Any]]:
    """The candidate's result, and what else an outcome says of it. `left` are the seconds that comparing may take.

    `different` is what differs in more than the path, time, bytecode or order, or was not shipped at all.
    """
    if built.skipped:
        return SKIPPED, {"fallback": built.skipped}
    more: dict[str, Any] = {"exit_code": built.exit_code, **built.more}
    if built.timed_out or left <= 0:
        return TIMED_OUT, more
    if built.exit_code != 0:
        return FAILED, {**more, "fallback": built.problem}
    if not built.shipped:
        return DIFFERENT, more
    try:
        found = _compared(built, left)
    except _Late:
        return TIMED_OUT, more
    except Exception as error:
        return CRASHED, {**more, "fallback": f"{type(error).__name__}: {error}"[:500]}
    counts = {str(kind): sum(1 for change in found.counted if change.kind is kind) for kind in Difference}
    more["diff"] = {kind: count for kind, count in counts.items() if count}
    more["differences"] = "".join(f"{line}\n" for line in found.as_text()) if counts[Difference.REAL] else ""
    return DIFFERENT if counts[Difference.REAL] else SAME, more


def _compared(built: Built, left: float) -> Diff:
    def late(*_: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        places = [place for place in built.places if place.count("/") > 1]
        return diff(built.shipped, built.slug, DiffOptions(paths=places, run_paths=(built.run_path,)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _compile(job: Mapping[str, Any]) -> Built:
    """`nsbuild compile` of the copies, by the names that the builder's directories had."""
    path = job["path"]
    options = unpack(job["options"])
    assert isinstance(options, WrapOptions)
    ours = {"app": f"{path}/app", "cache": f"{path}/cache", "env": f"{path}/env" if job["given"][2] else ""}
    places = {given: own for given, own in zip(job["given"], ours.values(), strict=True) if given}
    places |= {real: own for real, own in zip(job["real"], ours.values(), strict=True) if real}
    environ = renamed(job["environ"], places)
    environ.pop("BUILDPACK_LOG_FILE", None)  # the builder's own
    exports = sorted(Path(path, "exports").iterdir())
    if held := _held(ours["app"], job["real"][0], exports):
        return Built(0, skipped=held)
    _go_where_it_was(job["cwd"], places)
    options = options.replace(
        attach="bind" if options.attach == "bind" else "auto",
        exports=tuple(map(str, exports)),
        tmp="",
        export_to="",
        fallback="never",
        timeout=job["timeout"],
        workspace_dir="",
    )
    try:
        outcome = compile_(
            job["buildpack"], ours["app"], ours["cache"], ours["env"], environ, options, stand_in=f"{path}/buildpack"
        ).outcome
    except LaunchError as error:
        from nsbuild.sandbox.probe import explain

        return Built(0, skipped=explain(error).sentence)
    except NsbuildError as error:
        return Built(int(error.code), problem=error.sentence)
    return Built(
        outcome.exit_code,
        outcome.timed_out,
        slug=ours["app"],
        shipped=job["shipped"],
        places=(job["real"][0], ours["app"]),
        run_path=options.run_path,
    )


def _held(app: str, place: str, exports: Sequence[Path]) -> str:
    """What the buildpacks before this one, which were shipped direct, have left that works at their path alone."""
    if place.count("/") == 1:  # /app, say, is no place of a build's own
        return ""
    ours = [one for one in audit(app, AuditOptions(paths=[place])).findings if one.place.startswith(place)]
    broken = [f"{one.where} ({one.kind})" for one in ours if one.severity is Severity.BREAKS]
    broken += ["an export" for export in exports if os.fsencode(place) in export.read_bytes()]
    if not broken:
        return ""
    return f"buildpacks before it have left BUILD_DIR's own path in {printable(broken[0])}: it works nowhere else"


def _go_where_it_was(cwd: str, places: Mapping[str, str]) -> None:
    """The builder's working directory, where that is one of the copies; else nowhere that it may want to remove."""
    mapped = renamed({"PWD": cwd}, places)["PWD"]
    try:
        os.chdir(mapped if mapped != cwd else "/")
    except OSError:
        os.chdir("/")


def _build(job: Mapping[str, Any]) -> Built:
    """`nsbuild build` of the copies. The time limit ends whatever runs then, and this process's own work."""
    from nsbuild.build import BuildOptions, build
    from nsbuild.errors import ExitCode
    from nsbuild.rollout.builds import has_run, known_of

    os.environ.clear()
    os.environ.update(job["environ"])
    os.chdir("/")
    path = job["path"]
    options = BuildOptions(**job["options"])
    # A script that ignores the alarm below is killed at the limit all the same.
    options = replace(options, timeout=min(options.timeout or job["timeout"], job["timeout"]))
    end = time.monotonic() + job["timeout"]

    def late(*_: object) -> None:
        raise _Late

    # During a launch it is the command's, which is ended by it.
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, job["timeout"], 1.0)
    try:
        record = build(job["source"], job["buildpacks"], options, monitor=_print)
    except _Late:
        return Built(int(ExitCode.LIMIT), True)
    except NsbuildError as error:
        if isinstance(error.__cause__, LaunchError) and not has_run(error):
            return Built(0, skipped=error.sentence)
        overdue = time.monotonic() >= end
        return Built(int(ExitCode.LIMIT if overdue else error.code), overdue, error.sentence)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    more = {"leaks": known_of(record)["leaks"]}
    shipped = job["shipped"] and _unpacked(Path(job["shipped"]), Path(path))
    return Built(0, slug=str(options.output), shipped=shipped, run_path=options.run_path, more=more)


def _print(event: Event) -> None:
    """As `nsbuild build` does without a terminal, as far as it tells why a build has failed."""
    told = event.kind in ("line", "note", "warning")
    data = os.fsencode(f"{event.text}\n") if told else event.data
    while data:
        data = data[os.write(1, data) :]


def _unpacked(slug: Path, beside: Path) -> str:
    if format_of(slug) == "directory":
        return str(slug)
    user = build_user(str(beside))
    name = Workspace(str(beside / "unpacked"), user)
    os.mkdir(name.path)
    for directory in ("app", "home", "cache", "env", "tmp", "var-tmp"):
        name.make(directory)
    unpack_slug(slug, name)
    return name.directory("app")


_KINDS: Mapping[str, Callable[[Mapping[str, Any]], Built]] = {"compile": _compile, "build": _build}
