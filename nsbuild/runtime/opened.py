"""A slug as a directory: where it is, or unpacked in a workspace."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsbuild import buildpack as api
from nsbuild.errors import Refused
from nsbuild.runtime.slug import SlugInfo, read_slug
from nsbuild.sandbox import Bind, Overlay, User, View, ViewError, compose, read_host
from nsbuild.slug import as_directory
from nsbuild.stack import HOST, StackRoot, open_stack_root, stored_stack_root
from nsbuild.user import build_user
from nsbuild.workspace import Workspace, workspace, workspaces


@dataclass(frozen=True)
class RunOptions:
    """`port` is what `web` gets as PORT; `read_only` shows the slug read-only, else changes are thrown away.

    `stack_root` is what `nsbuild.stack.open_stack_root` takes; when None, the one that the slug was built on, where
    that is an image which has been unpacked here, else the host's. `warn` gets sentences for a person. With `tty` the
    process gets a terminal of its own, relayed to this process's.
    """

    port: int = 5000
    read_only: bool = False
    network: str = "host"
    workspace_dir: str | None = None
    user: str | None = None
    tty: bool = False
    stack_root: str | None = None
    warn: Callable[[str], None] = lambda sentence: None


@dataclass(frozen=True)
class Slug:
    """`directory` is not to be written to, unless it is `own`'s `app`, unpacked there and used by nobody else."""

    directory: str
    info: SlugInfo
    user: User
    own: Workspace | None = None
    stack_root: StackRoot = HOST


@contextlib.contextmanager
def opened(path: Path, options: RunOptions) -> Iterator[Slug]:
    """The slug at `path`. Raises UsageError when it is none."""
    user = build_user(str(path), options.user)
    with as_directory(path, user, options.workspace_dir) as (directory, own):
        info = read_slug(directory, str(path))
        yield Slug(directory, info, user, own, stack_root_of(info, options))


def stack_root_of(info: SlugInfo, options: RunOptions) -> StackRoot:
    """What the slug is to run on; warns where that is not what it was built on. Raises NsbuildError, OSError."""
    if options.stack_root is not None:
        found = open_stack_root(options.stack_root)
    else:
        found = stored_stack_root(info.stack_root) or HOST
    if found.digest != info.stack_root:
        options.warn(
            f"The slug was built on {_words(info.stack_root, info.stack)}, and runs on {_words(found.digest)}"
            f"{'; --stack-root names another' if options.stack_root is None else ''}."
        )
    return found


def _words(digest: str, stack: str = "") -> str:
    return f"the stack root {digest}{f' ({stack})' if stack else ''}" if digest else "the host's system directories"


def new_workspace(user: User, options: RunOptions) -> contextlib.AbstractContextManager[Workspace]:
    """Where `--workspace-dir` says, or in the user's cache."""
    return workspace(workspaces(options.workspace_dir), user)


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
    root: str = "/",
) -> View:
    """What a process of a slug sees: system directories of `root`, `places`, a `/tmp` of its own. Raises Refused."""
    placed = {"/tmp": work.directory("tmp"), **places}
    binds = [*api.network_binds(network_needs(options), home, root), *binds]
    try:
        return compose(
            read_host(root, [*placed, home, *(bind.path for bind in binds)]),
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
