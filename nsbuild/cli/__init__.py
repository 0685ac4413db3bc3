"""The command line: one file a command, each of which parses, calls and prints."""

from __future__ import annotations

from nsbuild.cli.main import main

__all__ = ["main"]
