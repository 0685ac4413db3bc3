"""The flags file: flagd's JSON schema, read as somebody's typo or worse.

Four flags of ours, all strings; a value is a path, or empty for "ask the next". Others in the file are not looked at.
What a rule may say is bounded here: operators without loops, so an evaluation costs no more than the file is long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from nsbuild.errors import UsageError
from nsbuild.rollout.bucket import ALGORITHM
from nsbuild.rollout.decision import DIRECT, PATHS

DENY, ALLOW, RULES, PERCENTAGE = "nsbuild-deny", "nsbuild-allow", "nsbuild-rules", "nsbuild-percentage"
FLAGS = {DENY: "deny", ALLOW: "allow", RULES: "rule", PERCENTAGE: "percentage"}
"""In the order in which they are asked, with the reason that each is."""
LARGEST = 1 << 20
"""Bytes of a file, which is not read beyond."""
_DEEPEST = 64
_NODES = 5_000
"""Half a millisecond's evaluation (`scripts/bench rollout`): a builder waits for it."""
SALT = "nsbuild"
"""Where a flags file has none."""
_OPERATORS = frozenset(
    ("if", "?:", "and", "or", "!", "!!", "==", "!=", "===", "!==", "<", "<=", ">", ">=", "in", "var")
) | {"missing", "missing_some", "starts_with", "ends_with", "sem_ver"}
_WHY_NOT = {
    "fractional": "it moved nearly all apps between two versions of flagd's library: compare `bucket` with a number",
    "$ref": "an evaluator cannot refer to another",
}


@dataclass(frozen=True)
class Flags:
    """A flags file that is good. `flags` are ours, in flagd's form, `$ref` resolved; `digest` is of the file."""

    digest: str
    salt: str
    flags: Mapping[str, Mapping[str, Any]]
    expires: datetime | None = None


def parse_flags(data: bytes, name: str, now: datetime) -> Flags:
    """The flags in `data`, which is the file `name`. Raises UsageError: one sentence on what is wrong, and where.

    A file whose `metadata.expires` (ISO 8601, with its zone) is before `now` is stale, which is wrong as well.
    """
    document = _document(data, name)
    metadata = _object(document.get("metadata", {}), f"{name}: metadata")
    salt = metadata.get("salt", SALT)
    if not isinstance(salt, str) or not 0 < len(salt) <= 256:
        raise UsageError(f"{name}: metadata.salt is no text of 1 to 256 characters.")
    if metadata.get("bucket", ALGORITHM) != ALGORITHM:
        raise UsageError(f"{name}: metadata.bucket is not {ALGORITHM}, the one way to number apps that there is.")
    expires = _expires(metadata.get("expires"), name)
    if expires is not None and expires <= now:
        raise UsageError(f"{name} is stale: it has expired at {expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}.")
    evaluators = _object(document.get("$evaluators", {}), f"{name}: $evaluators")
    found = _object(document.get("flags"), f"{name}: flags")
    for key in found:
        if key.startswith("nsbuild-") and key not in FLAGS:
            raise UsageError(f"{name}: there is no flag {_short(key)}.", f"They are {', '.join(FLAGS)}.")
    budget = [_NODES]
    flags = {key: _flag(key, found[key], evaluators, f"{name}: {key}", budget) for key in FLAGS if key in found}
    if not flags:
        raise UsageError(f"{name} has none of nsbuild's flags.", f"They are {', '.join(FLAGS)}.")
    return Flags(f"sha256:{sha256(data).hexdigest()}", salt, flags, expires)


def _document(data: bytes, name: str) -> dict[str, Any]:
    if len(data) > LARGEST:
        raise UsageError(f"{name} is larger than {LARGEST >> 20} MB.")
    try:
        document = json.loads(data)
    except RecursionError:
        raise UsageError(f"{name}: it is nested too deeply.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8.") from None
    except ValueError as error:
        raise UsageError(f"{name} is no JSON: {error}.") from None
    return _object(document, name)


def _expires(text: object, name: str) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise UsageError(f"{name}: metadata.expires is no time with its zone.", 'Write it as "2030-01-31T12:00:00Z".')
    return found


def _flag(key: str, flag: object, evaluators: Mapping[str, Any], where: str, budget: list[int]) -> Mapping[str, Any]:
    made = dict(_object(flag, where))
    if made.get("state") not in ("ENABLED", "DISABLED"):
        raise UsageError(f"{where}: its state is neither ENABLED nor DISABLED.")
    variants = _object(made.get("variants"), f"{where}: variants")
    values = ("", DIRECT) if key == DENY else ("", *PATHS)
    for variant, value in variants.items():
        if value not in values:
            allowed = ", ".join(value or '""' for value in values)
            raise UsageError(f"{where}: the variant {_short(variant)} is {_short(value)}, none of {allowed}.")
    default = made.get("defaultVariant")
    if default not in (None, "", *variants):
        raise UsageError(f"{where}: there is no variant {_short(default)}, which defaultVariant names.")
    targeting = made.get("targeting")
    if targeting is not None:
        expanded = _expanded(_object(targeting, f"{where}: targeting"), evaluators, where, budget)
        for result in _results(expanded):
            if isinstance(result, str) and result not in variants:
                raise UsageError(f"{where}: there is no variant {_short(result)}, which its targeting names.")
        made["targeting"] = expanded
    return {name: made[name] for name in ("state", "variants", "defaultVariant", "targeting") if name in made}


def _expanded(rule: object, evaluators: Mapping[str, Any], where: str, budget: list[int], depth: int = 0) -> Any:
    """The rule with the evaluators that it refers to in their places. Raises UsageError for what is not allowed."""
    budget[0] -= 1
    if depth > _DEEPEST:
        raise UsageError(f"{where}: its targeting is nested deeper than {_DEEPEST}.")
    if budget[0] < 0:
        raise UsageError(
            f"{where}: the rules of the file have more than {_NODES} parts.", "Use a percentage, or an attribute."
        )
    if isinstance(rule, list):
        return [_expanded(part, evaluators, where, budget, depth + 1) for part in rule]
    if not isinstance(rule, dict):
        return rule
    if len(rule) != 1:
        raise UsageError(f"{where}: an object with {len(rule)} keys is no rule: each has one operator.")
    [(operator, arguments)] = rule.items()
    if operator == "$ref" and isinstance(arguments, str) and arguments in evaluators:
        return _expanded(evaluators[arguments], {}, f"{where}, evaluator {_short(arguments)}", budget, depth + 1)
    if operator not in _OPERATORS:
        why = _WHY_NOT.get(operator, f"rules have {', '.join(sorted(_OPERATORS))}")
        if operator == "$ref" and evaluators:
            why = f"there is no evaluator {_short(arguments)}"
        raise UsageError(f"{where}: {_short(operator)} is not allowed in a rule: {why}.")
    if operator == "var" and "$flagd" in json.dumps(arguments):
        raise UsageError(f"{where}: a rule cannot look at $flagd: the answer would change with the clock.")
    return {operator: _expanded(arguments, evaluators, where, budget, depth + 1)}


def _results(rule: object) -> Iterator[object]:
    """What the rule may come to, as far as that is written in it."""
    if not isinstance(rule, dict):
        yield rule
        return
    [(operator, arguments)] = rule.items()
    if operator in ("if", "?:") and isinstance(arguments, list):
        for number, argument in enumerate(arguments):
            if number % 2 or number == len(arguments) - 1:
                yield from _results(argument)


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: it is no object.")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
