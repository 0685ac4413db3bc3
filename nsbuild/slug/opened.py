"""A slug of any format as a directory: the one that it is, or one in a workspace into which it is unpacked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nsbuild.sandbox import User
from nsbuild.slug.formats import format_of
from nsbuild.slug.unpack import unpack
from nsbuild.workspace import Workspace, workspace, workspaces


@contextlib.contextmanager
def as_directory(path: Path, user: User, workspace_dir: str | None = None) -> Iterator[tuple[str, Workspace | None]]:
    """The directory, and the workspace whose `app` it is, unpacked there and used by nobody else; None for a slug
    that is a directory, which is not to be written to.

    Raises UsageError for what is neither a directory nor a whole slug, Refused, LaunchError, OSError.
    """
    if format_of(path) == "directory":
        yield str(path), None
        return
    with workspace(workspaces(workspace_dir), user) as work:
        unpack(path, work)
        yield work.directory("app"), work
