"""What a build is asked for, and the error that ends one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nsbuild.errors import NsbuildError, UsageError
from nsbuild.sandbox import Layout, ViewError, app_layout, classic_layout

DEFAULT_STACK = "heroku-24"


class BuildError(NsbuildError):
    """A buildpack, or what it left, ended the build. `record` tells the rest."""


@dataclass(frozen=True)
class BuildOptions:
    """Everything about a build but its source and buildpacks; each is an option of `nsbuild build`.

    `timeout` is in seconds, for each call of a buildpack. Without it each has 15 minutes, except that a compile that
    takes longer, like a slug that is too large, gets a warning, of which `enforce_limits` makes an error.
    `disk` is how many bytes of disk the build's workspace may take, looked at every few seconds.
    `dirty` builds a git work tree as it is instead of its HEAD. `config_vars` are files in ENV_DIR; `pass_env` are
    names of the operator's environment to show to buildpacks; `binds` are (host path, path in the view).
    `default_buildpacks` is a directory of buildpacks, for when neither caller nor app names one; `registry` maps
    patterns of names (`heroku/*`) to references with `{name}` in them.
    `ssh` forwards the agent that SSH_AUTH_SOCK names; `secrets` are (ID, file), seen at /run/secrets/ID.
    `rebuild` builds twice, the second time from the cache of the first; `shell_on_failure` opens a shell on this
    process's terminal where a buildpack has failed. `audit` is what is done about paths of the build in the slug:
    `off`, `warn`, or `fail` when something would break. `path` is `namespace`, or `direct`: without a sandbox, on the
    host's paths (`nsbuild build` gets there by --rollout only). `stack_root` is what `open_stack_root` takes.
    `reproducible` builds without a cache, and gives buildpacks nothing of ours that differs from build to build.
    """

    output: str | None = None
    dirty: bool = False
    cache_dir: str | None = None
    workspace_dir: str | None = None
    app: str | None = None
    config_vars: Mapping[str, str] = field(default_factory=dict)
    stack: str = DEFAULT_STACK
    stack_root: str | None = None
    layout: str = "app"
    path: str = "namespace"
    run_path: str = "/app"
    network: str = "host"
    user_namespaces: bool = True
    timeout: float | None = None
    enforce_limits: bool = False
    disk: int | None = None
    rebuild: bool = False
    reproducible: bool = False
    shell_on_failure: bool = False
    audit: str = "warn"
    pass_env: Sequence[str] = ()
    binds: Sequence[tuple[str, str]] = ()
    ssh: bool = False
    secrets: Sequence[tuple[str, str]] = ()
    keep_credentials: bool = False
    user: str | None = None
    default_buildpacks: str | None = None
    registry: Mapping[str, str] = field(default_factory=dict)


def layout_of(options: BuildOptions, build_id: str) -> Layout:
    """The paths that the build will see. Raises UsageError."""
    try:
        if options.layout == "classic":
            return classic_layout(build_id)
        if options.layout == "app":
            return app_layout(options.run_path)
    except ViewError as error:
        raise UsageError(str(error), "Give another --run-path.") from None
    raise UsageError(f"There is no layout {options.layout!r}.", "It is app or classic.")
