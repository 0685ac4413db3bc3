"""Run a slug as a dyno would."""

from __future__ import annotations

from nsbuild.runtime.formation import run_formation
from nsbuild.runtime.opened import RunOptions
from nsbuild.runtime.process import list_processes, run
from nsbuild.runtime.prove import Proof, ProveOptions, Verdict, prove

__all__ = [
    "Proof",
    "ProveOptions",
    "RunOptions",
    "Verdict",
    "list_processes",
    "prove",
    "run",
    "run_formation",
]
