"""What ends a build: release of the last buildpack, process types, the sweep of HOME, slug and cache in place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from nsbuild import buildpack as api
from nsbuild import slug as slugs
from nsbuild.build.audited import SlugAudit, judge
from nsbuild.build.calls import OUTPUT_LIMIT, Calls, ending, shown
from nsbuild.build.limits import megabytes, too_large
from nsbuild.build.log import Log
from nsbuild.build.options import BuildError, BuildOptions
from nsbuild.build.session import Session
from nsbuild.build.sweep import sweep_home
from nsbuild.errors import ExitCode
from nsbuild.interrupts import signals_held
from nsbuild.sandbox import Layout
from nsbuild.tree import read_beneath
from nsbuild.workspace import Workspace

_NAMED = 20
"""Of what was left out of the slug, at most; the record has all."""


def release(calls: Calls, pack: api.Buildpack) -> bytes | None:
    """What `bin/release` of the last buildpack prints, None where there is none; the record gets the process types.

    Raises BuildError.
    """
    found, printed = api.Release(), None
    if pack.has("release"):
        outcome, printed, said = calls.captured("release", pack, api.release(pack, calls.layout))
        calls.check_time("release", pack, outcome)
        if outcome.exit_code != 0:
            heard = shown(said)
            raise BuildError(
                f"bin/release of {pack.reference} {ending(outcome)}{f': {heard}' if heard else ''}.",
                code=ExitCode.RELEASE_FAILED,
            )
        calls.check_build_dir("release", pack, outcome)
        try:
            found = api.parse_release(printed)
        except api.ReleaseError as error:
            raise BuildError(
                f"bin/release of {pack.reference} printed what is no release: {error}.",
                code=ExitCode.RELEASE_FAILED,
            ) from None
    declared = _procfile(calls.work, calls.log)
    calls.log.record.process_types = {**found.default_process_types, **declared}
    for line in discovered(declared, found.default_process_types):
        calls.log.line(line)
    return printed


def discovered(declared: Mapping[str, str], default: Mapping[str, str]) -> list[str]:
    """What the platform prints of process types (gliderlabs/herokuish, include/procfile.bash)."""
    lines = [
        "-----> Discovering process types",
        f"       Procfile declares types -> {', '.join(declared) or '(none)'}",
    ]
    others = [name for name in default if name not in declared]
    return [*lines, f"       Default types for buildpack -> {', '.join(others)}"] if others else lines


def _procfile(work: Workspace, log: Log) -> dict[str, str]:
    app = os.open(work.directory("app"), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        text = read_beneath(app, "Procfile", OUTPUT_LIMIT)
    except OSError as error:
        raise BuildError(f"The Procfile cannot be read: {error.strerror}.", code=ExitCode.RELEASE_FAILED) from None
    finally:
        os.close(app)
    try:
        types, warnings = api.parse_procfile((text or b"").decode("utf-8", "surrogateescape"))
    except api.ProcfileError as error:
        raise BuildError(str(error), "Mend that line.", ExitCode.RELEASE_FAILED) from None
    for warning in warnings:
        log.warn(warning)
    return types


def sweep(options: BuildOptions, layout: Layout, work: Workspace, log: Log) -> None:
    """Credentials that a build left in HOME never reach the slug."""
    if layout.home != layout.build_dir:
        return
    for found in sweep_home(
        work.directory("app"), work.directory("source"), keep_credentials=options.keep_credentials, owner=work.owner
    ):
        log.record.sweep.append({"path": found.path, "action": found.action, "bytes": found.bytes})
        if found.action == "kept":
            log.note(f"~/{found.path} was left in the slug ({found.bytes / 1e6:.1f} MB).")
        else:
            log.note(f"~/{found.path} was {found.action}: credentials are not shipped.")


def publish(at: Session, output: slugs.Output, release_output: bytes | None) -> None:
    """Slug and cache: both made beside, then both put in place. Raises BuildError for a slug that is too large, or
    remembers what it may not.
    """
    layout, work, log, options = at.layout, at.work, at.log, at.options
    began = log.begin("slug")
    app = work.directory("app")
    slugs.mark(app, layout.home, layout.name, release_output, work.owner, log.record.stack, log.record.stack_root)
    archive = output.format != "directory"
    if archive:
        log.line("-----> Compressing...")
    elif options.enforce_limits:
        log.warn("The slug is a directory: how large it is when compressed was not looked at.")
    image = slugs.Image(
        layout.home,
        layout.name,
        log.record.stack,
        log.record.process_types,
        api.parse_release(release_output or b"").config_vars,
        Path(at.stack_root.path) if at.stack_root.digest else None,
    )
    remembered = SlugAudit(layout, work, at.stack_root, log.record) if options.audit != "off" else None
    if remembered is not None and not archive:
        remembered.directory(app)
    prepared = slugs.prepare(
        app, output, work.owner, image=image, watcher=remembered.watch if remembered and archive else None
    )
    for path in prepared.slug.left_out[:_NAMED]:
        log.warn(f"{path} was left out of the slug: it is a socket, a FIFO or a device.")
    if prepared.bare:
        log.warn(
            f"Extended attributes are left out of the slug: {len(prepared.bare)} files have some,"
            f" {prepared.bare[0]} for one."
        )
    if prepared.unread:
        log.warn(
            f"The image lacks {len(prepared.unread)} paths of the stack root, {prepared.unread[0]} for one:"
            " you may not read them, or they are mounts."
        )
    try:
        if archive:
            log.line(f"       Done: {megabytes(prepared.slug.bytes)}")
            _check_size(prepared.slug.bytes, options.enforce_limits, log)
        if remembered is not None:
            judge(remembered.finish(), options.audit == "fail", log)
        with contextlib.ExitStack() as stack, at.cache.replacing(work.directory("cache")) as replace_cache:
            stack.enter_context(signals_held())  # until both are done: what comes then must undo neither
            replace_cache()
            prepared.commit()
    finally:
        prepared.discard()
    log.record.slug = prepared.slug
    log.end("slug", began)


def _check_size(size: int, enforce: bool, log: Log) -> None:
    sentence = too_large(size)
    if not sentence:
        return
    log.line(f" !     {sentence}")
    if enforce:
        log.line(" !     Push failed")
        raise BuildError(sentence, "Leave files out of it, by .slugignore for one.", ExitCode.LIMIT)
    log.record.warnings.append(sentence)
