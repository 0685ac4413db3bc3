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


def compile_(buildpack: Buildpack, layout: Layout, exports: Sequence[str], script: str = "compile") -> Invocation:
    """`bin/compile BUILD_DIR CACHE_DIR ENV_DIR`, after the `export` files (paths in the view) of earlier ones.

    `script` may be `test-compile` instead.
    """
    argv = (f"{buildpack.path}/bin/{script}", layout.build_dir, layout.cache_dir, layout.env_dir)
    return Invocation(with_exports(exports, argv), buildpack.path)


def shell(layout: Layout, exports: Sequence[str]) -> Invocation:
    """An interactive shell as the next compile would begin, but in the app's directory."""
    return Invocation(with_exports(exports, ("/bin/bash", "-i")), layout.build_dir)


def release(buildpack: Buildpack, layout: Layout) -> Invocation:
    """`bin/release BUILD_DIR`."""
    return Invocation((f"{buildpack.path}/bin/release", layout.build_dir), buildpack.path)


def report(buildpack: Buildpack, layout: Layout) -> Invocation:
    """`bin/report BUILD_DIR CACHE_DIR ENV_DIR`."""
    argv = (f"{buildpack.path}/bin/report", layout.build_dir, layout.cache_dir, layout.env_dir)
    return Invocation(argv, buildpack.path)
