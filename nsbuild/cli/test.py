"""nsbuild test"""

from __future__ import annotations

from typing import Any

import click

from nsbuild.build import run_tests
from nsbuild.cli.build import ROLLOUT, params_without, run_build
from nsbuild.cli.configured import Configured
from nsbuild.cli.say import say

_NOT = (*ROLLOUT, "output", "audit", "keep_credentials", "rebuild", "reproducible", "shell_on_failure")


@click.command(
    cls=Configured, params=params_without(*_NOT), short_help="Compile the app in SOURCE for its tests, and run them."
)
@click.pass_context
def test(context: click.Context, /, **given: Any) -> int:
    """Compile the app in SOURCE for its tests, and run them: app.json's scripts.test, else bin/test.

    Exits 1 when the tests fail, and as `build` when it does not come to them. There is no slug.
    """
    record = run_build(run_tests, context, **given)
    say(f"nsbuild: the tests of {record.source} passed in {record.seconds:.1f} s")
    return 0


test.__test__ = False  # type: ignore[attr-defined]  # pytest
