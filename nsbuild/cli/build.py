"""nsbuild build"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from nsbuild.build import DEFAULT_STACK, BuildOptions, Event, Record
from nsbuild.build import build as build_slug
from nsbuild.cli.configured import AppOption, Configured, configured
from nsbuild.cli.options import BindSpec, Duration, KeyValue, Size, config_vars
from nsbuild.cli.progress import progress
from nsbuild.errors import NsbuildError, Refused, UsageError
from nsbuild.tree import write_atomic

ROLLOUT = ("rollout", "attrs", "path", "rescue", "shadow_timeout")
"""Options by which a rollout decides; `test` and `detect` have none."""


@click.command(cls=Configured, short_help="Build the app in SOURCE with classic buildpacks.")
@click.argument("source")
@click.option(
    "-b",
    "--buildpack",
    "buildpacks",
    cls=AppOption,
    place=True,
    multiple=True,
    metavar="REF",
    help="A buildpack: directory, git URL (#ref), archive, heroku/NAME; in order, repeatable.",
)
@click.option("--default-buildpacks", metavar="DIR", help="Buildpacks to detect with, where none is named.")
@click.option("-o", "--output", help="X.tgz, X.tar.zst, X.squashfs, oci:DIR or a directory. Default: ./NAME.tgz.")
@click.option("--dirty", is_flag=True, help="Of a git work tree, what is there (but what git ignores), not HEAD.")
@click.option("--cache", "cache_dir", metavar="DIR", help="Where caches are kept, for every app.")
@click.option("--app", help="What the cache is kept for. Default: the source's real path.")
@click.option("--env", "pairs", type=KeyValue(), multiple=True, help="A config var, repeatable.")
@click.option("--env-dir", type=click.Path(exists=True, file_okay=False), help="Config vars, one file each.")
@click.option("--env-file", type=click.Path(exists=True, dir_okay=False), help="Config vars, NAME=VALUE a line.")
@click.option("--stack", cls=AppOption, default=DEFAULT_STACK, show_default=True, help="The value of STACK.")
@click.option(
    "--stack-root",
    metavar="REF",
    help="A root file system in place of the host's: a directory, OCI layout or archive.",
)
@click.option("--layout", cls=AppOption, type=click.Choice(["app", "classic"]), default="app", show_default=True)
@click.option("--run-path", cls=AppOption, default="/app", show_default=True, help="Where the app will run.")
@click.option("--network", type=click.Choice(["host", "none"]), default="host", show_default=True)
@click.option("--no-userns", is_flag=True, help="Forbid user namespaces inside (Chromium's sandbox needs them).")
@click.option(
    "--timeout",
    cls=AppOption,
    type=Duration(),
    help="For each call of a buildpack. Default: 15m, but compile is only warned.",
)
@click.option("--enforce-limits", is_flag=True, help="Fail where a platform would: compile 15m, slug 500M.")
@click.option("--disk", type=Size(), metavar="SIZE", help="Fail when the build takes more disk than this, 5G say.")
@click.option(
    "--audit",
    type=click.Choice(["off", "warn", "fail"]),
    default="warn",
    show_default=True,
    help="What to do about paths of the build in the slug; fail: exit 14 when something would break.",
)
@click.option("--pass-env", "pass_env", multiple=True, metavar="NAME", help="Show a variable of yours to buildpacks.")
@click.option("--bind", "binds", type=BindSpec(), multiple=True, help="Show a file or directory, read-only.")
@click.option("--ssh", is_flag=True, help="Let buildpacks use your ssh agent (SSH_AUTH_SOCK).")
@click.option(
    "--secret",
    "secrets",
    type=KeyValue(),
    multiple=True,
    metavar="ID=FILE",
    help="Show a file at /run/secrets/ID, read-only, in the build only.",
)
@click.option("--keep-credentials", is_flag=True, help="Leave .ssh, .netrc ... in the slug as the build left them.")
@click.option("--workspace-dir", metavar="DIR", help="Where the build's private directory is made.")
@click.option("--user", help="As root: the user of the build, a name or UID:GID.")
@click.option("--report", metavar="FILE", help="Write the record of the build, JSON.")
@click.option("--json", "as_json", is_flag=True, help="Events on stdout, one a line: docs/events.md.")
@click.option("--rebuild", is_flag=True, help="Build twice, the second time from the cache of the first.")
@click.option(
    "--reproducible", cls=AppOption, is_flag=True, help="Without a cache, and so that two builds give the same slug."
)
@click.option(
    "--rollout", metavar="FILE", help="Let the flags in FILE decide: direct, shadow or namespace; with --app."
)
@click.option("--attr", "attrs", multiple=True, metavar="NAME=VALUE", help="With --rollout: what rules may ask for.")
@click.option("--path", metavar="PATH", help="With --rollout: direct, shadow or namespace, whatever the flags say.")
@click.option("--rescue", is_flag=True, help="With --rollout: build what failed in the namespace again, directly.")
@click.option("--shadow-timeout", type=Duration(), metavar="TIME", help="With --rollout. Default: 30m.")
@click.option("--shell-on-failure", is_flag=True, help="A shell in what is left where a buildpack has failed.")
@click.pass_context
def build(
    context: click.Context,
    /,
    rollout: str | None,
    attrs: tuple[str, ...],
    path: str | None,
    rescue: bool,
    shadow_timeout: float | None,
    **given: Any,
) -> int:
    """Build the app in SOURCE with classic buildpacks and put the slug at --output.

    The buildpacks' own output goes to stdout as it comes; everything of ours to stderr.
    """
    entry: Callable[..., Record] = build_slug
    if rollout is not None:
        from nsbuild.rollout.builds import build_decided
        from nsbuild.rollout.noted import Asked

        if not given["app"]:
            raise UsageError("--rollout needs --app ID.", "It is what the flags decide for.")
        entry = partial(
            build_decided, Asked(rollout, given["app"], attrs, path or "", rescue, shadow_timeout or 1800.0)
        )
    else:
        for name, value in (("attr", attrs), ("path", path), ("rescue", rescue), ("shadow-timeout", shadow_timeout)):
            if value:
                raise UsageError(f"--{name} is for --rollout FILE, which is missing.")
    run_build(entry, context, **given)
    return 0


def params_without(*names: str) -> list[click.Parameter]:
    """The argument and options of `build`, for a command that does a part of it."""
    assert set(names) <= {param.name for param in build.params}
    return [param for param in build.params if param.name not in names]


def run_build(
    entry: Callable[..., Record],
    context: click.Context,
    /,
    source: str,
    buildpacks: tuple[str, ...],
    pairs: tuple[tuple[str, str], ...],
    env_dir: str | None,
    env_file: str | None,
    no_userns: bool,
    stack: str,
    stack_root: str | None,
    report: str | None,
    as_json: bool = False,
    **options: Any,
) -> Record:
    """Call `entry` (`build`, or another of its kind) as a command line says, and write its record."""
    settings = configured(context)
    shown = progress(as_json=as_json)
    try:
        for sentence in settings.sentences():
            shown(Event("note", text=sentence))
        if report is not None:
            _check_report(report)
        record = entry(
            source,
            buildpacks,
            BuildOptions(
                config_vars=config_vars(pairs, env_dir, env_file, settings.table("env")),
                user_namespaces=not no_userns,
                registry=settings.table("registry"),
                stack_root=stack_root or settings.table("stacks").get(stack),
                stack=stack,
                **options,
            ),
            monitor=shown,
        )
        if report is not None:
            _write_report(report, record)
        shown.finished(record)
    except NsbuildError as error:
        begun = getattr(error, "record", None)
        if report is not None and begun is not None:
            try:
                _write_report(report, begun)
            except Refused as also:
                shown(Event("warning", text=str(also)))
        shown.failed(error)
        raise
    finally:
        shown.close()
    return record


def _check_report(report: str) -> None:
    """Before the build, which takes minutes."""
    directory = os.path.dirname(os.path.abspath(report))
    if os.path.isdir(report) or not os.access(directory, os.W_OK | os.X_OK):
        problem = "is a directory" if os.path.isdir(report) else f"cannot be made in {directory}"
        raise UsageError(f"--report {report} {problem}.", "Give the name of a file in a directory of yours.")


def _write_report(report: str, record: Record) -> None:
    try:
        write_atomic(report, record.to_json().encode("utf-8", "surrogateescape"), None)
    except OSError as error:
        raise Refused(f"The record cannot be written to {report}: {error.strerror}.") from error
