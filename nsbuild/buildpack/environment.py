"""What a build's processes find in their environment and in ENV_DIR."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from nsbuild.errors import UsageError
from nsbuild.sandbox import Layout

BUILD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SURPRISING = frozenset({"PATH", "GIT_DIR", "CPATH", "CPPATH", "LD_PRELOAD", "LIBRARY_PATH"})


def build_environment(
    layout: Layout, *, stack: str, request_id: str, source_version: str = "", more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of detect, compile, release and report. Config vars are not in it: they are files.

    Little is added to what platforms set, for some buildpacks write the whole of it into `.profile.d`.
    """
    return {
        "PATH": BUILD_PATH,
        "HOME": layout.home,
        "LANG": "C.UTF-8",
        "STACK": stack,
        "SOURCE_VERSION": source_version,
        "REQUEST_ID": request_id,
        "DYNO": f"build.{request_id}",
        "BUILDPACK_LOG_FILE": "/dev/null",
        # Tools that obey it keep their caches out of HOME, which is the slug.
        "XDG_CACHE_HOME": "/tmp/.cache",
        **(more or {}),
    }


def check_config_vars(config_vars: Iterable[str]) -> list[str]:
    """Names that are legal but surprise buildpacks. Raises UsageError for one that cannot be a file name."""
    surprising = []
    for name in config_vars:
        if (
            not name
            or "/" in name
            or "\0" in name
            or "=" in name
            or name in (".", "..")
            or len(os.fsencode(name)) > 255
        ):
            raise UsageError(f"The config var {name!r} cannot be a file in ENV_DIR.", "Rename it.")
        if name in _SURPRISING:
            surprising.append(name)
    return surprising


def write_env_dir(directory: str, config_vars: Mapping[str, str], owner: tuple[int, int] | None) -> None:
    """One file a config var, the value verbatim: no newline added, bytes as they are."""
    for name, value in config_vars.items():
        fd = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with open(fd, "wb") as file:  # noqa: PTH123
            file.write(os.fsencode(value))
            os.fchmod(fd, 0o644)
            if owner is not None:
                os.fchown(fd, *owner)
