"""Run a slug as a dyno would."""

from __future__ import annotations

from nsbuild.runtime.dyno import RunOptions, list_processes, run

__all__ = ["RunOptions", "list_processes", "run"]
