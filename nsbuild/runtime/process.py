"""One process of a slug, on this process's stdio."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nsbuild.errors import ExitCode, Refused, UsageError
from nsbuild.refusals import Refusals
from nsbuild.runtime.boot import command_of, environment
from nsbuild.runtime.dyno import Dyno, could_not_overlay
from nsbuild.runtime.opened import RunOptions, Slug, network_needs, new_workspace, opened
from nsbuild.sandbox import Launcher, LaunchError, Outcome
from nsbuild.slug import boot
from nsbuild.slug.formats import OCI_PREFIX


def list_processes(slug: str | Path, options: RunOptions | None = None) -> dict[str, str]:
    """The process types of a slug and their commands. Raises NsbuildError."""
    options = options or RunOptions()
    with Refusals(), opened(slug_path(slug), options) as found:
        return found.info.process_types


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
    options = options or RunOptions()
    path = slug_path(slug)
    if options.tty and not (os.isatty(0) and os.isatty(1)):
        raise UsageError(
            "--tty and nsbuild shell need terminals on stdin and stdout.", "nsbuild run SLUG -- COMMAND needs none."
        )
    with Refusals() as refusals, contextlib.ExitStack() as stack:
        found = stack.enter_context(opened(path, options))
        argv, name = (command_of(found.info, process), process) if isinstance(process, str) else (process, "run")
        work = found.own or stack.enter_context(new_workspace(found.user, options))
        launcher = stack.enter_context(Launcher.for_caller())
        outcome = _launch(launcher, Dyno(found, options, work), argv, _environment(found, options, name, env or {}))
        refusals.ran = True
    if outcome.error:
        raise Refused(
            f"/bin/bash of the stack: {outcome.error}.", "It boots every dyno.", ExitCode(outcome.exit_code)
        )
    return outcome.exit_code


def slug_path(slug: str | Path) -> Path:
    """Raises UsageError when there is nothing."""
    path = Path(str(slug).removeprefix(OCI_PREFIX))
    if not path.exists():
        raise UsageError(f"The slug {slug} does not exist.", "Make it with nsbuild build.")
    return path.resolve()


def _environment(slug: Slug, options: RunOptions, name: str, config_vars: Mapping[str, str]) -> dict[str, str]:
    base = network_needs(options).variables
    if options.tty:
        base = {"TERM": os.environ.get("TERM", "xterm"), **base}
    port = options.port if name == "web" else None
    return environment(slug.info, f"{name}.1", base=base, config_vars=config_vars, port=port)


def _launch(launcher: Launcher, dyno: Dyno, argv: Sequence[str], env: Mapping[str, str]) -> Outcome:
    refusal = None
    for view in dyno.views():
        try:
            return launcher.launch(view, boot(argv), env=env, cwd=dyno.slug.info.run_path, tty=dyno.options.tty)
        except LaunchError as error:
            if not could_not_overlay(error):
                raise
            refusal = error
    assert refusal is not None
    raise refusal
