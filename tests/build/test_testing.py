"""nsbuild test: test-compile, test-setup and test, in what a dyno of the app would have."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from support.sites import Result, Site

pytest_plugins = ["support.site_fixtures"]


def outcome(site: Site, *packs: Any, words: tuple[str, ...] = (), app: dict[str, Any] | None = None) -> Result:
    if app is not None:
        site.app(**{"Procfile": "web: x\n", "app.json": json.dumps(app)})
    elif not (site.path / "app").exists():
        site.app()
    report = site.path / "record.json"
    report.unlink(missing_ok=True)
    named = [word for pack in packs for word in ("-b", pack)]
    result = site.nsbuild("test", site.path / "app", *named, *words, "--report", report)
    if report.exists():
        result.record = json.loads(report.read_text())
    return result


def test_test_compile_goes_before_compile_and_bin_test_is_the_last_buildpacks(site: Site) -> None:
    one = site.buildpack(
        "echo never one",
        "one",
        **{"test-compile": 'echo "test-compile $*"; echo "export A=1" > export', "test": "echo never"},
    )
    two = site.buildpack('echo "compile $* [$A]"', "two", test='echo "test $*"', report="echo never >&2", release="x")
    result = outcome(site, one, two).ok()
    arguments = "/app /tmp/cache /tmp/env"
    assert result.text.splitlines() == [f"test-compile {arguments}", f"compile {arguments} [1]", "test /app /tmp/env"]
    names = [phase["name"] for phase in result.record["phases"]]
    assert names == ["stage", "detect", "test-compile", "detect", "compile", "test"]
    assert result.record["slug"] is None
    assert not list(site.path.glob("*.tgz"))


def test_scripts_of_app_json_go_before_bin_test(site: Site) -> None:
    scripts = {"test-setup": "echo setup; touch made", "test": "ls made; echo test; pwd"}
    pack = site.buildpack("echo compile", test="echo never")
    result = outcome(site, pack, app={"scripts": scripts}).ok()
    assert result.text.split() == ["compile", "setup", "made", "test", "/app"]


def test_the_test_environment_has_scripts_and_config_vars_of_its_own(site: Site) -> None:
    app = {
        "scripts": {"test": "false"},
        "environments": {
            "test": {
                "scripts": {"test": 'echo "$RAILS_ENV $GIVEN $LEFT"'},
                "env": {"RAILS_ENV": "test", "GIVEN": {"value": "app"}, "LEFT": {"required": False}},
            }
        },
    }
    pack = site.buildpack('cat "$3/RAILS_ENV"; echo')
    assert outcome(site, pack, words=("--env", "GIVEN=user"), app=app).ok().text == "test\ntest user \n"


def test_tests_run_as_a_dyno_with_ci(site: Site) -> None:
    """.profile.d sourced, ENV_DIR exported as buildpacks have left it, and not the build's environment."""
    pack = site.buildpack(
        """
        test -z "$CONFIG$CI" || exit 1
        mkdir -p "$1/.profile.d"
        echo 'export FROM_PROFILE="$CONFIG seen" PATH="/app/bin:$PATH"' > "$1/.profile.d/a.sh"
        echo "export ONLY_BUILD=1" > export; echo -n added > "$3/ADDED"; rm "$3/GONE"; mkfifo "$3/FIFO"
        printf 'a\\0b' > "$3/NUL"
        """,
        test="pwd; env; cat | wc -c",
    )
    words = ("--env", "CONFIG=two words", "--env", "GONE=1")
    result = outcome(site, pack, words=words).ok()
    lines = result.text.splitlines()
    assert (lines[0], lines[-1]) == ("/app", "0")
    for line in (
        *("CI=true", "CONFIG=two words", "ADDED=added", "FROM_PROFILE=two words seen", "HOME=/app"),
        "PATH=/app/bin:/usr/local/bin:/usr/bin:/bin",
    ):
        assert line in lines
    assert not [
        line for line in lines if line.startswith(("ONLY_BUILD", "GONE", "FIFO", "NUL", "BUILDPACK_LOG_FILE"))
    ]
    assert [name in " ".join(result.record["warnings"]) for name in ("FIFO", "NUL")] == [True, True]
    assert "two words" not in json.dumps(result.record)


@pytest.mark.parametrize("script", ["test-setup", "test"])
def test_one_when_the_tests_fail(site: Site, script: str) -> None:
    scripts = {"test": "true", script: "echo 1 of 3 failed; exit 3"}
    result = outcome(site, site.buildpack(), app={"scripts": scripts})
    result.refused(1, script, "app.json", "exited 3")
    assert result.out == b"1 of 3 failed\n"
    assert result.record["exit_code"] == 1
    killed = site.buildpack(name="killed", test="kill -9 $$")
    outcome(site, killed, app={}).refused(1, "signal 9", str(killed))


def test_a_compile_that_fails_is_no_failing_test(site: Site) -> None:
    bad = site.buildpack(name="bad", **{"test-compile": "exit 5"}, test="echo never", report="echo never >&2")
    result = outcome(site, bad).refused(11, "bin/test-compile", "exited 5")
    assert result.out == b"" and "never" not in result.err
    outcome(site, site.buildpack(name="other", detect="exit 1", test="true")).refused(10)


def test_without_tests_it_says_so_before_anything_is_compiled(site: Site) -> None:
    result = outcome(site, site.buildpack("echo compiled")).refused(
        2, "There are no tests", "scripts.test", "bin/test"
    )
    assert result.out == b""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"scripts": {\n"test": "x",\n}}', "line 3 "),
        ("[1]", "no object"),
        ('{"scripts": {"test": 1}}', "test is no string"),
        ('{"scripts": []}', "scripts is no object"),
        ('{"environments": {"test": {"env": {"A": 1}}}}', "A is no string"),
        ("[" * 100_000, "nested too deeply"),
        ("\xff", "app.json"),
    ],
)
def test_a_malformed_app_json_is_one_sentence(site: Site, text: str, words: str) -> None:
    site.app(**{"app.json": os.fsdecode(text.encode("latin-1"))})
    outcome(site, site.buildpack("echo compiled", test="true")).refused(2, "app.json", words)


def test_the_time_limit(site: Site) -> None:
    pack = site.buildpack(detect=None, test="sleep 1000")
    outcome(site, pack, words=("--timeout", "5s")).refused(13, "test of ", "5 seconds")


def test_tests_have_a_cache_of_their_own_that_failing_tests_keep(site: Site) -> None:
    pack = site.buildpack('ls -A "$2"; touch "$2/kept"', test="ls -A /tmp/cache; exit 1")
    site.build(site.app(), site.buildpack('touch "$2/of-build"', "other")).ok()
    assert outcome(site, pack).refused(1).out == b""
    assert outcome(site, pack).refused(1).out == b"kept\n"
    assert len(site.caches()) == 2
    broken = site.buildpack('rm "$2"/*; exit 1', "broken", test="true")
    outcome(site, broken).refused(11)
    assert outcome(site, pack).refused(1).out == b"kept\n"
