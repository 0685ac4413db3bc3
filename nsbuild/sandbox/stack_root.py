"""Reading what lies below a stack root: it may be anybody's image, and its links lead into itself."""

from __future__ import annotations

import os
import stat

from nsbuild.sandbox import kernel
from nsbuild.sandbox.host import is_system, leads_to

_LIMIT = 1 << 20


def read_text(root: str, path: str) -> str:
    """A file of the root, of at most a megabyte; empty when there is none, or it is a FIFO, say."""
    resolve = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = kernel.openat2(directory, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve)
        finally:
            os.close(directory)
        with open(fd, "rb") as file:  # noqa: PTH123
            content = file.read(_LIMIT) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    except OSError:
        return ""
    return content.decode("utf-8", "surrogateescape")


def from_host(root: str, path: str) -> tuple[str, str] | None:
    """(place in the view, the host's file) of a file that an image has empty, absent, or as a link into `/run`."""
    source = os.path.realpath(path)
    place = leads_to(root, path)
    if place is None or not os.path.isfile(source):
        return None
    return (place, source) if is_system(place.split("/")[1]) or place.startswith("/run/") else None
