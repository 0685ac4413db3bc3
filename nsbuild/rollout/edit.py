"""Changing a rollout: the flags file, checked and replaced at once; the kill file; the log of who, when and why.

Beside the flags file FILE are FILE.kill, FILE.log (a line of JSON an edit) and, where FILE leads to, FILE.lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from pathlib import Path
from typing import Any

from nsbuild.errors import Refused, UsageError
from nsbuild.rollout.bucket import ALGORITHM, BUCKETS
from nsbuild.rollout.decide import check_app
from nsbuild.rollout.decision import DIRECT, PATHS
from nsbuild.rollout.flags import ALLOW, DENY, LARGEST, PERCENTAGE, SALT, parse_flags
from nsbuild.rollout.forms import listing, lists_of, percentage, shares_of
from nsbuild.rollout.kill import kill_file
from nsbuild.rollout.source import last_good_file, read_flags_file
from nsbuild.tree import write_atomic
from nsbuild.tree.flock import flock_within

_WAIT = 10.0
_LONGEST_WHY = 1000
_SCHEMA = "https://flagd.dev/schema/v0/flags.json"


@dataclass(frozen=True)
class Change:
    """What is to be different. Shares are in buckets of 10,000, None to leave them; `allow` has a path for each app.

    `forget` takes apps off both lists. `expires` is a time with its zone, empty for never, None to leave it.
    """

    namespace: int | None = None
    shadow: int | None = None
    allow: Mapping[str, str] = field(default_factory=dict)
    deny: Sequence[str] = ()
    forget: Sequence[str] = ()
    expires: str | None = None


def buckets_of(text: str) -> int:
    """A percentage as people write it, `5`, `0.25` or `5%`, in buckets of 10,000. Raises UsageError."""
    try:
        share = Decimal(text.removesuffix("%"))
    except InvalidOperation:
        share = Decimal(-1)
    if not (share.is_finite() and 0 <= share <= 100):
        raise UsageError(f"{text[:40]!r} is no percentage.", "It is a number from 0 to 100.")
    buckets = share * BUCKETS / 100
    if buckets != int(buckets):
        raise UsageError(f"{text[:40]!r} is finer than the hundredths of a percent that there are.")
    return int(buckets)


def apply(flags_file: str, change: Change, why: str) -> str:
    """Change the flags file, or begin one; returns its digest. Raises UsageError and Refused, and changes nothing."""
    for app in (*change.allow, *change.deny, *change.forget):
        check_app(app)

    def edited(data: bytes | None) -> bytes:
        document = json.loads(data) if data is not None else _new()
        _edit(document, change, flags_file)
        return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"

    return _replaced(flags_file, edited, why, _words(change))


def restore(flags_file: str, state: Path, why: str) -> str:
    """Put the last good flags where a bad file is, or none; returns the digest. Raises UsageError and Refused."""
    data, _ = read_flags_file(str(last_good_file(flags_file, state)))
    return _replaced(flags_file, lambda _: data, why, ["restore the last good flags"], bad=True)


def kill(flags_file: str, why: str) -> None:
    """Send every build direct, whatever is in the flags file. Raises UsageError and Refused.

    The switch comes first: that the log cannot be written is raised afterwards.
    """
    line = _entry(why, ["kill"])
    _throw(flags_file, line)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(Refused):  # whoever has it may have been stopped
            stack.enter_context(_locked(flags_file))
        if not os.path.lexists(kill_file(flags_file)):
            _throw(flags_file, line)  # it was taken away by an unkill that had begun before
        _log(flags_file, line)


def _throw(flags_file: str, line: bytes) -> None:
    try:
        fd = os.open(kill_file(flags_file), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with contextlib.suppress(OSError):  # on a full disk the empty file does as well
            os.write(fd, line)
        os.close(fd)
    except OSError as error:
        raise Refused(
            f"{kill_file(flags_file)} cannot be made: {error.strerror}.",
            "Set NSBUILD_ROLLOUT_KILL=1 where the builds run.",
        ) from None


def unkill(flags_file: str, why: str) -> None:
    """Let the flags count again. Raises UsageError when they did already, and Refused."""
    line = _entry(why, ["unkill"])
    with _locked(flags_file):
        if not os.path.lexists(kill_file(flags_file)):
            raise UsageError(f"There is no {kill_file(flags_file)}.", "The flags count already.")
        _log(flags_file, line)
        try:
            os.unlink(kill_file(flags_file))
        except OSError as error:
            raise Refused(f"{kill_file(flags_file)} cannot be removed: {error.strerror}.") from None


def log_file(flags_file: str) -> str:
    return f"{flags_file}.log"


def read_log(flags_file: str) -> list[dict[str, Any]]:
    """Every edit, the earliest first: `when` (UTC), `who`, `why`, `change`, `before` and `after` (digests).

    A line that is none is left out.
    """
    try:
        lines = Path(log_file(flags_file)).read_bytes().splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                entries.append(entry)
    return entries


def _new() -> dict[str, Any]:
    return {
        "$schema": _SCHEMA,
        "metadata": {"salt": SALT, "bucket": ALGORITHM},
        "flags": {DENY: listing(DENY, {}), ALLOW: listing(ALLOW, {}), PERCENTAGE: percentage(0, 0)},
    }


def _edit(document: dict[str, Any], change: Change, name: str) -> None:
    flags = document["flags"]
    if change.namespace is not None or change.shadow is not None:
        shares = shares_of(flags.get(PERCENTAGE))
        if shares is None and (change.namespace is None or change.shadow is None):
            raise UsageError(
                f"{name}: {PERCENTAGE} is not as `rollout set` writes it.",
                "Give both --namespace and --shadow to replace it, or edit it by hand.",
            )
        namespace, shadow = shares or (0, 0)
        flags[PERCENTAGE] = percentage(
            namespace if change.namespace is None else change.namespace,
            shadow if change.shadow is None else change.shadow,
        )
    moved = {*change.allow, *change.deny, *change.forget}
    if moved:
        for flag, added in ((DENY, dict.fromkeys(change.deny, DIRECT)), (ALLOW, change.allow)):
            lists = lists_of(flags.get(flag))
            if lists is None:
                raise UsageError(f"{name}: {flag} is not as `rollout set` writes it.", "Edit it by hand.")
            kept = {path: [app for app in apps if app not in moved] for path, apps in lists.items()}
            for app, path in added.items():
                kept.setdefault(path, []).append(app)
            flags[flag] = listing(flag, kept)
    if change.expires is not None:
        metadata = document.setdefault("metadata", {})
        metadata.pop("expires", None)
        if change.expires:
            metadata["expires"] = change.expires


def _replaced(
    flags_file: str, edited: Callable[[bytes | None], bytes], why: str, words: Sequence[str], bad: bool = False
) -> str:
    """Read, change, check, log, replace: under the lock. `bad`: what is there must be."""
    place = os.path.realpath(flags_file)
    with _locked(place):
        data, mode, problem = None, 0o644, None
        if there := os.path.lexists(place):
            mode = stat.S_IMODE(os.stat(place).st_mode)
            try:
                data, _ = read_flags_file(flags_file)
                # However old: an expired file is edited to hold longer.
                parse_flags(data, flags_file, datetime.min.replace(tzinfo=UTC))
            except UsageError as error:
                problem = error
            if bad and problem is None:
                raise UsageError(f"{flags_file} is good: there is nothing to restore.")
            if problem is not None and not bad:
                raise problem
        fresh = edited(data)
        if len(fresh) > LARGEST:
            raise UsageError(f"{flags_file} would be larger than {LARGEST >> 20} MB.", "Use a percentage.")
        flags = parse_flags(fresh, flags_file, datetime.now(UTC))
        moved = os.path.realpath(flags_file) != place or os.path.lexists(place) is not there
        if moved or (data is not None and read_flags_file(flags_file)[0] != data):
            raise Refused(f"{flags_file} was changed by somebody else just now.", "Look at it, and try again.")
        before = "" if data is None else f"sha256:{sha256(data).hexdigest()}"
        _log(flags_file, _entry(why, words, before=before, after=flags.digest))
        try:
            write_atomic(place, fresh, mode)
        except OSError as error:
            raise Refused(f"{flags_file} cannot be written: {error.strerror}.") from None
        return flags.digest


@contextlib.contextmanager
def _locked(flags_file: str) -> Iterator[None]:
    """For an edit the real path: one file has one lock, whatever leads to it. A kill file has its own name's."""
    path = f"{flags_file}.lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Refused(f"{path} cannot be made: {error.strerror}.") from None
    try:
        try:
            flock_within(fd, _WAIT)
        except BlockingIOError:
            raise Refused(f"Somebody else has been editing {flags_file} for {_WAIT:.0f} seconds.") from None
        yield
    finally:
        os.close(fd)


def _entry(why: str, words: Sequence[str], **digests: str) -> bytes:
    if not why.strip():
        raise UsageError("There is no reason.", "Say why with --why TEXT: it goes into the log.")
    if len(why) > _LONGEST_WHY:
        raise UsageError(f"The reason has {len(why)} characters, and may have {_LONGEST_WHY}.")
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    entry = {"when": when, "who": _who(), "why": why, "change": list(words), **digests}
    return json.dumps(entry).encode() + b"\n"


def _who() -> str:
    import pwd

    def name(uid: int) -> str:
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    sudo = os.environ.get("SUDO_USER", "") if os.geteuid() == 0 else ""
    return f"{sudo or name(os.geteuid())}@{platform.node()}"


def _words(change: Change) -> list[str]:
    shares = (("namespace", change.namespace), ("shadow", change.shadow))
    words = [f"{name} {share * 100 / BUCKETS:g} %" for name, share in shares if share is not None]
    words += [f"allow {app} {path}" for app, path in change.allow.items()]
    words += [f"deny {app}" for app in change.deny] + [f"forget {app}" for app in change.forget]
    if change.expires is not None:
        words.append(f"expires {change.expires or 'never'}")
    if not words:
        raise UsageError("There is nothing to change.", "Give --namespace, --shadow, --allow, --deny, --forget ...")
    return words


def _log(flags_file: str, line: bytes) -> None:
    path = log_file(flags_file)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.write(fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise Refused(f"The edit cannot be logged in {path}: {error.strerror}.") from None


def allowed(text: str) -> tuple[str, str]:
    """`APP` or `APP=PATH`: the app and its path, by default the namespace."""
    app, equals, path = text.rpartition("=")
    return (app, path) if equals and path in PATHS else (text, "namespace")
