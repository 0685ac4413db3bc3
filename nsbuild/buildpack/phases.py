"""The calls of the classic API, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nsbuild.buildpack.buildpack import Buildpack
from nsbuild.sandbox import Layout


@dataclass(frozen=True)
class Invocation:
    """What to run and where. The working directory is the buildpack's: real ones copy files relative to it."""

    argv: tuple[str, ...]
    cwd: str


# Sourced, not executed, and by bash: that is what `export` files are written for (heroku-buildpack-multi,
# bin/compile). The command is saved first, since a sourced file may change the positional parameters, or the
# working directory.
_WITH_EXPORTS = """
__nsbuild_count=$1; shift
__nsbuild_exports=("${@:1:__nsbuild_count}"); shift "$__nsbuild_count"
__nsbuild_command=("$@")
__nsbuild_cwd=$PWD
for __nsbuild_export in "${__nsbuild_exports[@]}"; do . "$__nsbuild_export"; done
set -- "${__nsbuild_command[@]}"
builtin cd -- "$__nsbuild_cwd"
unset -v "${!__nsbuild_@}"
exec "$@"
"""


def detect(buildpack: Buildpack, layout: Layout) -> Invocation:
    """`bin/detect BUILD_DIR`."""
    return Invocation((f"{buildpack.path}/bin/detect", layout.build_dir), buildpack.path)


def compile_(buildpack: Buildpack, layout: Layout, exports: Sequence[str]) -> Invocation:
    """`bin/compile BUILD_DIR CACHE_DIR ENV_DIR`, after the `export` files (paths in the view) of earlier ones."""
    argv: tuple[str, ...] = (f"{buildpack.path}/bin/compile", layout.build_dir, layout.cache_dir, layout.env_dir)
    if exports:
        argv = ("/bin/bash", "-c", _WITH_EXPORTS, "bash", str(len(exports)), *exports, *argv)
    return Invocation(argv, buildpack.path)


def release(buildpack: Buildpack, layout: Layout) -> Invocation:
    """`bin/release BUILD_DIR`."""
    return Invocation((f"{buildpack.path}/bin/release", layout.build_dir), buildpack.path)


def report(buildpack: Buildpack, layout: Layout) -> Invocation:
    """`bin/report BUILD_DIR CACHE_DIR ENV_DIR`."""
    argv = (f"{buildpack.path}/bin/report", layout.build_dir, layout.cache_dir, layout.env_dir)
    return Invocation(argv, buildpack.path)
