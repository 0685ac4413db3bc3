"""One build under way: its workspace, launcher and record, whatever is then run in it."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsbuild import buildpack as api
from nsbuild.build.cache import Cache, CacheUse
from nsbuild.build.calls import Calls
from nsbuild.build.direct import NAME as DIRECT
from nsbuild.build.direct import DirectLauncher, check_direct, direct_layout
from nsbuild.build.events import Monitor
from nsbuild.build.log import Log
from nsbuild.build.options import BuildOptions, layout_of
from nsbuild.build.private import secret_values
from nsbuild.build.reproducible import BUILD_ID, variables
from nsbuild.build.source import Source
from nsbuild.build.staging import Staged, stage_buildpacks, stage_cache, stage_source
from nsbuild.disk import DiskWatch
from nsbuild.errors import ExitCode, Interrupted, NsbuildError, Refused
from nsbuild.interrupts import signals_held
from nsbuild.record import Record
from nsbuild.refusals import Refusals
from nsbuild.sandbox import Launcher, Layout
from nsbuild.stack import HOST, StackRoot, open_stack_root
from nsbuild.user import build_user
from nsbuild.workspace import Workspace, app_caches, workspace, workspaces


@dataclass(frozen=True)
class Session:
    """A build in its workspace; `given` are the references that the caller named."""

    source: Source
    given: Sequence[str]
    options: BuildOptions
    layout: Layout
    work: Workspace
    cache: Cache
    log: Log
    calls: Calls
    stack_root: StackRoot

    def stage(self, *ours: str, with_cache: bool = True) -> Staged:
        """Copy source, cache, config vars and buildpacks into the workspace; returns the buildpacks.

        `ours` are paths that are no part of the app where they lie within the source.
        """
        began = self.log.begin("stage")
        kept = (*ours, str(self.cache.directory), str(Path(self.work.path).parent))
        stage_source(self.source, self.work, kept, self.log)
        chosen = api.choose(
            self.given,
            self.options.config_vars,
            self.work.directory("app"),
            defaults=self.options.default_buildpacks,
            registry=self.options.registry,
        )
        if with_cache:
            stage_cache(self.cache, self.work, self.log)
        api.write_env_dir(self.work.directory("env"), self.options.config_vars, self.work.owner)
        self.log.end("stage", began)
        seen = "/tmp/buildpacks" if self.options.path == "namespace" else None
        staged = stage_buildpacks(chosen, self.work, self.log, seen)
        self.calls.check_disk("staging")
        return staged

    def keep_cache(self) -> None:
        """Put the cache in place, for the next time. CACHE_DIR is empty then."""
        with self.cache.replacing(self.work.directory("cache")) as replace, signals_held():
            replace()
        self.work.make("cache")


@contextlib.contextmanager
def session(
    source: Source,
    given: Sequence[str],
    options: BuildOptions,
    monitor: Monitor,
    purpose: str = "build",
) -> Iterator[Session]:
    """A build of `source`, recorded from its beginning to its end. Each `purpose` has a cache of its own.

    Raises NsbuildError; it has an attribute `record` once the build had begun.
    """
    build_id = secrets.token_hex(4)
    layout = layout_of(options, BUILD_ID if options.reproducible else build_id)
    same = variables(source) if options.reproducible else {}
    direct = options.path == "direct"
    if direct:
        check_direct(options)
    surprising = api.check_config_vars(options.config_vars)
    user = build_user(str(source.path), options.user)
    cache_root = app_caches(options.cache_dir)
    cache = Cache(
        cache_root,
        CacheUse(options.app or str(source.path), options.stack, DIRECT if direct else layout.name, purpose),
    )
    cache.check()
    parent = workspaces(options.workspace_dir, options.cache_dir)
    record = Record(
        id=build_id,
        source=str(source.path),
        source_version=source.version,
        layout=DIRECT if direct else layout.name,
        path=options.path,
        run_path=layout.home,
        stack=options.stack,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        uid=user.uid,
    )
    log = Log(record, monitor, options.config_vars)
    began = time.monotonic()
    try:
        with (
            Refusals("Free some space, or give another --workspace-dir, --cache or --output.", Refused),
            workspace(parent, user) as work,
            DirectLauncher(work) if direct else Launcher.for_caller() as launcher,
            _disk_watch(work, options) as disk,
        ):
            if direct:
                layout = direct_layout(work, layout.home)
            stack_root = _open_stack_root(options, log)
            calls = Calls(options, layout, work, launcher, log, stack_root.path, disk, same)
            log.hidden.update(secret_values(options.secrets))
            for name in surprising:
                log.warn(
                    f"The config var {name} is one that buildpacks refuse to export; it is in ENV_DIR all the same."
                )
            yield Session(source, given, options, layout, work, cache, log, calls, stack_root)
        record.result = "succeeded"
        record.exit_code = int(ExitCode.OK)
    except NsbuildError as error:
        raise _with_record(error, record) from error.__cause__
    except KeyboardInterrupt:
        raise _with_record(Interrupted("Interrupted."), record) from None
    finally:
        record.seconds = round(time.monotonic() - began, 3)


def _disk_watch(work: Workspace, options: BuildOptions) -> contextlib.AbstractContextManager[DiskWatch | None]:
    return contextlib.nullcontext() if options.disk is None else DiskWatch(work.path, options.disk)


def _open_stack_root(options: BuildOptions, log: Log) -> StackRoot:
    if options.stack_root is None:
        return HOST
    began = log.begin("stack", options.stack_root)
    found = open_stack_root(options.stack_root)
    log.record.stack_root = found.digest
    log.end("stack", began, options.stack_root)
    return found


def _with_record(error: NsbuildError, record: Record) -> NsbuildError:
    record.result = error.sentence
    record.exit_code = int(error.code)
    error.record = record  # type: ignore[attr-defined]
    return error
