"""The order of a build, and what each step leaves behind when the next one fails."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nsbuild import buildpack as api
from nsbuild import slug as slugs
from nsbuild.build.cache import Cache, cache_key
from nsbuild.build.events import Event, Monitor
from nsbuild.build.sweep import sweep_home
from nsbuild.errors import ExitCode, Interrupted, NsbuildError, Refused, UsageError
from nsbuild.interrupts import ENDING, signals_held
from nsbuild.record import BuildpackRecord, Phase, Record
from nsbuild.refusals import Refusals
from nsbuild.sandbox import (
    Bind,
    Launcher,
    Layout,
    Outcome,
    View,
    ViewError,
    app_layout,
    classic_layout,
    compose,
    read_host,
)
from nsbuild.tree import copy_tree, open_beneath, read_beneath
from nsbuild.user import build_user
from nsbuild.workspace import Workspace, user_cache, workspace

DEFAULT_STACK = "heroku-24"
_OUTPUT_LIMIT = 1 << 20
"""What detect, release and report may print on stdout, in bytes."""


class BuildError(NsbuildError):
    """A buildpack, or what it left, ended the build. `record` tells the rest."""


@dataclass(frozen=True)
class BuildOptions:
    """Everything about a build but its source and buildpacks; each is an option of `nsbuild build`.

    `timeout` is in seconds, for each compile. `config_vars` are files in ENV_DIR; `pass_env` are names of the
    operator's environment to show to buildpacks; `binds` are (host path, path in the view).
    """

    output: str | None = None
    cache_dir: str | None = None
    workspace_dir: str | None = None
    app: str | None = None
    config_vars: Mapping[str, str] = field(default_factory=dict)
    stack: str = DEFAULT_STACK
    layout: str = "app"
    run_path: str = "/app"
    network: str = "host"
    user_namespaces: bool = True
    timeout: float | None = 900.0
    pass_env: Sequence[str] = ()
    binds: Sequence[tuple[str, str]] = ()
    keep_credentials: bool = False
    user: str | None = None


def build(
    source: str | Path,
    buildpacks: Sequence[str | Path],
    options: BuildOptions | None = None,
    *,
    monitor: Monitor = lambda event: None,
) -> Record:
    """Build `source` with these buildpacks, in order, and put the slug in place.

    Neither the source nor the buildpacks are modified. The output and the cache are replaced only when everything
    has succeeded. Raises NsbuildError (its `code` is the exit code of `nsbuild build`); the error then has an
    attribute `record` once the build had begun.
    """
    options = options or BuildOptions()
    directory = _source(source)
    if not buildpacks:
        raise UsageError("No buildpack was given.", "Name one with --buildpack DIRECTORY.")
    packs = [(str(reference), api.open_reference(str(reference))) for reference in buildpacks]
    output = slugs.check_output(options.output or f"{directory.name or 'slug'}.tgz", directory)
    build_id = secrets.token_hex(4)
    layout = _layout(options, build_id)
    surprising = api.check_config_vars(options.config_vars)
    user = build_user(str(directory), options.user)
    cache_root = Path(options.cache_dir or user_cache() / "apps").absolute()
    cache = Cache(cache_root, cache_key(options.app or str(directory), options.stack, layout.name))
    cache.check()
    parent = Path(options.workspace_dir).absolute() if options.workspace_dir else cache_root / ".workspaces"
    record = Record(
        id=build_id,
        source=str(directory),
        layout=layout.name,
        run_path=layout.home,
        stack=options.stack,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        uid=user.uid,
    )
    began = time.monotonic()
    try:
        with (
            Refusals("Free some space, or give another --workspace-dir, --cache or --output.", Refused),
            workspace(parent, user) as work,
            Launcher.for_caller() as launcher,
        ):
            ours = (str(output.path), str(cache_root), str(parent))
            run = _Build(directory, packs, options, layout, work, cache, launcher, record, monitor)
            for name in surprising:
                run.warn(
                    f"The config var {name} is one that buildpacks refuse to export; it is in ENV_DIR all the same."
                )
            run.stage(ours)
            run.run_buildpacks()
            run.release()
            run.sweep()
            run.publish(output)
        record.result = "succeeded"
        record.exit_code = int(ExitCode.OK)
        return record
    except NsbuildError as error:
        raise _with_record(error, record) from error.__cause__
    except KeyboardInterrupt:
        raise _with_record(Interrupted("Interrupted."), record) from None
    finally:
        record.seconds = round(time.monotonic() - began, 3)


def _with_record(error: NsbuildError, record: Record) -> NsbuildError:
    record.result = error.sentence
    record.exit_code = int(error.code)
    error.record = record  # type: ignore[attr-defined]
    return error


def _source(source: str | Path) -> Path:
    path = Path(source)
    if not str(source) or not path.exists():
        raise UsageError(f"The source {source or '(no name)'} does not exist.", "Give the directory of an app.")
    if not path.is_dir():
        raise UsageError(f"The source {source} is not a directory.", "Unpack it, and give the directory.")
    return path.resolve()


def _layout(options: BuildOptions, build_id: str) -> Layout:
    try:
        if options.layout == "classic":
            return classic_layout(build_id)
        if options.layout == "app":
            return app_layout(options.run_path)
    except ViewError as error:
        raise UsageError(str(error), "Give another --run-path.") from None
    raise UsageError(f"There is no layout {options.layout!r}.", "It is app or classic.")


class _Build:
    """One build under way, in its workspace."""

    def __init__(
        self,
        source: Path,
        packs: Sequence[tuple[str, Path]],
        options: BuildOptions,
        layout: Layout,
        work: Workspace,
        cache: Cache,
        launcher: Launcher,
        record: Record,
        monitor: Monitor,
    ) -> None:
        self.source = source
        self.packs = packs
        self.options = options
        self.layout = layout
        self.work = work
        self.cache = cache
        self.launcher = launcher
        self.record = record
        self.monitor = monitor
        self.buildpacks: list[api.Buildpack] = []
        self.release_output: bytes | None = None
        needs = api.network_needs(os.environ) if options.network == "host" else api.NetworkNeeds()
        passed = {name: os.environ[name] for name in options.pass_env if name in os.environ}
        self.env = api.build_environment(
            layout, stack=options.stack, request_id=record.id, more={**needs.variables, **passed}
        )
        self.view = self._view(api.network_binds(needs, layout.build_dir))

    def _view(self, binds: list[Bind]) -> View:
        places = self.work.places(self.layout)
        for origin, path in self.options.binds:
            if not os.path.exists(origin):
                raise UsageError(f"--bind {origin}: it does not exist.")
            binds.append(Bind(path, os.path.realpath(origin), directory=os.path.isdir(origin)))
        host = read_host("/", [*places, *(bind.path for bind in binds)])
        try:
            return compose(
                host,
                workspace=self.work.path,
                user=self.work.user,
                home=self.layout.home,
                places=places,
                binds=binds,
                network=self.options.network,
                user_namespaces=self.options.user_namespaces,
                var_tmp=self.work.directory("var-tmp"),
            )
        except ViewError as error:
            raise Refused(str(error), "Give another --run-path or --bind.") from None

    def warn(self, text: str) -> None:
        self.record.warnings.append(text)
        self.monitor(Event("warning", text=text))

    def stage(self, ours: Sequence[str]) -> None:
        """Copy source, cache, config vars and buildpacks into the workspace.

        `ours` are output, caches and workspaces: no part of the app where they lie within the source.
        """
        began = self._begin("stage", "")
        app = self.work.directory("app")
        os.rmdir(app)
        within = {os.path.relpath(os.path.realpath(path), self.source) for path in ours}

        def skip(path: str, directory: bool) -> bool:
            return path.rpartition("/")[2] == ".git" or path in within

        try:
            staged = copy_tree(str(self.source), app, skip=skip, owner=self.work.owner)
        except PermissionError as error:
            raise _unreadable(error, self.source) from error
        os.chmod(app, os.stat(app).st_mode & 0o777 | 0o700)
        for left in staged.left_out:
            self.warn(f"{left.path} was left out: it is {left.reason}.")
        if staged.files + staged.symlinks == 0:
            raise BuildError(
                f"The source {self.source} is empty: no buildpack can match.",
                "Give the directory of an app.",
                ExitCode.NO_BUILDPACK,
            )
        cache = self.work.directory("cache")
        os.rmdir(cache)
        self.record.cache_hit = self.cache.load(cache, self.work.owner)
        if not self.record.cache_hit:
            self.work.make("cache")
        api.write_env_dir(self.work.directory("env"), self.options.config_vars, self.work.owner)
        directory = Path(self.work.directory("tmp"), "buildpacks")
        directory.mkdir()
        if self.work.owner is not None:
            os.chown(directory, *self.work.owner)
        for number, (reference, origin) in enumerate(self.packs):
            path = f"/tmp/buildpacks/{number}"
            try:
                pack = api.install(origin, reference, directory / str(number), path, self.work.owner)
            except PermissionError as error:
                raise _unreadable(error, origin) from error
            self.buildpacks.append(pack)
            self.record.buildpacks.append(BuildpackRecord(reference, pack.digest))
        self._end("stage", "", began)

    def run_buildpacks(self) -> None:
        """For each buildpack in order: detect, compile after the exports of those before it, report."""
        exports: list[str] = []
        for number, pack in enumerate(self.buildpacks):
            name = self.record.buildpacks[number].name = self._detect(pack)
            try:
                self._compile(pack, name, exports)
            except BuildError:
                with contextlib.suppress(BuildError):
                    self._report(number, pack)
                raise
            self._report(number, pack)
            if self._has_export(number):
                exports.append(f"{pack.path}/export")

    def _detect(self, pack: api.Buildpack) -> str:
        """A configured buildpack must match; what it prints is its name."""
        own = Path(pack.reference).name
        if not pack.has("detect"):
            return own
        outcome, printed, said = self._captured("detect", pack, api.detect(pack, self.layout))
        self._check_time("detect", pack, outcome)
        if outcome.exit_code != 0:
            shown = _line(printed + said)
            raise BuildError(
                f"The buildpack {pack.reference} does not match this app"
                f" (bin/detect {_ending(outcome)}{f', and said: {shown}' if shown else ''}).",
                "Leave it out, or mend the app.",
                ExitCode.NO_BUILDPACK,
            )
        self._check_build_dir("detect", pack, outcome)
        name = printed.decode("utf-8", "replace").strip() or own
        self.monitor(Event("note", text=f"-----> {name} app detected"))
        return name

    def _compile(self, pack: api.Buildpack, name: str, exports: Sequence[str]) -> None:
        outcome = self._phase("compile", pack, api.compile_(pack, self.layout, exports))
        self._check_time("compile", pack, outcome)
        if outcome.exit_code != 0:
            raise BuildError(
                f"Push rejected, failed to compile {name} app: bin/compile of {pack.reference} {_ending(outcome)}.",
                code=ExitCode.COMPILE_FAILED,
            )
        self._check_build_dir("compile", pack, outcome)

    def _check_time(self, name: str, pack: api.Buildpack, outcome: Outcome) -> None:
        if outcome.timed_out:
            raise BuildError(
                f"bin/{name} of {pack.reference} took longer than {self.options.timeout:g} seconds.",
                "Raise --timeout.",
                ExitCode.LIMIT,
            )

    def _check_build_dir(self, name: str, pack: api.Buildpack, outcome: Outcome) -> None:
        app = outcome.came_back.get(self.layout.build_dir, "directory")
        if app != "directory":
            left = "nothing" if app == "missing" else f"a {app}"
            raise BuildError(
                f"bin/{name} of {pack.reference} left {left} where BUILD_DIR ({self.layout.build_dir}) was.",
                "A buildpack may replace BUILD_DIR, but by a directory.",
                ExitCode.RELEASE_FAILED if name == "release" else ExitCode.COMPILE_FAILED,
            )

    def _has_export(self, number: int) -> bool:
        """The file is read by bash inside the view; here only whether it is there, and a plain file."""
        tmp = os.open(self.work.directory("tmp"), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
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

    def _report(self, number: int, pack: api.Buildpack) -> None:
        """After success and failure alike; a report's own failure never fails a build."""
        if not pack.has("report"):
            return
        try:
            outcome, printed, _ = self._captured("report", pack, api.report(pack, self.layout))
        except BuildError as error:
            self.warn(str(error))
            return
        self._check_build_dir("report", pack, outcome)
        try:
            found = json.loads(printed or b"{}")
            if outcome.exit_code != 0 or not isinstance(found, dict):
                raise ValueError(_ending(outcome))
            kept = {key: value for key, value in found.items() if not isinstance(value, dict | list)}
            self.record.buildpacks[number].report = kept
        except (ValueError, RecursionError) as error:
            self.warn(f"bin/report of {pack.reference} was of no use: {error}.")

    def release(self) -> None:
        """`bin/release` of the last buildpack."""
        pack = self.buildpacks[-1]
        found = api.Release()
        if pack.has("release"):
            outcome, printed, said = self._captured("release", pack, api.release(pack, self.layout))
            self._check_time("release", pack, outcome)
            if outcome.exit_code != 0:
                shown = _line(said)
                raise BuildError(
                    f"bin/release of {pack.reference} {_ending(outcome)}{f': {shown}' if shown else ''}.",
                    code=ExitCode.RELEASE_FAILED,
                )
            self._check_build_dir("release", pack, outcome)
            try:
                found = api.parse_release(printed)
            except api.ReleaseError as error:
                raise BuildError(
                    f"bin/release of {pack.reference} printed what is no release: {error}.",
                    code=ExitCode.RELEASE_FAILED,
                ) from None
            self.release_output = printed
        self.record.process_types = {**found.default_process_types, **self._procfile()}

    def _procfile(self) -> dict[str, str]:
        app = os.open(self.work.directory("app"), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            text = read_beneath(app, "Procfile", _OUTPUT_LIMIT)
        except OSError as error:
            raise BuildError(
                f"The Procfile cannot be read: {error.strerror}.", code=ExitCode.RELEASE_FAILED
            ) from None
        finally:
            os.close(app)
        try:
            types, warnings = api.parse_procfile((text or b"").decode("utf-8", "surrogateescape"))
        except api.ProcfileError as error:
            raise BuildError(str(error), "Mend that line.", ExitCode.RELEASE_FAILED) from None
        for warning in warnings:
            self.warn(warning)
        return types

    def sweep(self) -> None:
        """Credentials that a build left in HOME never reach the slug."""
        if self.layout.home != self.layout.build_dir:
            return
        for found in sweep_home(
            self.work.directory("app"),
            str(self.source),
            keep_credentials=self.options.keep_credentials,
            owner=self.work.owner,
        ):
            self.record.sweep.append({"path": found.path, "action": found.action, "bytes": found.bytes})
            if found.action == "kept":
                self.monitor(Event("note", text=f"~/{found.path} was left in the slug ({found.bytes / 1e6:.1f} MB)."))
            else:
                self.monitor(Event("note", text=f"~/{found.path} was {found.action}: credentials are not shipped."))

    def publish(self, output: slugs.Output) -> None:
        """Slug and cache: both made beside, then both put in place."""
        began = self._begin("slug", "")
        app = self.work.directory("app")
        slugs.mark(app, self.layout.home, self.layout.name, self.release_output, self.work.owner)
        prepared = slugs.prepare(app, output, self.work.owner)
        try:
            with contextlib.ExitStack() as stack, self.cache.replacing(self.work.directory("cache")) as replace_cache:
                stack.enter_context(signals_held())  # until both are done: what comes then must undo neither
                replace_cache()
                prepared.commit()
        finally:
            prepared.discard()
        self.record.slug = prepared.slug
        self._end("slug", "", began)

    def _begin(self, name: str, text: str) -> float:
        self.monitor(Event("started", name=name, text=text))
        return time.monotonic()

    def _end(self, name: str, text: str, began: float, outcome: Outcome | None = None) -> None:
        seconds = round(time.monotonic() - began, 3)
        phase = Phase(name, text, seconds)
        if outcome is not None:
            phase.exit_code = None if outcome.signal is not None else outcome.exit_code
            phase.signal = outcome.signal
            phase.user_seconds = round(outcome.user_seconds, 3)
            phase.system_seconds = round(outcome.system_seconds, 3)
            phase.max_rss_kib = outcome.max_rss_kib
            phase.read_bytes = outcome.read_bytes
            phase.written_bytes = outcome.written_bytes
            phase.timings = {key: round(value, 5) for key, value in outcome.timings.items()}
        self.record.phases.append(phase)
        self.monitor(Event("ended", name=name, text=text, seconds=seconds))

    def _phase(self, name: str, pack: api.Buildpack, call: api.Invocation) -> Outcome:
        """Run one call; its output, both streams in their true order, goes to the monitor."""
        return self._launch(name, pack, call, lambda data: self.monitor(Event("output", data=data)), None)

    def _captured(self, name: str, pack: api.Buildpack, call: api.Invocation) -> tuple[Outcome, bytes, bytes]:
        """Run one call whose stdout is an answer; (outcome, stdout, stderr)."""
        printed, said = _Bounded(f"bin/{name} of {pack.reference}"), _Bounded(f"bin/{name} of {pack.reference}")
        outcome = self._launch(name, pack, call, printed, said)
        return outcome, bytes(printed.data), bytes(said.data)

    def _launch(
        self,
        name: str,
        pack: api.Buildpack,
        call: api.Invocation,
        on_output: Callable[[bytes], None],
        on_error: Callable[[bytes], None] | None,
    ) -> Outcome:
        began = self._begin(name, pack.reference)
        with open(os.devnull, "rb") as null:  # noqa: PTH123
            outcome = self.launcher.launch(
                self.view,
                call.argv,
                env=self.env,
                cwd=call.cwd,
                stdin=null.fileno(),
                on_output=on_output,
                on_error=on_error,
                timeout=self.options.timeout,
                interrupt_grace=10.0,
            )
        self._end(name, pack.reference, began, outcome)
        if outcome.came_back.get(self.layout.build_dir, "directory") != "directory":
            self.work.make("app")  # for bin/report; the build has failed
        for sentence in self.work.mend(self.layout, outcome.came_back):
            self.warn(f"After bin/{name} of {pack.reference}, {sentence}.")
        if ENDING.intersection(outcome.forwarded):
            raise Interrupted(f"Interrupted during bin/{name} of {pack.reference}.")
        return outcome


class _Bounded:
    """Collects output, up to a limit: a phase that answers is not expected to print forever."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.data = bytearray()

    def __call__(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > _OUTPUT_LIMIT:
            raise BuildError(f"{self.what} printed more than {_OUTPUT_LIMIT} bytes.", code=ExitCode.LIMIT)


def _line(said: bytes) -> str:
    return " ".join(said.decode("utf-8", "replace").split())[:500]


def _unreadable(error: PermissionError, top: Path) -> Exception:
    """What to do when it is a file of the user's that cannot be read."""
    if not str(error.filename).startswith(f"{top}/"):
        return error
    return Refused(
        f"{error.filename} cannot be read: {error.strerror}.",
        f"Make it readable for uid {os.geteuid()}, or take it out of {top}.",
    )


def _ending(outcome: Outcome) -> str:
    if outcome.signal is not None:
        return f"was killed by signal {outcome.signal}"
    if outcome.error:
        return f"could not be run: {outcome.error}"
    return f"exited {outcome.status}"
