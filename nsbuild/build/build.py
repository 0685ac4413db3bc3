"""The order of a build, and what each step leaves behind when the next one fails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nsbuild import slug as slugs
from nsbuild.build.chain import run_chain
from nsbuild.build.events import Event, Monitor
from nsbuild.build.options import BuildError, BuildOptions
from nsbuild.build.private import secrets_within
from nsbuild.build.release import publish, release, sweep
from nsbuild.build.session import Session, session
from nsbuild.build.source import open_source
from nsbuild.build.staging import check_given
from nsbuild.errors import ExitCode, UsageError
from nsbuild.record import Record


def build(
    source: str | Path,
    buildpacks: Sequence[str | Path] = (),
    options: BuildOptions | None = None,
    *,
    monitor: Monitor = lambda event: None,
) -> Record:
    """Build `source` with these buildpacks, in order, and put the slug in place.

    Without any, with those that BUILDPACK_URL or the app names, or the first of `default_buildpacks` that matches.
    Neither the source nor the buildpacks are modified. The output and the cache are replaced only when everything
    has succeeded. With `rebuild` it is built twice, the second time from the cache of the first and in a workspace of
    its own; the slug is the second's, whose record has the first's. Raises NsbuildError (its `code` is the exit code
    of `nsbuild build`); the error then has an attribute `record` once the build had begun.
    """
    options = options or BuildOptions()
    if options.shell_on_failure and not (os.isatty(0) and os.isatty(1)):
        raise UsageError("--shell-on-failure needs a terminal on stdin and stdout.", "Leave it out.")
    if options.rebuild and options.reproducible:
        raise UsageError("--reproducible uses no cache, and --rebuild is about the cache.", "Leave one of them out.")
    opened = open_source(source, dirty=options.dirty)
    given = check_given(buildpacks, options)
    output = slugs.check_output(options.output or f"{opened.name or 'slug'}.tgz", opened.path)
    first = None
    if options.rebuild:
        with session(opened, given, options, monitor) as at:
            _build(at, output)
            at.keep_cache()
        first = at.log.record
        monitor(Event("note", text=f"built in {first.seconds:.1f} s; now again, from the cache of that build"))
    with session(opened, given, options, monitor) as at:
        at.log.record.first = first
        release_output = _build(at, output)
        if first is not None and not at.log.record.cache_hit:
            raise BuildError("The second build found no cache.", "Is another `cache rm` running?", ExitCode.REFUSED)
        publish(at, output, release_output)
    if first is not None:
        seconds = at.log.record.seconds
        monitor(Event("note", text=f"the first build took {first.seconds:.1f} s, the second {seconds:.1f} s"))
    return at.log.record


def _build(at: Session, output: slugs.Output) -> bytes | None:
    """Everything but putting it in place; what bin/release has printed. Raises NsbuildError."""
    try:
        staged = at.stage(str(output.path), with_cache=not at.options.reproducible)
        used = run_chain(at.calls, staged)
        release_output = release(at.calls, used[-1])
    except BuildError as error:
        if at.options.shell_on_failure:
            _shell(at, error)
        raise
    sweep(at.options, at.layout, at.work, at.log)
    for where, directory in (("slug", "app"), ("cache", "cache")):
        for secret, path in secrets_within(at.work.directory(directory), at.options.secrets):
            at.log.warn(f"{path} of the {where} holds the secret {secret}: a buildpack has put it there.")
    return release_output


def _shell(at: Session, error: BuildError) -> None:
    at.log.note(str(error))
    at.log.note(f"a shell in what is left of the build, at {at.layout.build_dir}; leave it with `exit`")
    at.calls.shell()
