"""From the builder's arguments to a view, a launch, and the builder's directories where they were."""

from __future__ import annotations

import fcntl
import os

from nsbuild.buildpack.exports import with_exports
from nsbuild.buildpack.network import network_binds, network_needs
from nsbuild.sandbox.init import FORWARDED
from nsbuild.sandbox.launcher import Launcher
from nsbuild.sandbox.mounts import mount_points
from nsbuild.sandbox.outcome import AfterCommandError
from nsbuild.sandbox.value import Value
from nsbuild.sandbox.view import Bind, View, ViewError, app_layout, compose, read_host
from nsbuild.tree.remove import remove_tree
from nsbuild.wrap import attach, environment, journal, recovery

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence

    from nsbuild.errors import NsbuildError
    from nsbuild.sandbox.outcome import Outcome
    from nsbuild.sandbox.view import User
else:
    import _signal as signal


class WrapOptions(Value):
    """What `compile` and `exec` have in common. `binds` are (host path, path in the view); `timeout` is in seconds.

    `attach` is `auto`, `adopt` or `bind`; `exports` are files to source before the command; `tmp` a directory that
    stays `/tmp` over a chain of calls; `export_to` gets the `export` of a read-only buildpack.
    """

    run_path: str = "/app"
    attach: str = "auto"
    network: str = "host"
    user_namespaces: bool = True
    binds: tuple[tuple[str, str], ...] = ()
    exports: tuple[str, ...] = ()
    tmp: str = ""
    export_to: str = ""
    timeout: float | None = None
    workspace_dir: str = ""
    user: str = ""


class WrapResult(Value):
    """`outcome` of the launch; `attached` tells per host path how it got into the view, and why."""

    outcome: Outcome
    attached: Mapping[str, attach.Choice]
    notes: tuple[str, ...] = ()


class _Plan(Value):
    """Everything decided before anything is touched. `cwd` and `argv` are as in the view."""

    workspace: str
    user: User
    view: View
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    attached: Mapping[str, attach.Choice]
    lent: Mapping[str, str]
    """Path in the view -> the caller's own directory that is renamed there."""
    copied_buildpack: str = ""


def compile_(
    buildpack: str, build_dir: str, cache_dir: str, env_dir: str, environ: Mapping[str, str], options: WrapOptions
) -> WrapResult:
    """Run `BUILDPACK/bin/compile` with BUILD_DIR at the run path; `env_dir` may be empty.

    stdin, stdout, stderr, status and signals are the command's. BUILD_DIR and CACHE_DIR end where they were. Raises
    NsbuildError, LaunchError or OSError when nothing of the buildpack has run, AfterCommandError when something
    failed after it had.
    """
    pack = _directory(buildpack, "The buildpack")
    if not os.path.isfile(f"{pack}/bin/compile"):
        raise _usage(f"{buildpack} is not a buildpack: it has no bin/compile.")
    return _wrap(_Request(pack, build_dir, cache_dir, env_dir, ()), environ, options)


def exec_in_view(build_dir: str, argv: Sequence[str], environ: Mapping[str, str], options: WrapOptions) -> WrapResult:
    """Run `argv` with BUILD_DIR at the run path; otherwise as `compile_`."""
    return _wrap(_Request("", build_dir, "", "", tuple(argv)), environ, options)


def explain_view(build_dir: str, environ: Mapping[str, str], options: WrapOptions) -> str:
    """What `exec` would make, a line an operation. Nothing is made."""
    request = _Request("", build_dir, "", "", ())
    return _plan(request, environ, options, os.urandom(4).hex()).view.explain()


class _Request(Value):
    """What was asked for: `buildpack` is empty for `exec`, `argv` for `compile`."""

    buildpack: str
    build_dir: str
    cache_dir: str
    env_dir: str
    argv: tuple[str, ...]


def _wrap(request: _Request, environ: Mapping[str, str], options: WrapOptions) -> WrapResult:
    state = journal.state_directory()
    notes = recovery.recover_all(state)
    lock = _lock(request.build_dir, state)
    try:
        if request.cache_dir:
            os.makedirs(request.cache_dir, exist_ok=True)
        plan = _plan(request, environ, options, os.urandom(4).hex())
        outcome = _run(plan, state, options)
    finally:
        os.close(lock)
    return WrapResult(outcome, plan.attached, tuple(notes))


def _lock(build_dir: str, state: str) -> int:
    """Two invocations on one BUILD_DIR exclude each other. The lock goes along when it is renamed."""
    try:
        fd = os.open(build_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        for entry in journal.held(state):
            if os.path.realpath(build_dir) in entry.places.values():
                raise _refused(
                    f"BUILD_DIR {build_dir} is in use by another nsbuild (process {entry.launcher})."
                ) from None
        raise _usage(f"BUILD_DIR {build_dir} does not exist.") from None
    except NotADirectoryError:
        raise _usage(f"BUILD_DIR {build_dir} is not a directory.") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise _refused(f"BUILD_DIR {build_dir} is in use by another nsbuild.", "Wait for it to end.") from None
    return fd


def _plan(request: _Request, environ: Mapping[str, str], options: WrapOptions, name: str) -> _Plan:
    from nsbuild.user import build_user

    try:
        layout = app_layout(options.run_path)
    except ViewError as error:
        raise _usage(str(error), "Give another --run-path.") from None
    mounts = [path for path, _ in mount_points()]
    build = attach.read_facts(request.build_dir, mounts)
    uid = os.geteuid()
    user = build_user(build.path, options.user or None)
    if uid == 0 and build.uid == 0:
        user = user.replace(root_on_disk=True)
    wanted = options.attach
    choice = attach.choose(build, uid, wanted=wanted)
    base = options.workspace_dir or (os.path.dirname(build.path) if choice.how == "adopt" else _own_place())
    os.makedirs(base, exist_ok=True)
    device = os.stat(base).st_dev
    if choice.how == "adopt":
        choice = attach.choose(build, uid, device=device, wanted=wanted)
    if wanted == "adopt" and choice.how != "adopt":
        raise _refused(f"BUILD_DIR cannot be adopted: {choice.why}.", "Give --attach auto.")
    workspace = f"{os.path.abspath(base)}/.nsbuild-{name}"
    attached = {build.path: choice}
    paths = {request.build_dir: layout.build_dir, build.path: layout.build_dir}
    lent: dict[str, str] = {}
    binds: list[Bind] = []

    def attach_directory(facts: attach.Facts, path: str, how: attach.Choice) -> None:
        attached[facts.path] = how
        if how.how == "adopt":
            lent[path] = facts.path
        else:
            binds.append(_writable(facts.path, path))

    attach_directory(build, layout.build_dir, choice)
    if options.tmp:
        os.makedirs(options.tmp, mode=0o1777, exist_ok=True)
        facts = attach.read_facts(options.tmp, mounts)
        attach_directory(facts, "/tmp", _alike(attach.choose(facts, uid, device=device, wanted=wanted), facts, user))
        paths[options.tmp] = paths[facts.path] = "/tmp"
    if request.cache_dir:
        facts = attach.read_facts(request.cache_dir, mounts)
        how = _alike(attach.choose(facts, uid, device=device, wanted=wanted), facts, user)
        if options.tmp and "/tmp" not in lent:
            how = attach.Choice("bind", "/tmp is bind-mounted")
        attach_directory(facts, layout.cache_dir, how)
        paths[request.cache_dir] = paths[facts.path] = layout.cache_dir
    if request.env_dir and os.path.isdir(request.env_dir):
        real = os.path.realpath(request.env_dir)
        binds.append(_writable(real, layout.env_dir))
        paths[request.env_dir] = paths[real] = layout.env_dir
    if uid == 0:
        for path in (build.path, *(lent.values())):
            _refuse_mixed(path, user)
    copied = ""
    if request.buildpack:
        copied = "" if os.access(request.buildpack, os.W_OK) else f"{workspace}/buildpack"
        source = copied or request.buildpack
        binds.append(
            Bind(
                request.buildpack, source, writable=True, root_on_disk=uid == 0 and not copied and _root_owned(source)
            )
        )
    exports = [os.path.realpath(path) for path in options.exports if os.path.isfile(path)]
    binds += [Bind(path, path, directory=False) for path in exports]
    log = environ.get("BUILDPACK_LOG_FILE", "")
    if log.startswith("/") and os.path.isfile(log) and not log.startswith("/dev/"):
        binds.append(_writable(log, log, directory=False))
    if options.network == "host":
        binds += network_binds(network_needs(environ), layout.build_dir)
    for origin, path in options.binds:
        if not os.path.exists(origin):
            raise _usage(f"--bind {origin}: it does not exist.")
        binds.append(Bind(path, os.path.realpath(origin), directory=os.path.isdir(origin)))

    places = {"/tmp": f"{workspace}/tmp", **lent}
    if options.tmp and "/tmp" not in lent:
        del places["/tmp"]
    try:
        view = compose(
            read_host("/", [*places, *(bind.path for bind in binds)]),
            workspace=workspace,
            user=user,
            home=layout.home,
            places=places,
            binds=binds,
            network=options.network,
            user_namespaces=options.user_namespaces,
            var_tmp=f"{workspace}/var-tmp",
        )
    except ViewError as error:
        raise _usage(str(error), "Give another --run-path or --bind.") from None
    shown = _shown(view, places)
    env = environment.map_environment(environ, paths, layout.home, shown)
    argv = request.argv
    if request.buildpack:
        arguments = [layout.build_dir, layout.cache_dir, *([layout.env_dir] if request.env_dir else [])]
        argv = (f"{request.buildpack}/bin/compile", *arguments)
    cwd = _working_directory(paths, shown, request.buildpack or layout.build_dir)
    return _Plan(workspace, user, view, with_exports(exports, argv), env, cwd, attached, lent, copied)


def _run(plan: _Plan, state: str, options: WrapOptions) -> Outcome:
    """Attach, launch, give back; the journal and the guardian stand by meanwhile."""
    # A signal in the middle of this would leave the caller's directories in the workspace: it waits, and is the
    # command's once there is one.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    kept = journal.Journal(state, plan.workspace, plan.lent)
    guardian = recovery.Guardian(kept) if plan.lent else None
    try:
        _make_workspace(plan)
        with Launcher(isolated=False, on_step=kept.note) as launcher:
            outcome = launcher.launch(plan.view, plan.argv, env=plan.env, cwd=plan.cwd, timeout=options.timeout)
        if plan.copied_buildpack and options.export_to and outcome.exit_code == 0:
            _keep_export(plan.copied_buildpack, options.export_to)
        _clean(plan, kept)
        return outcome
    except AfterCommandError:
        raise  # something lent is in the workspace still, and the journal tells of it
    except BaseException:
        _clean(plan, kept)
        raise
    finally:
        if guardian is not None:
            guardian.dismiss()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _make_workspace(plan: _Plan) -> None:
    os.mkdir(plan.workspace, 0o700)
    for name in ("tmp", "var-tmp"):
        path = f"{plan.workspace}/{name}"
        os.mkdir(path)
        os.chmod(path, 0o1777)
        if os.geteuid() == 0:
            os.chown(path, *((0, 0) if plan.user.root_on_disk else (plan.user.uid, plan.user.gid)))
    if plan.copied_buildpack:
        from nsbuild.tree.copy import copy_tree

        owner = (plan.user.uid, plan.user.gid) if os.geteuid() == 0 else None
        bind = next(op for op in plan.view.operations if isinstance(op, Bind) and op.source == plan.copied_buildpack)
        copy_tree(bind.path, plan.copied_buildpack, owner=owner)
        os.chmod(plan.copied_buildpack, 0o755)


def _clean(plan: _Plan, kept: journal.Journal) -> None:
    remove_tree(plan.workspace)
    kept.end()


def _keep_export(buildpack: str, target: str) -> None:
    from nsbuild.tree import read_beneath, write_atomic

    fd = os.open(buildpack, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        content = read_beneath(fd, "export", 1 << 20)
    finally:
        os.close(fd)
    if content is not None:
        write_atomic(target, content)


def _writable(source: str, path: str, directory: bool = True) -> Bind:
    return Bind(
        path, source, directory=directory, writable=True, root_on_disk=os.geteuid() == 0 and _root_owned(source)
    )


def _root_owned(path: str) -> bool:
    return os.stat(path).st_uid == 0


def _alike(choice: attach.Choice, facts: attach.Facts, user: User) -> attach.Choice:
    """One mount has one idmapping: what root owns and what the user owns cannot be plain directories of one."""
    if os.geteuid() == 0 and choice.how == "adopt" and (facts.uid == 0) != user.root_on_disk:
        return attach.Choice("bind", f"{facts.path} belongs to uid {facts.uid}, unlike BUILD_DIR")
    return choice


def _refuse_mixed(path: str, user: User) -> None:
    """As root: files of a third user would be nobody's inside, and the build fail half-way."""
    from nsbuild.tree.beneath import open_root
    from nsbuild.tree.descent import Descent
    from nsbuild.tree.walk import Event, walk

    wanted = 0 if user.root_on_disk else user.uid
    with Descent(path, open_root(path, None)) as descent:
        for event, name, info in walk(descent):
            if event is not Event.LEAVE and info.st_uid != wanted:
                raise _refused(
                    f"{descent.relative(name) if name else path} in {path} belongs to uid {info.st_uid},"
                    f" the directory to uid {wanted}: a build can only be one of them.",
                    f"chown -R {wanted} it.",
                )


def _own_place() -> str:
    """Where a workspace goes that need not be beside BUILD_DIR."""
    return os.path.dirname(journal.state_directory()) + "/workspaces"


def _shown(view: View, places: Mapping[str, str]) -> list[str]:
    """Paths of the view below which something of the caller's, or of the system's, is seen at its own path."""
    same = [op.path for op in view.operations if isinstance(op, Bind) and op.path == op.source]
    return [*same, *places, *(op.path for op in view.operations if isinstance(op, Bind) and op.writable)]


def _working_directory(paths: Mapping[str, str], shown: Sequence[str], default: str) -> str:
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return default
    mapped = environment.map_path(here, sorted(paths.items(), key=lambda pair: -len(pair[0])))
    if mapped != here:
        return mapped
    # /tmp is the view's own: the caller's is not in it.
    visible = any(environment.below(here, path) for path in shown if path not in ("/tmp", "/var/tmp"))
    return here if visible else default


def _directory(path: str, what: str) -> str:
    if not os.path.isdir(path):
        problem = "is not a directory" if os.path.exists(path) else "does not exist"
        raise _usage(f"{what} {path} {problem}.")
    return os.path.realpath(path)


def _usage(sentence: str, fix: str = "") -> NsbuildError:
    from nsbuild.errors import UsageError

    return UsageError(sentence, fix)


def _refused(sentence: str, fix: str = "") -> NsbuildError:
    from nsbuild.errors import Refused

    return Refused(sentence, fix)
