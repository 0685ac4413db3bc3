"""Supplementary groups, which an ordinary user cannot drop. The variant `groups` has two, and a file of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vm.checks.conftest import Ran

FILE = Path("/usr/share/of-a-group")


def test_a_build_reads_what_only_a_group_of_its_starter_may_read(nsbuild: Callable[..., Ran], tmp_path: Path) -> None:
    """As docs/security.md says; were it dropped, doctor's note would be wrong."""
    assert (FILE.stat().st_uid, FILE.stat().st_gid, FILE.stat().st_mode & 0o777) == (0, 4, 0o640)
    done = nsbuild("exec", "--build-dir", tmp_path, "--", "sh", "-c", f"cat {FILE}; id -G; echo >{FILE}")
    content, groups = done.stdout.splitlines()
    assert content == FILE.read_text().strip()
    # The build's own, and those that its user namespace has no name for.
    assert groups.split() == [str(tmp_path.stat().st_gid), "65534"]
    assert "Permission denied" in done.stderr or "Read-only" in done.stderr
    assert FILE.read_text().strip() == content
