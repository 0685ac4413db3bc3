"""`nsbuild verify`: the same source built twice, and what differs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nsbuild.audit.diff import Diff, diff
from nsbuild.build.build import build
from nsbuild.build.events import Event, Monitor
from nsbuild.build.options import BuildOptions
from nsbuild.build.source import open_source
from nsbuild.record import Record
from nsbuild.refusals import Refusals
from nsbuild.slug import tar, write_tree
from nsbuild.user import build_user
from nsbuild.workspace import workspace, workspaces


@dataclass(frozen=True)
class Verified:
    """`digests` are those of both slugs as one stream, the same when they would be the same file in every format;
    `diff` is what differs, and `record` that of the second build, whose `first` is that of the first.
    """

    record: Record
    digests: tuple[str, str]
    diff: Diff

    @property
    def same(self) -> bool:
        return self.digests[0] == self.digests[1]


def verify(
    source: str | Path,
    buildpacks: Sequence[str | Path] = (),
    options: BuildOptions | None = None,
    *,
    monitor: Monitor = lambda event: None,
) -> Verified:
    """Build `source` twice with `reproducible`, in two workspaces and without a cache, and compare the slugs.

    Nothing is kept of either: no slug, and the caches are as they were. Raises NsbuildError as `build` does.
    """
    options = options or BuildOptions()
    opened = open_source(source, dirty=options.dirty)
    parent = workspaces(options.workspace_dir)
    with Refusals(), workspace(parent, build_user(str(opened.path), options.user)) as work:
        slugs = [work.directory(f"slug-{name}") for name in "ab"]
        records: list[Record] = []
        for slug in slugs:
            own = replace(
                options,
                output=slug,
                cache_dir=f"{slug}.caches",
                workspace_dir=str(parent),
                reproducible=True,
            )
            records.append(build(source, buildpacks, own, monitor=monitor))
            records[-1].slug = None
            if len(records) == 1:
                monitor(Event("note", text=f"built in {records[0].seconds:.1f} s; now again, in another workspace"))
        records[1].first = records[0]
        one, other = (_digest(slug) for slug in slugs)
        found = diff(slugs[0], slugs[1])
        found.a, found.b = "the first build", "the second"
        return Verified(records[1], (one, other), found)


def _digest(directory: str) -> str:
    found = hashlib.sha256()
    write_tree(directory, found.update)
    found.update(tar.END)
    return f"sha256:{found.hexdigest()}"
