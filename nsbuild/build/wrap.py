"""A command in the view of one BUILD_DIR: what `nsbuild exec` does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsbuild import buildpack as api
from nsbuild.errors import UsageError
from nsbuild.refusals import Refusals
from nsbuild.sandbox import (
    Bind,
    Outcome,
    View,
    ViewError,
    app_layout,
    compose,
    launch,
    read_host,
)
from nsbuild.user import build_user
from nsbuild.workspace import Workspace, workspace


@dataclass(frozen=True)
class ExecOptions:
    """`run_path` is where BUILD_DIR is seen; `binds` are (host path, path in the view)."""

    run_path: str = "/app"
    workspace_dir: str | None = None
    network: str = "host"
    user_namespaces: bool = True
    binds: Sequence[tuple[str, str]] = ()
    timeout: float | None = None
    user: str | None = None


def exec_in_view(build_dir: str | Path, argv: Sequence[str], options: ExecOptions | None = None) -> Outcome:
    """Run `argv` with the caller's environment and stdio where BUILD_DIR is at the run path; wait for it.

    BUILD_DIR is bind-mounted. Values of the environment that lead into it are mapped, HOME is the run path.
    Raises NsbuildError when nothing was run.
    """
    options = options or ExecOptions()
    directory = _directory(build_dir)
    user = build_user(str(directory), options.user)
    parent = Path(options.workspace_dir).absolute() if options.workspace_dir else _beside(directory)
    with Refusals() as refusals, workspace(parent, user) as work:
        view = _view(directory, work, options)
        env = map_environment(os.environ, {str(directory): options.run_path}, options.run_path)
        cwd = _visible_cwd(view, directory, options.run_path)
        outcome = launch(view, argv, env=env, cwd=cwd, timeout=options.timeout)
        refusals.ran = True
    return outcome


def explain_view(build_dir: str | Path, options: ExecOptions | None = None) -> str:
    """What `exec` would make, a line an operation; nothing is made. Raises NsbuildError."""
    options = options or ExecOptions()
    directory = _directory(build_dir)
    user = build_user(str(directory), options.user)
    parent = Path(options.workspace_dir).absolute() if options.workspace_dir else _beside(directory)
    return _view(directory, Workspace(f"{parent}/WORKSPACE", user), options).explain()


def map_environment(environ: Mapping[str, str], paths: Mapping[str, str], home: str) -> dict[str, str]:
    """The caller's environment with values that are one of `paths`, or lead into it, mapped."""
    mapped = {}
    for name, value in environ.items():
        for old, new in paths.items():
            if value == old or value.startswith(f"{old}/"):
                value = new + value[len(old) :]
                break
        mapped[name] = value
    mapped["HOME"] = home
    if not os.path.isabs(mapped.get("TMPDIR", "/tmp")) or mapped.get("TMPDIR", "/tmp") not in ("/tmp", "/var/tmp"):
        # It would name something that the view does not show.
        del mapped["TMPDIR"]
    return mapped


def _directory(build_dir: str | Path) -> Path:
    path = Path(build_dir)
    if not path.is_dir():
        problem = "is not a directory" if path.exists() else "does not exist"
        raise UsageError(f"BUILD_DIR {build_dir} {problem}.", "Give the directory of an app with --build-dir.")
    return path.resolve()


def _beside(directory: Path) -> Path:
    """BUILD_DIR's own parent where we may write, so that both are on one filesystem; else the user's cache."""
    if os.access(directory.parent, os.W_OK):
        return directory.parent / ".nsbuild"
    import platformdirs

    return platformdirs.user_cache_path("nsbuild") / "workspaces"


def _view(directory: Path, work: Workspace, options: ExecOptions) -> View:
    root_owned = os.geteuid() == 0 and directory.stat().st_uid == 0
    needs = api.network_needs(os.environ) if options.network == "host" else api.NetworkNeeds()
    # What lies in BUILD_DIR is there anyway, and its variable is mapped.
    needs = api.NetworkNeeds(files=tuple(file for file in needs.files if not file.startswith(f"{directory}/")))
    binds = [Bind(options.run_path, str(directory), writable=True, root_on_disk=root_owned)]
    binds += api.network_binds(needs, options.run_path)
    for origin, path in options.binds:
        if not os.path.exists(origin):
            raise UsageError(f"--bind {origin}: it does not exist.")
        binds.append(Bind(path, os.path.realpath(origin), directory=os.path.isdir(origin)))
    try:
        layout = app_layout(options.run_path)
        return compose(
            read_host("/", [bind.path for bind in binds]),
            workspace=work.path,
            user=work.user,
            home=layout.home,
            places={"/tmp": work.directory("tmp")},
            binds=binds,
            network=options.network,
            user_namespaces=options.user_namespaces,
            var_tmp=work.directory("var-tmp"),
        )
    except ViewError as error:
        raise UsageError(str(error), "Give another --run-path or --bind.") from None


def _visible_cwd(view: View, directory: Path, run_path: str) -> str:
    """The caller's working directory where it is seen inside, else the run path."""
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return run_path
    if here == str(directory) or here.startswith(f"{directory}/"):
        return run_path + here[len(str(directory)) :]
    shown = [op for op in view.operations if isinstance(op, Bind) and op.path == op.source]
    return here if any(here == op.path or here.startswith(f"{op.path}/") for op in shown) else run_path
