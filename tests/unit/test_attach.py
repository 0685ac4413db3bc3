"""Adopt or bind: decided from a few facts."""

from __future__ import annotations

import pytest

from nsbuild.wrap.attach import Facts, choose

ME, OTHER = 1000, 1001
MINE = Facts(path="/builds/one", mount=7, uid=ME, mode=0o755, parent_uid=ME, parent_mode=0o755, parent_writable=True)


@pytest.mark.parametrize("uid", [ME, 0])
@pytest.mark.parametrize("mount", [None, 7])
def test_what_can_be_renamed_is_adopted(uid: int, mount: int | None) -> None:
    for wanted in ("auto", "adopt"):
        assert choose(MINE, uid, mount=mount, wanted=wanted).how == "adopt"
    assert choose(MINE, uid, mount=mount, wanted="bind").how == "bind"


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (MINE.replace(mount_point=True), "/builds/one is a mount point"),
        (MINE.replace(mounts_inside=True), "mounted below /builds/one"),
        (MINE.replace(mount=8), "another file system"),
        (MINE.replace(parent_writable=False), "/builds cannot be written"),
        (MINE.replace(writable=False), "no write permission of its own"),
        (MINE.replace(uid=OTHER, parent_uid=OTHER, parent_mode=0o1777), "/builds is sticky"),
    ],
)
def test_what_cannot_is_bound_and_why_is_said(facts: Facts, why: str) -> None:
    for wanted in ("auto", "adopt"):
        choice = choose(facts, ME, mount=7, wanted=wanted)
        assert choice.how == "bind"
        assert why in choice.why


@pytest.mark.parametrize(
    "facts",
    [
        MINE.replace(parent_uid=OTHER, parent_mode=0o1777),
        MINE.replace(uid=OTHER, parent_mode=0o1777),
        MINE.replace(uid=OTHER, parent_uid=OTHER, parent_mode=0o777),
    ],
    ids=["the directory is ours", "the parent is ours", "not sticky"],
)
def test_a_sticky_parent_is_in_the_way_only_where_neither_is_ours(facts: Facts) -> None:
    assert choose(facts, ME).how == "adopt"


def test_root_minds_no_sticky_bit() -> None:
    assert choose(MINE.replace(uid=OTHER, parent_uid=OTHER, parent_mode=0o1777), 0).how == "adopt"


def test_the_workspaces_mount_counts_once_it_is_known() -> None:
    assert choose(MINE.replace(mount=8), ME, mount=None).how == "adopt"
