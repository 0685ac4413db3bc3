"""Make a process see a view. Knows nothing of buildpacks; imports almost nothing.

with Launcher() as launcher:
    outcome = launcher.launch(view, ["make"], env={"PATH": "/usr/bin:/bin"}, cwd="/app")
"""

from __future__ import annotations

from nsbuild.sandbox.host import Host, read_host
from nsbuild.sandbox.launcher import Launcher, launch
from nsbuild.sandbox.outcome import AfterCommandError, LaunchError, Outcome
from nsbuild.sandbox.view import (
    Bind,
    Layout,
    Overlay,
    User,
    View,
    ViewError,
    app_layout,
    classic_layout,
    compose,
)

__all__ = [
    "AfterCommandError",
    "Bind",
    "Host",
    "LaunchError",
    "Launcher",
    "Layout",
    "Outcome",
    "Overlay",
    "User",
    "View",
    "ViewError",
    "app_layout",
    "classic_layout",
    "compose",
    "launch",
    "read_host",
]
