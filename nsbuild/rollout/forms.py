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
    chain: list[Any] = []
    for variant, path in names.items():
        if lists.get(path):
            chain += [{"in": [_APP, sorted(set(lists[path]))]}, variant]
    return _flag({**names, NONE: ""}, chain)


def lists_of(flag: Mapping[str, Any] | None) -> dict[str, list[str]] | None:
    """The apps of a flag that `listing` has made, by path; None for a flag in another form."""
    found: dict[str, list[str]] = {}
    for condition, path in _chain(flag) if flag is not None else []:
        match condition:
            case {"in": [app, [*apps]]} if app == _APP and all(isinstance(one, str) for one in apps):
                found.setdefault(path, []).extend(apps)
            case _:
                return None
    return found if flag is None or _is_ours(flag) else None


def percentage(namespace: int, shadow: int) -> dict[str, Any]:
    """The flag `nsbuild-percentage`, shares in buckets: apps below `namespace`, then those below `shadow`."""
    variants = {NAMESPACE: NAMESPACE, SHADOW: SHADOW, NONE: ""}
    return _flag(variants, [{"<": [_BUCKET, namespace]}, NAMESPACE, {"<": [_BUCKET, shadow]}, SHADOW])


def shares_of(flag: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """(namespace, shadow) of a flag that `percentage` has made; None for a flag in another form."""
    found = {NAMESPACE: 0, SHADOW: 0}
    for condition, path in _chain(flag) if flag is not None else []:
        match condition:
            case {"<": [bucket, int(share)]} if bucket == _BUCKET and 0 <= share <= BUCKETS and path in found:
                found[path] = share
            case _:
                return None
    return (found[NAMESPACE], found[SHADOW]) if flag is None or _is_ours(flag) else None


def _flag(variants: Mapping[str, str], chain: list[Any]) -> dict[str, Any]:
    made = {"state": "ENABLED", "variants": dict(variants), "defaultVariant": NONE}
    return {**made, "targeting": {"if": [*chain, NONE]}} if chain else made


def _is_ours(flag: Mapping[str, Any]) -> bool:
    """Whether it settles nothing unless a condition holds, and everything in it is a condition with its variant."""
    variants = flag.get("variants", {})
    default = variants.get(flag.get("defaultVariant") or NONE, "")
    match flag.get("targeting"):
        case None:
            return flag.get("state") == "ENABLED" and default == ""
        case {"if": [*_, last]}:
            return flag.get("state") == "ENABLED" and default == "" and variants.get(last, last) == ""
    return False


def _chain(flag: Mapping[str, Any]) -> list[tuple[Any, str]]:
    match flag.get("targeting"):
        case {"if": [*chain]}:
            pairs = zip(chain[0:-1:2], chain[1:-1:2], strict=False)
            return [(condition, flag.get("variants", {}).get(variant, "")) for condition, variant in pairs]
    return []
