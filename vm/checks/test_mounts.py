"""A BUILD_DIR where nothing can be executed, and a workspace of 16 MiB: the size of a tmpfs, or a user's quota."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vm.checks.conftest import INLINE, Ran

App = Callable[[Path, str], Path]
SMALL = pytest.mark.parametrize(
    ("mount", "reason"), [("/srv/small", "No space left on device"), ("/srv/quota", "Disk quota exceeded")]
)


def test_a_build_dir_on_a_noexec_mount_is_refused_by_name(
    nsbuild: Callable[..., Ran], app: App, emptied: Callable[[str], Path]
) -> None:
    build = app(emptied("/srv/noexec") / "app", "echo compiled")
    done = nsbuild("exec", "--build-dir", build, "--", "/app/bin/compile")
    assert done.returncode == 126
    assert f"{build} is on a mount that forbids it (noexec)" in done.stderr


@SMALL
def test_a_full_workspace_fails_the_build_and_leaves_the_last_slug(
    nsbuild: Callable[..., Ran], app: App, emptied: Callable[[str], Path], tmp_path: Path, mount: str, reason: str
) -> None:
    small = emptied(mount)
    slug = tmp_path / "slug"
    source = app(tmp_path / "app", "echo first >$1/made")
    assert nsbuild("build", source, "-b", INLINE, "-o", slug).returncode == 0
    (source / "bin/compile").write_text("#!/bin/bash\nhead -c 32M /dev/zero >$1/large\n")
    done = nsbuild("build", source, "-b", INLINE, "-o", slug, "--workspace-dir", small)
    assert done.returncode == 11
    assert reason in done.stdout + done.stderr
    assert (slug / "made").read_text() == "first\n"
    assert list(small.iterdir()) == []


@SMALL
def test_a_workspace_that_does_not_hold_the_source_is_said_to_be_full(
    nsbuild: Callable[..., Ran], app: App, emptied: Callable[[str], Path], tmp_path: Path, mount: str, reason: str
) -> None:
    small = emptied(mount)
    source = app(tmp_path / "app", "echo compiled")
    (source / "large").write_bytes(b"x" * (32 << 20))
    done = nsbuild("build", source, "-b", INLINE, "-o", tmp_path / "slug", "--workspace-dir", small)
    assert done.returncode == 125
    assert reason in done.stderr
    assert "Free some space" in done.stderr
    assert not (tmp_path / "slug").exists()
    assert list(small.iterdir()) == []


@pytest.mark.parametrize("mount", ["/srv/small", "/srv/quota"])
def test_a_slug_that_does_not_fit_is_not_called_damaged(
    nsbuild: Callable[..., Ran], app: App, emptied: Callable[[str], Path], tmp_path: Path, mount: str
) -> None:
    source = app(tmp_path / "app", "head -c 32M /dev/urandom >$1/large")
    assert nsbuild("build", source, "-b", INLINE, "-o", tmp_path / "slug.tgz").returncode == 0
    small = emptied(mount)
    done = nsbuild("audit", tmp_path / "slug.tgz", "--workspace-dir", small)
    assert done.returncode == 2
    assert f"There is no room to unpack {tmp_path}/slug.tgz: " in done.stderr
    assert list(small.iterdir()) == []
