"""A wrapped command: lock, attach, launch, give back."""

from __future__ import annotations

import os
import zlib

from nsbuild.sandbox.init import FORWARDED
from nsbuild.sandbox.launcher import Launcher
from nsbuild.sandbox.mounts import mount_points
from nsbuild.sandbox.outcome import AfterCommandError, LaunchError
from nsbuild.sandbox.value import Value
from nsbuild.sandbox.view import Bind
from nsbuild.tree.flock import flock_within
from nsbuild.wrap import attach, journal, pool, recovery, turns
from nsbuild.wrap.plan import Plan, Request, WrapOptions, log_file, make_plan, refused, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping, Sequence

    from nsbuild.sandbox.outcome import Outcome
else:
    import _signal as signal

_NOTICE = 1.0
"""Seconds that a lock on BUILD_DIR is waited for, or that it is there again."""
_PUT_BACK = 15.0
"""Seconds that another invocation is given to put CACHE_DIR back: longer than a build may take to die."""


class WrapResult(Value):
    """`outcome` of the launch; `attached` tells per host path how it got into the view, and why.

    `path` is `namespace` or `direct`, and `path_reason` why.
    """

    outcome: Outcome
    attached: Mapping[str, attach.Choice]
    path: str = "namespace"
    path_reason: str = "the default"


def compile_(
    buildpack: str,
    build_dir: str,
    cache_dir: str,
    env_dir: str,
    environ: Mapping[str, str],
    options: WrapOptions,
    say: Callable[[str], None] = lambda sentence: None,
    *,
    turn: turns.Turn | None = None,
    stand_in: str = "",
) -> WrapResult:
    """Run `BUILDPACK/bin/compile` with BUILD_DIR at the run path; `env_dir` may be empty.

    stdin, stdout, stderr, status and signals are the command's. BUILD_DIR and CACHE_DIR end where they were. With
    `options.fallback` `direct` a launch that the kernel refuses is done without a sandbox, after `say` was told so.
    With `turn` the caller has the turn on CACHE_DIR, and ends it; `stand_in` is shown where the buildpack was.
    Raises NsbuildError, LaunchError or OSError when nothing of the buildpack has run (a Refused that came of looking,
    before anything was touched, has an attribute `untouched`), AfterCommandError when something failed after it had.
    """
    pack = _directory(stand_in or buildpack, "The buildpack")
    if not os.path.isfile(f"{pack}/bin/compile"):
        raise usage(f"{buildpack} is not a buildpack: it has no bin/compile.")
    request = Request(buildpack if stand_in else pack, build_dir, cache_dir, env_dir, (), stand_in)
    return _wrap(request, environ, options, say, turn)


def exec_in_view(
    build_dir: str,
    argv: Sequence[str],
    environ: Mapping[str, str],
    options: WrapOptions,
    say: Callable[[str], None] = lambda sentence: None,
) -> WrapResult:
    """Run `argv` with BUILD_DIR at the run path; otherwise as `compile_`."""
    return _wrap(Request("", build_dir, "", "", tuple(argv)), environ, options, say)


def explain_view(build_dir: str, environ: Mapping[str, str], options: WrapOptions) -> str:
    """What `exec` would make, a line an operation. Nothing is made."""
    build = attach.read_facts(_directory(build_dir, "BUILD_DIR"), [path for path, _ in mount_points()])
    request = Request("", build_dir, "", "", ())
    return make_plan(request, environ, options, build, "/WORKSPACE", build.mount).view.explain()


def _wrap(
    request: Request,
    environ: Mapping[str, str],
    options: WrapOptions,
    say: Callable[[str], None],
    held: turns.Turn | None = None,
) -> WrapResult:
    if options.tty and not (os.isatty(0) and os.isatty(1)):
        raise usage("--tty needs terminals on stdin and stdout.")
    state = journal.state_directory()
    recovery.recover_aloud(state, say)
    lock = _lock(request.build_dir, state, say)
    turn = None
    # A signal in the middle of this would leave the caller's directories in the workspace: it waits, and is the
    # command's once there is one.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        if request.cache_dir and held is None:
            turn = take_turn(request.cache_dir, state, say)
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        build = attach.read_facts(request.build_dir, [path for path, _ in mount_points()])
        _make_missing(request, environ, options, build)
        workspace = _workspace(request, build, options, state)
        try:
            try:
                plan = make_plan(request, environ, options, build, workspace.path, attach.mount_id(workspace.path))
            except BaseException as error:
                workspace.leave()
                error.untouched = True  # type: ignore[attr-defined]
                raise
            try:
                return WrapResult(_run(plan, workspace, state, options), plan.attached)
            except AfterCommandError as error:
                raise Unfinished(WrapResult(error.outcome, plan.attached), error) from error
        except LaunchError as error:
            if options.fallback != "direct" or _needs_sandbox(options, say):
                raise
            return _fall_back(request, environ, options, error, say)
        finally:
            workspace.close()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if turn is not None:
            turn.end()
        os.close(lock)


class Unfinished(AfterCommandError):
    """As AfterCommandError, with what is known of the launch."""

    def __init__(self, result: WrapResult, error: AfterCommandError) -> None:
        super().__init__(result.outcome, error.errno, str(error))
        self.result = result


def take_turn(cache_dir: str, state: str, say: Callable[[str], None]) -> turns.Turn:
    """The turn on CACHE_DIR, which is where it belongs then. Raises OSError."""
    turn = turns.take(f"{os.path.dirname(state)}/turns", cache_dir, say)
    # Who had it may have been killed since we looked for such; what is not there now is being put back, or left.
    if turn.waited or not os.path.lexists(cache_dir):
        recovery.bring_back(state, cache_dir, _PUT_BACK, say)
    return turn


def _make_missing(request: Request, environ: Mapping[str, str], options: WrapOptions, build: attach.Facts) -> None:
    """What a buildpack would make itself at a path that the view does not have. As root it is BUILD_DIR's owner's."""
    made = []
    for path in (request.cache_dir, options.tmp):
        if path and not os.path.isdir(path):
            os.makedirs(path)
            made.append(path)
            if path == options.tmp:
                os.chmod(path, 0o1777)
    log = log_file(environ)
    if log and not os.path.lexists(log):
        try:
            os.close(os.open(log, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            made.append(log)
        except OSError:
            pass  # as it would be for the buildpack
    if os.geteuid() == 0 and build.uid != 0:
        for path in made:
            os.chown(path, build.uid, os.stat(build.path).st_gid)


def _fall_back(
    request: Request,
    environ: Mapping[str, str],
    options: WrapOptions,
    refusal: LaunchError,
    say: Callable[[str], None],
) -> WrapResult:
    """As the builder does it today. Nothing of the command has run: that is what a LaunchError says."""
    from nsbuild.sandbox.probe import explain
    from nsbuild.wrap.direct import directly

    reason = explain(refusal).sentence
    say(f"running directly, without a sandbox: {reason}")
    return WrapResult(directly(request, environ, options), {}, path="direct", path_reason=reason)


def _needs_sandbox(options: WrapOptions, say: Callable[[str], None]) -> bool:
    """Whether something was asked for that the direct path would drop without a word."""
    asked = ["--network none"] if options.network != "host" else []
    asked += ["--memory, --pids or --cpu"] if options.limits is not None else []
    if asked:
        say(f"not running directly: {' and '.join(asked)} cannot be kept without a sandbox.")
    return bool(asked)


def _workspace(request: Request, build: attach.Facts, options: WrapOptions, state: str) -> pool.Workspace:
    """One of the pool, where BUILD_DIR can be renamed into it or will be bind-mounted; else one beside BUILD_DIR."""
    if options.workspace_dir:
        parent = os.path.abspath(options.workspace_dir)
        try:
            return pool.make(f"{parent}/nsbuild-{os.urandom(4).hex()}")
        except OSError as error:
            raise refused(
                f"The workspace cannot be made in {parent}: {error.strerror}.",
                "Give a directory of yours with --workspace-dir.",
            ) from error
    shared = f"{os.path.dirname(state)}/workspaces"
    os.makedirs(shared, 0o700, exist_ok=True)
    adopt = attach.choose(build, os.geteuid(), wanted=options.attach).how == "adopt"
    if adopt and attach.mount_id(shared) != build.mount:
        return pool.make(f"{os.path.dirname(build.path)}/.nsbuild-{os.urandom(4).hex()}")
    # Alike launches have alike skeletons; one that does not fit is made anew, so a clash costs no more than time.
    shape = (request.buildpack, bool(request.cache_dir), bool(request.env_dir), adopt, options)
    number = zlib.crc32(repr(shape).encode("utf-8", "surrogateescape")) % pool.SHAPES
    return pool.take(f"{shared}/{number}", lambda: journal.workspaces(state))


def _lock(build_dir: str, state: str, say: Callable[[str], None]) -> int:
    """Two invocations on one BUILD_DIR exclude each other. The lock goes along when it is renamed."""
    if not os.path.lexists(build_dir):
        recovery.bring_back(state, build_dir, _NOTICE, say)
    while True:
        try:
            fd = os.open(build_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _missing(build_dir, state) from None
        except NotADirectoryError:
            raise usage(f"BUILD_DIR {build_dir} is not a directory.") from None
        # What a killed launcher had started holds it until it notices, milliseconds later.
        try:
            flock_within(fd, _NOTICE)
            if os.path.samestat(os.fstat(fd), os.stat(build_dir)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise refused(f"BUILD_DIR {build_dir} is in use by another nsbuild.", "Wait for it to end.") from None
        except FileNotFoundError:
            pass
        os.close(fd)  # of another directory than is there now


def _missing(build_dir: str, state: str) -> Exception:
    for entry in journal.held(state):
        if os.path.realpath(build_dir) in entry.places.values():
            return refused(f"BUILD_DIR {build_dir} is in use by another nsbuild (process {entry.launcher}).")
    for entry in journal.entries(state):
        if os.path.realpath(build_dir) in entry.places.values():
            return refused(
                f"BUILD_DIR {build_dir} is in {entry.workspace} still, where an interrupted nsbuild had it.",
                "nsbuild recover says what is in the way.",
            )
    return usage(f"BUILD_DIR {build_dir} does not exist.")


def _run(plan: Plan, workspace: pool.Workspace, state: str, options: WrapOptions) -> Outcome:
    """Attach, launch, give back; the journal and the guardian stand by meanwhile."""
    if options.limits is not None:
        from nsbuild.sandbox.confinement import settle

        # Before there is a guardian, which would be a stranger in our cgroup, and keep us from leaving it.
        settle()
    kept = journal.Journal(state, plan.workspace, plan.lent)
    guardian = None

    def on_step(step: str, about: str) -> None:
        try:
            kept.note(step, about)
        except OSError:
            if step != "given back":  # it is, whether or not we can write that down
                raise

    try:
        try:
            guardian = recovery.Guardian(kept) if plan.lent else None
            workspace.furnish(_owner(plan))
            if plan.copied:
                _copy_buildpack(plan)
            with Launcher(isolated=False, on_step=on_step, keep=workspace.lasting) as launcher:
                outcome = launcher.launch(
                    plan.view,
                    plan.argv,
                    env=plan.env,
                    cwd=plan.cwd,
                    timeout=options.timeout,
                    tty=options.tty,
                    limits=options.limits,
                )
        except BaseException as error:
            _put_back(plan, workspace, kept, error)
            raise
        _finish(plan, workspace, kept, options, outcome)
        return outcome
    finally:
        if guardian is not None:
            guardian.dismiss()


def _finish(
    plan: Plan, workspace: pool.Workspace, kept: journal.Journal, options: WrapOptions, outcome: Outcome
) -> None:
    """Everything is back. Raises AfterCommandError."""
    try:
        try:
            if plan.buildpack and options.export_to and outcome.exit_code == 0:
                keep_export(plan.buildpack, options.export_to)
        finally:
            try:
                workspace.leave()
            finally:
                kept.end()
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise AfterCommandError(outcome, error.errno or 0, f"{place}{error.strerror}") from error


def _put_back(plan: Plan, workspace: pool.Workspace, kept: journal.Journal, failure: BaseException) -> None:
    """The launch has failed, and nothing runs: what is not back yet is put back. Raises NsbuildError.

    What still cannot be stays in the workspace, and the journal tells of it.
    """
    from nsbuild.sandbox.skeleton import give_back_orphans

    try:
        returned = give_back_orphans(plan.workspace, plan.lent)
    except OSError as error:
        advice = f"{error.filename}: {error.strerror}. Put that right, then run nsbuild recover"
        if isinstance(failure, AfterCommandError):
            raise AfterCommandError(failure.outcome, failure.errno, advice) from error
        raise refused(f"{failure}; and what was adopted could not be put back: {advice}.") from error
    if isinstance(failure, AfterCommandError):
        beside = {source: place for source, place in returned if place != source}
        failure.outcome = failure.outcome.replace(kept_beside=beside)
    workspace.leave()
    kept.end()


def _owner(plan: Plan) -> tuple[int, int] | None:
    if os.geteuid() != 0:
        return None
    return (0, 0) if plan.user.root_on_disk else (plan.user.uid, plan.user.gid)


def _copy_buildpack(plan: Plan) -> None:
    """A read-only buildpack is run from a copy: they append to `export` in their own directory."""
    from nsbuild.tree.copy import copy_tree

    bind = next(op for op in plan.view.operations if isinstance(op, Bind) and op.source == plan.buildpack)
    owner = (plan.user.uid, plan.user.gid) if os.geteuid() == 0 else None
    copy_tree(bind.path, plan.buildpack, owner=owner)
    os.chmod(plan.buildpack, 0o755)


def keep_export(buildpack: str, target: str) -> None:
    """`target` becomes what this buildpack exports, which may be nothing."""
    from nsbuild.tree import open_beneath, read_beneath, write_atomic

    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_beneath(root, buildpack[1:], os.O_PATH | os.O_DIRECTORY)
    finally:
        os.close(root)
    try:
        content = read_beneath(fd, "export", 1 << 20)
    finally:
        os.close(fd)
    write_atomic(target, content or b"")


def _directory(path: str, what: str) -> str:
    if not os.path.isdir(path):
        problem = "is not a directory" if os.path.exists(path) else "does not exist"
        raise usage(f"{what} {path} {problem}.")
    return os.path.realpath(path)
