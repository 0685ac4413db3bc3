"""What is audited or compared, as a directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nsbuild.errors import UsageError
from nsbuild.refusals import Refusals
from nsbuild.slug import as_directory, marked
from nsbuild.slug.formats import OCI_PREFIX
from nsbuild.slug.marker import Marked
from nsbuild.user import build_user


@dataclass(frozen=True)
class Opened:
    """`ours`: it was unpacked, and what its modes close to us may be opened; else nothing of it may be touched.
    `run_path` is where it runs, `stack_root` the digest of what it was built on.
    """

    directory: str
    run_path: str
    stack_root: str
    ours: bool


@contextlib.contextmanager
def opened(path: str | Path, workspace_dir: str | None = None, run_path: str | None = None) -> Iterator[Opened]:
    """A slug of any format, a cache, or any directory. Without `run_path` its marker says where it runs, or /app.

    Raises UsageError for what is none of them or damaged, Refused where it cannot be unpacked.
    """
    place = Path(str(path).removeprefix(OCI_PREFIX))
    try:
        place = place.resolve(strict=True)
        # A directory may be closed to reading, or to what is in it.
        os.close(os.open(f"{place}/." if place.is_dir() else place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        if not place.is_dir() and not place.is_file():
            raise UsageError(f"{path} is neither a file nor a directory.", "Give a slug or a directory.")
        user = build_user(str(place))
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        why = error.strerror if isinstance(error, OSError) else "it is a loop of links"
        raise UsageError(f"{path} cannot be read: {why}.", "Give a slug or a directory.") from None
    with Refusals(), as_directory(place, user, workspace_dir) as (directory, own):
        says = _marked(directory, path, run_path)
        yield Opened(directory, run_path or says.run_path, says.stack_root, own is not None)


def _marked(directory: str, path: str | Path, run_path: str | None) -> Marked:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return marked(fd)
    except (ValueError, OSError) as error:
        if run_path is not None:
            return Marked()
        raise UsageError(f"{path} does not say where it runs: {error}.", "Give --run-path.") from None
    finally:
        os.close(fd)
