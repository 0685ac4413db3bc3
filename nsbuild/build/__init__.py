"""A whole build: stage, detect, compile each, release, slug."""

from __future__ import annotations

import sys
from types import ModuleType

from nsbuild.build.build import build
from nsbuild.build.detection import detect_app
from nsbuild.build.events import Event
from nsbuild.build.options import DEFAULT_STACK, BuildError, BuildOptions
from nsbuild.build.testing import run_tests
from nsbuild.build.verify import Verified, verify
from nsbuild.record import Phase, Record

__all__ = [
    "DEFAULT_STACK",
    "BuildError",
    "BuildOptions",
    "Event",
    "Phase",
    "Record",
    "Verified",
    "build",
    "detect_app",
    "run_tests",
    "verify",
]


class _Callable(ModuleType):
    """Importing a submodule binds its name in the package, over the function `nsbuild.build`: so it is both."""

    __call__ = staticmethod(build)


sys.modules[__name__].__class__ = _Callable
