"""Everything about one wrapped command that is decided before anything is touched."""

from __future__ import annotations

import os

from nsbuild.buildpack.exports import with_exports
from nsbuild.buildpack.network import network_binds, network_needs
from nsbuild.sandbox.mounts import mount_points
from nsbuild.sandbox.value import Value
from nsbuild.sandbox.view import Bind, View, ViewError, app_layout, compose, read_host
from nsbuild.wrap import attach, environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nsbuild.errors import NsbuildError
    from nsbuild.sandbox.limits import Limits
    from nsbuild.sandbox.view import User


class WrapOptions(Value):
    """What `compile` and `exec` have in common. `binds` are (host path, path in the view); `timeout` is in seconds.

    `attach` is `auto`, `adopt` or `bind`; `fallback` is `never` or `direct`; `exports` are files to source before
    the command; `tmp` is a directory that stays `/tmp` over a chain of calls; `export_to` gets the `export` of a
    read-only buildpack. `tty` gives the command a terminal of its own, relayed to ours.
    """

    run_path: str = "/app"
    attach: str = "auto"
    fallback: str = "never"
    network: str = "host"
    user_namespaces: bool = True
    binds: tuple[tuple[str, str], ...] = ()
    exports: tuple[str, ...] = ()
    tmp: str = ""
    export_to: str = ""
    timeout: float | None = None
    limits: Limits | None = None
    workspace_dir: str = ""
    user: str = ""
    tty: bool = False


class Request(Value):
    """What was asked for: `buildpack` is empty for `exec`, `argv` for `compile`."""

    buildpack: str
    build_dir: str
    cache_dir: str
    env_dir: str
    argv: tuple[str, ...]


class Plan(Value):
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


def make_plan(
    request: Request,
    environ: Mapping[str, str],
    options: WrapOptions,
    build: attach.Facts,
    workspace: str,
    mount: int,
) -> Plan:
    """What a launch needs, for BUILD_DIR `build` and the workspace directory `workspace`, on the mount `mount`.

    Raises NsbuildError when it cannot be had, OSError when a directory cannot be looked at.
    """
    from nsbuild.user import build_user

    try:
        layout = app_layout(options.run_path)
    except ViewError as error:
        raise usage(str(error), "Give another --run-path.") from None
    mounts = [path for path, _ in mount_points()]
    if options.limits is not None:
        from nsbuild.sandbox.limits import check

        try:
            check(options.limits)
        except ValueError as error:
            raise usage(f"{str(error)[0].upper()}{str(error)[1:]}.", "Raise it.") from None
    uid = os.geteuid()
    user = build_user(build.path, options.user or None)
    if uid == 0 and build.uid == 0:
        user = user.replace(root_on_disk=True)
    wanted = options.attach
    choice = attach.choose(build, uid, mount=mount, wanted=wanted)
    if wanted == "adopt" and choice.how != "adopt":
        raise refused(f"BUILD_DIR cannot be adopted: {choice.why}.", "Give --attach auto.")
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
        attach_directory(facts, "/tmp", _alike(attach.choose(facts, uid, mount=mount, wanted=wanted), facts, user))
        paths[options.tmp] = paths[facts.path] = "/tmp"
    if request.cache_dir:
        facts = attach.read_facts(request.cache_dir, mounts)
        how = _alike(attach.choose(facts, uid, mount=mount, wanted=wanted), facts, user)
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
            raise usage(f"--bind {origin}: it does not exist.")
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
        raise usage(str(error), "Give another --run-path or --bind.") from None
    shown = _shown(view, places)
    env = environment.map_environment(environ, paths, layout.home, shown)
    argv = request.argv
    if request.buildpack:
        arguments = [layout.build_dir, layout.cache_dir, *([layout.env_dir] if request.env_dir else [])]
        argv = (f"{request.buildpack}/bin/compile", *arguments)
    cwd = _working_directory(paths, shown, request.buildpack or layout.build_dir)
    return Plan(workspace, user, view, with_exports(exports, argv), env, cwd, attached, lent, copied)


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
                raise refused(
                    f"{descent.relative(name) if name else path} in {path} belongs to uid {info.st_uid},"
                    f" the directory to uid {wanted}: a build can only be one of them.",
                    f"chown -R {wanted} it.",
                )


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
    return here if environment.seen(here, shown) and here not in environment.OWN else default


def usage(sentence: str, fix: str = "") -> NsbuildError:
    from nsbuild.errors import UsageError

    return UsageError(sentence, fix)


def refused(sentence: str, fix: str = "") -> NsbuildError:
    from nsbuild.errors import Refused

    return Refused(sentence, fix)
