"""Our apps with their real buildpacks: refused a namespace, or failing in it alone, they are built, and work."""

from __future__ import annotations

import subprocess

import pytest
from rollout.fleets import NODE, Fleet, fresh, offline
from support.builders import Builder
from support.refusals import no_user_namespaces
from support.sites import BUILDPACKS, holding, snapshot

pytest_plugins = ["support.builder_fixtures", "rollout.fleet_fixtures"]

APPS: dict[str, tuple[str, str | dict[str, str], str]] = {
    "python": ("python", "flask-web", '.heroku/python/bin/python check.py | grep "200 OK"'),
    "node": ("node", NODE, "node -e \"require('page')\""),
    "bash": ("inline", "plain", "bash hello.sh"),
}
"""For each: the buildpack, the app, and what shows that it works where it was built."""
SPOILT = """#!/bin/sh
"$(dirname "$0")/real" "$@" || exit
[ "$1" != /app ] || { rm -rf "$1"/*; echo spoilt > "$2/spoilt"; exit 3; }
"""


@pytest.mark.parametrize("app", APPS)
def test_both_ways_back(fleet: Fleet, app: str) -> None:
    builder = fleet.builder
    pack, source, works = APPS[app]
    copied = builder.site.copy(BUILDPACKS / pack, f"packs/{pack}")
    (copied / "bin/compile").rename(copied / "bin/real")
    builder.site.write(f"packs/{pack}/bin/compile", SPOILT, 0o755)
    words, env = offline(builder)
    made = []
    for prepare in (no_user_namespaces, None):
        fresh(builder, source)
        empty_cache(builder)
        (copied / "export").unlink(missing_ok=True)
        result = fleet.compile("--rescue", *words, pack=copied, env=env, timeout=300, prepare=prepare).ok()
        assert result.record["path"] == "direct"
        made.append(set(snapshot(builder.build)))
        subprocess.run(["bash", "-ec", works], cwd=builder.build, check=True, stdout=subprocess.DEVNULL)
        assert holding(builder.build, b"nsbuild/copies") == []
        assert not (builder.cache / "spoilt").exists()
    assert [(row.result, row.arm, row.namespace_exit_code) for row in fleet.rows()] == [
        ("fallback", "direct", None),
        ("rescued", "direct", 3),
    ]
    assert made[0] == made[1]


def empty_cache(builder: Builder) -> None:
    for path in builder.cache.iterdir():
        subprocess.run(["rm", "-rf", path], check=True)
