"""Running a buildpack's scripts in one build's view, and what each has printed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from nsbuild import buildpack as api
from nsbuild.build.direct import direct_variables
from nsbuild.build.events import Event
from nsbuild.build.limits import COMPILES, TESTS, megabytes, slow, time_limit
from nsbuild.build.log import Log
from nsbuild.build.options import BuildError, BuildOptions
from nsbuild.build.private import AGENT, agent_bind, secret_binds
from nsbuild.build.steps import StepClock
from nsbuild.disk import DiskWatch
from nsbuild.errors import ExitCode, Interrupted, Refused, UsageError
from nsbuild.interrupts import ENDING
from nsbuild.sandbox import Bind, Launcher, Layout, Outcome, View, ViewError, compose, read_host
from nsbuild.workspace import Workspace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsbuild.sandbox.limits import Limits

OUTPUT_LIMIT = 1 << 20
"""What detect, release and report may print on stdout, in bytes."""


class Calls:
    """Launches one script after the other: the same view and environment for each."""

    def __init__(
        self,
        options: BuildOptions,
        layout: Layout,
        work: Workspace,
        launcher: Launcher,
        log: Log,
        root: str = "/",
        disk: DiskWatch | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.disk = disk
        self.options = options
        self.layout = layout
        self.work = work
        self.launcher = launcher
        self.log = log
        self._limits: Limits | None = None
        if disk is not None:
            from nsbuild.sandbox.limits import Limits

            self._limits = Limits(file=disk.limit)  # of what one file takes between two looks
        self.exports: list[str] = []
        """The `export` files, as paths in the view, of the buildpacks that have compiled."""
        self.needs = needs = api.network_needs(os.environ) if options.network == "host" else api.NetworkNeeds()
        passed = {name: os.environ[name] for name in options.pass_env if name in os.environ}
        self.env = api.build_environment(
            layout,
            stack=options.stack,
            source_version=log.record.source_version,
            request_id=log.record.id,
            more={
                **needs.variables,
                **(variables or {}),
                **passed,
                **({"SSH_AUTH_SOCK": AGENT} if options.ssh else {}),
            },
        )
        if options.path == "direct":
            self.env |= direct_variables(work)
            self.view = View(work.path, work.user, ())
            return
        self.view = build_view(options, layout, work, api.network_binds(needs, layout.build_dir, root), root)

    def run(self, name: str, what: str, call: api.Invocation, env: Mapping[str, str] | None = None) -> Outcome:
        """Run one script; its output, both streams in true order, goes to the monitor, steps to the record.

        `name` and `what` (a buildpack's reference) are for people; `env` in place of a build's environment.
        """
        clock = StepClock(time.monotonic())

        def passed_on(data: bytes) -> None:
            clock.feed(data, time.monotonic())
            self.log.monitor(Event("output", data=data))

        return self._launch(name, what, call, passed_on, None, clock, env)

    def captured(self, name: str, pack: api.Buildpack, call: api.Invocation) -> tuple[Outcome, bytes, bytes]:
        """Run one script whose stdout is an answer; (outcome, stdout, stderr). Raises BuildError when it is long."""
        printed, said = _Bounded(f"bin/{name} of {pack.reference}"), _Bounded(f"bin/{name} of {pack.reference}")
        outcome = self._launch(name, pack.reference, call, printed, said)
        return outcome, bytes(printed.data), bytes(said.data)

    def shell(self) -> None:
        """An interactive shell on this process's terminal: what the scripts see, in BUILD_DIR, exports sourced."""
        call = api.shell(self.layout, self.exports)
        env = {**self.env, "TERM": os.environ.get("TERM", "dumb")}
        self.launcher.launch(self.view, call.argv, env=env, cwd=call.cwd, tty=True)

    def check_time(self, name: str, pack: api.Buildpack, outcome: Outcome) -> None:
        """Raises BuildError when it was the time limit that ended the script."""
        if outcome.timed_out:
            raise BuildError(
                f"bin/{name} of {pack.reference} took longer than {time_limit(name, self.options):g} seconds.",
                "Raise --timeout.",
                ExitCode.LIMIT,
            )

    def check_disk(self, what: str) -> None:
        """Raises BuildError when the workspace takes as much as --disk allows, after `what`."""
        if self.disk is None:
            return
        used = self.disk.measure()
        total = sum(used.values())
        if total < self.disk.limit:
            return
        paths = {os.path.basename(source): path for path, source in self.work.places(self.layout).items()}
        paths |= {"var-tmp": "/var/tmp", "source": "copies of what HOME was", "root": "/"}
        largest = [item for item in sorted(used.items(), key=lambda item: -item[1])[:3] if item[1] * 100 > total]
        where = ", ".join(f"{megabytes(size)} in {paths.get(name, name)}" for name, size in largest)
        raise BuildError(
            f"The build takes {megabytes(total)} of disk after {what}, and --disk allows"
            f" {megabytes(self.disk.limit)}: {where}.",
            "Raise --disk.",
            ExitCode.LIMIT,
        )

    def check_build_dir(self, name: str, pack: api.Buildpack, outcome: Outcome) -> None:
        """Raises BuildError when the script has left no directory where BUILD_DIR was."""
        app = outcome.came_back.get(self.layout.build_dir, "directory")
        if app != "directory":
            left = "nothing" if app == "missing" else f"a {app}"
            raise BuildError(
                f"bin/{name} of {pack.reference} left {left} where BUILD_DIR ({self.layout.build_dir}) was.",
                "A buildpack may replace BUILD_DIR, but by a directory.",
                ExitCode.RELEASE_FAILED if name == "release" else ExitCode.COMPILE_FAILED,
            )

    def _launch(
        self,
        name: str,
        what: str,
        call: api.Invocation,
        on_output: Callable[[bytes], None],
        on_error: Callable[[bytes], None] | None,
        clock: StepClock | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Outcome:
        title = f"{name} of {what}" if name in TESTS else f"bin/{name} of {what}"
        limit = time_limit(name, self.options)
        began = self.log.begin(name, what)
        if self.disk is not None:
            self.disk.watch()
        with open(os.devnull, "rb") as null:  # noqa: PTH123
            outcome = self.launcher.launch(
                self.view,
                call.argv,
                env=self.env if env is None else env,
                cwd=call.cwd,
                stdin=null.fileno(),
                on_output=on_output,
                on_error=on_error,
                timeout=limit,
                interrupt_grace=10.0,
                until=self.disk.fd if self.disk is not None else None,
                limits=self._limits,
            )
        phase = self.log.end(name, began, what, outcome, clock)
        if name in COMPILES and (sentence := slow(phase.seconds, limit)):
            self.log.warn(f"bin/{name} of {what} {sentence}.")
        if outcome.came_back.get(self.layout.build_dir, "directory") != "directory":
            self.work.make("app")  # for bin/report; the build has failed
        for sentence in self.work.mend(self.layout, outcome.came_back):
            self.log.warn(f"After {title}, {sentence}.")
        if ENDING.intersection(outcome.forwarded):
            raise Interrupted(f"Interrupted during {title}.")
        self.check_disk(title)
        return outcome


def build_view(options: BuildOptions, layout: Layout, work: Workspace, binds: list[Bind], root: str = "/") -> View:
    """What every script of the build sees: the system directories of `root`, `binds` and --bind, the workspace.

    Raises UsageError, Refused.
    """
    places = work.places(layout)
    for origin, path in options.binds:
        if not os.path.exists(origin):
            raise UsageError(f"--bind {origin}: it does not exist.")
        binds.append(Bind(path, os.path.realpath(origin), directory=os.path.isdir(origin)))
    binds += secret_binds(options.secrets, work.user)
    if options.ssh:
        binds.append(agent_bind(os.environ, work.user))
    host = read_host(root, [*places, *(bind.path for bind in binds)])
    try:
        return compose(
            host,
            workspace=work.path,
            user=work.user,
            home=layout.home,
            places=places,
            binds=binds,
            network=options.network,
            user_namespaces=options.user_namespaces,
            var_tmp=work.directory("var-tmp"),
        )
    except ViewError as error:
        raise Refused(str(error), "Give another --run-path or --bind.") from None


class _Bounded:
    """Collects output, up to a limit: a phase that answers is not expected to print forever."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.data = bytearray()

    def __call__(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > OUTPUT_LIMIT:
            raise BuildError(f"{self.what} printed more than {OUTPUT_LIMIT} bytes.", code=ExitCode.LIMIT)


def shown(said: bytes) -> str:
    """What a script has said, in one line of a message."""
    return " ".join(said.decode("utf-8", "replace").split())[:500]


def ending(outcome: Outcome) -> str:
    """How a script ended, in words."""
    if outcome.signal is not None:
        return f"was killed by signal {outcome.signal}"
    if outcome.error:
        return f"could not be run: {outcome.error}"
    return f"exited {outcome.status}"
