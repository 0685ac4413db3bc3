"""`build` as it was decided: direct, in the namespace with a way back, or direct with a shadow behind it.

Source and buildpacks are copied by every build, and each layout has a cache of its own: so a second try begins with
what the first one did.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nsbuild.audit import Severity
from nsbuild.build import BuildOptions, Event, Record, build
from nsbuild.build.cache import Cache, CacheUse
from nsbuild.build.direct import check_direct
from nsbuild.build.events import Monitor
from nsbuild.errors import ExitCode, NsbuildError, UsageError
from nsbuild.rollout.decision import FAILED, FALLBACK, RESCUED, SUCCEEDED
from nsbuild.rollout.noted import Asked, Noted
from nsbuild.rollout.scratch import Scratch
from nsbuild.rollout.shadow import Candidate, prepare
from nsbuild.sandbox import LaunchError, app_layout
from nsbuild.slug import check_output
from nsbuild.workspace import app_caches

_RESCUED = (ExitCode.COMPILE_FAILED, ExitCode.RELEASE_FAILED)


def build_decided(
    asked: Asked,
    source: str | Path,
    buildpacks: Sequence[str | Path] = (),
    options: BuildOptions | None = None,
    *,
    monitor: Monitor = lambda event: None,
) -> Record:
    """Build `source` as the flags decide; the record's `rollout` says what that was.

    Raises as `nsbuild.build.build`, and UsageError for an app, attribute or path that is none, and for options that
    cannot be kept on the direct path.
    """
    options = options or BuildOptions()
    if options.rebuild:
        raise UsageError("--rebuild and --rollout exclude each other.", "Leave one of them out.")
    check_direct(options)
    names = tuple(os.path.basename(str(reference).rstrip("/")) for reference in buildpacks)
    told: dict[str, Any] = {}

    def say(sentence: str) -> None:
        monitor(Event("warning", text=sentence))

    noted = Noted(asked, {"stack": options.stack, "buildpacks": names}, say, told)
    one = _Build(source, buildpacks, options, monitor, noted)
    try:
        if noted.path == "namespace":
            record = one.namespace(rescue=asked.rescue)
        elif noted.path == "shadow":
            record = one.shadow(asked.shadow_timeout)
        else:
            record = one.direct()
    except NsbuildError as error:
        begun = getattr(error, "record", None)
        if begun is not None:
            begun.rollout = told
        raise
    except BaseException as error:
        code = ExitCode.INTERRUPTED if isinstance(error, KeyboardInterrupt) else ExitCode.REFUSED
        one.note("", FAILED, exit_code=int(code))
        raise
    record.rollout = told
    return record


class _Build:
    def __init__(
        self,
        source: str | Path,
        buildpacks: Sequence[str | Path],
        options: BuildOptions,
        monitor: Monitor,
        noted: Noted,
    ) -> None:
        self.source = source
        self.buildpacks = buildpacks
        self.options = options
        self.monitor = monitor
        self.noted = noted
        self._started, self._began = time.time(), time.monotonic()

    def direct(self, result: str = SUCCEEDED, **more: Any) -> Record:
        try:
            record = self._run("direct")
        except NsbuildError as error:
            self.note("direct", FALLBACK if result == FALLBACK else FAILED, exit_code=int(error.code), **more)
            raise
        self.note("direct", result, **{**known_of(record), **more})
        return record

    def namespace(self, *, rescue: bool) -> Record:
        try:
            record = self._run("namespace")
        except NsbuildError as error:
            if isinstance(error.__cause__, LaunchError) and not has_run(error):
                self._say(f"building directly, without a sandbox: {error.sentence}")
                return _because(self.direct(FALLBACK, fallback=error.sentence), error.sentence)
            if rescue and error.code in _RESCUED:
                self._say(f"it failed in the namespace ({error.sentence}); building it again directly.")
                return _because(
                    self.direct(RESCUED, namespace_exit_code=int(error.code)),
                    f"it failed in the namespace (exit {int(error.code)}), and was built again",
                )
            self.note("namespace", FAILED, exit_code=int(error.code))
            raise
        self.note("namespace", SUCCEEDED, **known_of(record))
        return record

    def shadow(self, timeout: float) -> Record:
        def make(scratch: Scratch) -> BuildCandidate:
            return BuildCandidate(self, timeout, scratch)

        with prepare(self.noted, self.options.workspace_dir, self._say, make) as candidate:
            try:
                record = self.direct()
            except NsbuildError as error:
                if candidate is not None and error.code != ExitCode.INTERRUPTED:
                    candidate.start("")
                raise
            if candidate is not None and record.slug is not None:
                candidate.start(record.slug.path)
        return record

    def note(self, arm: str, result: str, **more: Any) -> None:
        """Into the ledger; `arm` is empty when the decision says it."""
        seconds = round(time.monotonic() - self._began, 3)
        arm = arm or ("namespace" if self.noted.path == "namespace" else "direct")
        self.noted.outcome(arm, result, started=self._started, seconds=seconds, **more)

    def _say(self, sentence: str) -> None:
        self.monitor(Event("warning", text=sentence))

    def _run(self, path: str) -> Record:
        self._started, self._began = time.time(), time.monotonic()
        options = replace(self.options, path=path)
        return _because(build(self.source, self.buildpacks, options, monitor=self.monitor), self.noted.reason)


class BuildCandidate(Candidate):
    """Of a `build`."""

    def __init__(self, of: _Build, timeout: float, scratch: Scratch) -> None:
        """Raises OSError."""
        super().__init__(of.noted, timeout, scratch)
        options = of.options
        source = os.path.realpath(of.source)
        output = check_output(options.output or f"{os.path.basename(source)}.tgz", Path(source))
        caches = app_caches(options.cache_dir)
        app = options.app or source
        ours = (str(output.path), str(caches), options.workspace_dir or "")
        kept = {os.path.relpath(os.path.realpath(path), source) for path in ours if path}
        # By its own name: that of an archive says what it is.
        self._source = scratch.copy(source, f"source/{os.path.basename(source)}", skip=kept)
        self._packs = []
        for number, reference in enumerate(map(str, of.buildpacks)):
            own = os.path.isdir(reference)
            name = f"packs/{number}/{os.path.basename(os.path.realpath(reference))}"
            self._packs.append(scratch.copy(reference, name, skip=(".git",)) if own else reference)
        use = CacheUse(app, options.stack, app_layout(options.run_path).name)
        with Cache(caches, use).reading() as content:
            if content is not None:
                scratch.copy(str(content), f"caches/{use.key}/content")
        self._options = replace(
            options,
            path="namespace",
            output=f"{scratch.path}/slug",
            cache_dir=f"{scratch.path}/caches",
            workspace_dir=f"{scratch.path}/work",
            app=app,
            default_buildpacks=options.default_buildpacks and os.path.abspath(options.default_buildpacks),
        )

    def start(self, slug: str) -> None:
        """The shipped build has ended; its slug, empty where it failed."""
        given = asdict(self._options)
        self._spawn("build", slug, source=self._source, buildpacks=self._packs, options=given)


def known_of(record: Record) -> dict[str, Any]:
    """What a record tells an outcome."""
    return {
        "exit_code": record.exit_code,
        "leaks": sum(1 for finding in record.audit if finding["severity"] == Severity.BREAKS),
        "slug_bytes": record.slug.bytes if record.slug is not None else None,
    }


def has_run(error: NsbuildError) -> bool:
    """Whether any script of a buildpack has."""
    record = getattr(error, "record", None)
    return record is None or any(phase.buildpack and phase.name != "fetch" for phase in record.phases)


def _because(record: Record, reason: str) -> Record:
    record.path_reason = reason
    return record
