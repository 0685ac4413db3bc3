"""Run classic buildpacks in an unprivileged mount namespace where BUILD_DIR is at `/app`.

The public Python API: everything the `nsbuild` command does is one call of a name below. Names are resolved
on first use, because the launch path (`nsbuild.sandbox`) must not pay for what a whole build imports.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsbuild.build import Record, build
    from nsbuild.runtime import run

__version__ = "0.1.0"
__all__ = ["Record", "__version__", "build", "run"]

_HOMES = {"build": "nsbuild.build", "Record": "nsbuild.build", "run": "nsbuild.runtime"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'nsbuild' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
