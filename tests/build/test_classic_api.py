"""The classic API point by point, and the buildpacks that broke when a platform moved the build to /app.

Each is one small build that comes out differently under a plausible wrong reading of the point. What the points ask
beyond that is in the files about each: test_api.py, test_stage.py, test_home.py, test_testing.py, test_limits.py.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess

from support.sites import Site, snapshot

pytest_plugins = ["support.site_fixtures"]


# -- the points


def test_point_01_detect_gets_build_dir_and_its_trimmed_stdout_is_the_name(site: Site) -> None:
    pack = site.buildpack(detect='test "$*" = /app || exit 1; echo noise >&2; printf "\\n  Go  Modules \\n\\n"')
    result = site.build(site.app(), pack).ok()
    assert "-----> Go  Modules app detected\n" in result.err


def test_point_02_compile_has_three_arguments_its_own_directory_and_the_run_path_unresolved(site: Site) -> None:
    pack = site.buildpack('echo "$#|$1|$PWD|$(realpath "$1")"; cp share/file "$1/"; exit "${4:-0}"')
    site.write("pack/share/file", "from the buildpack")
    (pack / "bin/compile").chmod(0o644)
    result = site.build(site.app(), pack).ok()
    assert result.text == "3|/app|/tmp/buildpacks/0|/app\n"
    assert (site.out / "file").read_text() == "from the buildpack"


def test_point_02_a_failing_compile_rejects_the_push_by_the_apps_name(site: Site) -> None:
    result = site.build(site.app(), site.buildpack("exit 3", detect="echo Ruby")).refused(11, "exited 3")
    assert " !     Push rejected, failed to compile Ruby app.\n" in result.err


def test_point_02_nothing_is_mounted_under_build_dir(site: Site) -> None:
    result = site.build(site.app(), site.buildpack("cut -d' ' -f5 /proc/self/mountinfo")).ok()
    assert not [place for place in result.text.split() if place == "/app" or place.startswith("/app/")]


def test_point_03_the_environment_is_the_platforms_and_not_the_operators(site: Site) -> None:
    names = "STACK SOURCE_VERSION REQUEST_ID DYNO HOME PATH LANG BUILDPACK_LOG_FILE"
    pack = site.buildpack(
        f"""
        for name in {names}; do test -n "${{!name+set}}" || echo "no $name"; done
        test -z "${{TMPDIR+set}}" || test -d "$TMPDIR" || echo "no TMPDIR"
        echo "$PATH"; env -0 | tr '\\0' '\\n' | grep -E "^(GIT_DIR|PYTHONPATH|PIP_|UV_|npm_|CONFIG)" || true
        """
    )
    operators = {
        "GIT_DIR": "/x",
        "PYTHONPATH": "/x",
        "PIP_TARGET": "/x",
        "UV_CACHE_DIR": "/x",
        "npm_config_prefix": "/x",
    }
    result = site.build(
        site.app(), pack, "--network", "none", "--env", "CONFIG=1", env={**operators, "TMPDIR": "/nonexistent"}
    ).ok()
    assert result.text == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"


def test_point_04_env_dir_has_a_file_a_config_var_verbatim_and_is_passed_along(site: Site) -> None:
    one = site.buildpack('od -An -c "$3/MULTI" | tr -d " \\n"; echo; ls "$3"; printf x > "$3/ADDED"', "one")
    two = site.buildpack('cat "$3/ADDED"', "two")
    result = site.build(site.app(), one, two, "--env", "MULTI=a\nb", "--env", "LD_PRELOAD=/x").ok()
    assert result.text == "a\\nb\nLD_PRELOAD\nMULTI\nx"
    assert "LD_PRELOAD" in result.record["warnings"][0]


def test_point_05_the_cache_is_per_app_and_layout_at_one_path_and_a_failure_does_not_replace_it(site: Site) -> None:
    write = site.buildpack('echo "$2"; cat "$2/n" 2>/dev/null; echo good > "$2/n"', "write")
    fail = site.buildpack('echo bad > "$2/n"; exit 1', "fail")
    delete = site.buildpack('rm -rf "$2"', "delete")
    assert site.build(site.app(), write).ok().text == "/tmp/cache\n"
    site.build("app", fail).refused(11)
    assert site.build("app", write).ok().text == "/tmp/cache\ngood\n"
    assert "good" not in site.build("app", write, "--layout", "classic").ok().text
    assert "good" not in site.build(site.app("other"), write).ok().text
    site.build("app", delete).ok()
    assert site.build("app", write).ok().text == "/tmp/cache\n"


def test_point_05_cache_and_build_dir_are_one_filesystem(site: Site) -> None:
    pack = site.buildpack(
        'echo x > "$1/file"; ln "$1/file" "$2/linked"; mv "$2/linked" "$1/moved"; stat -c %h "$1/file"'
    )
    assert site.build(site.app(), pack).ok().text == "2\n"


def test_point_06_the_buildpack_directory_is_a_private_copy_without_a_stale_export(site: Site) -> None:
    one = site.buildpack("ls export 2>/dev/null; echo 'export A=fresh' >> export; touch trace", "one")
    site.write("one/export", "export B=stale\n")
    before = snapshot(one)
    two = site.buildpack('echo "[$A][$B]"', "two")
    for _ in range(2):
        assert site.build(site.app(), one, two).ok().text == "[fresh][]\n"
    assert snapshot(one) == before


def test_point_07_exports_are_sourced_by_bash_before_every_later_compile_and_no_other_call(site: Site) -> None:
    one = site.buildpack(
        "echo 'a=(x y); export ONE=${a[1]}$HOME' > export", "one", report='echo "{\\"seen\\": \\"[$ONE]\\"}"'
    )
    two = site.buildpack("echo 'export TWO=$ONE-2' > export", "two", detect='test -z "$ONE"; echo Two')
    three = site.buildpack('echo "$ONE $TWO"', "three", release='echo "default_process_types: {seen: \\"[$ONE]\\"}"')
    result = site.build(site.app(), one, two, three).ok()
    assert result.text == "y/app y/app-2\n"
    assert result.record["buildpacks"][0]["report"] == {"seen": "[]"}
    assert result.record["process_types"]["seen"] == "[]"
    assert "ONE" not in site.run(site.out, "--", "env").ok().text


def test_point_08_release_is_the_last_buildpacks_and_its_config_vars_are_defaults(site: Site) -> None:
    yaml = "printf 'default_process_types:\\n  web: a\\n  on: yes\\nconfig_vars:\\n  LEGACY: 007\\n'"
    one = site.buildpack(name="one", release="echo 'default_process_types: {never: x}'")
    two = site.buildpack(name="two", release=f'touch "$1/by-release"; {yaml}')
    result = site.build(site.app(Procfile="web: mine\n"), one, two).ok()
    assert result.record["process_types"] == {"web": "mine", "on": "yes"}
    assert (site.out / "by-release").exists()
    echo = ("--", "sh", "-c", "echo $LEGACY")
    assert site.run(site.out, *echo).ok().text == "007\n"
    assert site.run(site.out, "--env", "LEGACY=mine", *echo).ok().text == "mine\n"


def test_point_09_report_runs_after_success_and_failure_and_fails_no_build(site: Site) -> None:
    for compile_, code in (("true", 0), ("exit 1", 11)):
        pack = site.buildpack(compile_, report='echo "{\\"arguments\\": \\"$*\\"}"')
        result = site.build(site.app(), pack)
        assert result.code == code
        assert result.record["buildpacks"][0]["report"] == {"arguments": "/app /tmp/cache /tmp/env"}
    broken = site.buildpack(name="broken", report='echo "{\\"a\\": "')
    assert len(site.build("app", broken).ok().record["warnings"]) == 1


def test_point_10_tests_are_compiled_set_up_and_run_in_order(site: Site) -> None:
    app = site.app(**{"app.json": json.dumps({"scripts": {"test-setup": "echo setup $CI"}})})
    pack = site.buildpack(
        "echo never",
        **{"test-compile": "echo test-compile [$CI]", "report": "touch /app/r"},
        test='echo "$@"; ls /app',
    )
    result = site.nsbuild("test", app, "-b", pack).ok()
    assert result.text == "test-compile []\nsetup true\n/app /tmp/env\napp.json\n"


def test_point_11_profile_d_is_sourced_in_order_at_boot_with_everything_set(site: Site) -> None:
    app = site.app(
        **{
            "Procfile": "web: echo $TRAIL\n",
            ".profile.d/10-b.sh": 'TRAIL="$TRAIL b:$PWD:$HOME:$PORT:$DYNO:$CONFIG"',
            ".profile.d/2-c.sh": 'TRAIL="$TRAIL c"; export TRAIL; exec_me=1',
            ".profile.d/not-sourced.txt": "exit 1",
            ".profile": 'TRAIL="$TRAIL profile"; PATH="/app/bin:$PATH"; TRAIL="$TRAIL $PATH"',
        }
    )
    site.build(app, site.buildpack()).ok()
    result = site.run(site.out, "web", "--port", "1234", "--env", "CONFIG=yes").ok()
    assert result.text == "b:/app:/app:1234:web.1:yes c profile /app/bin:/usr/local/bin:/usr/bin:/bin\n"


def test_point_12_a_procfile_is_the_roots_and_names_its_line_when_malformed(site: Site) -> None:
    app = site.app(
        **{"Procfile": "# comment\n\nweb: one\nweb: two\nmy_type-2:   three  \n", "sub/Procfile": "not one"}
    )
    result = site.build(app, site.buildpack(release="echo 'default_process_types: {web: x, other: y}'")).ok()
    assert result.record["process_types"] == {"web": "two", "other": "y", "my_type-2": "three"}
    assert len(result.record["warnings"]) == 1
    for shape in (
        "-----> Discovering process types\n",
        "       Procfile declares types -> web, my_type-2\n",
        "       Default types for buildpack -> other\n",
    ):
        assert shape in result.err
    site.write("app/Procfile", "web: x\n\nweb x\n")
    site.build("app", site.path / "pack").refused(12, "Procfile line 3")


def test_point_13_slugignore_applies_before_compile(site: Site) -> None:
    """Shell globs; a leading / anchors, others match at any depth. More of it: tests/unit/test_slugignore.py."""
    names = ("Procfile", "notes.md", "docs/notes.md", "spec/x", "lib/spec/x", "kept.txt")
    app = site.app(**dict.fromkeys(names, "x: y\n"), **{".slugignore": "# comment\n*.md\n/spec\n"})
    listed = site.build(app, site.buildpack('cd "$1"; find . -type f | sort')).ok().text.split()
    assert set(listed) - {"./.slugignore"} == {"./Procfile", "./kept.txt", "./lib/spec/x"}


def test_point_13_git_is_never_staged(site: Site) -> None:
    app = site.app(**{"Procfile": "web: x\n", ".git/HEAD": "x", ".gitignore": "Procfile\n"})
    assert site.build(app, site.buildpack('ls -A "$1"')).ok().text.split() == [".gitignore", "Procfile"]


def test_point_14_a_time_limit_ends_a_compile_by_name(site: Site) -> None:
    """The platform's own limits, and that they are warnings unless enforced: test_limits.py."""
    slow = site.buildpack("sleep 60", "slow", detect=None)
    site.build(site.app(), slow, "--timeout", "0.5s").refused(13, "bin/compile", "0.5 seconds")


def test_point_15_carriage_returns_and_colours_pass_and_the_steps_are_in_the_record(site: Site) -> None:
    pack = site.buildpack(
        'printf -- "-----> One\\n       10%%\\r       \\033[1m100%%\\033[0m\\n-----> Two\\n\\0\\377"'
    )
    result = site.build(site.app(), pack).ok()
    assert result.out == b"-----> One\n       10%\r       \x1b[1m100%\x1b[0m\n-----> Two\n\0\xff"
    (phase,) = [phase for phase in result.record["phases"] if phase["name"] == "compile"]
    assert [step["text"] for step in phase["steps"]] == ["One", "Two"]
    assert sum(step["seconds"] for step in phase["steps"]) <= phase["seconds"] + 0.01


def test_point_16_a_buildpack_may_be_an_archive(site: Site) -> None:
    """Git, URLs, names and what can be wrong with them: the tests of nsbuild/buildpack/reference.py and store.py."""
    pack = site.buildpack("echo from an archive")
    archive = site.path / "pack.tgz"
    subprocess.run(["tar", "-C", pack.parent, "-czf", archive, "pack"], check=True)
    site.own(archive)
    shutil.rmtree(pack)
    assert site.build(site.app(), "-b", str(archive)).ok().text == "from an archive\n"


def test_point_17_modes_and_symlinks_survive_setuid_does_not_and_one_uid_owns_it(site: Site) -> None:
    app = site.app(**{"requirements/base.txt": "x\n"})
    site.symlink("app/requirements.txt", "requirements/base.txt")
    pack = site.buildpack('test -L "$1/requirements.txt"; touch "$1/tool"; chmod 4750 "$1/tool"')
    site.build(app, pack).ok()
    assert os.readlink(site.out / "requirements.txt") == "requirements/base.txt"
    assert stat.S_IMODE((site.out / "tool").stat().st_mode) == 0o750
    assert len({path.lstat().st_uid for path in [site.out, *site.out.rglob("*")]}) == 1


def test_point_18_hooks_of_the_app_run_with_the_directories_exported(site: Site) -> None:
    """As heroku/python does it (bin/compile, "source bin/steps/hooks/pre_compile")."""
    app = site.app(**{"bin/pre_compile": '#!/bin/sh\necho "$BUILD_DIR $CACHE_DIR $ENV_DIR $PWD"; touch made\n'})
    (app / "bin/pre_compile").chmod(0o755)
    pack = site.buildpack('export BUILD_DIR=$1 CACHE_DIR=$2 ENV_DIR=$3; cd "$1"; bin/pre_compile')
    assert site.build(app, pack).ok().text == "/app /tmp/cache /tmp/env /app\n"
    assert (site.out / "made").exists()


def test_point_19_a_source_may_be_a_git_work_tree_at_head_or_an_archive(site: Site) -> None:
    app = site.app(Procfile="web: committed\n")
    git = ["git", "-C", str(app), "-c", "user.name=x", "-c", "user.email=x@x", "-c", "safe.directory=*"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    for path in (app / ".git", *(app / ".git").rglob("*")):
        site.own(path)
    site.write("app/Procfile", "web: changed\n")
    site.write("app/untracked", "x")
    subprocess.run(["tar", "-C", app, "-czf", site.path / "app.tgz", "Procfile"], check=True)
    site.own(site.path / "app.tgz")
    pack = site.buildpack('cd "$1"; cat Procfile; ls untracked 2>/dev/null || true')
    assert site.build(app, pack).ok().text == "web: committed\n"
    assert site.build(app, pack, "--dirty").ok().text == "web: changed\nuntracked\n"
    assert site.build(site.path / "app.tgz", pack).ok().text == "web: changed\n"


def test_point_19_a_directory_is_built_as_it_is_and_never_changed(site: Site) -> None:
    app = site.app(data="x")
    before = snapshot(app)
    site.build(app, site.buildpack('echo y >> "$1/data"; rm -rf "$1"/.[!.]*')).ok()
    assert snapshot(app) == before
    assert (site.out / "data").read_text() == "xy\n"


# -- buildpacks that broke


def test_broke_build_dir_is_removed_and_another_directory_moved_there(site: Site) -> None:
    """Monorepo and subdir buildpacks."""
    app = site.app(**{"services/api/Procfile": "web: api\n", "other": "x"})
    pack = site.buildpack('t=$(mktemp -d); mv "$1/services/api" "$t/api"; rm -rf "$1"; mv "$t/api" "$1"')
    result = site.build(app, pack, site.buildpack('ls "$1"; pwd', "next")).ok()
    assert result.text.splitlines()[0] == "Procfile"
    assert os.listdir(site.out).count("services") == 0
    assert result.record["process_types"] == {"web": "api"}


def test_broke_app_is_moved_away_and_build_dir_into_it(site: Site) -> None:
    """`cp: same file`: what is copied onto itself must be left alone, not emptied."""
    pack = site.buildpack('cp -a "$1/." /app/ 2>/dev/null; mv /app /tmp/away; mkdir /app; cp -a /tmp/away/. "$1"')
    site.build(site.app(data="x"), pack).ok()
    assert (site.out / "data").read_text() == "x"


def test_broke_rsync_of_build_dir_to_app(site: Site) -> None:
    site.build(site.app(data="x"), site.buildpack('rsync -a --delete "$1/" /app; rsync -a /app/ "$1"')).ok()
    assert (site.out / "data").read_text() == "x"


def test_broke_home_is_compared_with_the_build_path(site: Site) -> None:
    pack = site.buildpack('[[ $1 == "$HOME" && $(cd "$1" && pwd -P) == "$(realpath "$HOME")" ]] && echo same')
    assert site.build(site.app(), pack).ok().text == "same\n"


def test_broke_openssh_reads_the_password_entry_and_not_home(site: Site) -> None:
    pack = site.buildpack(
        """
        mkdir -m 700 "$HOME/.ssh"; printf 'Host alias\\n  HostName found.invalid\\n' > "$HOME/.ssh/config"
        HOME=/nowhere ssh -G alias 2>/dev/null | grep ^hostname
        """
    )
    assert site.build(site.app(), pack).ok().text == "hostname found.invalid\n"


def test_broke_a_cache_hard_linked_into_the_slug_is_not_changed_by_it(site: Site) -> None:
    pack = site.buildpack('test -e "$2/lib" || echo one > "$2/lib"; cat "$2/lib"; ln "$2/lib" "$1/lib"')
    for _ in range(2):
        assert site.build(site.app(), pack).ok().text == "one\n"
        with (site.out / "lib").open("a") as file:
            file.write("appended by who owns the slug\n")


def test_broke_a_postbuild_moves_the_home_cache_onto_itself(site: Site) -> None:
    """puppeteer: .cache of the app is .cache of HOME. mv fails, as it does on a dyno, and loses nothing."""
    pack = site.buildpack(
        """
        mkdir -p "$HOME/.cache/puppeteer"; echo chrome > "$HOME/.cache/puppeteer/bin"; cd "$1"
        mkdir -p .cache && { mv /app/.cache/puppeteer .cache 2>&1 || true; }
        """
    )
    assert "same file" in site.build(site.app(), pack).ok().text
    assert (site.out / ".cache/puppeteer/bin").read_text() == "chrome\n"


def test_broke_a_string_and_a_realpath_are_compared(site: Site) -> None:
    pack = site.buildpack(
        """
        for path in "$1" "$2" "$3" "$PWD" "$HOME"; do [[ $(realpath "$path") == "$path" ]] || echo "$path"; done
        /usr/bin/python3 -c 'import os, sys; print(all(os.path.realpath(p) == p for p in sys.argv[1:]))' "$@"
        """
    )
    assert site.build(site.app(), pack).ok().text == "True\n"


def test_broke_libraries_put_under_app_by_a_pre_compile(site: Site) -> None:
    """/app is BUILD_DIR: what a hook installs there is in the slug."""
    app = site.app(**{"bin/pre_compile": "mkdir -p /app/vendor/lib; echo lib > /app/vendor/lib/libx.so"})
    site.build(app, site.buildpack('bash "$1/bin/pre_compile"; cat "$1/vendor/lib/libx.so"')).ok()
    assert (site.out / "vendor/lib/libx.so").read_text() == "lib\n"


def test_broke_an_ssh_key_is_left_in_home(site: Site) -> None:
    pack = site.buildpack('mkdir -p ~/.ssh; echo PRIVATE > ~/.ssh/id_rsa; echo "machine x" > ~/.netrc')
    result = site.build(site.app(), pack, site.buildpack("cat ~/.ssh/id_rsa", "next")).ok()
    assert result.text == "PRIVATE\n"
    assert not (site.out / ".ssh").exists() and not (site.out / ".netrc").exists()
    assert [found["action"] for found in result.record["sweep"]] == ["removed", "removed"]


def test_broke_files_without_modes_and_closed_directories(site: Site) -> None:
    pack = site.buildpack(
        """
        ls "$2" 2>/dev/null
        for top in "$1" "$2"; do
            rm -rf "$top/made"; mkdir -p "$top/made/deep"; echo x > "$top/made/deep/none"
            chmod 0 "$top/made/deep/none"; chmod 555 "$top/made/deep"; chmod 500 "$top/made"
        done 2>/dev/null
        """
    )
    first = site.build(site.app(), pack, output=site.path / "slug.tgz").ok()
    second = site.build("app", pack, output=site.path / "slug.tgz").ok()
    assert (first.text, second.text) == ("", "made\n")
    listed = subprocess.run(["tar", "-tzf", site.path / "slug.tgz"], capture_output=True, text=True, check=True)
    assert "./made/deep/none" in listed.stdout.splitlines()


def test_broke_the_cache_directory_is_a_symlink(site: Site) -> None:
    real = site.mkdir("real")
    link = site.symlink("link", "real")
    pack = site.buildpack('echo "$2 $(realpath "$2") $(cat "$2/n" 2>/dev/null)"; echo kept > "$2/n"')
    for kept in ("", "kept"):
        assert site.build(site.app(), pack, "--cache", str(link)).ok().text == f"/tmp/cache /tmp/cache {kept}\n"
    assert link.is_symlink() and any(real.iterdir())


def test_broke_kill_9_minus_1_stays_inside(site: Site) -> None:
    outside = subprocess.Popen(["sleep", "60"])
    try:
        site.build(site.app(), site.buildpack("sleep 60 & kill -9 -1; echo alive")).ok()
        assert outside.poll() is None
    finally:
        outside.kill()
        outside.wait()


def test_broke_paths_longer_than_path_max(site: Site) -> None:
    deep = """#!/usr/bin/python3
import os, sys
for top in sys.argv[1:3]:
    os.chdir(top)
    for _ in range(30):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    open("file", "w").write("deep")
"""
    pack = site.buildpack(deep)
    for output in (site.out, site.path / "slug.tgz"):
        site.build(site.app(), pack if output == site.out else site.buildpack(name="again"), output=output).ok()
    found, where = 0, os.getcwd()
    os.chdir(site.out)
    try:
        while os.path.isdir("d" * 200):
            os.chdir("d" * 200)
            found += 1
    finally:
        os.chdir(where)
    assert found == 30
