"""The order of a build, and what each step leaves behind when the next one fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nsbuild import slug as slugs
from nsbuild.build.chain import run_chain
from nsbuild.build.events import Monitor
from nsbuild.build.options import BuildOptions
from nsbuild.build.release import publish, release, sweep
from nsbuild.build.session import session
from nsbuild.build.staging import check_given, open_source
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
    has succeeded. Raises NsbuildError (its `code` is the exit code of `nsbuild build`); the error then has an
    attribute `record` once the build had begun.
    """
    options = options or BuildOptions()
    directory = open_source(source)
    given = check_given(buildpacks, options)
    output = slugs.check_output(options.output or f"{directory.name or 'slug'}.tgz", directory)
    with session(directory, given, options, monitor) as at:
        staged = at.stage(str(output.path))
        used = run_chain(at.calls, staged)
        release_output = release(at.calls, used[-1])
        sweep(options, at.layout, at.work, directory, at.log)
        publish(output, release_output, at.layout, at.work, at.cache, at.log, options.enforce_limits)
    return at.log.record
