"""The one error."""

from __future__ import annotations


class CompatError(Exception):
    """One sentence: what is missing or wrong, and where."""
