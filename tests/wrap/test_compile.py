"""`nsbuild compile` in place of bin/compile: the same to whoever calls it, and BUILD_DIR at the run path inside."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from support.builders import TELL, Builder, install
from support.processes import eventually
from support.rooms import Output
from support.sites import APPS, BUILDPACKS, PERSON, as_root, from_wheels, holding

pytest_plugins = ["support.builder_fixtures"]

NOISE = "for i in $(seq 200); do printf 'out %s\\r\\n' $i; printf '\\377\\0err %s' $i >&2; done; printf end"


def told(result_out: bytes) -> tuple[list[str], dict[str, str], str]:
    argv, environ, cwd = json.loads(result_out)
    return argv, environ, cwd


# -- the same contract


@pytest.mark.parametrize(
    "script",
    [
        "exit 0",
        "exit 1",
        "exit 17",
        "exit 125",
        "exit 255",
        "kill -9 $$",
        "kill -15 $$",
        "kill -6 $$",
        "head -c 300000 /dev/zero | tr '\\0' x",
        "cat",
        'read line; echo "$line"; exit 4',
        "(sleep 0.1; echo late) & wait",
        "exec 1>&-; echo lost; echo kept >&2",
        "no-such-command-anywhere",
        NOISE,
    ],
)
def test_output_input_and_status_are_those_of_the_buildpack(builder: Builder, script: str) -> None:
    pack = builder.pack(script)
    given = b"a line\nbinary \0\xff\n" + b"x" * 70_000
    words = [pack / "bin/compile", builder.build, builder.cache, builder.env]
    direct = subprocess.run(words, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    status = direct.returncode if direct.returncode >= 0 else 128 - direct.returncode
    process = builder.start(*builder.words(), stdin=subprocess.PIPE, stderr=subprocess.STDOUT)
    out, _ = process.communicate(given, timeout=50)
    assert (process.returncode, out) == (status, direct.stdout)
    builder.intact()


def test_outputs_can_be_opened_again(builder: Builder) -> None:
    """Pipes belong to whoever made them, who is the suite's own user."""
    if os.geteuid() == 0 and not builder.as_root:
        pytest.skip("root's pipes are closed to others")
    builder.pack("echo to stdout >/dev/stdout; echo to stderr >/dev/stderr")
    result = builder.compile().ok()
    assert (result.out, result.err) == (b"to stdout\n", "to stderr\n")


def test_the_outputs_are_apart_when_they_were(person: Builder) -> None:
    person.pack("echo out; echo err >&2")
    result = person.compile()
    assert (result.out, result.err) == (b"out\n", "err\n")


def test_a_reader_that_leaves(person: Builder) -> None:
    """The buildpack gets SIGPIPE, as it would without us."""
    person.pack("while :; do echo y; done")
    process = person.start(*person.words())
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=50) == 128 + signal.SIGPIPE
    process.stderr.close()
    person.intact()


def test_closed_standard_streams(person: Builder) -> None:
    person.pack('echo out; cat; echo done > "$1/done"')
    words = [str(word) for word in person.start("--version").args]  # type: ignore[union-attr]
    call = shlex.join([*words[:-1], *map(str, person.words())])
    env = person.site.environment(person.environment())
    user = {"user": PERSON, "group": PERSON, "extra_groups": []} if os.geteuid() == 0 else {}
    for closed in ("<&-", ">&- 2>&-", "<&- >&- 2>&-"):
        subprocess.run(["bash", "-c", f"{call} {closed}"], env=env, check=False, **user)  # type: ignore[call-overload]
        assert (person.build / "done").read_text() == "done\n", closed
        (person.build / "done").unlink()
        assert sorted(os.listdir(person.build)) == ["source"]


@pytest.mark.parametrize("attach", ["adopt", "bind"])
@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_a_signal_arrives_once(builder: Builder, name: str, attach: str) -> None:
    script = "trap 'echo got' TERM INT HUP; trap 'exit 9' USR1; echo ready; while :; do sleep 0.02; done"
    builder.pack(script)
    process = builder.start(*builder.words("--attach", attach))
    assert process.stdout is not None and process.stderr is not None
    output = Output(os.dup(process.stdout.fileno()))
    output.wait_for(b"ready")
    number = getattr(signal, f"SIG{name}")
    (os.killpg if name == "INT" else os.kill)(process.pid, number)  # Ctrl-C reaches the whole group
    output.wait_for(b"got")
    process.send_signal(signal.SIGUSR1)
    assert output.rest() == b"ready\ngot\n"
    assert process.communicate(timeout=50)[1] == b""
    assert process.returncode == 9
    builder.intact()


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT"])
def test_a_buildpack_that_a_signal_ends(person: Builder, name: str) -> None:
    # Not bash, which ignores SIGQUIT.
    person.pack("exec sh -c 'echo ready; exec sleep 60'")
    process = person.start(*person.words())
    assert process.stdout is not None
    Output(os.dup(process.stdout.fileno())).wait_for(b"ready")
    number = getattr(signal, f"SIG{name}")
    process.send_signal(number)
    process.communicate(timeout=50)
    assert process.returncode == 128 + number
    person.intact()


def test_signals_while_things_are_moved_lose_nothing(person: Builder) -> None:
    """Sent at any moment: either nothing has run, or the buildpack got it."""
    person.pack("sleep 60")
    for delay in range(0, 200, 10):
        process = person.start(*person.words())
        assert not eventually(lambda process=process: process.poll() is not None, delay / 1000)  # type: ignore[misc]
        process.terminate()
        process.communicate(timeout=50)
        assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
        person.intact()


def test_what_runs_in_the_background_ends_with_the_compile(person: Builder) -> None:
    person.pack('setsid sh -c "sleep 60; echo late > $1/late" >/dev/null 2>&1 & disown; echo done')
    assert person.compile().ok().out == b"done\n"
    person.site.nothing_left()


def test_a_time_limit(person: Builder) -> None:
    person.pack("echo begun; sleep 60")
    for seconds in (0.3, 3, 30):
        result = person.compile("--timeout", f"{seconds}s").refused(124, "bin/compile", "time limit")
        if result.out:
            break  # on a busy host it may not have come to begin in less
    assert result.out == b"begun\n"
    assert result.record["exit_code"] == 124
    person.intact()


# -- arguments, environment, directories


def test_arguments_and_environment(builder: Builder) -> None:
    """Nothing is added, nothing is lost, and what names one of the three directories is mapped."""
    pack = builder.pack(TELL)
    cache, env_dir = builder.cache, builder.env
    same = {
        "PLAIN": "value",
        "MULTI": "a\nb\n",
        "BYTES": os.fsdecode(b"\xff\xfe"),
        "EMPTY": "",
        "odd-name.x": "1",
        "BASH_FUNC_f%%": "() {  echo f\n}",
        "BESIDE": f"{builder.build}2/x",
        "MIDDLE": f"/usr/lib:{builder.build}/lib",
        "OPTION": f"--prefix={builder.build}",
        "RELATIVE": "build",
        "STACK": "heroku-24",
        "PYTHONHOME": "/app/.heroku/python",
        "LD_LIBRARY_PATH": "/app/lib",
    }
    mapped = {
        "BUILD_DIR": (str(builder.build), "/app"),
        "BELOW": (f"{builder.build}/sub/x", "/app/sub/x"),
        "SLASH": (f"{builder.build}/", "/app/"),
        "CACHE_DIR": (str(cache), "/tmp/cache"),
        "IN_CACHE": (f"{cache}/pip", "/tmp/cache/pip"),
        "ENV_DIR": (str(env_dir), "/tmp/env"),
        "HOME": (str(builder.site.home), "/app"),
        "FIRST_OF_LIST": (f"{builder.build}/bin:/bin", "/app/bin:/bin"),
    }
    given = same | {name: before for name, (before, _) in mapped.items()}
    argv, environ, _ = told(builder.compile(env=given).ok().out)
    assert argv == [f"{pack}/bin/compile", "/app", "/tmp/cache", "/tmp/env"]
    expected = builder.site.environment(builder.environment(same)) | {
        name: after for name, (_, after) in mapped.items()
    }
    environ.pop("LC_CTYPE", None)  # Python's; the script that starts nsbuild takes it away again
    assert environ == expected


def test_directories_given_by_links_and_relative_paths(person: Builder) -> None:
    person.pack(TELL)
    person.site.symlink("links/build", str(person.build))
    person.site.symlink("links/cache", str(person.cache))
    link = person.path / "links"
    person.names.add("links")
    names = {"A": f"{link}/build", "B": f"{link}/build/x", "C": str(person.build), "D": "links/cache/x", "E": "build"}
    words = ("compile", "pack", "links/build/", "links/cache", "env")
    argv, environ, _ = told(person.nsbuild(*words, env=names).ok().out)
    assert argv[1:] == ["/app", "/tmp/cache", "/tmp/env"]
    assert [environ[name] for name in names] == ["/app", "/app/x", "/app", "/tmp/cache/x", "build"]
    person.intact()
    assert os.readlink(link / "build") == str(person.build)


def test_three_arguments(person: Builder) -> None:
    person.pack("echo $#; test -e /tmp/env || echo none")
    assert person.compile(env_dir=False).ok().out == b"2\nnone\n"


def test_a_cache_that_does_not_exist_yet(builder: Builder) -> None:
    builder.pack('echo kept > "$2/file"; ls -A "$2"')
    builder.cache.rmdir()
    assert builder.compile().ok().out == b"file\n"
    assert (builder.cache / "file").read_text() == "kept\n"
    assert builder.cache.stat().st_uid == (builder.cache / "file").stat().st_uid == builder.owner


def test_the_cache_ends_where_it_was(builder: Builder) -> None:
    builder.pack('cat "$2/old"; rm "$2/old"; echo new > "$2/new"')
    builder.site.write("cache/old", "old\n")
    builder.own(builder.cache)
    inode = builder.cache.stat().st_ino
    assert builder.compile().ok().out == b"old\n"
    assert os.listdir(builder.cache) == ["new"]
    assert builder.cache.stat().st_ino == inode
    assert (builder.cache / "new").stat().st_uid == builder.owner
    builder.intact()


def test_env_dir_is_verbatim_and_writable(builder: Builder) -> None:
    builder.pack('cat "$3/SECRET"; printf added > "$3/ADDED"')
    assert builder.compile().ok().out == b"value\n\0"
    assert (builder.env / "ADDED").read_text() == "added"
    assert (builder.env / "ADDED").stat().st_uid == builder.owner


def test_an_env_dir_that_does_not_exist(person: Builder) -> None:
    person.pack('ls "$3" 2>/dev/null || echo none')
    person.env = person.path / "nowhere"
    assert person.compile().ok().out == b"none\n"


def test_home_is_the_run_path_for_everybody(person: Builder) -> None:
    person.pack('echo "$HOME" ~; getent passwd "$(id -u)" | cut -d: -f6; cd; pwd')
    assert person.compile().ok().text.split() == ["/app"] * 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", ""), ("/tmp", "/tmp"), ("/usr/bin", "/usr/bin"), ("/tmp/mine", None), ("/home/x", None), ("home", None)],
)
def test_tmpdir_is_left_out_when_it_names_something_invisible(
    person: Builder, given: str, expected: str | None
) -> None:
    person.pack(TELL)
    given = str(person.site.home) if given == "home" else given
    _, environ, _ = told(person.compile(env={"TMPDIR": given}).ok().out)
    assert environ.get("TMPDIR") == (expected or None) or given == ""
    assert person.compile(env={"TMPDIR": f"{person.build}/tmp"}).text.count('"TMPDIR": "/app/tmp"') == 1


@pytest.mark.parametrize("place", ["home/log", "home/made/by/log", "build/log", "cache/log", "env/log"])
def test_the_log_file_is_appended_to(builder: Builder, place: str) -> None:
    builder.pack('echo "measure#x=1" >> "$BUILDPACK_LOG_FILE"')
    log = builder.site.write(place, "before\n")
    builder.own(log)
    for _ in range(2):
        builder.compile(env={"BUILDPACK_LOG_FILE": str(log)}).ok()
    assert log.read_text() == "before\nmeasure#x=1\nmeasure#x=1\n"


def test_a_log_file_that_does_not_exist_yet(builder: Builder) -> None:
    builder.pack('echo logged >> "$BUILDPACK_LOG_FILE"')
    log = builder.path / "home/log"
    builder.compile(env={"BUILDPACK_LOG_FILE": str(log)}).ok()
    assert log.read_text() == "logged\n"
    for log in (Path("/dev/null"), Path("/nonexistent/log")):
        builder.compile(env={"BUILDPACK_LOG_FILE": str(log)})


def test_the_working_directory(person: Builder) -> None:
    pack = person.pack("pwd")
    sub = person.site.mkdir("build/sub")
    here = {person.build: "/app", sub: "/app/sub", person.cache: "/tmp/cache", Path("/usr/bin"): "/usr/bin"}
    here |= {pack: str(pack), pack / "bin": f"{pack}/bin", person.site.home: str(pack), Path("/tmp"): str(pack)}
    for cwd, expected in here.items():
        assert person.compile(cwd=cwd).ok().text.strip() == expected, cwd


@as_root
def test_a_working_directory_of_roots_alone(builder: Builder) -> None:
    if not builder.as_root:
        pytest.skip("an ordinary user could not be there")
    pack = builder.pack("pwd")
    here = Path(tempfile.mkdtemp(dir="/opt"))
    try:
        assert builder.compile(cwd=here).ok().text.strip() == str(pack)
        here.chmod(0o755)
        assert builder.compile(cwd=here).ok().text.strip() == str(here)
    finally:
        here.rmdir()


def test_the_buildpack_is_at_its_own_path_and_written_in_place(builder: Builder) -> None:
    pack = builder.pack('cd "$(dirname "$0")/.."; pwd; echo "export A=1" > export; ls')
    assert builder.compile().ok().text.split() == [str(pack), "bin", "export"]
    assert (pack / "export").read_text() == "export A=1\n"
    assert (pack / "export").stat().st_uid == builder.owner


@pytest.mark.parametrize("run_path", ["/opt/app", "/home/vcap/app", "/workspace", "/a b/c d", "/usr/src/app"])
def test_any_run_path(builder: Builder, run_path: str) -> None:
    builder.pack('cd "$1"; pwd; echo "$HOME"; pwd -P; ls; echo x > made; ln made "$2/linked"')
    result = builder.compile("--run-path", run_path).ok()
    assert result.text.splitlines() == [*[run_path] * 3, "source"]
    assert (builder.build / "made").samefile(builder.cache / "linked")
    builder.intact()


@pytest.mark.parametrize("run_path", ["relative", "/", "/app/", "/app/../x", "/tmp/app", "/proc/app", "/bin/app", ""])
def test_no_such_run_path(person: Builder, run_path: str) -> None:
    person.pack("echo ran")
    assert person.compile("--run-path", run_path).refused(125, "run").out == b""
    person.intact()


# -- app and cache are directories of one mount


def test_links_and_renames_between_app_cache_and_tmp(builder: Builder) -> None:
    builder.pack('ln "$1/source" "$2/linked" && mv "$2/linked" /tmp/x && mv /tmp/x "$2/linked" && echo linked')
    result = builder.compile().ok()
    assert result.out == b"linked\n"
    assert builder.attached(result) == ["adopt", "adopt"]
    assert (builder.cache / "linked").samefile(builder.build / "source")
    builder.intact()
    assert {path.stat().st_uid for path in (builder.build, builder.cache, builder.build / "source")} == {
        builder.owner
    }


def test_bound_they_are_apart(builder: Builder) -> None:
    builder.pack('ln "$1/source" "$2/linked" || cp "$1/source" "$2/copied"')
    result = builder.compile("--attach", "bind")
    assert "cross-device" in result.err
    assert builder.attached(result) == ["bind", "bind"]
    assert (builder.cache / "copied").read_text() == "precious"
    assert (builder.cache / "copied").stat().st_uid == builder.owner
    builder.intact()


def test_buildpacks_that_move_build_dir_about(builder: Builder) -> None:
    """As monorepo and subdir buildpacks do."""
    builder.pack('cd /tmp; mv "$1" /tmp/whole; mkdir "$1"; mv /tmp/whole/* "$1"; rmdir /tmp/whole; ls "$1"')
    assert builder.compile().ok().out == b"source\n"
    assert (builder.build / "source").read_text() == "precious"
    assert builder.build.stat().st_uid == builder.owner
    assert builder.left() == []


# -- chains


FIRST = """
mkdir -p "$1/.heroku/python/lib" "$1/bin"
printf '#!/bin/sh\\necho the tool of the first\\n' > "$1/bin/tool"; chmod +x "$1/bin/tool"
cat > "$(dirname "$0")/../export" <<'END'
export PATH=$HOME/bin:$PATH PYTHONHOME=$HOME/.heroku/python PYTHONPATH=$HOME LD_LIBRARY_PATH=$HOME/.heroku/python/lib
export FROM_FIRST="with spaces"
END
echo first > /tmp/shared
"""
SECOND = """
tool; echo "$FROM_FIRST|$PYTHONHOME|$PYTHONPATH|$LD_LIBRARY_PATH"
cat /tmp/shared 2>/dev/null || echo no shared
"""


def test_a_chain_whose_script_sources_export_on_the_host(builder: Builder) -> None:
    """nsbuild starts with the app's PYTHONHOME, PYTHONPATH, PATH and LD_LIBRARY_PATH, as it is installed."""
    builder.pack(FIRST, "first")
    builder.pack(SECOND, "second")
    nsbuild = install(builder.site)
    builder.names.add("venv")
    script = f"""
        set -e
        export HOME=/app
        greet() {{ echo "greetings from $1"; }}; export -f greet
        {nsbuild} compile first build cache env
        . first/export
        LD_LIBRARY_PATH=$PWD/build/.heroku/python/lib
        {nsbuild} compile second build cache env
        {nsbuild} exec --build-dir build -- bash -c 'greet inside; tool'
    """
    # Libraries of the app's that no Python of the host's would survive.
    for name in ("libexpat.so.1", "libz.so.1", "libffi.so.8"):
        builder.site.write(f"build/.heroku/python/lib/{name}", "not a library")
    builder.own(builder.build)
    options = (
        {"user": PERSON, "group": PERSON, "extra_groups": []} if os.geteuid() == 0 and not builder.as_root else {}
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env=builder.site.environment(builder.environment()),
        cwd=builder.path,
        capture_output=True,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.stderr == "", done
    python = "/app/.heroku/python"
    assert done.stdout.splitlines() == [
        "the tool of the first",
        f"with spaces|{python}|/app|{python}/lib",
        "no shared",
        "greetings from inside",
        "the tool of the first",
    ]
    assert builder.left() == []


@pytest.mark.parametrize("attach", ["adopt", "bind"])
def test_a_chain_with_export_and_tmp(builder: Builder, attach: str) -> None:
    first = builder.pack(FIRST, "first")
    second = builder.pack(SECOND, "second")
    third = builder.pack('echo "$FROM_FIRST $MORE $PATH"; cat /tmp/shared; echo third >> /tmp/shared', "third")
    more = builder.site.write("more", "cd /usr; set -- x; export MORE=more PATH=/more:$PATH")
    tmp = builder.path / "tmp"
    builder.names |= {"tmp", "more"}
    options = ("--tmp", tmp, "--attach", attach)
    builder.compile(*options, pack=first).ok()
    exports: tuple[str, ...] = ("--with-export", f"{first}/export")
    result = builder.compile(*options, *exports, pack=second).ok()
    python = "/app/.heroku/python"
    assert result.text.splitlines() == [
        "the tool of the first",
        f"with spaces|{python}|/app|{python}/lib",
        "first",
    ]
    exports += ("--with-export", str(more), "--with-export", "nonexistent")
    result = builder.compile(*options, *exports, pack=third).ok()
    assert result.out == b"with spaces more /more:/app/bin:/usr/local/bin:/usr/bin:/bin\nfirst\n"
    assert (tmp / "shared").read_text() == "first\nthird\n"
    assert (tmp / "shared").stat().st_uid == builder.owner
    assert builder.left() == []


def test_without_tmp_each_call_has_an_empty_one(person: Builder) -> None:
    person.pack("ls -A /tmp /var/tmp; echo x > /tmp/x; echo x > /var/tmp/x")
    for _ in range(2):
        assert "x" not in person.compile().ok().text.split()


def test_a_read_only_buildpack(person: Builder) -> None:
    """It runs from a copy, and its export goes where it is wanted."""
    pack = person.pack(FIRST)
    (pack / "bin").chmod(0o555)
    pack.chmod(0o555)
    person.names.add("exported")
    for _ in range(2):
        person.compile("--export-to", person.path / "exported").ok()
    assert (person.path / "exported").read_text().count("FROM_FIRST") == 1
    assert not (pack / "export").exists()
    pack.chmod(0o755)
    (pack / "bin/compile").write_text("#!/bin/sh\n")
    pack.chmod(0o555)
    person.compile("--export-to", person.path / "exported").ok()
    assert (person.path / "exported").read_text() == "", "of the call before"
    person.intact()


def test_the_export_of_a_writable_buildpack_goes_there_as_well(person: Builder) -> None:
    pack = person.pack(FIRST)
    person.names.add("exported")
    person.compile("--export-to", "exported").ok()
    assert (person.path / "exported").read_text() == (pack / "export").read_text() != ""


def test_an_export_that_cannot_be_kept_is_our_failure(person: Builder) -> None:
    person.pack('mkdir "$(dirname "$0")/../export"')
    result = person.compile("--export-to", "exported").refused(123, "export")
    assert result.record["exit_code"] == 123
    assert result.record["path"] == "namespace"
    person.intact()


@as_root
def test_a_read_only_buildpack_of_roots(person: Builder) -> None:
    """What an ordinary user may read, and not write."""
    pack = person.pack("id -u; pwd; echo x > export; cat export")
    for path in (pack, *pack.rglob("*")):
        os.chown(path, 0, 0)
    result = person.compile("--export-to", person.path / "exported", cwd=person.site.home).ok()
    person.names.add("exported")
    assert result.text.split() == [str(PERSON), str(pack), "x"]
    assert (person.path / "exported").read_text() == "x\n"


# -- buildpacks in odd places


def test_a_buildpack_inside_build_dir(person: Builder) -> None:
    """An inline buildpack: the app is its own."""
    script = person.site.write("build/bin/compile", "#!/bin/sh\necho $0 $1; echo x > $1/made\n", 0o755)
    result = person.compile(pack=person.build).ok()
    assert result.text.split() == ["/app/bin/compile", "/app"]
    person.intact()
    assert script.exists() and (person.build / "made").exists()


def test_a_cache_inside_build_dir(person: Builder) -> None:
    person.pack('echo $2; ln "$1/source" "$2/linked"')
    person.cache = person.build / ".cache"
    person.compile().ok()
    assert (person.build / ".cache/linked").samefile(person.build / "source")
    person.intact()


@pytest.mark.parametrize("inner", ["build", "env", "pack"])
def test_directories_inside_the_cache(person: Builder, inner: str) -> None:
    """It works, or it is refused in a sentence: nothing is lost."""
    person.pack("echo ran")
    (person.path / inner).rename(person.cache / inner)
    place = person.cache / inner
    if inner == "build":
        person.build = place
    elif inner == "env":
        person.env = place
    result = person.compile(pack=place if inner == "pack" else None)
    assert result.code == 0 or result.refused(125, str(person.cache))
    person.intact()


# -- misuse


def test_misuse_is_a_sentence_and_125(person: Builder) -> None:
    pack = person.pack("echo ran")
    file = person.site.write("file")
    person.names.add("file")
    words = [str(pack), str(person.build), str(person.cache), str(person.env)]
    for given, named in [
        (words[:2], "three or four"),
        ([*words, "more"], "not 5"),
        ([f"{pack}/bin", *words[1:]], "bin/compile"),
        (["nowhere", *words[1:]], "nowhere"),
        ([str(file), *words[1:]], "file"),
        ([words[0], "nowhere", *words[2:]], "nowhere"),
        ([words[0], "", *words[2:]], "BUILD_DIR"),
        ([words[0], str(file), *words[2:]], "file"),
        ([*words[:2], str(file), words[3]], "file"),
        ([*words[:2], f"{file}/cache", words[3]], "file"),
        (["--attach", "glue", *words], "--attach"),
        (["--network", "some", *words], "--network"),
        (["--fallback", "sometimes", *words], "--fallback"),
        (["--timeout", "-1", *words], "--timeout"),
        (["--timeout"], "--timeout"),
        (["--bind", "/nonexistent", *words], "/nonexistent"),
        (["--bind", "/usr:relative", *words], "relative"),
        (["--workspace-dir", "nowhere", *words], "nowhere"),
        (["--user", "nobody", *words], "--user"),
        (["--build-dir", "x", *words], "--build-dir"),
        (["--verbose=yes", *words], "--verbose"),
    ]:
        result = person.nsbuild("compile", *given).refused(125, named)
        assert result.out == b"" and len(result.err.splitlines()) == 1, result.err
        person.intact()


def test_a_compile_that_cannot_be_executed(person: Builder) -> None:
    pack = person.pack("echo ran")
    (pack / "bin/compile").chmod(0o644)
    result = person.compile().refused(126, "bin/compile", "Permission denied")
    assert result.record["exit_code"] == 126 and result.record["phases"][0]["exit_code"] is None
    assert "cannot execute" in result.record["result"]
    (pack / "bin/compile").chmod(0o755)
    (pack / "bin/compile").write_text("#!/no/such/interpreter\n")
    result = person.compile().refused(127, "bin/compile", "not found")
    assert result.record["exit_code"] == 127 and result.record["phases"][0]["exit_code"] is None
    (pack / "bin/compile").write_text("exit 127\n")
    result = person.compile()
    assert (result.code, result.err) == (127, ""), "a script without #! is sh's, and its status its own"
    assert result.record["exit_code"] == result.record["phases"][0]["exit_code"] == 127
    person.intact()


def test_the_record(builder: Builder) -> None:
    builder.pack("exit 3")
    record = builder.compile().record
    assert (record["schema"], record["exit_code"], record["path"], record["layout"]) == (1, 3, "namespace", "app")
    (phase,) = record["phases"]
    assert (phase["name"], phase["exit_code"], phase["signal"]) == ("compile", 3, None)
    assert phase["max_rss_kib"] > 0 and phase["timings"]["run"] > 0
    assert set(record["attached"]) >= {str(builder.build), str(builder.cache)}
    record = builder.compile("--run-path", "/opt/x", "--attach", "bind", pack=builder.pack("kill -9 $$")).record
    assert (record["exit_code"], record["layout"], record["run_path"]) == (137, "app:/opt/x", "/opt/x")
    assert (record["phases"][0]["exit_code"], record["phases"][0]["signal"]) == (None, 9)
    assert "SECRET" not in json.dumps(record) and "value" not in json.dumps(record)


def test_a_record_that_cannot_be_written(person: Builder) -> None:
    """Found before anything runs; one whose directory goes meanwhile, afterwards."""
    person.pack("echo ran")
    result = person.nsbuild(*person.words("--report", "nowhere/record")).refused(125, "nowhere/record")
    assert result.out == b""
    place = person.path / "place"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    person.pack('echo ran; while [ ! -e "$3/go" ]; do sleep 0.02; done')
    process = person.start(*person.words("--report", f"{place}/record"))
    assert process.stdout is not None
    Output(os.dup(process.stdout.fileno())).wait_for(b"ran")
    place.rmdir()
    (person.env / "go").touch()
    _, err = process.communicate(timeout=50)
    assert process.returncode == 123
    assert f"{place}/record".encode() in err


# -- real ones


def test_python_and_node_one_by_one(person: Builder) -> None:
    """The app of issue 1006: node's postbuild imports what python has installed, by paths that are right."""
    words, pip = from_wheels(person.site)
    offline = words[:2]  # the environment is passed on anyway
    shutil_copy = person.site.copy(APPS / "issue-1006", "app")
    packs = [person.site.copy(BUILDPACKS / name, f"packs/{name}") for name in ("python", "node")]
    person.names |= {"app", "packs", "tmp", "wheels"}
    person.build = shutil_copy
    common = ("--tmp", "tmp", *offline)
    env = {"STACK": "heroku-24", **pip}
    person.compile(*common, pack=packs[0], env=env, timeout=200).ok()
    result = person.compile(*common, "--with-export", packs[0] / "export", pack=packs[1], env=env, timeout=200).ok()
    assert person.attached(result) == ["adopt", "adopt"]
    answer = (person.build / "public/answer.txt").read_text()
    assert "setuptools" in answer and "hatchling" in answer
    assert holding(person.build, str(person.path).encode()) == []
    assert stat.S_ISDIR((person.cache / ".heroku").stat().st_mode)
    assert person.left() == []
