"""What a dyno runs and finds in its environment: values."""

from __future__ import annotations

from collections.abc import Mapping

from nsbuild.errors import UsageError
from nsbuild.runtime.slug import SlugInfo
from nsbuild.slug.boot import RUN_PATH


def command_of(info: SlugInfo, process: str) -> list[str]:
    """What runs a process type. Raises UsageError when the slug has none of that name."""
    command = info.process_types.get(process)
    if command is None:
        known = ", ".join(sorted(info.process_types)) or "none"
        raise UsageError(f"The slug has no process type {process!r}.", f"It has: {known}. A command comes after --.")
    return ["bash", "-c", command]


def environment(
    info: SlugInfo,
    name: str,
    *,
    base: Mapping[str, str],
    config_vars: Mapping[str, str],
    port: int | None = None,
) -> dict[str, str]:
    """The environment of the dyno `name` (`web.1`). `base` is what any process gets; `config_vars` are the user's.

    Raises UsageError for one that no environment can hold.
    """
    variables = {
        "PATH": RUN_PATH,
        "LANG": "C.UTF-8",
        **base,
        **info.config_vars,
        **config_vars,
        "HOME": info.run_path,
        "DYNO": name,
    }
    for variable, value in variables.items():
        if "\0" in variable + value:
            raise UsageError(f"The config var {variable!r} has a NUL byte.", "No process can have it: leave it out.")
    if port is not None:
        variables["PORT"] = str(port)
    return variables
