"""How a dyno starts a command."""

from __future__ import annotations

from collections.abc import Sequence

RUN_PATH = "/usr/local/bin:/usr/bin:/bin"

# .profile.d/*.sh are sourced in lexical order, then .profile, in the app's directory, with config vars set before:
# https://devcenter.heroku.com/articles/profile
_BOOT = """
__nsbuild_command=("$@")
for __nsbuild_file in "$PWD"/.profile.d/*.sh "$PWD/.profile"; do
    if [ -f "$__nsbuild_file" ]; then . "$__nsbuild_file"; fi
done
set -- "${__nsbuild_command[@]}"
unset -v __nsbuild_file __nsbuild_command
exec "$@"
"""


def boot(argv: Sequence[str]) -> list[str]:
    """The words that source the slug's profile scripts in the working directory, then become `argv`."""
    return ["/bin/bash", "-c", _BOOT, "bash", *argv]
