"""Making a directory that others remove as soon as they find it empty. On the launch path, so it imports nothing."""

from __future__ import annotations

import os

_ATTEMPTS = 8


def make_directory(path: str | os.PathLike[str], mode: int = 0o777) -> None:
    """Make the directory `path`, and those above it, where they are missing. Raises OSError.

    What somebody else removes at that moment is made again. `mode` is that of `path` itself, by the umask.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            os.makedirs(path, mode, exist_ok=True)
            return
        except (FileNotFoundError, FileExistsError):
            if attempt == _ATTEMPTS:
                raise
