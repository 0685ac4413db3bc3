"""`nsbuild detect`: whether the buildpacks match, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nsbuild.build.chain import detect_all
from nsbuild.build.events import Monitor
from nsbuild.build.options import BuildOptions
from nsbuild.build.session import session
from nsbuild.build.source import open_source
from nsbuild.build.staging import check_given
from nsbuild.record import Record


def detect_app(
    source: str | Path,
    buildpacks: Sequence[str | Path] = (),
    options: BuildOptions | None = None,
    *,
    monitor: Monitor = lambda event: None,
) -> Record:
    """Run `bin/detect` of each buildpack on `source`, of those that `build` would take; the record has their names.

    Raises NsbuildError as `build` does: the code is 10 when one does not match.
    """
    options = options or BuildOptions()
    opened = open_source(source, dirty=options.dirty)
    with session(opened, check_given(buildpacks, options), options, monitor) as at:
        detect_all(at.calls, at.stage(with_cache=False))
    return at.log.record
