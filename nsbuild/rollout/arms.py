"""`compile` as it was decided: direct, in the namespace with a way back, or direct with a shadow behind it.

The direct path is the builder's of today, with CACHE_DIR and BUILD_DIR as it gave them. Nothing here is imported by a
`compile` without `--rollout`.
"""

from __future__ import annotations

import contextlib
import os
import time

from nsbuild.rollout import cache
from nsbuild.rollout.noted import Asked, Noted
from nsbuild.sandbox.outcome import AfterCommandError, LaunchError
from nsbuild.sandbox.value import Value
from nsbuild.sandbox.view import app_layout
from nsbuild.wrap import environment
from nsbuild.wrap.plan import Request, WrapOptions
from nsbuild.wrap.wrap import WrapResult, compile_, keep_export, take_turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from nsbuild.errors import Refused
    from nsbuild.rollout.rescue import Pristine
    from nsbuild.rollout.scratch import Scratch
    from nsbuild.sandbox.outcome import Outcome
    from nsbuild.wrap.turns import Turn


class Call(Value):
    """One `compile`: its directories as they were given, and the builder's environment."""

    buildpack: str
    build_dir: str
    cache_dir: str
    env_dir: str
    environ: Mapping[str, str]
    options: WrapOptions


def compile_decided(
    asked: Asked, call: Call, say: Callable[[str], None], told: dict[str, Any] | None = None
) -> WrapResult:
    """Run the buildpack as the flags decide. `told` becomes what a record says of it.

    Raises as `nsbuild.wrap.compile_`, and UsageError for an app, attribute or path that is none.
    """
    attributes = {
        "stack": call.environ.get("STACK", ""),
        "buildpacks": (os.path.basename(os.path.realpath(call.buildpack)),),
    }
    noted = Noted(asked, attributes, say, {} if told is None else told)
    arm = _Arm(asked, call, noted, say)
    try:
        if noted.path == "namespace":
            return arm.namespace()
        return arm.shadow() if noted.path == "shadow" else arm.direct()
    except BaseException as error:
        arm.failed(error)
        raise


class _Arm:
    """One build, and its clock: seconds are the buildpack's and the sandbox's, not those of copies or the ledger."""

    def __init__(self, asked: Asked, call: Call, noted: Noted, say: Callable[[str], None]) -> None:
        self.asked = asked
        self.call = call
        self.noted = noted
        self.say = say
        self.started = time.time()
        self._began = time.monotonic()
        self._noted = False
        self._no_turn = ""

    def begin(self) -> None:
        self.started, self._began = time.time(), time.monotonic()

    # -- the three paths

    def direct(self) -> WrapResult:
        with self._turn():
            outcome = self._directly()
        self._note("direct", _result(outcome), outcome)
        return WrapResult(outcome, {}, path="direct", path_reason=self.noted.reason)

    def shadow(self) -> WrapResult:
        from nsbuild.rollout.shadow import CompileCandidate, prepare

        def make(scratch: Scratch) -> CompileCandidate:
            return CompileCandidate(self.call, self.noted, self.asked.shadow_timeout, scratch)

        with self._turn(), prepare(self.noted, self.call.options.workspace_dir, self.say, make) as candidate:
            outcome = self._directly()
            self._note("direct", _result(outcome), outcome)
            if candidate is not None and not outcome.forwarded:
                candidate.start(outcome.exit_code)
        return WrapResult(outcome, {}, path="direct", path_reason=self.noted.reason)

    def namespace(self) -> WrapResult:
        call = self.call
        with self._turn() as turn, contextlib.ExitStack() as stack:
            layout = app_layout(call.options.run_path).name
            given = used = os.path.realpath(call.cache_dir)
            try:
                if turn is None:
                    raise _untouched(self._no_turn)
                used = self._namespace_cache(given, layout)
                pristine = self._pristine(stack)
                self.begin()
                result = compile_(
                    call.buildpack,
                    call.build_dir,
                    call.cache_dir if used == given else used,
                    call.env_dir,
                    call.environ if used == given else renamed(call.environ, {call.cache_dir: used}),
                    call.options.replace(fallback="never"),
                    self.say,
                    turn=turn,
                )
            except Exception as error:
                cache.drop(given, used)
                why = _refusal(error) if call.options.fallback == "direct" else ""
                if not why:
                    raise
                return self._fall_back(why)
            outcome = result.outcome
            if outcome.exit_code != 0 and pristine is not None and not outcome.forwarded:
                return self._rescue(pristine, outcome, used)
            self._note("namespace", _result(outcome), outcome)
            try:
                if outcome.exit_code == 0:
                    cache.keep(given, used, layout)
                else:
                    cache.drop(given, used)
            except OSError as error:
                self.say(f"{call.cache_dir} will not be used again: {error.filename}: {error.strerror}.")
            return result.replace(path_reason=self.noted.reason)

    # -- what they are made of

    def _namespace_cache(self, given: str, layout: str) -> str:
        try:
            return cache.give_namespace(given, layout, _owner(self.call.build_dir))
        except OSError as error:
            raise _untouched(f"CACHE_DIR cannot be used: {error.filename or given}: {error.strerror}.") from error

    def _directly(self) -> Outcome:
        from nsbuild.wrap.direct import directly

        call = self.call
        if call.cache_dir:
            cache.give_direct(os.path.realpath(call.cache_dir))
        buildpack = os.path.realpath(call.buildpack)
        request = Request(buildpack, call.build_dir, call.cache_dir, call.env_dir, ())
        self.begin()
        outcome = directly(request, call.environ, call.options)
        if call.options.export_to and outcome.exit_code == 0:
            keep_export(buildpack, call.options.export_to)
        return outcome

    def _fall_back(self, why: str) -> WrapResult:
        self.say(f"running directly, without a sandbox: {why}")
        outcome = self._directly()
        self._note("direct", "fallback", outcome, fallback=why)
        return WrapResult(outcome, {}, path="direct", path_reason=why)

    def _pristine(self, stack: contextlib.ExitStack) -> Pristine | None:
        if not self.asked.rescue:
            return None
        from nsbuild.rollout.rescue import Pristine

        try:
            pristine = stack.enter_context(Pristine(self.call))
        except OSError as error:
            self.say(f"there will be no rescue: {error.filename or 'a copy'}: {error.strerror}.")
            return None
        self.noted.told["rescue"] = pristine.cost()
        return pristine

    def _rescue(self, pristine: Pristine, first: Outcome, used: str) -> WrapResult:
        how = f"exit {first.exit_code}"
        self.say(f"it failed in the namespace ({how}); running it again directly, from a copy of what there was.")
        try:
            pristine.restore(used)
        except OSError as error:
            text = f"it failed in the namespace, and cannot be rescued: {error.filename}: {error.strerror}"
            raise AfterCommandError(first, error.errno or 0, text) from error
        outcome = self._directly()
        saved = outcome.exit_code == 0
        if not saved:
            pristine.give_cache_back()
        result = "rescued" if saved else "failed"
        self._note("direct", result, outcome, namespace_exit_code=first.exit_code)
        return WrapResult(
            outcome, {}, path="direct", path_reason=f"it failed in the namespace ({how}), and was run again"
        )

    # -- bookkeeping

    def _note(self, arm: str, result: str, outcome: Outcome, **more: Any) -> None:
        self._noted = True
        seconds = round(time.monotonic() - self._began, 3)
        self.noted.outcome(arm, result, started=self.started, seconds=seconds, exit_code=outcome.exit_code, **more)

    def failed(self, error: BaseException) -> None:
        """The build has ended with an error of ours, or was interrupted."""
        if self._noted:
            return
        code = 130 if isinstance(error, KeyboardInterrupt) else 123 if isinstance(error, AfterCommandError) else 125
        seconds = round(time.monotonic() - self._began, 3)
        arm = "namespace" if self.noted.path == "namespace" else "direct"
        self.noted.outcome(arm, "failed", started=self.started, seconds=seconds, exit_code=code)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[Turn | None]:
        """CACHE_DIR and BUILD_DIR are where they belong, and nobody else of ours has CACHE_DIR.

        None when that cannot be had: no reason for the builder's own path to fail.
        """
        from nsbuild.wrap.journal import state_directory
        from nsbuild.wrap.recovery import recover_aloud

        turn = None
        try:
            state = state_directory()
            recover_aloud(state, self.say)
            turn = take_turn(self.call.cache_dir, state, self.say)
        except OSError as error:
            self._no_turn = f"{error.filename}: {error.strerror}."
        try:
            yield turn
        finally:
            if turn is not None:
                turn.end()


def _result(outcome: Outcome) -> str:
    return "succeeded" if outcome.exit_code == 0 else "failed"


def _refusal(error: Exception) -> str:
    """Why the namespace cannot be had, when nothing of the buildpack has run and nothing was touched; else empty."""
    if isinstance(error, LaunchError):
        from nsbuild.sandbox.probe import explain

        return explain(error).sentence
    from nsbuild.errors import Refused

    return error.sentence if isinstance(error, Refused) and getattr(error, "untouched", False) else ""


def _untouched(sentence: str) -> Refused:
    from nsbuild.errors import Refused

    error = Refused(sentence)
    error.untouched = True  # type: ignore[attr-defined]
    return error


def _owner(build_dir: str) -> tuple[int, int] | None:
    if os.geteuid() != 0 or not os.path.isdir(build_dir):
        return None
    info = os.stat(build_dir)
    return info.st_uid, info.st_gid


def renamed(environ: Mapping[str, str], directories: Mapping[str, str]) -> dict[str, str]:
    """`environ` for other directories than those that were given."""
    paths = {
        spelling: new
        for given, new in directories.items()
        for spelling in environment.spellings(given, os.path.realpath(given))
    }
    longest_first = environment.by_length(paths)
    return {name: environment.map_path(value, longest_first) for name, value in environ.items()}
