"""Run classic buildpacks in an unprivileged mount namespace where BUILD_DIR is at `/app`.

The public Python API: everything the `nsbuild` command does is one call of a name below, or of `nsbuild.sandbox`.
Nothing is imported before it is used, because a launch must not pay for what a whole build imports.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from nsbuild.build import BuildOptions, Event, Record
    from nsbuild.runtime import RunOptions

__version__ = "0.1.0"
__all__ = ["__version__", "build", "run"]


def build(
    source: str | Path,
    buildpacks: Sequence[str | Path],
    options: BuildOptions | None = None,
    *,
    monitor: Callable[[Event], None] = lambda event: None,
) -> Record:
    """Build a slug: `nsbuild.build.build`, where types, errors and effects are told.

    Importing the package `nsbuild.build` puts it in this function's place; it can be called as well.
    """
    from nsbuild.build.build import build

    return build(source, buildpacks, options, monitor=monitor)


def run(
    slug: str | Path,
    process: str | Sequence[str] = "web",
    options: RunOptions | None = None,
    *,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run a process type (a str) or a command (a sequence) of a slug: `nsbuild.runtime.run`."""
    from nsbuild.runtime import run

    return run(slug, process, options, env=env)
