"""The forms in which `rollout set` writes its flags, and reads them again; a person may write any other rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nsbuild.rollout.bucket import BUCKETS
from nsbuild.rollout.decision import DIRECT, NAMESPACE, SHADOW
from nsbuild.rollout.flags import DENY

NONE = "none"
"""The variant that settles nothing."""
_APP = {"var": "app"}
_BUCKET = {"var": "bucket"}


def listing(flag: str, lists: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The flag `nsbuild-deny` or `nsbuild-allow`: apps by path. Apps are sorted, for people who compare files."""
    names = {"denied": DIRECT} if flag == DENY else {NAMESPACE: NAMESPACE, SHADOW: SHADOW, DIRECT: DIRECT}
    chain = [
        ({"in": [_APP, sorted(set(lists[path]))]}, variant) for variant, path in names.items() if lists.get(path)
    ]
    return _flag({**names, NONE: ""}, chain)


def lists_of(flag: Mapping[str, Any] | None) -> dict[str, list[str]] | None:
    """The apps of a flag that `listing` has made, by path; None for a flag in another form."""
    found: dict[str, list[str]] = {}
    for condition, path in _conditions(flag) if flag is not None else []:
        match condition:
            case {"in": [app, [*apps]]} if app == _APP and all(isinstance(one, str) for one in apps):
                found.setdefault(path, []).extend(apps)
            case _:
                return None
    return found if flag is None or _is_ours(flag) else None


def percentage(namespace: int, shadow: int) -> dict[str, Any]:
    """The flag `nsbuild-percentage`, shares in buckets: apps below `namespace`, then those below `shadow`."""
    variants = {NAMESPACE: NAMESPACE, SHADOW: SHADOW, NONE: ""}
    return _flag(variants, [({"<": [_BUCKET, namespace]}, NAMESPACE), ({"<": [_BUCKET, shadow]}, SHADOW)])


def shares_of(flag: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """(namespace, shadow) of a flag that `percentage` has made; None for a flag in another form."""
    found = {NAMESPACE: 0, SHADOW: 0}
    for condition, path in _conditions(flag) if flag is not None else []:
        match condition:
            case {"<": [bucket, int(share)]} if bucket == _BUCKET and 0 <= share <= BUCKETS and path in found:
                found[path] = share
            case _:
                return None
    return (found[NAMESPACE], found[SHADOW]) if flag is None or _is_ours(flag) else None


def _flag(variants: Mapping[str, str], chain: Sequence[tuple[Any, str]]) -> dict[str, Any]:
    """One `if` in the other: flagd's schema has none of more than three arguments (flagd-schemas, targeting.json)."""
    made = {"state": "ENABLED", "variants": dict(variants), "defaultVariant": NONE}
    rule: Any = NONE
    for condition, variant in reversed(chain):
        rule = {"if": [condition, variant, rule]}
    return {**made, "targeting": rule} if chain else made


def _conditions(flag: Mapping[str, Any]) -> list[tuple[Any, str]]:
    """Each condition of the chain with the path it gives."""
    return [(condition, _value(flag, variant)) for condition, variant in _chain(flag)[0]]


def _is_ours(flag: Mapping[str, Any]) -> bool:
    """Whether it settles nothing unless a condition holds."""
    ends = (_chain(flag)[1], flag.get("defaultVariant"))
    return flag.get("state") == "ENABLED" and all(end is None or _value(flag, end) == "" for end in ends)


def _value(flag: Mapping[str, Any], variant: object) -> str:
    """A variant's value; something that is no path for what is no variant."""
    found = flag.get("variants", {}).get(variant, "?") if isinstance(variant, str) else "?"
    return str(found)


def _chain(flag: Mapping[str, Any]) -> tuple[list[tuple[Any, Any]], Any]:
    """The conditions with what follows from each, and what is at the end."""
    chain: list[tuple[Any, Any]] = []
    rule = flag.get("targeting")
    while True:
        match rule:
            case {"if": [condition, variant, rest]}:
                chain.append((condition, variant))
                rule = rest
            case {"if": [condition, variant, *rest]}:
                chain.append((condition, variant))
                rule = {"if": rest} if rest else None
            case _:
                return chain, rule
