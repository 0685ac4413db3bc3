"""`nsbuild audit --prove`: a slug is run where nothing of its build is."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.processes import eventually
from support.sarif import check_sarif
from support.sites import App, Site, snapshot

from nsbuild.runtime import Proof, ProveOptions, RunOptions, Verdict, booting, prove

pytest_plugins = ["support.site_fixtures"]

SCRIPTS = """
mkdir -p "$1/bin" "$1/.profile.d"
echo 'echo booting; export PATH="$HOME/bin:$PATH"' >"$1/.profile.d/path.sh"
script() { printf '%s\\n' "$2" >"$1"; chmod +x "$1"; }
"""


def proved(site: Site, slug: str | Path, *words: str, code: int = 0) -> dict[str, dict[str, Any]]:
    """Every proof by its kind and name."""
    before = snapshot(site.out) if site.out.is_dir() else None
    done = site.nsbuild("audit", slug, "--prove", "--json", *words, timeout=300)
    assert done.code == code, (done.text[-3000:], done.err)
    assert before is None or snapshot(site.out) == before
    return {f"{one['kind']} {one['name']}": one for one in json.loads(done.out)["proofs"]}


@pytest.mark.parametrize(
    ("name", "works"),
    [
        (
            "issue-1006",
            ["import local_setuptools", "import local_setup_cfg", "import local_hatchling", "process answer"],
        ),
        ("flask-web", ["command .heroku/python/bin/flask --version", "import Flask", "process web"]),
        ("editable-root", ["import editable-root", "process answer"]),
        ("plain", ["process web", "process hello"]),
    ],
)
def test_a_real_app_works(apps: dict[str, App], name: str, works: list[str]) -> None:
    app = apps[name]
    found = proved(app.site, app.archive if name == "flask-web" else app.directory)
    assert [proof for proof in found.values() if proof["verdict"] == "fails"] == []
    assert {found[proof]["verdict"] for proof in works} == {"works"}


def test_what_the_classic_layout_breaks(apps: dict[str, App], tmp_path: Path) -> None:
    """A .pth and a shebang that name the build's place, as platforms that do not rewrite have them."""
    app = apps["flask-web"]
    slug = app.site.copy(app.directory, "flask-web-broken")
    packages = next(slug.glob(".heroku/python/lib/python3*/site-packages"))
    app.site.write(f"{packages.relative_to(app.site.path)}/easy-install.pth", "/tmp/build_4f2a9c3d/src\n")
    app.site.write(f"{slug.name}/.heroku/python/bin/lost", "#!/tmp/build_4f2a9c3d/bin/python\n", 0o755)
    found = proved(app.site, slug, code=14)
    assert {name: proof["verdict"] for name, proof in found.items() if proof["verdict"] == "fails"} == {
        "command .heroku/python/bin/lost": "fails",
        "import easy-install.pth": "fails",
    }
    assert "/tmp/build_4f2a9c3d/src" in found["import easy-install.pth"]["said"]
    assert found["command .heroku/python/bin/lost"]["status"] in (126, 127)


def test_commands(site: Site) -> None:
    pack = site.buildpack(
        SCRIPTS
        + """
        script "$1/bin/version" $'#!/bin/sh\\n[ "$1" = --version ] && echo one two'
        script "$1/bin/help" $'#!/bin/sh\\n[ "$1" = --help ] && echo usage'
        script "$1/bin/neither" $'#!/bin/sh\\necho what is $1; exit 3'
        script "$1/bin/reads" $'#!/bin/sh\\ncat; [ "$1" = --version ]'
        script "$1/bin/crashes" $'#!/usr/bin/python3\\nimport nowhere'
        script "$1/bin/node-crash" $'#!/usr/bin/env node\nfunction f() { throw new TypeError("of the app"); }\nf()'
        script "$1/bin/node-module" $'#!/usr/bin/env node\nrequire("nowhere")'
        script "$1/bin/node-opens" $'#!/usr/bin/env node\nrequire("fs").readFileSync(process.argv[2])'
        script "$1/bin/node-refuses" $'#!/usr/bin/env node\nconsole.error("Error: no such option"); process.exit(1)'
        script "$1/bin/killed" $'#!/bin/sh\\nkill -9 $$'
        script "$1/bin/interpreter" '#!/app/.heroku/gone'
        script "$1/bin/writes" $'#!/bin/sh\\necho x > "$HOME/new" || exit 1'
        echo no program > "$1/bin/data"; mkdir "$1/bin/directory"; ln -s nowhere "$1/bin/dangling"
        """
    )
    site.build(site.app("app", x="x"), pack).ok()
    found = proved(site, site.out, code=14)
    assert {name.removeprefix("command bin/"): proof["verdict"] for name, proof in found.items()} == {
        "version --version": "works",
        "help --help": "works",
        "neither": "unclear",
        "reads --version": "works",
        "crashes": "fails",
        "node-crash": "fails",
        "node-module": "fails",
        "node-opens": "unclear",
        "node-refuses": "unclear",
        "killed": "fails",
        "interpreter": "fails",
        "writes": "unclear",
    }
    assert found["command bin/version --version"]["said"] == "one two"
    assert found["command bin/neither"]["status"] == 3
    said = {name: found[f"command bin/{name}"]["said"] for name in ("crashes", "node-crash", "node-module")}
    assert said == {
        "crashes": "ModuleNotFoundError: No module named 'nowhere'",
        "node-crash": "TypeError: of the app",
        "node-module": "Error: Cannot find module 'nowhere'",
    }


def test_sarif_has_what_fails(site: Site) -> None:
    app = site.app(
        "app", Procfile="web: echo; echo because; exit 3\nfine: true\n", **{"x.pth": "/tmp/build_1234abcd"}
    )
    site.build(app, site.buildpack(SCRIPTS + """script "$1/bin/gone" '#!/app/.heroku/gone'""")).ok()
    done = site.nsbuild("audit", "out", "--sarif", "--prove-command", "echo no; false")
    log = json.loads(done.out)
    check_sarif(log)
    failed = {
        one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]: one["message"]["text"]
        for one in log["runs"][0]["results"]
        if one["ruleId"] == "proof"
    }
    assert done.code == 14 and failed == {
        "Procfile": "The process 'web' fails (exit 3): because",
        "bin/gone": failed["bin/gone"],
        ".": "The given 'echo no; false' fails (exit 1): no",
    }
    assert "/app/bin/gone: " in failed["bin/gone"] and "(exit 12" in failed["bin/gone"]
    rules = log["runs"][0]["tool"]["driver"]["rules"]
    assert {rule["id"] for rule in rules} == {
        "pth",
        "interpreter-missing",
        "proof",
    }


def test_processes(site: Site) -> None:
    site.build(
        site.app(
            "app",
            Procfile="web: python3 -m http.server $PORT\nrelease: false\nonce: echo done\nlives: exec sleep 600\n"
            "dies: sleep 0.2; echo because; exit 7\nstubborn: trap '' TERM; echo $NAME; sleep 0.5\n",
        ),
        site.buildpack(),
    ).ok()
    found = proved(site, site.out, "--env", "NAME=of a config var", code=14)
    assert {name.removeprefix("process "): (one["verdict"], one["status"]) for name, one in found.items()} == {
        "web": ("works", None),
        "once": ("works", 0),
        "lives": ("works", None),
        "dies": ("fails", 7),
        "stubborn": ("works", 0),
    }
    assert found["process dies"]["said"] == "because"
    assert found["process stubborn"]["said"] == "of a config var"


def test_a_web_process_that_does_not_listen(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.build(site.app("app", Procfile="web: trap '' TERM; echo waiting; sleep 600"), site.buildpack()).ok()
    monkeypatch.setattr(booting, "LISTENS", 5.0)
    monkeypatch.setattr(booting, "GRACE", 0.5)
    told: list[Proof] = []
    run = RunOptions(workspace_dir=str(site.path / "work"))
    assert prove(site.out, ProveOptions(run=run), tell=told.append) == told
    assert told == [Proof("process", "web", Verdict.FAILS, None, "it does not listen on PORT; waiting", "Procfile")]


def test_given_commands_and_places(site: Site) -> None:
    site.build(site.app("app", x="x"), site.buildpack("echo x >/tmp/there")).ok()
    words = ("--prove-command", "cat x", "--prove-command", "touch /app/y", "--path", "/tmp/build_1234abcd")
    found = proved(site, site.out, *words, code=14)
    assert (found["given cat x"]["verdict"], found["given cat x"]["said"]) == ("works", "x")
    assert "Read-only file system" in found["given touch /app/y"]["said"]
    done = site.nsbuild("audit", site.out, "--prove", "--path", "/usr/bin")
    done.refused(2, "/usr/bin is there at run time as well")


def test_text_for_people(site: Site) -> None:
    site.build(site.app("app", Procfile="once: echo fine"), site.buildpack()).ok()
    text = site.nsbuild("audit", "out", "--prove").ok().text
    assert "works   process once: fine\nrun, read-only and where it was not built: 1 works\n" in text
    site.build("app", site.buildpack('rm "$1/Procfile"')).ok()
    assert "there is nothing to run" in site.nsbuild("audit", "out", "--prove").ok().text


def test_misuse_and_what_does_not_boot(site: Site) -> None:
    site.build(site.app(), site.buildpack('mkdir "$1/.profile.d"; echo "echo no; exit 3" >"$1/.profile.d/x.sh"')).ok()
    site.nsbuild("audit", "out", "--prove").refused(2, "does not boot", "end with 3 (no)")
    done = site.nsbuild("audit", "out", "--env", "A=b")
    assert (done.code, done.text) == (2, "") and "--prove" in done.err


@pytest.mark.parametrize(
    "says",
    [
        "[" * 100_000,
        r'[[["name", ["a\u0000b"]]], []]',
        r'[[["name", ["\ud800"]]], []]',
        r'[[], [["\u0000", "\ud800.pth", "/nowhere"]]]',
    ],
    ids=["deep", "nul", "no-utf-8", "pth"],
)
def test_a_python_that_says_anything(site: Site, says: str) -> None:
    """What a slug's own Python answers is the slug's, like all that is in it."""
    site.build(site.app("app", says=f"\n{says}"), site.buildpack(SCRIPTS)).ok()
    site.write("out/bin/python3", "#!/bin/sh\nexec cat /app/says\n", 0o755)
    found = proved(site, site.out, code=14)
    assert [proof["verdict"] for name, proof in found.items() if name.startswith("import ")] == ["fails"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(site: Site, number: int) -> None:
    site.build(site.app("app", Procfile="web: touch /tmp/up; exec sleep 600"), site.buildpack()).ok()
    process = site.start("audit", "out", "--prove")
    try:
        assert eventually(lambda: bool(site.inside("tmp/up")), 50)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=50)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    assert not site.processes() and not site.litter()
