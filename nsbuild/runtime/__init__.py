"""Run a slug as a dyno would."""

from __future__ import annotations

from nsbuild.runtime.formation import run_formation
from nsbuild.runtime.opened import RunOptions
from nsbuild.runtime.process import list_processes, run

__all__ = ["RunOptions", "list_processes", "run", "run_formation"]
