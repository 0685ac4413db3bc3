"""What a slug carries to say that it is one, and how to run it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from nsbuild.tree import open_beneath, read_beneath, remove_tree

MARKER = ".nsbuild-slug"
RELEASE_FILE = ".release"
"""Where bin/release's output goes, as gliderlabs/herokuish include/buildpack.bash has it."""
_LIMIT = 1 << 20


@dataclass(frozen=True)
class Marked:
    """`run_path` is where the slug was built to run; `stack` and `stack_root` (a digest, empty for the host's own
    directories) what it was built on.
    """

    run_path: str = "/app"
    stack: str = ""
    stack_root: str = ""


def marked(directory: int) -> Marked:
    """What the slug that is open as `directory` is marked with; the defaults for one of somebody else's.

    Raises ValueError for a marker that is none, OSError for one that cannot be read.
    """
    try:
        found = json.loads(read_beneath(directory, MARKER, _LIMIT) or b"{}")
        return Marked(**{name: str(found[name]) for name in Marked.__dataclass_fields__ if name in found})
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ValueError(f"{MARKER} is no marker of nsbuild's") from None


def mark(
    app: str,
    run_path: str,
    layout: str,
    release: bytes | None,
    owner: tuple[int, int] | None,
    stack: str,
    stack_root: str,
) -> None:
    """Write into the slug what running it needs: where it runs, on what, and what bin/release said.

    `stack_root` is the digest of `nsbuild.stack.StackRoot`.
    """
    built = {"schema": 1, "run_path": run_path, "layout": layout, "stack": stack}
    marker = json.dumps(built | ({"stack_root": stack_root} if stack_root else {})) + "\n"
    directory = os.open(app, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name, content in ((MARKER, marker.encode()), (RELEASE_FILE, release)):
            if content is None:
                continue
            remove_tree(name, dir_fd=directory)
            fd = open_beneath(directory, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with open(fd, "wb") as file:  # noqa: PTH123
                file.write(content)
                os.fchmod(fd, 0o644)
                if owner is not None:
                    os.fchown(fd, *owner)
    finally:
        os.close(directory)
