"""What a slug carries to say that it is one, and how to run it."""

from __future__ import annotations

import json
import os

from nsbuild.tree import open_beneath, remove_tree

MARKER = ".nsbuild-slug"
RELEASE_FILE = ".release"
"""Where bin/release's output goes, as gliderlabs/herokuish include/buildpack.bash has it."""


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
