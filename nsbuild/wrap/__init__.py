"""One command in the view of one BUILD_DIR: `nsbuild compile` and `nsbuild exec`.

On a builder's clock: nothing is imported here that a launch does not use.
"""

from __future__ import annotations

from nsbuild.wrap.plan import WrapOptions
from nsbuild.wrap.wrap import Unfinished, WrapResult, compile_, exec_in_view, explain_view

__all__ = ["Unfinished", "WrapOptions", "WrapResult", "compile_", "exec_in_view", "explain_view"]
