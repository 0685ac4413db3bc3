"""A private directory for copies: what a rescue starts from, and everything of a shadow's candidate."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

from nsbuild.interrupts import signals_held
from nsbuild.tree import copy_tree
from nsbuild.workspace import COPIES, make_locked, name_in, remove_locked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def default_parent() -> Path:
    """Where they are when no workspace directory was named; `nsbuild gc` looks there. Raises OSError."""
    from nsbuild.wrap.journal import state_directory

    return Path(state_directory()).parent / COPIES


class Scratch:
    """One of them, locked while it is in use. `seconds` and `bytes` are what copying into it has cost."""

    def __init__(self, parent: Path) -> None:
        """Raises OSError."""
        self.parent = parent
        self.path = name_in(parent)
        self.seconds = 0.0
        self.bytes = 0
        with signals_held():
            self.lock = make_locked(parent, self.path)

    def copy(self, source: str, name: str, *, skip: Collection[str] = ()) -> str:
        """A copy of a file or a directory tree, of its owner's; returns where. Without the paths of `skip` in it.

        Raises OSError.
        """
        began = time.monotonic()
        real, path = os.path.realpath(source), f"{self.path}/{name}"
        info = os.stat(real)
        owner = (info.st_uid, info.st_gid) if os.geteuid() == 0 else None
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if stat.S_ISREG(info.st_mode):
            shutil.copyfile(real, path)
            self.bytes += info.st_size
        else:
            self.bytes += copy_tree(real, path, owner=owner, unlock=True, skip=lambda found, _: found in skip).bytes
        self.seconds += time.monotonic() - began
        return path

    def make(self, name: str, like: str) -> str:
        """An empty directory, of the owner of `like`. Raises OSError."""
        path = f"{self.path}/{name}"
        os.mkdir(path)
        if os.geteuid() == 0:
            info = os.stat(like)
            os.chown(path, info.st_uid, info.st_gid)
        return path

    def cost(self) -> Mapping[str, float | int]:
        """What a record says of it."""
        return {"copied_bytes": self.bytes, "copied_seconds": round(self.seconds, 3)}

    def remove(self) -> None:
        """Raises OSError."""
        remove_locked(self.parent, self.path, self.lock)
