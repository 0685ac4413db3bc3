"""A dyno: a workspace with a slug in it, or over it, for one process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nsbuild.runtime.opened import RunOptions, Slug, view
from nsbuild.sandbox import Bind, LaunchError, Overlay, View
from nsbuild.tree import copy_tree
from nsbuild.tree.beneath import open_root
from nsbuild.tree.descent import Descent
from nsbuild.tree.walk import Event, walk
from nsbuild.workspace import Workspace


@dataclass(frozen=True)
class Dyno:
    """What is written to the slug or `/tmp` is `work`'s, and goes with it."""

    slug: Slug
    options: RunOptions
    work: Workspace

    def views(self) -> Iterator[View]:
        """What to show its process: the next one where `could_not_overlay` says that the kernel refuses one."""
        home = self.slug.info.run_path
        app = self.work.directory("app")
        if self.options.read_only:
            yield self._view({}, [Bind(home, self.slug.directory)])
            return
        if self.slug.own is not self.work:
            if self._all_owned():
                yield self._overlay(home)
            # No overlay here (Linux before 5.11), or one that could not copy a file of somebody else's up.
            os.rmdir(app)
            copy_tree(self.slug.directory, app, owner=self.work.owner)
        yield self._view({home: app})

    def _overlay(self, home: str) -> View:
        scratch = self.work.make("overlay")
        for name in ("upper", "work"):
            self.work.make(f"overlay/{name}")
        return self._view({}, overlays=[Overlay(home, self.slug.directory, scratch)])

    def _view(self, places: Mapping[str, str], binds: Sequence[Bind] = (), overlays: Sequence[Overlay] = ()) -> View:
        home, root = self.slug.info.run_path, self.slug.stack_root.path
        return view(self.work, self.options, home, places, binds, overlays, root)

    def _all_owned(self) -> bool:
        user = self.work.user
        with Descent(self.slug.directory, open_root(self.slug.directory, None)) as descent:
            return all(
                event is Event.LEAVE or (info.st_uid, info.st_gid) == (user.uid, user.gid)
                for event, _, info in walk(descent, tolerant=True)
            )


def could_not_overlay(error: LaunchError) -> bool:
    """Whether nothing but the overlay stood in the way."""
    return error.step.startswith("overlay")
