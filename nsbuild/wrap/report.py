"""The record of a wrapped command, for `--report`. Imported only then."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

from nsbuild.record import BuildpackRecord, Phase, Record
from nsbuild.wrap.plan import WrapOptions
from nsbuild.wrap.wrap import WrapResult


def make_record(
    command: str,
    buildpack: str,
    build_dir: str,
    options: WrapOptions,
    result: WrapResult | None,
    *,
    error: str,
    exit_code: int,
    seconds: float,
    rollout: Mapping[str, Any],
) -> Record:
    """What `compile` or `exec` did; `result` is None when nothing was run, and `error` then says why.

    `rollout` is what was decided, and came of it.
    """
    record = Record(
        id=secrets.token_hex(4),
        source=os.path.abspath(build_dir),
        layout="app" if options.run_path == "/app" else f"app:{options.run_path}",
        run_path=options.run_path,
        stack=os.environ.get("STACK", ""),
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds)),
        seconds=round(seconds, 3),
        uid=os.geteuid(),
        exit_code=exit_code,
        result=error or "the command ended",
        rollout=dict(rollout),
    )
    if buildpack:
        record.buildpacks = [BuildpackRecord(buildpack, "")]
    if result is None:
        record.path, record.path_reason = "", "nothing was run"
        return record
    outcome = result.outcome
    record.path, record.path_reason = result.path, result.path_reason
    record.limits = list(outcome.limited)
    record.attached = {path: f"{choice.how}: {choice.why}" for path, choice in result.attached.items()}
    record.phases = [
        Phase(
            command,
            buildpack,
            seconds=round(sum(outcome.timings.values()), 3),
            exit_code=outcome.status,
            signal=outcome.signal,
            user_seconds=round(outcome.user_seconds, 3),
            system_seconds=round(outcome.system_seconds, 3),
            max_rss_kib=outcome.max_rss_kib,
            read_bytes=outcome.read_bytes,
            written_bytes=outcome.written_bytes,
            timings={name: round(value, 5) for name, value in outcome.timings.items()},
        )
    ]
    if options.limits is not None and outcome.usage is not None:
        from nsbuild.sandbox.limits import oom_sentence

        usage = outcome.usage
        record.usage = {name: getattr(usage, name) for name in usage._fields}
        record.result = oom_sentence(usage, options.limits) or record.result
    return record
