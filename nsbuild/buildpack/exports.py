"""Sourcing the `export` files of earlier buildpacks before a command."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Sourced, not executed, and by bash: that is what `export` files are written for (heroku-buildpack-multi,
# bin/compile). The command is saved first, since a sourced file may change the positional parameters, or the
# working directory.
_SCRIPT = """
__nsbuild_count=$1; shift
__nsbuild_exports=("${@:1:__nsbuild_count}"); shift "$__nsbuild_count"
__nsbuild_command=("$@")
__nsbuild_cwd=$PWD
for __nsbuild_export in "${__nsbuild_exports[@]}"; do . "$__nsbuild_export"; done
set -- "${__nsbuild_command[@]}"
builtin cd -- "$__nsbuild_cwd"
unset -v "${!__nsbuild_@}"
exec "$@"
"""


def with_exports(exports: Sequence[str], argv: tuple[str, ...]) -> tuple[str, ...]:
    """`argv`, run by a bash that has sourced these files (paths as the command will see them) in order."""
    if not exports:
        return argv
    return ("/bin/bash", "-c", _SCRIPT, "bash", str(len(exports)), *exports, *argv)
