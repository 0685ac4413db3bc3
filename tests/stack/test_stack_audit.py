"""Whether a script's interpreter will be there: the audit asks the stack root, not this host."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.sites import Site
from support.stacks import image, layer_of

from nsbuild.stack import HOST, StackRoot

pytest_plugins = ["support.site_fixtures"]

INTERPRETERS = ("/bin/cat", "/usr/bin/python3", "/usr/bin/only-here", "/home/x/ruby")
FOREIGN = {"python3", "ruby"}
"""What the stack of these tests has not, and its own programs are cat and only-here."""


@pytest.fixture
def stack(site: Site, little: Path) -> Path:
    site.write("little/usr/bin/only-here", "#!/bin/bash\n", 0o755)
    site.write("little/home/x/ruby", "#!/bin/bash\n", 0o755)  # no process is shown it
    return little


@pytest.fixture
def scripts(site: Site) -> Path:
    """An app with a script of each interpreter, called as it."""
    for path in INTERPRETERS:
        site.write(f"app/{Path(path).name}", f"#!{path}\n", 0o755)
    return site.path / "app"


def foreign(findings: list[dict[str, str]]) -> set[str]:
    assert {(one["kind"], one["severity"]) for one in findings} <= {("interpreter-foreign", "stale")}
    return {one["file"] for one in findings}


def audited(site: Site, slug: str | Path, *words: str | Path) -> tuple[set[str], list[str]]:
    """Files with a foreign interpreter, and what was not looked into."""
    report = json.loads(site.nsbuild("audit", slug, "--json", *words).ok().out)
    return foreign(report["findings"]), [f"{one['file']} {one['reason']}" for one in report["problems"]]


@pytest.mark.parametrize("output", ["slug", "slug.tgz"])
def test_a_build_asks_its_own_root(site: Site, stack: Path, scripts: Path, output: str) -> None:
    pack = site.buildpack()
    there = site.build(scripts, pack, "--stack-root", str(stack), output=site.path / output).ok().record
    assert foreign(there["audit"]) == FOREIGN
    here = site.build(scripts, pack, output=site.path / output).ok().record
    assert foreign(here["audit"]) == {"only-here", "ruby"}


def test_the_audit_of_a_slug_asks_what_it_runs_on(site: Site, stack: Path, scripts: Path) -> None:
    site.build(scripts, site.buildpack(), "--stack-root", str(stack)).ok()
    found, problems = audited(site, site.out)
    assert found == set() and ".nsbuild-slug names a stack root that is not here, packages:" in problems[0]
    assert audited(site, site.out, "--stack-root", stack) == (FOREIGN, [])
    assert audited(site, site.out, "--stack-root", "/") == ({"only-here", "ruby"}, [])
    site.nsbuild("audit", site.out, "--stack-root", "nowhere").refused(2, "nowhere cannot be read")


def test_of_an_image_it_is_known_without_a_word(site: Site, stack: Path, scripts: Path) -> None:
    image(site.path / "stack", layer_of(stack))
    site.build(scripts, site.buildpack(), "--stack-root", str(site.path / "stack")).ok()
    assert audited(site, site.out) == (FOREIGN, [])
    shutil.rmtree(site.home / ".cache/nsbuild/stacks")
    assert [problem.partition(", sha256:")[0] for problem in audited(site, site.out)[1]] == [
        ".nsbuild-slug names a stack root that is not here"
    ]


def test_a_proof_runs_on_it(site: Site, stack: Path) -> None:
    site.build(site.app(x=""), site.buildpack(), "--stack-root", str(stack)).ok()
    site.nsbuild("audit", site.out, "--stack-root", stack, "--prove-command", "test -e /usr/bin/only-here").ok()
    other = site.nsbuild("audit", site.out, "--prove-command", "test -e /usr/bin/only-here")
    assert other.code == 14 and "was built on the stack root packages:" in other.err


def test_links_lead_into_the_root(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "home").mkdir()
    for name in ("usr/bin/real", "home/hidden"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "usr/bin/data").write_text("")
    os.mkfifo(tmp_path / "usr/bin/fifo", 0o755)
    (tmp_path / "bin").symlink_to("usr/bin")
    up = "../" * 20
    links = {
        "absolute": "/usr/bin/real",
        "far-up": f"{up}usr/bin/real",
        "twice": "/etc/alternative",
        "host": "/usr/bin/env",
        "outside": f"{up}{str(tmp_path)[1:]}/home/hidden",
        "hidden": "/home/hidden",
        "circle": "circle",
        "long": "x" * 4000,
        "proc": "/proc/self/exe",
    }
    for name, target in links.items():
        (tmp_path / "usr/bin" / name).symlink_to(target)
    (tmp_path / "etc/alternative").symlink_to("../usr/bin/absolute")
    starts = StackRoot(str(tmp_path), "").starts
    names = [
        *links,
        "real",
        "data",
        "fifo",
        "none",
        "real/below",
        "../../home/hidden",
        "a\0b",
        "n" * 300,
        "d/" * 3000,
    ]
    assert {name for name in names if starts(f"/bin/{name}")} == {"absolute", "far-up", "twice", "real"}
    assert not any(starts(path) for path in ("/", "/usr", "/..", "/../../bin/env", "//", "/tmp", "/proc/self/exe"))


def test_what_may_not_be_looked_at_is_not_known(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root looks at everything")
    (tmp_path / "usr/closed").mkdir(parents=True)
    (tmp_path / "usr/closed/tool").write_text("")
    (tmp_path / "usr/closed").chmod(0)
    try:
        assert StackRoot(str(tmp_path), "").starts("/usr/closed/tool") is None
    finally:
        (tmp_path / "usr/closed").chmod(0o700)


def test_the_hosts_own() -> None:
    assert HOST.starts("/bin/sh") and HOST.starts("/usr/bin/env")
    assert not HOST.starts("/usr/bin/of-no-host") and not HOST.starts("/tmp")
