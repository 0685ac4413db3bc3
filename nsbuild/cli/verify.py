"""nsbuild verify"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from nsbuild.build import Record, Verified
from nsbuild.build import verify as verify_build
from nsbuild.cli.build import ROLLOUT, params_without, run_build
from nsbuild.cli.configured import Configured
from nsbuild.cli.progress_json import write_event
from nsbuild.cli.say import say
from nsbuild.cli.summary import ours
from nsbuild.errors import ExitCode

_NOT = (*ROLLOUT, "output", "cache_dir", "app", "enforce_limits", "rebuild", "reproducible", "shell_on_failure")


@click.command(
    cls=Configured,
    params=params_without(*_NOT),
    short_help="Build the app in SOURCE twice, and say what differs.",
)
@click.pass_context
def verify(context: click.Context, /, **given: Any) -> int:
    """Build the app in SOURCE twice, as `build --reproducible` does, and say what differs. Neither slug is kept.

    Exits 0 when both are the same, 1 when they differ, else as `build`. With --json the last line has the difference.
    """
    found: list[Verified] = []

    def entry(*args: Any, **options: Any) -> Record:
        found.append(verify_build(*args, **options))
        return found[0].record

    run_build(entry, context, **given)
    (verified,) = found
    if given["as_json"]:
        told = {"same": verified.same, "digests": verified.digests, "diff": verified.diff.as_dict()}
        write_event("verified", told)
    else:
        for line in _text(verified):
            say(line)
    return int(ExitCode.OK if verified.same else ExitCode.DIFFERENT)


def _text(verified: Verified) -> Iterator[str]:
    if verified.same:
        yield ours(f"the same slug twice: {verified.diff.same} entries, {verified.digests[0]}")
        return
    yield from verified.diff.as_text()
    if not verified.diff.counted:
        yield ours("it is the times of sources that differ, which their bytecode goes by")
    yield ours("the two builds differ; `nsbuild diff` of two slugs of `build --reproducible` shows more")
