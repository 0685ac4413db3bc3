"""Builds of git work trees and archives, by the command."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.processes import ROOT
from support.sites import PERSON, Site, as_root, snapshot

pytest_plugins = ["support.site_fixtures"]
LOOK = 'cd "$1" && find . -type f | sort && echo "version=$SOURCE_VERSION"'


def repository(site: Site, **contents: str) -> Path:
    app = site.app(**contents)
    who = {"user": PERSON, "group": PERSON, "extra_groups": []} if ROOT else {}
    for arguments in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -q -m one"):
        env = {"PATH": "/usr/bin:/bin", "HOME": str(site.home)}
        subprocess.run(["git", *arguments.split()], cwd=app, check=True, env=env, **who)  # type: ignore[call-overload]
    return app


def test_head_is_what_is_built_and_dirty_what_is_there(site: Site) -> None:
    app = repository(site, Procfile="web: x\n", **{".gitignore": "*.log\n", ".slugignore": "spec\n", "spec/x": "x"})
    site.write("app/new", "x")
    site.write("app/x.log", "x")
    pack, before = site.buildpack(LOOK), snapshot(app)
    result = site.build(app, pack).ok()
    commit = result.record["source_version"]
    assert len(commit) == 40
    assert result.text == f"./.gitignore\n./.slugignore\n./Procfile\nversion={commit}\n"
    assert "1 file differs from HEAD, new for one" in result.err and ".slugignore took 1 path out" in result.err
    result = site.build(app, pack, "--dirty").ok()
    assert result.text == f"./.gitignore\n./.slugignore\n./Procfile\n./new\nversion={commit}\n"
    assert snapshot(app) == before


def test_a_slug_beside_the_source_is_no_difference(site: Site) -> None:
    app = repository(site, Procfile="web: x\n")
    pack = site.buildpack(LOOK)
    for _ in range(2):
        result = site.nsbuild("build", ".", "-b", pack, cwd=app).ok()
        assert "differ" not in result.err and "app.tgz" not in result.text


@as_root
def test_root_builds_a_users_work_tree(site: Site) -> None:
    """git would call it dubious; what the build gets belongs to the user."""
    app = repository(site, Procfile="web: x\n", run="x")
    result = site.build(app, site.buildpack('stat -c "%U %n" "$1/run"; touch "$1/run"; id -u'), root=True).ok()
    assert "/app/run" in result.text


def test_an_archive_is_built_and_named_after(site: Site) -> None:
    app = site.app(Procfile="web: x\n", bin__x="x")
    subprocess.run(["tar", "-C", site.path, "-czf", site.path / "v1.tar.gz", app.name], check=True)
    site.own(site.path / "v1.tar.gz")
    result = site.nsbuild("build", "v1.tar.gz", "-b", site.buildpack(LOOK)).ok()
    assert "./Procfile\n" in result.text and result.text.endswith("version=\n")
    assert (site.path / "v1.tgz").is_file()


def test_credentials_go_back_to_what_an_archive_has(site: Site) -> None:
    site.app(**{"Procfile": "web: x\n", ".netrc": "theirs"})
    subprocess.run(["tar", "-C", site.path / "app", "-czf", site.path / "v1.tgz", "."], check=True)
    site.own(site.path / "v1.tgz")
    pack = site.buildpack('echo mine > "$1/.netrc"; mkdir "$1/.ssh"; echo key > "$1/.ssh/id"')
    site.build(site.path / "v1.tgz", pack).ok()
    assert (site.out / ".netrc").read_text() == "theirs" and not (site.out / ".ssh").exists()


def test_credentials_that_slugignore_took_do_not_come_back(site: Site) -> None:
    app = site.app(**{"Procfile": "web: x\n", ".netrc": "theirs", ".slugignore": ".netrc\n"})
    site.build(app, site.buildpack('echo mine > "$1/.netrc"')).ok()
    assert not (site.out / ".netrc").exists()


def test_sources_that_are_none(site: Site) -> None:
    pack = site.buildpack()
    site.build(site.write("a.txt", "x"), pack).refused(2, "a.txt", "neither a directory nor an archive")
    site.build(site.write("a.tgz", "<html>"), pack).refused(2, "a.tgz", "web page")
    site.mkdir("empty")
    subprocess.run(["git", "init", "-q", site.path / "empty"], check=True)
    site.build(site.path / "empty", pack).refused(2, "without a commit", "--dirty")
    assert not any(site.path.glob("out*"))
