"""Slugs: what a build leaves, as a directory or an archive, put in place in one step."""

from __future__ import annotations

from nsbuild.slug.marker import MARKER, RELEASE_FILE, mark
from nsbuild.slug.output import Output, check_output
from nsbuild.slug.prepare import Prepared, prepare

__all__ = ["MARKER", "RELEASE_FILE", "Output", "Prepared", "check_output", "mark", "prepare"]
