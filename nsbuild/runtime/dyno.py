"""A dyno: one process of a slug, with the environment and the boot order of the platform."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsbuild import buildpack as api
from nsbuild.errors import Refused, UsageError
from nsbuild.refusals import Refusals
from nsbuild.runtime.slug import SlugInfo, read_slug
from nsbuild.sandbox import (
    Bind,
    Launcher,
    LaunchError,
    Outcome,
    Overlay,
    View,
    ViewError,
    compose,
    read_host,
)
from nsbuild.tree import copy_tree
from nsbuild.tree.beneath import open_root
from nsbuild.tree.descent import Descent
from nsbuild.tree.walk import Event, walk
from nsbuild.user import build_user
from nsbuild.workspace import Workspace, user_cache, workspace

RUN_PATH = "/usr/local/bin:/usr/bin:/bin"

# .profile.d/*.sh are sourced in lexical order, then .profile, in the app's directory, with config vars set before:
# https://devcenter.heroku.com/articles/profile
_BOOT = """
__nsbuild_command=("$@")
for __nsbuild_file in "$PWD"/.profile.d/*.sh "$PWD/.profile"; do
    if [ -f "$__nsbuild_file" ]; then . "$__nsbuild_file"; fi
done
set -- "${__nsbuild_command[@]}"
unset -v __nsbuild_file __nsbuild_command
exec "$@"
"""


@dataclass(frozen=True)
class RunOptions:
    """`port` is what `web` gets as PORT; `read_only` shows the slug read-only, else changes are thrown away."""

    port: int = 5000
    read_only: bool = False
    network: str = "host"
    workspace_dir: str | None = None
    user: str | None = None


def list_processes(slug: str | Path, options: RunOptions | None = None) -> dict[str, str]:
    """The process types of a slug and their commands. Raises NsbuildError."""
    path = _path(slug)
    if path.is_dir():
        return read_slug(str(path), str(slug)).process_types
    with Refusals(), _Dyno(path, options or RunOptions()) as dyno:
        return dyno.info.process_types


def run(
    slug: str | Path,
    process: str | Sequence[str] = "web",
    options: RunOptions | None = None,
    *,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run a process type (a str) or a command (a sequence) of a slug on this process's stdio and wait for it.

    `env` are config vars; they override bin/release's. Returns the command's exit status, 128+n when signal n
    killed it, 126 or 127 when it could not be started. The slug is never written to. Raises NsbuildError when
    nothing was run.
    """
    with Refusals() as refusals, _Dyno(_path(slug), options or RunOptions()) as dyno:
        outcome = dyno.run(process, env or {})
        refusals.ran = True
    return outcome.exit_code


def _path(slug: str | Path) -> Path:
    path = Path(slug)
    if not path.exists():
        raise UsageError(f"The slug {slug} does not exist.", "Make it with nsbuild build.")
    return path.resolve()


class _Dyno:
    """A workspace with a slug in it, or over it."""

    def __init__(self, slug: Path, options: RunOptions) -> None:
        self.slug = slug
        self.options = options
        self.info = SlugInfo()
        self.needs = api.network_needs(os.environ) if options.network == "host" else api.NetworkNeeds()

    def __enter__(self) -> _Dyno:
        user = build_user(str(self.slug), self.options.user)
        parent = self.options.workspace_dir or user_cache() / "apps" / ".workspaces"
        self._context = workspace(Path(parent).absolute(), user)
        self.work: Workspace = self._context.__enter__()
        try:
            self.launcher = Launcher.for_caller()
            if self.slug.is_dir():
                self.info = read_slug(str(self.slug), str(self.slug))
            else:
                self._unpack()
                self.info = read_slug(self.work.directory("app"), str(self.slug))
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if hasattr(self, "launcher"):
            self.launcher.close()
        self._context.__exit__(None, None, None)

    def _unpack(self) -> None:
        """By tar, in the sandbox: whatever an archive's members are called, they end in the workspace."""
        said = bytearray()
        with self.slug.open("rb") as archive:
            outcome = self._launch(
                self._view({"/app": self.work.directory("app")}, "/app"),
                ["tar", "-xzpf", "-", "-C", "/app", "--no-same-owner"],
                {"PATH": RUN_PATH, "HOME": "/app"},
                "/tmp",
                stdin=archive.fileno(),
                said=said,
            )
        if outcome.exit_code != 0:
            lines = said.decode("utf-8", "replace").splitlines()
            raise UsageError(
                f"{self.slug} is not a slug: {lines[0] if lines else 'tar failed'}.",
                "Give a directory or a .tgz of nsbuild build.",
            )

    def run(self, process: str | Sequence[str], env: Mapping[str, str]) -> Outcome:
        if isinstance(process, str):
            command = self.info.process_types.get(process)
            if command is None:
                known = ", ".join(sorted(self.info.process_types)) or "none"
                raise UsageError(f"The slug has no process type {process!r}.", f"It has: {known}.")
            argv, name = ["bash", "-c", command], process
        else:
            argv, name = list(process), "run"
        home = self.info.run_path
        environment = {
            "PATH": RUN_PATH,
            "LANG": "C.UTF-8",
            **self.needs.variables,
            **self.info.config_vars,
            **env,
            "HOME": home,
            "DYNO": f"{name}.1",
        }
        if name == "web":
            environment["PORT"] = str(self.options.port)
        boot = ["/bin/bash", "-c", _BOOT, "bash", *argv]
        if not self.slug.is_dir() or self.options.read_only:
            return self._launch(self._view_of_slug(home), boot, environment, home)
        if self._all_owned():
            try:
                return self._launch(self._overlay(home), boot, environment, home)
            except LaunchError as error:
                if not error.step.startswith("overlay"):
                    raise
        # No overlay here (Linux before 5.11), or one that could not copy a file of somebody else's up.
        app = self.work.directory("app")
        os.rmdir(app)
        copy_tree(str(self.slug), app, owner=self.work.owner)
        return self._launch(self._view({home: app}, home), boot, environment, home)

    def _all_owned(self) -> bool:
        user = self.work.user
        with Descent(str(self.slug), open_root(str(self.slug), None)) as descent:
            return all(
                event is Event.LEAVE or (info.st_uid, info.st_gid) == (user.uid, user.gid)
                for event, _, info in walk(descent, tolerant=True)
            )

    def _overlay(self, home: str) -> View:
        scratch = self.work.make("overlay")
        for name in ("upper", "work"):
            self.work.make(f"overlay/{name}")
        return self._view({}, home, overlays=[Overlay(home, str(self.slug), scratch)])

    def _view_of_slug(self, home: str) -> View:
        source = str(self.slug) if self.slug.is_dir() else self.work.directory("app")
        if self.options.read_only:
            return self._view({}, home, binds=[Bind(home, source)])
        return self._view({home: source}, home)

    def _view(
        self,
        places: Mapping[str, str],
        home: str,
        binds: Sequence[Bind] = (),
        overlays: Sequence[Overlay] = (),
    ) -> View:
        placed = {"/tmp": self.work.directory("tmp"), **places}
        binds = [*api.network_binds(self.needs, home), *binds]
        try:
            return compose(
                read_host("/", [*placed, home, *(bind.path for bind in binds)]),
                workspace=self.work.path,
                user=self.work.user,
                home=home,
                places=placed,
                binds=binds,
                overlays=overlays,
                network=self.options.network,
                var_tmp=self.work.directory("var-tmp"),
            )
        except ViewError as error:
            raise Refused(str(error)) from None

    def _launch(
        self,
        view: View,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        stdin: int = 0,
        said: bytearray | None = None,
    ) -> Outcome:
        return self.launcher.launch(
            view, argv, env=env, cwd=cwd, stdin=stdin, on_output=None if said is None else said.extend
        )
