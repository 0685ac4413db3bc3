"""A slug as a directory: where it is, or unpacked in a workspace."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsbuild import buildpack as api
from nsbuild.errors import Refused
from nsbuild.runtime.slug import SlugInfo, read_slug
from nsbuild.sandbox import Bind, Overlay, User, View, ViewError, compose, read_host
from nsbuild.slug import format_of, unpack
from nsbuild.user import build_user
from nsbuild.workspace import Workspace, user_cache, workspace


@dataclass(frozen=True)
class RunOptions:
    """`port` is what `web` gets as PORT; `read_only` shows the slug read-only, else changes are thrown away.

    With `tty` the process gets a terminal of its own, relayed to this process's.
    """

    port: int = 5000
    read_only: bool = False
    network: str = "host"
    workspace_dir: str | None = None
    user: str | None = None
    tty: bool = False


@dataclass(frozen=True)
class Slug:
    """`directory` is not to be written to, unless it is `own`'s `app`, unpacked there and used by nobody else."""

    directory: str
    info: SlugInfo
    user: User
    own: Workspace | None = None


@contextlib.contextmanager
def opened(path: Path, options: RunOptions) -> Iterator[Slug]:
    """The slug at `path`. Raises UsageError when it is none."""
    user = build_user(str(path), options.user)
    if format_of(path) == "directory":
        yield Slug(str(path), read_slug(str(path), str(path)), user)
        return
    with new_workspace(user, options) as work:
        unpack(path, work)
        directory = work.directory("app")
        yield Slug(directory, read_slug(directory, str(path)), user, work)


def new_workspace(user: User, options: RunOptions) -> contextlib.AbstractContextManager[Workspace]:
    """Where `--workspace-dir` says, or in the user's cache."""
    parent = options.workspace_dir or user_cache() / "apps" / ".workspaces"
    return workspace(Path(parent).absolute(), user)


def network_needs(options: RunOptions) -> api.NetworkNeeds:
    """What comes along with the host's network."""
    return api.network_needs(os.environ) if options.network == "host" else api.NetworkNeeds()


def view(
    work: Workspace,
    options: RunOptions,
    home: str,
    places: Mapping[str, str],
    binds: Sequence[Bind] = (),
    overlays: Sequence[Overlay] = (),
) -> View:
    """What a process of a slug sees: `places` and a `/tmp` of its own. Raises Refused."""
    placed = {"/tmp": work.directory("tmp"), **places}
    binds = [*api.network_binds(network_needs(options), home), *binds]
    try:
        return compose(
            read_host("/", [*placed, home, *(bind.path for bind in binds)]),
            workspace=work.path,
            user=work.user,
            home=home,
            places=placed,
            binds=binds,
            overlays=overlays,
            network=options.network,
            var_tmp=work.directory("var-tmp"),
        )
    except ViewError as error:
        raise Refused(str(error)) from None
