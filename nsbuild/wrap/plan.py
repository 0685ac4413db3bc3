"""Everything about one wrapped command that is decided before anything is touched."""

from __future__ import annotations

import os

from nsbuild.buildpack.exports import with_exports
from nsbuild.buildpack.network import network_binds, network_needs
from nsbuild.sandbox.host import read_host
from nsbuild.sandbox.mounts import mount_points
from nsbuild.sandbox.value import Value
from nsbuild.sandbox.view import Bind, View, ViewError, app_layout, compose
from nsbuild.wrap import attach, environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nsbuild.errors import NsbuildError
    from nsbuild.sandbox.limits import Limits
    from nsbuild.sandbox.view import User


class WrapOptions(Value):
    """What `compile` and `exec` have in common. `binds` are (host path, path in the view); `timeout` is in seconds.

    `attach` is `auto`, `adopt` or `bind`; `fallback` is `never` or `direct`; `exports` are files to source before
    the command; `tmp` is a directory that stays `/tmp` over a chain of calls; `export_to` gets the `export` of the
    buildpack. `tty` gives the command a terminal of its own, relayed to ours.
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
    """What was asked for: `buildpack` is empty for `exec`, `argv` for `compile`.

    `stand_in` is a directory to show in place of the buildpack's, which may be gone.
    """

    buildpack: str
    build_dir: str
    cache_dir: str
    env_dir: str
    argv: tuple[str, ...]
    stand_in: str = ""


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
    buildpack: str = ""
    """The host's directory whose bin/compile is run, and where its `export` will be."""
    copied: bool = False
    """`buildpack` is in the workspace, and is still to be copied there."""


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
    here = _Attachments(uid, user)
    here.add(request.build_dir, build, layout.build_dir, choice)
    if options.tmp and os.path.isdir(options.tmp):
        facts = attach.read_facts(options.tmp, mounts)
        _refuse_overlap("--tmp", facts.path, here.attached)
        how = here.alike(attach.choose(facts, uid, mount=mount, wanted=wanted), facts)
        if facts.path in environment.OWN:
            how = attach.Choice("bind", f"{facts.path} is everybody's")
        here.add(options.tmp, facts, "/tmp", how)
    cache_dir, env_dir = layout.cache_dir, layout.env_dir
    if request.cache_dir:
        facts = attach.read_facts(request.cache_dir, mounts)
        cache_dir = here.at(facts.path)
        if cache_dir == facts.path:
            cache_dir = layout.cache_dir
            _refuse_overlap("CACHE_DIR", facts.path, here.attached)
            how = here.alike(attach.choose(facts, uid, mount=mount, wanted=wanted), facts)
            if options.tmp and "/tmp" not in here.lent:
                how = attach.Choice("bind", "/tmp is bind-mounted")
            if wanted == "adopt" and how.how != "adopt":
                raise refused(f"CACHE_DIR cannot be adopted: {how.why}.", "Give --attach auto.")
            if uid == 0:
                _refuse_mixed(facts.path, 0 if facts.uid == 0 else user.uid, user)
            here.add(request.cache_dir, facts, cache_dir, how)
    if request.env_dir and os.path.isdir(request.env_dir):
        real = os.path.realpath(request.env_dir)
        env_dir = here.at(real)
        if env_dir == real:
            env_dir = layout.env_dir
            here.binds.append(_writable(real, env_dir))
            here.call(env_dir, request.env_dir, real)
    if uid == 0:
        for path in (build.path, *(path for seen, path in here.lent.items() if seen != cache_dir)):
            _refuse_mixed(path, 0 if user.root_on_disk else user.uid, user)
    buildpack, copied = here.at(request.buildpack), ""
    own = request.stand_in or request.buildpack
    if buildpack and (buildpack == request.buildpack or request.stand_in):
        buildpack = request.buildpack
        copied = "" if os.access(own, os.W_OK) else f"{workspace}/buildpack"
        source = copied or own
        on_disk = uid == 0 and not copied and _root_owned(source)
        here.binds.append(Bind(buildpack, source, writable=True, root_on_disk=on_disk))
    exports = [os.path.realpath(path) for path in options.exports if os.path.isfile(path)]
    here.binds += [Bind(path, path, directory=False) for path in exports if here.at(path) == path]
    log = log_file(environ)
    if os.path.isfile(log) and here.at(os.path.realpath(log)) == os.path.realpath(log):
        here.binds.append(_writable(log, log, directory=False))
    lent, binds, paths = here.lent, here.binds, here.paths
    if options.network == "host":
        needed = network_binds(network_needs(environ), layout.build_dir)
        binds += [bind for bind in needed if here.at(bind.source) == bind.source]
    for origin, path in options.binds:
        if not os.path.exists(origin):
            raise usage(f"--bind {origin}: it does not exist.")
        source = os.path.realpath(origin)
        for directory in lent.values():
            if environment.below(source, directory):
                raise usage(f"--bind {origin}: {directory} is renamed, and it with it.", "Give --attach bind.")
        binds.append(Bind(path, source, directory=os.path.isdir(origin)))

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
        arguments = [layout.build_dir, cache_dir, *([env_dir] if request.env_dir else [])]
        argv = (f"{buildpack}/bin/compile", *arguments)
    argv = with_exports([here.at(path) for path in exports], argv)
    cwd = _working_directory(paths, shown, user, buildpack or layout.build_dir)
    return Plan(workspace, user, view, argv, env, cwd, here.attached, lent, copied or own, bool(copied))


def log_file(environ: Mapping[str, str]) -> str:
    """The file that BUILDPACK_LOG_FILE names; empty for none, or a device."""
    log = environ.get("BUILDPACK_LOG_FILE", "")
    return log if log.startswith("/") and not log.startswith("/dev/") else ""


class _Attachments:
    """How the caller's directories get into the view, and where they are there."""

    def __init__(self, uid: int, user: User) -> None:
        self.uid = uid
        self.user = user
        self.attached: dict[str, attach.Choice] = {}
        self.lent: dict[str, str] = {}
        self.binds: list[Bind] = []
        self.paths: dict[str, str] = {}

    def add(self, given: str, facts: attach.Facts, path: str, how: attach.Choice) -> None:
        self.attached[facts.path] = how
        if how.how == "adopt":
            self.lent[path] = facts.path
        else:
            self.binds.append(_writable(facts.path, path))
        self.call(path, given, facts.path)

    def call(self, path: str, given: str, real: str) -> None:
        """What the caller may write for a directory is `path` in the view."""
        for spelling in environment.spellings(given, real):
            self.paths[spelling] = path

    def at(self, path: str) -> str:
        """Where the view has something of the host's: the same path, unless an attached directory holds it."""
        return environment.map_path(path, environment.by_length(self.paths))

    def alike(self, choice: attach.Choice, facts: attach.Facts) -> attach.Choice:
        """One mount has one idmapping: what root owns and what the user owns cannot be plain directories of one."""
        if self.uid == 0 and choice.how == "adopt" and (facts.uid == 0) != self.user.root_on_disk:
            return attach.Choice("bind", f"{facts.path} belongs to uid {facts.uid}, unlike BUILD_DIR")
        return choice


def _refuse_overlap(what: str, path: str, others: Iterable[str]) -> None:
    for other in others:
        if environment.below(other, path) or environment.below(path, other):
            raise usage(f"{what} {path} and {other} lie in one another.", "Give it a directory of its own.")


def _writable(source: str, path: str, directory: bool = True) -> Bind:
    return Bind(
        path, source, directory=directory, writable=True, root_on_disk=os.geteuid() == 0 and _root_owned(source)
    )


def _root_owned(path: str) -> bool:
    return os.stat(path).st_uid == 0


def _refuse_mixed(path: str, wanted: int, user: User) -> None:
    """As root: files of a third user would be nobody's inside, and the build fail half-way."""
    from nsbuild.tree.beneath import open_root
    from nsbuild.tree.descent import Descent
    from nsbuild.tree.walk import Event, walk

    def refuse(what: str, uid: int) -> NsbuildError:
        return refused(
            f"{what} belongs to uid {uid}, and not to uid {wanted}: a build can only be one of them.",
            f"chown -R {wanted} {path}, or give --user.",
        )

    if os.stat(path).st_uid != wanted:
        raise refused(
            f"{path} belongs to uid {os.stat(path).st_uid}, and the build was to run as uid {user.uid}.",
            "Leave --user out: a build runs as the owner of BUILD_DIR.",
        )
    with Descent(path, open_root(path, None)) as descent:
        for event, name, info in walk(descent):
            if event is not Event.LEAVE and info.st_uid != wanted:
                raise refuse(f"{descent.relative(name)} in {path}" if name else path, info.st_uid)


def _shown(view: View, places: Mapping[str, str]) -> list[str]:
    """Paths of the view below which something of the caller's, or of the system's, is seen at its own path."""
    same = [op.path for op in view.operations if isinstance(op, Bind) and op.path == op.source]
    return [*same, *places, *(op.path for op in view.operations if isinstance(op, Bind) and op.writable)]


def _working_directory(paths: Mapping[str, str], shown: Sequence[str], user: User, default: str) -> str:
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return default
    mapped = environment.map_path(here, environment.by_length(paths))
    if mapped != here:
        return mapped
    visible = environment.seen(here, shown) and here not in environment.OWN
    return here if visible and (os.geteuid() != 0 or _can_enter(here, user)) else default


def _can_enter(path: str, user: User) -> bool:
    """Root has a working directory where its build's user may not go."""
    while path != "/":
        info = os.stat(path)
        bit = 0o100 if info.st_uid == user.uid else 0o010 if info.st_gid == user.gid else 0o001
        if not info.st_mode & bit:
            return False
        path = os.path.dirname(path)
    return True


def usage(sentence: str, fix: str = "") -> NsbuildError:
    from nsbuild.errors import UsageError

    return UsageError(sentence, fix)


def refused(sentence: str, fix: str = "") -> NsbuildError:
    from nsbuild.errors import Refused

    return Refused(sentence, fix)
