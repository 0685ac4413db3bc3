"""Deciding for a real build: the kill switch, the flags file and the last good one, then the pure decision."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from nsbuild.errors import UsageError
from nsbuild.rollout.bucket import BUCKETS
from nsbuild.rollout.decide import Attributes, Source, decide
from nsbuild.rollout.decision import Decision
from nsbuild.rollout.flags import LARGEST, PERCENTAGE, SALT, Flags, parse_flags
from nsbuild.rollout.forms import shares_of
from nsbuild.rollout.kill import killed
from nsbuild.tree import write_atomic


def choose(
    flags_file: str, app: str, attributes: Attributes, *, override: str = "", state: Path | None = None
) -> Decision:
    """The decision for one build; call it before anything is forked.

    `state` is where the last good flags are kept, None for nowhere. `host` is added to the attributes. Raises
    UsageError for an app, an attribute or an override that is none; flags that are missing, malformed or stale are
    told in `problem`, and nothing else.
    """
    attributes = {"host": os.uname().nodename, **attributes}
    if kill := killed(flags_file):
        return decide(app, attributes, Source(None), override=override, kill=kill)
    return decide(app, attributes, source_of(flags_file, state), override=override)


def source_of(flags_file: str, state: Path | None) -> Source:
    """What can be asked: the provider that the configuration names, else the file, else the last good one."""
    try:
        name = settings().provider
        if name:
            from nsbuild.rollout.provider import named_provider

            return Source(named_provider(name), SALT)
        return read_source(flags_file, state, datetime.now(UTC))
    except ImportError as error:
        return Source(None, problem=f"{error}: install nsbuild[rollout].")
    except UsageError as error:
        return Source(None, problem=str(error))


def read_source(flags_file: str, state: Path | None, now: datetime) -> Source:
    """The flags in the file, else the last good ones, else none. Raises ImportError without the evaluator."""
    try:
        data, when = read_flags_file(flags_file)
        flags = parse_flags(data, flags_file, now)
        source = _good(flags)
    except UsageError as error:
        return _last_good(flags_file, state, now, str(error))
    if state is not None:
        try:
            _remember(last_good_file(flags_file, state), data, when)
        except OSError as error:
            return replace(source, problem=f"The flags cannot be kept in {state}: {error.strerror}.")
    return source


def read_flags_file(path: str) -> tuple[bytes, int]:
    """(content, time of its last change in nanoseconds). Raises UsageError for what is missing, huge or no file."""
    for _ in range(3):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not be waited for
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"The flags file {path} cannot be read: {reason}.") from None
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise UsageError(f"The flags file {path} is no regular file.")
            if before.st_size > LARGEST:
                raise UsageError(f"The flags file {path} is larger than {LARGEST >> 20} MB.")
            with open(fd, "rb", closefd=False) as file:
                data = file.read(LARGEST + 1)
            after = os.fstat(fd)
        except OSError as error:
            raise UsageError(f"The flags file {path} cannot be read: {error.strerror}.") from None
        finally:
            os.close(fd)
        # Replaced by rename, we have one of the two; written in place, perhaps a bit of both.
        if (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, len(data)):
            return data, after.st_mtime_ns
    raise UsageError(f"The flags file {path} changes all the time.", "Replace it by rename.")


def last_good_file(flags_file: str, state: Path) -> Path:
    """Where the last good content of that flags file is kept."""
    return state / f"flags-{sha256(os.fsencode(os.path.abspath(flags_file))).hexdigest()[:12]}.json"


def _last_good(flags_file: str, state: Path | None, now: datetime, problem: str) -> Source:
    nothing = Source(None, problem=f"{problem} There are no good flags from before: direct.")
    if state is None:
        return nothing
    try:
        data, when = read_flags_file(str(last_good_file(flags_file, state)))
        source = _good(parse_flags(data, flags_file, now))
    except UsageError:
        return nothing
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when / 1e9))
    return replace(source, problem=f"{problem} The last good flags, of {since}, are used.")


def _good(flags: Flags) -> Source:
    from nsbuild.rollout.evaluate import evaluator

    shares = shares_of(flags.flags.get(PERCENTAGE))
    # A rule that asks for the bucket sorts apps by it before the percentage does: the share is none any more.
    sorted_before = any(name != PERCENTAGE and "'bucket'" in repr(flag) for name, flag in flags.flags.items())
    share = None if shares is None or sorted_before else shares[0] / BUCKETS
    return Source(evaluator(flags), flags.salt, flags.digest, share=share)


def _remember(path: Path, data: bytes, when: int) -> None:
    """Keep the content; nothing is read or written when it is kept already."""
    try:
        kept = path.stat()
        if (kept.st_size, kept.st_mtime_ns) == (len(data), when):
            return
    except FileNotFoundError:
        pass
    # Its time comes with it: set afterwards it might be that of what another build has just kept.
    write_atomic(str(path), data, 0o600, mtime_ns=when)


@dataclass(frozen=True)
class Settings:
    """`[rollout]` of the user's nsbuild.toml: the flags file of `nsbuild rollout`, and who is asked in its place."""

    flags: str = ""
    provider: str = ""


def settings() -> Settings:
    """What the user's nsbuild.toml says. Raises UsageError naming the file and the key."""
    from nsbuild.config import placed, read_user_file

    file = read_user_file()
    table = file.values.get("rollout", {}) if file is not None else {}
    if file is None or not table:
        return Settings()
    names = [field.name for field in fields(Settings)]
    if not isinstance(table, dict) or not set(table) <= set(names):
        raise UsageError(f"{file.path}: [rollout] has {' and '.join(names)}, and nothing else.")
    for name, value in table.items():
        if not isinstance(value, str):
            raise UsageError(f"{file.path}: rollout.{name} is not a text.", "Put it between quotes.")
    return Settings(placed(table.get("flags", ""), file.directory), table.get("provider", ""))
