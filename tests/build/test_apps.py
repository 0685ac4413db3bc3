"""The real apps with the real buildpacks, pip and npm: built, built again from the cache, and their slugs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.sites import APPS, BUILDPACKS, CHAINS, PERSON, App, Site, as_root, from_wheels, holding, snapshot

pytest_plugins = ["support.site_fixtures"]

RESTORED = {
    "issue-1006": [b"Restoring cache\n", b"Using cached install of python", b"Restoring cache: node_modules"],
    "flask-web": [b"Restoring cache\n", b"Using cached install of python"],
    "editable-root": [b"Restoring cache\n", b"Using cached install of python"],
    "plain": [b"Build 2 of this cache"],
}


@pytest.fixture(params=CHAINS)
def app(request: pytest.FixtureRequest, apps: dict[str, App]) -> App:
    found: App = apps[request.param]
    return found


def test_is_built(app: App) -> None:
    app.first.ok()
    assert not app.first.record["cache_hit"]
    assert app.first.record["uid"] == (PERSON or 12000)
    names = [Path(pack["reference"]).name for pack in app.first.record["buildpacks"]]
    assert tuple(names) == CHAINS[app.name]


def test_is_built_again_from_its_cache_in_another_workspace(app: App) -> None:
    app.second.ok()
    assert app.second.record["cache_hit"]
    for line in RESTORED[app.name]:
        assert line not in app.first.out
        assert line in app.second.out


def test_no_file_of_the_slug_holds_the_path_of_the_workspace(app: App, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", app.archive, "-C", tmp_path], check=True)
    for top in (app.directory, tmp_path):
        assert sum(1 for _ in top.rglob("*.pyc")) > (50 if "python" in CHAINS[app.name] else -1)
        for needle in (f"workspaces-{app.name}", "/build-2", str(app.site.path)):
            assert holding(top, needle.encode()) == []


def test_the_source_is_as_it_was(app: App) -> None:
    now, before = (snapshot(top, times=False) for top in (app.source, APPS / app.name))
    assert {name: (fact[0], fact[3]) for name, fact in now.items()} == {
        name: (fact[0], fact[3]) for name, fact in before.items()
    }


def test_later_buildpacks_see_what_the_first_has_installed(apps: dict[str, App]) -> None:
    built = (apps["issue-1006"].directory / "public/answer.txt").read_text()
    assert "setuptools" in built and "hatchling" in built, built
    assert built.strip() in (apps["issue-1006"].directory / "public/index.html").read_text()


def test_what_buildpacks_report_is_in_the_record(apps: dict[str, App]) -> None:
    python, node = apps["issue-1006"].first.record["buildpacks"]
    assert python["name"] == "Python" and node["name"] == "Node.js"
    assert python["report"]["package_manager"] == "pip"
    assert python["report"]["python_version"].startswith("3.")


def test_the_classic_layout_has_the_failure_of_issue_1006(apps: dict[str, App]) -> None:
    """Python's compile rewrites the .pth files, so Node's postbuild finds none of the packages."""
    app = apps["issue-1006"]
    site = app.site
    slug, caches = snapshot(app.directory), {str(path): snapshot(path) for path in site.caches()}
    offline, env = from_wheels(site)
    result = site.build(
        app.source,
        BUILDPACKS / "python",
        BUILDPACKS / "node",
        "--layout",
        "classic",
        *map(str, offline),
        env=env,
        output=app.directory,
        timeout=300,
    )
    result.refused(11, str(BUILDPACKS / "node"), "bin/compile")
    assert "failed to compile Node.js app" in result.err
    assert b"PackageNotFoundError" in result.out or b"ModuleNotFoundError" in result.out
    assert result.record["layout"] == "classic"
    assert [phase["exit_code"] for phase in result.record["phases"] if phase["name"] == "compile"] == [0, 1]
    assert snapshot(app.directory) == slug
    assert {str(path): snapshot(path) for path in site.caches()} == caches


@as_root
def test_as_root_of_what_belongs_to_root(apps: dict[str, App], site: Site) -> None:
    """The same slug comes out; nothing inside ran as uid 0."""
    user = apps["issue-1006"]
    offline, env = from_wheels(site)
    packs = (BUILDPACKS / "python", BUILDPACKS / "node")
    result = site.build(APPS / "issue-1006", *packs, *map(str, offline), env=env, root=True, timeout=300).ok()
    assert result.record["uid"] not in (0, PERSON)
    assert (site.out / "public/answer.txt").read_text() == (user.directory / "public/answer.txt").read_text()
    assert holding(site.out, b".workspaces") == []
    assert not any(path.lstat().st_uid == 0 for path in site.out.rglob("*"))
