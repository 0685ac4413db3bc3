"""What a buildpack is given and what is made of what it does: the classic API, call by call."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.sites import Site

pytest_plugins = ["support.site_fixtures"]

TELL = """#!/usr/bin/python3
import json, os, sys
print(json.dumps([sys.argv, dict(os.environ), os.getcwd()]))
"""
ALWAYS = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/app",
    "LANG": "C.UTF-8",
    "STACK": "heroku-24",
    "SOURCE_VERSION": "",
    "BUILDPACK_LOG_FILE": "/dev/null",
    "XDG_CACHE_HOME": "/tmp/.cache",
}
OPERATORS = {
    **{"GIT_DIR": "/x", "PYTHONPATH": "/x", "PYTHONHOME": "/x", "PIP_INDEX_URL": "http://x", "UV_CACHE_DIR": "/x"},
    **{"npm_config_cache": "/x", "LD_LIBRARY_PATH": "/x", "SECRET_OF_MINE": "x", "TMPDIR": "/x", "BASH_ENV": "/x"},
    **{"SUDO_USER": "x", "USER": "x", "TERM": "x", "PS1": "x", "XDG_CACHE_HOME": "/var/tmp/nowhere", "CDPATH": "/"},
}


def told(line: str | bytes) -> tuple[list[str], dict[str, str], str]:
    argv, environ, cwd = json.loads(line)
    return argv, environ, cwd


def bare(environ: dict[str, str]) -> dict[str, str]:
    """Without what differs from build to build, and what Python adds in the C locale."""
    return {name: value for name, value in environ.items() if name not in ("REQUEST_ID", "DYNO", "LC_CTYPE")}


# -- arguments, environment, working directory


def test_arguments_environment_and_directory_of_every_script(site: Site) -> None:
    """Literal run paths without a trailing slash, the buildpack's directory, nothing of the operator's."""
    tell = "import json, os, sys; json.dump([sys.argv, dict(os.environ), os.getcwd()], open('/app/told-SCRIPT', 'w'))"
    scripts = {
        name: f"#!/usr/bin/python3\n{tell.replace('SCRIPT', name)}\n" for name in ("detect", "release", "report")
    }
    pack = site.buildpack(TELL, **scripts)
    env = {**OPERATORS, "XDG_CACHE_HOME": str(site.home / ".cache")}
    result = site.build(site.app(), pack, "--env", "CONFIG=1", "--network", "none", env=env).ok()
    arguments = {
        "detect": ["/app"],
        "compile": ["/app", "/tmp/cache", "/tmp/env"],
        "release": ["/app"],
        "report": ["/app", "/tmp/cache", "/tmp/env"],
    }
    for script, expected in arguments.items():
        line = result.text if script == "compile" else (site.out / f"told-{script}").read_text()
        argv, environ, cwd = told(line)
        assert argv == [f"/tmp/buildpacks/0/bin/{script}", *expected]
        assert cwd == "/tmp/buildpacks/0"
        assert bare(environ) == ALWAYS, script
        assert environ["DYNO"] == f"build.{environ['REQUEST_ID']}"
        assert environ["REQUEST_ID"] == result.record["id"]


def test_the_network_brings_proxies_and_certificates_along(site: Site) -> None:
    hidden = site.write("home/certificates/ca.pem", "a certificate")
    given = {"HTTPS_PROXY": "http://127.0.0.1:1", "no_proxy": "x", "PIP_CERT": str(hidden), "FTP_PROXY": ""}
    given |= {"SSL_CERT_FILE": "/nonexistent/ca.pem"}
    pack = site.buildpack('env; cat "$PIP_CERT" 2>/dev/null || true')
    out = site.build(site.app(), pack, env=given).ok().text
    assert "HTTPS_PROXY=http://127.0.0.1:1" in out and "no_proxy=x" in out and out.endswith("a certificate")
    assert "FTP_PROXY" not in out and "/nonexistent" not in out
    out = site.build(site.app(), pack, "--network", "none", env=given).ok().text
    assert "PROXY" not in out and "PIP_CERT" not in out


def test_pass_env_shows_a_variable_and_only_that(site: Site) -> None:
    result = site.build(
        site.app(),
        site.buildpack("env"),
        *("--pass-env", "WANTED", "--pass-env", "NOT_SET", "--pass-env", "MULTI"),
        env={"WANTED": "yes", "OTHER": "no", "MULTI": "a\nb"},
    ).ok()
    assert b"WANTED=yes\n" in result.out and b"MULTI=a\nb\n" in result.out
    assert b"OTHER" not in result.out and b"NOT_SET" not in result.out


def test_bind_shows_files_and_directories_read_only(site: Site) -> None:
    directory = site.write("home/shown/file", "content").parent
    file = site.write("home/one:two", "colons")
    pack = site.buildpack(
        f"""
        cat {directory}/file "{file}" /opt/there/file /tmp/inside/file
        for place in {directory} /opt/there /tmp/inside; do touch $place/new 2>/dev/null && echo written; done; true
        """
    )
    binds = ("--bind", str(directory), "--bind", str(file), "--bind", f"{directory}:/opt/there")
    result = site.build(site.app(), pack, *binds, "--bind", f"{directory}:/tmp/inside")
    assert result.ok().out == b"contentcolonscontentcontent"
    assert "home" not in site.build(site.app(), site.buildpack("ls -A /home; ls -A /root")).ok().text


def test_network_none_has_loopback_only(site: Site) -> None:
    look = site.buildpack("cut -d: -f1 -s /proc/net/dev | tail -n +1; grep -c . /proc/net/route")
    result = site.build(site.app(), look, "--network", "none")
    assert result.text.split()[:1] == ["lo"] and "eth" not in result.text


def test_the_stack_is_what_it_is_called(site: Site) -> None:
    assert (
        site.build(site.app(), site.buildpack("echo $STACK"), "--stack", "scalingo-22").ok().out == b"scalingo-22\n"
    )


@pytest.mark.parametrize("path", ["/home/vcap/app", "/workspace", "/opt/app", "/usr/src/app", "/app/sub dir"])
def test_another_run_path(site: Site, path: str) -> None:
    pack = site.buildpack('echo "$1|$HOME|$(cd "$1" && pwd -P)"; cp bin/compile "$1/made"; echo "X=1" > export')
    result = site.build(site.app(), pack, pack, "--run-path", path).ok()
    assert result.text.splitlines() == [f"{path}|{path}|{path}"] * 2
    assert site.run(site.out, "--", "sh", "-c", "pwd; echo $HOME; cat Procfile").ok().text.splitlines()[:2] == [
        path,
        path,
    ]


def test_the_classic_layout(site: Site) -> None:
    pack = site.buildpack('echo "$@"; echo "$HOME"; ls -A /app; touch /app/written; test "$1" = "$PWD"')
    result = site.build(site.app(), pack, "--layout", "classic")
    assert result.code == 11
    build, cache, env, home = result.text.split()
    number = result.record["id"]
    assert (build, cache, env, home) == (f"/tmp/build_{number}", "/tmp/codon/tmp/cache", f"/tmp/env_{number}", "/app")


# -- ENV_DIR


def test_config_vars_are_files_verbatim_and_nowhere_else(site: Site) -> None:
    binary = bytes(range(1, 256)).replace(b"\n", b"") + b"\xff\xfe"
    site.write("vars/FROM_DIR", b"\x00binary\xff\n\n")
    site.write("vars/OVERRIDDEN", "dir")
    site.write("vars.env", "# comment\n\nFROM_FILE=a=b \nexport QUOTED='two words'\nOVERRIDDEN=file\n")
    pack = site.buildpack(
        """
        cd "$3"; for file in *; do echo "$file $(stat -c %a "$file") $(od -An -v -tx1 "$file" | tr -d ' \\n')"; done
        """,
        report='echo "{}"',
    )
    result = site.build(
        site.app(),
        pack,
        *("--env-dir", str(site.path / "vars"), "--env-file", str(site.path / "vars.env")),
        *("--env", "MULTI=first\nsecond-secret", "--env", "EMPTY=", "--env", "OVERRIDDEN=option"),
        *("--env", f"BINARY={os.fsdecode(binary)}", "--env", "a.b-c d=odd name"),
    ).ok()
    seen = {}
    for line in result.text.splitlines():
        name, mode, content = line.rsplit(" ", 2)
        seen[name] = bytes.fromhex(content) if mode == "644" else (mode, content)
    expected = {
        "FROM_DIR": b"\x00binary\xff\n\n",
        "FROM_FILE": b"a=b",
        "QUOTED": b"two words",
        "OVERRIDDEN": b"option",
        "MULTI": b"first\nsecond-secret",
        "BINARY": binary,
        "a.b-c d": b"odd name",
    }
    assert {name: seen.get(name) for name in expected} == expected
    for value in ("second-secret", "two words", "odd name"):
        assert value not in json.dumps(result.record)
        assert value not in result.err


def test_config_vars_are_not_in_the_environment(site: Site) -> None:
    result = site.build(site.app(), site.buildpack("env; exit 1"), "--env", "TOKEN=very-secret-value")
    assert result.code == 11
    assert b"TOKEN" not in result.out
    assert "very-secret-value" not in json.dumps(result.record) + result.err


def test_env_dir_is_writable_and_shared_along_the_chain(site: Site) -> None:
    one = site.buildpack('echo -n added > "$3/ADDED"; rm "$3/GONE"', "one")
    two = site.buildpack('ls "$3"; cat "$3/ADDED"', "two")
    result = site.build(site.app(), one, two, "--env", "GONE=1", "--env", "KEPT=1").ok()
    assert result.out == b"ADDED\nKEPT\nadded"


def test_config_vars_that_buildpacks_filter_are_kept_with_a_warning(site: Site) -> None:
    result = site.build(
        site.app(), site.buildpack('ls "$3"; echo $PATH'), "--env", "PATH=/secret", "--env", "OK=1"
    ).ok()
    assert result.text.splitlines() == ["OK", "PATH", ALWAYS["PATH"]]
    assert len(result.record["warnings"]) == 1 and "PATH" in result.record["warnings"][0]


# -- export


def test_exports_are_sourced_by_bash_before_later_compiles_cumulatively(site: Site) -> None:
    site.app()
    tell = TELL.replace("print(", "sys.stdout.flush(); print(")
    one = site.buildpack(
        """
        cat > export <<'EOT'
        array=(one 'two words' three)
        function helper() { echo "${array[1]}"; }
        export FROM_ONE="$(helper)" HOME_WAS=$HOME
        unexported=1
        set -- replaced every argument
        shopt -s extglob
        cd /
        EOT
        """.replace("        EOT", "EOT"),
        "one",
        release="env | sort > /app/release-one",
        report='[ -z "$FROM_ONE" ] && echo "{\\"clean\\": true}"',
    )
    two = site.buildpack(
        """echo 'export FROM_TWO="$FROM_ONE and two" PATH="/app/bin:$PATH"' > export""",
        "two",
        report='[ -z "$FROM_TWO$FROM_ONE" ] && echo "{\\"clean\\": true}"',
    )
    three = site.buildpack(
        tell,
        "three",
        detect='echo "[$FROM_ONE]"',
        release='env > /app/release-environment; echo "--- {}"',
    )
    result = site.build(site.path / "app", one, two, three).ok()
    argv, environ, cwd = told(result.text.splitlines()[-1])
    assert argv == ["/tmp/buildpacks/2/bin/compile", "/app", "/tmp/cache", "/tmp/env"]
    assert cwd == "/tmp/buildpacks/2"
    assert environ["FROM_ONE"] == "two words"
    assert environ["FROM_TWO"] == "two words and two"
    assert environ["HOME_WAS"] == "/app"
    assert environ["PATH"] == f"/app/bin:{ALWAYS['PATH']}"
    assert "unexported" not in environ
    assert not [name for name in environ if "nsbuild" in name.lower()]
    # Never before the same buildpack's release or report, nor before anybody's detect.
    assert "FROM_" not in (site.out / "release-environment").read_text()
    assert [pack["report"] for pack in result.record["buildpacks"]] == [{"clean": True}, {"clean": True}, {}]
    assert result.record["buildpacks"][2]["name"] == "[]"


def test_an_export_is_no_part_of_the_runtime_environment(site: Site) -> None:
    site.build(site.app(), site.buildpack("echo 'export ONLY_BUILD=1' > export")).ok()
    assert b"ONLY_BUILD" not in site.run(site.out, "--", "env").ok().out


@pytest.mark.parametrize(
    "kind", ["mkdir export", "mkfifo export", "ln -s /etc/passwd export", "ln -s nowhere export"]
)
def test_what_is_no_plain_file_is_not_sourced(site: Site, kind: str) -> None:
    two = site.buildpack("echo second", "two")
    assert site.build(site.app(), site.buildpack(kind), two, "--timeout", "60s").ok().out == b"second\n"


# -- order, and what failing does


def test_the_order_of_the_calls(site: Site) -> None:
    """detect, compile, report for each; the release of the last one only."""

    def pack(name: str) -> Path:
        say = f"echo {name}-$(basename $0) >> /app/calls"
        return site.buildpack(say, name, detect=say, report=say, release=f"{say}; echo '--- {{}}'")

    result = site.build(site.app(), pack("a"), pack("b")).ok()
    calls = ["a-detect", "a-compile", "a-report", "b-detect", "b-compile", "b-report", "b-release"]
    assert (site.out / "calls").read_text().split() == calls
    phases = [phase["name"] for phase in result.record["phases"]]
    assert phases == ["stage", "detect", "compile", "report", "detect", "compile", "report", "release", "slug"]


def test_a_detect_sees_what_earlier_compiles_have_made(site: Site) -> None:
    one = site.buildpack('touch "$1/made"', "one")
    two = site.buildpack(name="two", detect='test -f "$1/made" && echo Two')
    site.build(site.app(), one, two).ok()
    site.build(site.app(), two, one).refused(10, str(two))


def test_a_report_after_a_failed_compile_is_kept(site: Site) -> None:
    pack = site.buildpack("exit 3", report="""echo '{"reason": "bad pin", "count": 2, "nested": {"x": 1}}'""")
    result = site.build(site.app(), pack).refused(11, "exited 3")
    assert result.record["buildpacks"][0]["report"] == {"reason": "bad pin", "count": 2}


def test_a_report_is_yaml_too(site: Site) -> None:
    report = """printf '%s\n' 'packages: "cowsay,\\"x\\""' 'when: 2026-01-02' 'share: .nan' 'nested: [1]' '7: true'"""
    result = site.build(site.app(), site.buildpack(report=report)).ok()
    expected = {"packages": 'cowsay,"x"', "when": "2026-01-02", "share": "nan", "7": True}
    assert result.record["buildpacks"][0]["report"] == expected and not result.record["warnings"]


@pytest.mark.parametrize(
    "report",
    [
        "exit 1",
        "echo not a mapping",
        "echo 'a: *b'",
        "echo '[1]'",
        "head -c 3000000 /dev/zero",
        "kill -9 $$",
        "printf '\\377'",
        "head -c 200000 /dev/zero | tr '\\0' '['",
        "#!/nonexistent/interpreter",
    ],
)
def test_a_reports_own_failure_never_fails_a_build(site: Site, report: str) -> None:
    pack = site.buildpack(report=report)
    result = site.build(site.app(), pack).ok()
    assert result.record["buildpacks"][0]["report"] == {}
    assert len(result.record["warnings"]) == 1 and "bin/report" in result.record["warnings"][0]
    site.buildpack("exit 17", report=report)
    assert site.build(site.app(), pack).refused(11, "17").record["exit_code"] == 11


def test_release_may_be_missing_empty_or_null(site: Site) -> None:
    for release in (None, "true", "echo '--- {}'", "echo '---'", "echo '# nothing'", "echo 'default_process_types:'"):
        pack = site.buildpack(**({"release": release} if release else {}))
        assert site.build(site.app(Procfile="web: x\n"), pack).ok().record["process_types"] == {"web": "x"}
        (pack / "bin/release").unlink(missing_ok=True)


def test_release_writes_build_dir_and_is_in_the_slug(site: Site) -> None:
    release = """
        echo late > "$1/late"
        printf 'default_process_types:\\n  web: from release\\n  on: "yes"\\naddons: [a]\\nconfig_vars: {A: 1}\\n'
        """
    result = site.build(site.app(Procfile="web: from the Procfile\n"), site.buildpack(release=release)).ok()
    assert (site.out / "late").read_text() == "late\n"
    assert result.record["process_types"] == {"web": "from the Procfile", "on": "yes"}
    assert (site.out / ".release").read_text().startswith("default_process_types:\n  web: from release")


@pytest.mark.parametrize(
    "release",
    [
        "echo 'default_process_types: [web]'",
        "echo '{'",
        "echo 'just words'",
        "printf 'default_process_types:\\n  web: {a: b}\\n'",
        "printf '\\200\\201'",
        "echo 'addons: x'",
        "head -c 100000 /dev/zero | tr '\\0' '['",
        "printf 'a: !!python/object/apply:os.system [id]\\nb: *x\\n'",
    ],
)
def test_a_malformed_release_fails_the_build(site: Site, release: str) -> None:
    pack = site.buildpack(release=release)
    site.build(site.app(), pack).refused(12, "bin/release", str(pack))
    assert not site.out.exists()


def test_a_failing_release_fails_the_build_and_says_why(site: Site) -> None:
    pack = site.buildpack(release="echo no such type >&2; exit 9")
    site.build(site.app(), pack).refused(12, "bin/release", str(pack), "exited 9", "no such type")


def test_a_malformed_procfile_names_the_line(site: Site) -> None:
    app = site.app(Procfile="# fine\nweb: x\nthis is no type\n")
    site.build(app, site.buildpack()).refused(12, "Procfile line 3", "this is no type")
    site.write("app/Procfile", "web: x\n")
    made = site.buildpack('rm "$1/Procfile"; mkdir "$1/Procfile"')
    site.build(app, made).refused(12, "Procfile")


def test_a_procfile_that_compile_makes_counts_and_the_last_duplicate_wins(site: Site) -> None:
    pack = site.buildpack("""printf 'web: one\\r\\n\\r\\nweb: two\\n' > "$1/Procfile" """)
    result = site.build(site.app(), pack).ok()
    assert result.record["process_types"] == {"web": "two"}
    assert any("Procfile line 3" in warning for warning in result.record["warnings"])


# -- what a build may do to its directories


@pytest.mark.parametrize(
    ("script", "left"),
    [
        ("cd /; rm -rf /app", "nothing"),
        ("cd /; rm -rf /app; ln -s /etc /app", "symlink"),
        ("cd /; rm -rf /app; echo > /app", "file"),
        ("cd /; mv /app /else; ln -s /else /app", "symlink"),
    ],
)
@pytest.mark.parametrize("reports", [False, True])
def test_a_compile_that_leaves_no_directory_fails_by_name(site: Site, script: str, left: str, reports: bool) -> None:
    pack = site.buildpack(script, **({"report": "echo '{\"a\": 1}'"} if reports else {}))
    result = site.build(site.app(), pack).refused(11, str(pack), left, "/app")
    assert not site.out.exists()
    assert result.record["exit_code"] == 11
    assert os.listdir("/etc")


@pytest.mark.parametrize("script", ["detect", "release", "report"])
def test_other_scripts_must_leave_a_directory_too(site: Site, script: str) -> None:
    pack = site.buildpack(**{script: "cd /; rm -rf /app; ln -s /etc /app; echo '{}'"})
    site.build(site.app(), pack).refused(12 if script == "release" else 11, f"bin/{script}", "symlink")
    assert not site.out.exists()


def test_removing_app_and_moving_another_directory_onto_it_works(site: Site) -> None:
    """As monorepo and subdir buildpacks do."""
    app = site.app(Procfile="web: x\n")
    site.write("app/services/api/Procfile", "api: y\n")
    moved = site.buildpack('mv "$1/services/api" /tmp/kept; rm -rf "$1"; mv /tmp/kept "$1"; touch "$1/moved"', "one")
    other = site.buildpack('ls "$1"; rm -rf "$1"/{.[!.]*,*}; touch "$1/again"', "two")
    result = site.build(app, moved, other).ok()
    assert result.out == b"Procfile\nmoved\n"
    assert sorted(path.name for path in site.out.iterdir()) == [".nsbuild-slug", "again"]


@pytest.mark.parametrize(
    "script",
    [
        'rm -rf "$2"',
        'rm -rf "$2"; ln -s /etc "$2"',
        'rm -rf "$2"; echo > "$2"',
        'rm -rf "$3"; ln -s /usr "$3"',
        'rm -rf "$2" "$3"',
        'rm -rf "$2"; mkdir -m 000 "$2"',
    ],
)
def test_a_cache_or_env_dir_that_was_removed_is_an_empty_directory_again(site: Site, script: str) -> None:
    first = site.buildpack('echo kept > "$2/kept"; touch /tmp/mine', "first")
    site.build(site.app(), first).ok()
    later = site.buildpack('test -d "$2" && test ! -L "$2" && test -d "$3" && ls -A "$2"; ls /tmp/mine', "later")
    result = site.build(site.app(), first, site.buildpack(script), later)
    assert result.ok().text.splitlines()[-1:] == ["/tmp/mine"]
    again = site.build(site.app(), site.buildpack('cat "$2/kept" || true; ls -A "$2"', "look")).ok()
    assert "passwd" not in again.text


def test_hostile_links_in_app_reach_nothing_outside(site: Site) -> None:
    """What the host's side writes and reads afterwards goes through no link."""
    precious = site.write("home/precious", "precious")
    links = ("Procfile", ".release", ".nsbuild-slug", ".netrc", ".cache")
    pack = site.buildpack(
        "\n".join(f'rm -rf "$1/{name}"; ln -s {precious} "$1/{name}"' for name in links), release="echo '--- {}'"
    )
    result = site.build(site.app(), pack)
    assert result.code == 12 and "Procfile" in result.last
    pack = site.buildpack(
        "\n".join(f'rm -rf "$1/{name}"; ln -s {precious} "$1/{name}"' for name in links[1:]), release="echo '--- {}'"
    )
    site.build(site.app(), pack).ok()
    assert precious.read_text() == "precious"
    assert (site.out / ".release").read_text() == "--- {}\n" and not (site.out / ".release").is_symlink()


def test_what_a_compile_leaves_running_is_dead_before_the_next_phase(site: Site) -> None:
    pack = site.buildpack("(sleep 1000 & echo $! >/tmp/pid) >/dev/null 2>&1; setsid sleep 999 >/dev/null 2>&1 &")
    look = site.buildpack("ls /proc | grep -c '^[0-9]*$'", "look")
    result = site.build(site.app(), pack, look).ok()
    assert int(result.text) <= 6


# -- output


def test_stdout_is_the_buildpacks_own_bytes(site: Site) -> None:
    data = b"-----> step\n\x1b[31mred\x1b[0m 10%\r20%\r\n\x00nul\xff\xfe no newline at the end"
    site.app()
    site.write("app/data", data)
    result = site.build(site.path / "app", site.buildpack('cat "$1/data"')).ok()
    assert result.out == data
    assert "-----> step" not in result.err


def test_both_streams_come_in_their_true_order(site: Site) -> None:
    script = "for i in $(seq 200); do echo out $i; echo err $i >&2; done"
    expected = "".join(f"out {number}\nerr {number}\n" for number in range(1, 201))
    result = site.build(site.app(), site.buildpack(script)).ok()
    assert result.text == expected
    assert "err 1\n" not in result.err


def test_much_output_comes_through_whole(site: Site) -> None:
    result = site.build(site.app(), site.buildpack("head -c 20000000 /dev/zero")).ok()
    assert len(result.out) == 20_000_000


def test_a_reader_that_is_slow_and_a_pipe_that_does_not_block(site: Site) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = site.start(*site.words(site.app(), site.buildpack("head -c 1000000 /dev/zero")), stdout=writer)
    os.close(writer)
    total = 0
    while chunk := os.read(reader, 4096):
        total += len(chunk)
    os.close(reader)
    _, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    assert total == 1_000_000


def test_a_reader_that_has_gone_is_said(site: Site) -> None:
    reader, writer = os.pipe()
    process = site.start(*site.words(site.app(), site.buildpack("sleep 0.2; yes")), stdout=writer)
    os.close(writer)
    os.close(reader)
    _, err = process.communicate(timeout=50)
    assert process.returncode == 125, err
    assert b"stdout" in err and b"Traceback" not in err


def test_detect_names_the_app_and_steps_are_told_on_stderr(site: Site) -> None:
    result = site.build(site.app(), site.buildpack(detect="echo; echo '  My Framework '")).ok()
    assert "-----> My Framework app detected" in result.err
    assert result.record["buildpacks"][0]["name"] == "My Framework"
    for phase in ("stage", "detect", "compile", "slug"):
        assert f"nsbuild: {phase}" in result.err
    platforms = ("-----> ", "       ", " !     ")
    assert all(line.startswith(("nsbuild: ", *platforms)) for line in result.err.splitlines())
    assert "\x1b" not in result.err


def test_without_a_detect_the_buildpack_has_its_own_name(site: Site) -> None:
    result = site.build(site.app(), site.buildpack(name="nodetect", detect=None)).ok()
    assert result.record["buildpacks"][0]["name"] == "nodetect"


def test_directories_that_a_build_closes_are_opened_again(site: Site) -> None:
    pack = site.buildpack('echo kept > "$2/kept"; chmod 000 "$1" "$2" "$3" /tmp', release="echo --- {}")
    for output in (site.out, site.path / "slug.tgz"):
        site.build(site.app(), pack, pack, output=output).ok()
    assert b"kept" in site.build(site.app(), site.buildpack('cat "$2/kept"', "look")).ok().out
