"""What a slug says of itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from nsbuild import buildpack as api
from nsbuild.errors import UsageError
from nsbuild.slug import RELEASE_FILE, marked
from nsbuild.tree import read_beneath

_LIMIT = 1 << 20


@dataclass(frozen=True)
class SlugInfo:
    """`run_path` is where it was built to run; `config_vars` are bin/release's defaults.

    `stack_root` is the digest of the `nsbuild.stack.StackRoot` that it was built on, empty for the host's own.
    """

    run_path: str = "/app"
    process_types: dict[str, str] = field(default_factory=dict)
    config_vars: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    stack: str = ""
    stack_root: str = ""


def read_slug(directory: str, name: str) -> SlugInfo:
    """What an unpacked slug says of itself. Raises UsageError when one of its files is malformed."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mark = marked(fd)
        release = api.parse_release(read_beneath(fd, RELEASE_FILE, _LIMIT) or b"")
        procfile = (read_beneath(fd, "Procfile", _LIMIT) or b"").decode("utf-8", "surrogateescape")
        types, warnings = api.parse_procfile(procfile)
        return SlugInfo(
            mark.run_path,
            {**release.default_process_types, **types},
            release.config_vars,
            warnings,
            mark.stack,
            mark.stack_root,
        )
    except (ValueError, OSError) as error:
        raise UsageError(f"The slug {name} cannot be read: {error}", "Build it again.") from error
    finally:
        os.close(fd)
