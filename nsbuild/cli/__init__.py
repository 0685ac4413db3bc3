"""The command line: one file a command, each of which parses, calls and prints."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Never shows a traceback for what a user can cause."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["compile"], ["exec"]):
        # On a builder's clock: click alone takes longer to import than these take.
        from nsbuild.cli import wrappers

        return wrappers.main(words[0], words[1:])
    from nsbuild.cli import group

    return group.main(words)
