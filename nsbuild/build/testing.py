"""`nsbuild test`: the app built as for its tests, and the tests run in it. Nothing is published."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nsbuild import buildpack as api
from nsbuild.build.calls import OUTPUT_LIMIT, ending
from nsbuild.build.chain import run_chain
from nsbuild.build.events import Monitor
from nsbuild.build.options import BuildError, BuildOptions
from nsbuild.build.session import Session, session
from nsbuild.build.source import open_source
from nsbuild.build.staging import check_given
from nsbuild.errors import ExitCode, UsageError
from nsbuild.record import Record
from nsbuild.slug.boot import RUN_PATH, boot
from nsbuild.tree import read_beneath

_MOST = 1000
APP_JSON = "app.json"


def run_tests(
    source: str | Path,
    buildpacks: Sequence[str | Path] = (),
    options: BuildOptions | None = None,
    *,
    monitor: Monitor = lambda event: None,
) -> Record:
    """Compile `source` for tests with these buildpacks, in order, and run its tests.

    The tests are app.json's `scripts.test`, else `bin/test` of the last buildpack. They have a cache of their
    own, which is replaced when every compile has succeeded. Raises NsbuildError as `build` does; BuildError with the
    code 1 when the tests have failed.
    """
    options = options or BuildOptions()
    opened = open_source(source, dirty=options.dirty)
    with session(opened, check_given(buildpacks, options), options, monitor, purpose="test") as at:
        staged = at.stage()
        scripts = _scripts(at)
        _add_config_vars(at, scripts.config_vars)
        if not staged.detected:
            _check_tests(scripts, staged.buildpacks[-1])  # now, rather than after minutes of compiling
        last = run_chain(at.calls, staged, for_tests=True)[-1]
        _check_tests(scripts, last)
        at.keep_cache()
        env = _environment(at)
        if scripts.setup is not None:
            _run(at, "test-setup", APP_JSON, ("bash", "-c", scripts.setup), env)
        if scripts.test is not None:
            _run(at, "test", APP_JSON, ("bash", "-c", scripts.test), env)
        else:
            _run(at, "test", last.reference, (f"{last.path}/bin/test", at.layout.build_dir, at.layout.env_dir), env)
    return at.log.record


def _check_tests(scripts: api.TestScripts, last: api.Buildpack) -> None:
    if scripts.test is None and not last.has("test"):
        raise UsageError(
            f"There are no tests: app.json has no scripts.test, and {last.reference} no bin/test.", "Add one of them."
        )


def _run(at: Session, name: str, what: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
    call = api.Invocation(tuple(boot(argv)), at.layout.build_dir)
    outcome = at.calls.run(name, what, call, env)
    if outcome.timed_out:
        raise BuildError(
            f"{name} of {what} took longer than {at.options.timeout:g} seconds.", "Raise --timeout.", ExitCode.LIMIT
        )
    if outcome.exit_code != 0:
        raise BuildError(f"{name} of {what} {ending(outcome)}.", code=ExitCode.TESTS_FAILED)


def _scripts(at: Session) -> api.TestScripts:
    """What the staged app.json says. Raises UsageError."""
    app = os.open(at.work.directory("app"), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return api.parse_test_scripts(read_beneath(app, APP_JSON, OUTPUT_LIMIT) or b"")
    except OSError as error:
        raise UsageError(f"app.json cannot be read: {error.strerror}.") from None
    except api.AppJsonError as error:
        raise UsageError(f"{error}.", "Mend it.") from None
    finally:
        os.close(app)


def _add_config_vars(at: Session, found: Mapping[str, str]) -> None:
    """app.json's, where the user has given none of that name."""
    api.check_config_vars(found)
    more = {name: value for name, value in found.items() if name not in at.options.config_vars}
    api.write_env_dir(at.work.directory("env"), more, at.work.owner)


def _environment(at: Session) -> dict[str, str]:
    """What a dyno of the tests has: ENV_DIR as it is now, for buildpacks add to it, and CI."""
    needs = at.calls.needs.variables
    variables = {"PATH": RUN_PATH, "LANG": "C.UTF-8", **needs, "STACK": at.options.stack, **_env_dir(at)}
    return {**variables, "HOME": at.layout.home, "DYNO": f"test.{at.log.record.id}", "CI": "true"}


def _env_dir(at: Session) -> dict[str, str]:
    found = {}
    directory = os.open(at.work.directory("env"), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in sorted(os.listdir(directory))[:_MOST]:
            try:
                value = read_beneath(directory, name, OUTPUT_LIMIT) or b""
            except OSError as error:
                at.log.warn(f"The config var {name} is not set for the tests: {error.strerror}.")
                continue
            if b"\0" in value or "=" in name:
                at.log.warn(f"The config var {name} is not set for the tests: no environment can hold it.")
                continue
            found[name] = os.fsdecode(value)
    finally:
        os.close(directory)
    return found
