"""`nsbuild.toml` in a build, and `nsbuild config`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.sites import Site

pytest_plugins = ["support.site_fixtures"]

SHOW = 'echo "stack $STACK"; for name in "$3"/*; do echo "${name##*/}=$(cat "$name")"; done; echo "pack $0"'
USER = "home/.config/nsbuild/nsbuild.toml"


def test_option_then_app_then_user(site: Site) -> None:
    site.buildpack(SHOW, "app/vendor/pack")
    app = site.app(
        **{"nsbuild.toml": 'buildpack = ["./vendor/pack"]\nstack = "of-app"\n[env]\nA = "app"\nB = "app"\n'}
    )
    site.write(USER, 'stack = "of-user"\ntimeout = "1m"\n[env]\nA = "user"\nC = "user"\n')
    result = site.build(app, "--env", "B=option").ok()
    lines = result.text.splitlines()
    assert lines[:4] == ["stack of-app", "A=app", "B=option", "C=user"]
    assert f"nsbuild: {app}/nsbuild.toml sets buildpack, env.A, env.B, stack.\n" in result.err
    assert "user" not in result.err.replace(str(site.home), "")  # values are not shown
    assert "stack option" in site.build(app, "--stack", "option").ok().text


def test_a_command_says_only_what_it_takes(site: Site) -> None:
    app = site.app(**{"nsbuild.toml": 'stack = "of-app"\nreproducible = true\n[env]\nA = "app"\n'})
    site.write(USER, 'audit = "off"\n')
    pack = site.buildpack("echo compiled")
    result = site.nsbuild("detect", app, "-b", pack).ok()
    assert f"nsbuild: {app}/nsbuild.toml sets env.A, stack.\n" in result.err
    assert "sets audit" not in result.err
    assert "nsbuild.toml sets audit.\n" in site.build(app, pack).ok().err


def test_a_list_given_as_an_option_takes_the_place_of_the_files(site: Site) -> None:
    site.write(USER, 'buildpack = ["./nosuch"]\n')
    site.build(site.app(), site.buildpack("echo compiled")).ok()
    site.build(site.app()).refused(2, "nosuch")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('bind = ["/home"]', ("app/nsbuild.toml: `bind`", "Give it as an option")),
        ("stack = \n", ("app/nsbuild.toml: ", "line 1")),
        ("stak = 1", ("app/nsbuild.toml: ", "Did you mean `stack`?")),
    ],
)
def test_a_mistake_ends_the_build_before_it_begins(site: Site, text: str, words: tuple[str, ...]) -> None:
    app = site.app(**{"nsbuild.toml": text})
    for result in (site.build(app, site.buildpack("echo compiled")), site.nsbuild("config", app)):
        assert not result.refused(2, *words).out


def test_config_tells_values_and_where_they_are_from(site: Site) -> None:
    app = site.app(**{"nsbuild.toml": "run-path = '/srv/x'\n[env]\nTOKEN = 'hunter2'\n"})
    site.write(USER, "no-userns = true\npass-env = ['LANG']\n")
    result = site.nsbuild("config", app, "--json").ok()
    found = json.loads(result.text)
    user = str(site.path / USER)
    assert found["user_file"] == user
    settings = found["settings"]
    assert settings["run-path"] == {"value": "/srv/x", "from": f"{app}/nsbuild.toml"}
    assert settings["no-userns"] == {"value": True, "from": user}
    assert settings["pass-env"] == {"value": ["LANG"], "from": user}
    assert settings["stack"] == {"value": "heroku-24", "from": "default"}
    assert settings["env.TOKEN"] == {"value": None, "from": f"{app}/nsbuild.toml"}
    text = site.nsbuild("config", app).ok().text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert f'run-path "/srv/x" ({app}/nsbuild.toml)' in lines
    assert f"env.TOKEN (not shown) ({app}/nsbuild.toml)" in lines
    assert "hunter2" not in text + result.text


def test_config_shows_no_secret_of_a_url(site: Site) -> None:
    site.write(USER, 'buildpack = ["https://me:hunter2@example.org/x.git"]\n[registry]\n"a/*" = "https://hunter2@x/"')
    for words in (["config"], ["config", "--json"]):
        text = site.nsbuild(*words).ok().text
        assert "example.org/x.git" in text and "hunter2" not in text


def test_config_without_a_source_is_the_users(site: Site) -> None:
    site.write("nsbuild.toml", "stack = 'never read'\n")
    site.write(USER, "stack = 'of-user'\n")
    assert '"of-user"' in site.nsbuild("config").ok().text


def test_without_a_home_there_is_no_file_of_the_users(site: Site) -> None:
    """In a container with any uid: no HOME, and no account to look it up in."""
    script = (
        "import os, platformdirs, sys\n"
        "def nowhere(*words): raise RuntimeError('no home')\n"
        "platformdirs.user_config_path = nowhere\n"
        "from nsbuild.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    app = site.app(**{"nsbuild.toml": "network = 'none'\n"})
    words = [sys.executable, "-c", script, "config"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("The user's file is nowhere: there is no home directory.\n")
    done = subprocess.run([*words, str(app)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Give it as an option, or in a file of yours." in done.stderr


def test_compile_and_exec_read_no_file(site: Site) -> None:
    site.write(USER, "this is no TOML")
    app = site.app(**{"nsbuild.toml": "neither is this"})
    assert site.nsbuild("exec", "--build-dir", app, "--", "pwd").ok().text == "/app\n"
