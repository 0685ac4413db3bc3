"""The calls of the classic API, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nsbuild.buildpack.buildpack import Buildpack
from nsbuild.buildpack.exports import with_exports
from nsbuild.sandbox import Layout


@dataclass(frozen=True)
class Invocation:
    """What to run and where. The working directory is the buildpack's: real ones copy files relative to it."""

    argv: tuple[str, ...]
    cwd: str


def detect(buildpack: Buildpack, layout: Layout) -> Invocation:
    """`bin/detect BUILD_DIR`."""
    return Invocation((f"{buildpack.path}/bin/detect", layout.build_dir), buildpack.path)


def compile_(buildpack: Buildpack, layout: Layout, exports: Sequence[str]) -> Invocation:
    """`bin/compile BUILD_DIR CACHE_DIR ENV_DIR`, after the `export` files (paths in the view) of earlier ones."""
    argv = (f"{buildpack.path}/bin/compile", layout.build_dir, layout.cache_dir, layout.env_dir)
    return Invocation(with_exports(exports, argv), buildpack.path)


def release(buildpack: Buildpack, layout: Layout) -> Invocation:
    """`bin/release BUILD_DIR`."""
    return Invocation((f"{buildpack.path}/bin/release", layout.build_dir), buildpack.path)


def report(buildpack: Buildpack, layout: Layout) -> Invocation:
    """`bin/report BUILD_DIR CACHE_DIR ENV_DIR`."""
    argv = (f"{buildpack.path}/bin/report", layout.build_dir, layout.cache_dir, layout.env_dir)
    return Invocation(argv, buildpack.path)
