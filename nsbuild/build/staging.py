"""What a build is made of, copied into its workspace: source, cache, config vars, buildpacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nsbuild import buildpack as api
from nsbuild.build.cache import Cache
from nsbuild.build.log import Log
from nsbuild.build.options import BuildError, BuildOptions
from nsbuild.build.source import Source, stage
from nsbuild.build.sweep import keep_home
from nsbuild.errors import ExitCode, Refused
from nsbuild.record import BuildpackRecord
from nsbuild.workspace import Workspace


def check_given(references: Sequence[str | Path], options: BuildOptions) -> list[str]:
    """The references that the caller names, looked at before anything is copied. Raises UsageError."""
    given = [str(reference) for reference in references]
    for text in given:
        reference = api.parse_reference(text, registry=options.registry)
        if reference.kind == "directory":
            api.check_buildpack(Path(reference.location), reference.shown)
    return given


@dataclass(frozen=True)
class Staged:
    """The buildpacks in their places. `detected`: only the first that matches is used."""

    buildpacks: Sequence[api.Buildpack]
    detected: bool


def stage_source(source: Source, work: Workspace, ours: Sequence[str], log: Log) -> None:
    """Copy the source to be BUILD_DIR. `ours` are output, caches and workspaces: no part of the app where they lie
    within the source.

    Raises BuildError for an empty source, UsageError and Refused for what cannot be read.
    """
    app = work.directory("app")
    os.rmdir(app)
    within = {os.path.relpath(os.path.realpath(path), source.path) for path in ours}
    try:
        staged = stage(source, app, work.owner, lambda path, directory: path in within)
    except PermissionError as error:
        raise _unreadable(error, source.path) from error
    os.chmod(app, os.stat(app).st_mode & 0o777 | 0o700)
    for sentence in staged.notes:
        log.note(sentence)
    for left in staged.left_out:
        log.warn(f"{left.path} was left out: it is {left.reason}.")
    for sentence in staged.warnings:
        log.warn(sentence)
    if staged.ignored:
        count = len(staged.ignored)
        log.note(f".slugignore took {count} {'path' if count == 1 else 'paths'} out, {staged.ignored[0]} for one.")
    if staged.files + staged.symlinks == 0:
        raise BuildError(
            f"The source {source.path} is empty: no buildpack can match.",
            "Give the directory of an app.",
            ExitCode.NO_BUILDPACK,
        )
    keep_home(app, work.make("source"), work.owner)


def stage_cache(cache: Cache, work: Workspace, log: Log) -> None:
    """A private copy of the last good build's cache, or an empty directory."""
    os.rmdir(work.directory("cache"))
    log.record.cache_hit = cache.load(work.directory("cache"), work.owner)
    if not log.record.cache_hit:
        work.make("cache")


def stage_buildpacks(chosen: api.Chosen, work: Workspace, log: Log, seen: str | None) -> Staged:
    """A private, writable copy of each, fetched where it has to be. Raises NsbuildError for what cannot be had.

    `seen` is where the build sees the directory that holds them; None: where it is.
    """
    for warning in chosen.warnings:
        log.warn(warning)
    if chosen.origin != "--buildpack":
        log.note(f"Buildpacks of {chosen.origin}: {', '.join(found.shown for found in chosen.references)}.")
    store = api.Store(progress=log.download)
    directory = Path(work.directory("tmp"), "buildpacks")
    directory.mkdir()
    if work.owner is not None:
        os.chown(directory, *work.owner)
    installed = []
    for number, reference in enumerate(chosen.references):
        began = None if reference.kind == "directory" else log.begin("fetch", reference.shown)
        with store.open(reference) as opened:
            try:
                pack = api.install(
                    opened.directory,
                    reference.shown,
                    directory / str(number),
                    f"{seen or directory}/{number}",
                    work.owner,
                )
            except PermissionError as error:
                raise _unreadable(error, opened.directory) from error
        if began is not None:
            log.end("fetch", began, reference.shown)
        if opened.warning:
            log.warn(opened.warning)
        installed.append(pack)
        record = BuildpackRecord(reference.shown, pack.digest)
        record.url, record.archive, record.commit = opened.url, opened.archive, opened.commit
        log.record.buildpacks.append(record)
    return Staged(installed, chosen.detected)


def _unreadable(error: PermissionError, top: Path) -> Exception:
    """What to do when it is a file of the user's that cannot be read."""
    if not str(error.filename).startswith(f"{top}/"):
        return error
    return Refused(
        f"{error.filename} cannot be read: {error.strerror}.",
        f"Make it readable for uid {os.geteuid()}, or take it out of {top}.",
    )
