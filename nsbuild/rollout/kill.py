"""The kill switch: what sends every build direct, looked at before anything else is imported."""

from __future__ import annotations

import os

KILL_VARIABLE = "NSBUILD_ROLLOUT_KILL"
KILL_SUFFIX = ".kill"


def kill_file(flags_file: str) -> str:
    """The sentinel of a flags file. What is in it is for people."""
    return flags_file + KILL_SUFFIX


def killed(flags_file: str) -> str:
    """Why every build goes direct, a clause for people; empty when it does not.

    NSBUILD_ROLLOUT_KILL set to anything but nothing or `0`; or anything at all where the sentinel is, a link to
    nowhere included. A place that cannot be looked at counts: a switch that may have been thrown was thrown.
    """
    if os.environ.get(KILL_VARIABLE, "") not in ("", "0"):
        return f"{KILL_VARIABLE} is set"
    sentinel = kill_file(flags_file)
    try:
        os.lstat(sentinel)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:
        return f"{sentinel!r} cannot be looked at ({getattr(error, 'strerror', error)})"
    return f"{sentinel} exists"
