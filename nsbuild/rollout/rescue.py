"""What a rescue starts from: BUILD_DIR and the buildpack's `export` as they were before the namespace had them."""

from __future__ import annotations

import os
from pathlib import Path

from nsbuild.rollout import cache
from nsbuild.rollout.scratch import Scratch, default_parent
from nsbuild.tree import copy_tree, read_beneath, remove_tree, write_atomic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from nsbuild.rollout.arms import Call

_LARGEST_EXPORT = 1 << 20


class Pristine:
    """Copies, removed at the end of the `with`. CACHE_DIR is not copied: the direct path never gets a namespace's."""

    def __init__(self, call: Call) -> None:
        """Raises OSError."""
        self._build = os.path.realpath(call.build_dir)
        self._cache = os.path.realpath(call.cache_dir)
        self._buildpack = os.path.realpath(call.buildpack)
        named = call.options.workspace_dir
        self._scratch = Scratch(Path(named).absolute() if named else default_parent())
        self._aside = ""
        try:
            self._export = _export_of(self._buildpack)
            self._scratch.copy(self._build, "source")
        except BaseException:
            self._scratch.remove()
            raise

    def __enter__(self) -> Pristine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scratch.remove()

    def cost(self) -> Mapping[str, float | int]:
        return self._scratch.cost()

    def restore(self, used: str) -> None:
        """BUILD_DIR is as it was, the same directory. What the namespace has had for a cache is set aside.

        `used` is what it was shown as CACHE_DIR. Raises OSError.
        """
        inside = self._cache == self._build or self._cache.startswith(f"{self._build}/")
        if used != self._cache:
            cache.drop(self._cache, used)
        elif not inside and cache.layout_of(self._cache) != cache.DIRECT:
            self._aside = self._scratch.copy(self._cache, "cache")
        if os.path.isdir(self._build):
            for name in os.listdir(self._build):
                remove_tree(f"{self._build}/{name}")
        else:
            remove_tree(self._build)  # a link, or a file: the buildpack's
        copy_tree(f"{self._scratch.path}/source", self._build, owner=_owner_of(f"{self._scratch.path}/source"))
        if self._export is None:
            remove_tree(f"{self._buildpack}/export")
        elif self._export != _export_of(self._buildpack):
            write_atomic(f"{self._buildpack}/export", self._export)

    def give_cache_back(self) -> None:
        """The direct build has failed as well: the app is the reason, and the namespace has its cache again.

        Raises OSError.
        """
        if self._aside:
            for name in os.listdir(self._cache):
                remove_tree(f"{self._cache}/{name}")
            copy_tree(self._aside, self._cache, owner=_owner_of(self._aside), unlock=True)


def _export_of(buildpack: str) -> bytes | None:
    fd = os.open(buildpack, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return read_beneath(fd, "export", _LARGEST_EXPORT)
    finally:
        os.close(fd)


def _owner_of(path: str) -> tuple[int, int] | None:
    info = os.stat(path)
    return (info.st_uid, info.st_gid) if os.geteuid() == 0 else None
