"""Where the kernel refuses: 125 and nothing is touched, or the buildpack as the builder runs it today."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.builders import TELL, Builder
from support.processes import become, refuse
from support.refusals import REFUSALS, no_user_namespaces
from support.rooms import Output
from support.sites import PERSON, snapshot

from nsbuild.sandbox import kernel, running
from nsbuild.sandbox.outcome import AfterCommandError, LaunchError

pytest_plugins = ["support.builder_fixtures"]

DIRECT = ("--fallback", "direct")


@pytest.fixture(params=REFUSALS)
def refusal(request: pytest.FixtureRequest) -> tuple[Callable[[], None], str]:
    return REFUSALS[request.param]


@pytest.mark.parametrize("options", [(), ("--fallback", "never")])
def test_by_default_nothing_runs(
    person: Builder, refusal: tuple[Callable[[], None], str], options: tuple[str, ...]
) -> None:
    prepare, _ = refusal
    pack = person.pack('echo ran; echo x > "$1/ran"')
    before = snapshot(person.build, times=False), snapshot(pack), snapshot(person.env)
    result = person.compile(*options, prepare=prepare).refused(125)
    assert result.out == b"" and len(result.err.splitlines()) == 1
    assert (result.record["exit_code"], result.record["path"]) == (125, "")
    assert result.record["path_reason"] == "nothing was run"
    assert result.last.removeprefix("nsbuild: ") == result.record["result"]
    assert (snapshot(person.build, times=False), snapshot(pack), snapshot(person.env)) == before
    person.intact()


def test_the_restriction_is_named(person: Builder) -> None:
    person.pack("echo ran")
    person.compile(prepare=no_user_namespaces).refused(125, "user namespace", "max_user_namespaces")
    person.exec("true", prepare=no_user_namespaces).refused(125, "user namespace", "max_user_namespaces")


@pytest.mark.parametrize("asked", [("--network", "none"), ("--memory", "512M"), ("--pids", "100"), ("--cpu", "1")])
def test_what_only_a_sandbox_can_keep_is_not_dropped(person: Builder, asked: tuple[str, ...]) -> None:
    person.pack('echo ran; echo x > "$1/ran"')
    result = person.compile(*DIRECT, *asked, prepare=no_user_namespaces).refused(125)
    assert result.out == b"" and asked[0] in result.err.splitlines()[0]
    assert not (person.build / "ran").exists()


def test_direct_runs_it_once_and_says_so(person: Builder, refusal: tuple[Callable[[], None], str]) -> None:
    prepare, named = refusal
    person.pack('echo once >> "$1/log"; echo out; echo err >&2; cat; exit 7')
    result = person.compile(*DIRECT, prepare=prepare)
    assert (result.code, result.out) == (7, b"out\n")
    assert (person.build / "log").read_text() == "once\n"
    first, *rest = result.err.splitlines()
    assert first.startswith("nsbuild: running directly, without a sandbox: ") and named in first
    assert rest == ["err"]
    record = result.record
    assert (record["path"], record["exit_code"], record["phases"][0]["exit_code"]) == ("direct", 7, 7)
    assert first.endswith(record["path_reason"]) and named in record["path_reason"]
    assert record["attached"] == {}
    person.intact()


def test_it_is_called_as_the_builder_calls_it(person: Builder) -> None:
    import json

    pack = person.pack(TELL)
    given = {"BUILD_DIR": str(person.build), "TMPDIR": "/tmp/mine", "EMPTY": "", "MULTI": "a\nb"}
    result = person.compile(*DIRECT, env=given, cwd=person.site.home, prepare=no_user_namespaces).ok()
    argv, environ, cwd = json.loads(result.out)
    assert argv == [f"{pack}/bin/compile", *map(str, (person.build, person.cache, person.env))]
    environ.pop("LC_CTYPE", None)
    assert environ == person.site.environment(person.environment(given))
    assert cwd == str(person.site.home)
    result = person.compile(*DIRECT, env_dir=False, prepare=no_user_namespaces).ok()
    assert json.loads(result.out)[0][1:] == [str(person.build), str(person.cache)]


def test_exports_are_sourced(person: Builder) -> None:
    person.pack('echo "$FROM_FIRST"')
    export = person.site.write("export", "export FROM_FIRST=first\n")
    person.names.add("export")
    result = person.compile(*DIRECT, "--with-export", export, prepare=no_user_namespaces).ok()
    assert result.out == b"first\n"


def test_stdin_and_status(person: Builder) -> None:
    import subprocess

    person.pack("read line; echo $line; kill -9 $$")
    words = person.words(*DIRECT)
    process = person.start(*words, stdin=subprocess.PIPE, prepare=no_user_namespaces)
    assert process.communicate(b"given\n", timeout=50)[0] == b"given\n"
    assert process.returncode == 137


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_a_signal_arrives_once(person: Builder, name: str) -> None:
    person.pack("trap 'echo got' TERM INT HUP; trap 'exit 9' USR1; echo ready; while :; do sleep 0.02; done")
    process = person.start(*person.words(*DIRECT), prepare=no_user_namespaces)
    assert process.stdout is not None
    output = Output(os.dup(process.stdout.fileno()))
    output.wait_for(b"ready")
    process.send_signal(getattr(signal, f"SIG{name}"))
    output.wait_for(b"got")
    process.send_signal(signal.SIGUSR1)
    assert output.rest() == b"ready\ngot\n"
    process.communicate(timeout=50)
    assert process.returncode == 9


def test_a_time_limit(person: Builder) -> None:
    person.pack("echo begun; exec sleep 60")
    result = person.compile(*DIRECT, "--timeout", "0.3s", prepare=no_user_namespaces)
    result.refused(124, "time limit")
    assert (result.record["path"], result.record["exit_code"]) == ("direct", 124)


def test_what_cannot_be_started(person: Builder) -> None:
    pack = person.pack("echo ran")
    script = pack / "bin/compile"
    script.chmod(0o644)
    result = person.compile(*DIRECT, prepare=no_user_namespaces).refused(126, "bin/compile", "cannot execute")
    assert result.record["path"] == "direct"
    script.chmod(0o755)
    script.write_text("#!/no/such/interpreter\n")
    person.compile(*DIRECT, prepare=no_user_namespaces).refused(127, "bin/compile", "not found")
    script.write_text("echo by sh\n")
    assert person.compile(*DIRECT, prepare=no_user_namespaces).ok().out == b"by sh\n"
    person.exec("no-such-command", options=DIRECT, prepare=no_user_namespaces).refused(127, "no-such-command")


@pytest.mark.parametrize(
    ("script", "code"), [("exit 1", 1), ("exit 125", 125), ("kill -9 $$", 137), ("chmod 0 /; exit 2", 2)]
)
def test_it_never_runs_twice(person: Builder, script: str, code: int) -> None:
    person.pack(f'echo once >> "$2/log"; {script}')
    result = person.compile(*DIRECT)
    assert (result.code, result.err) == (code, "")
    assert result.record["path"] == "namespace"
    assert (person.cache / "log").read_text() == "once\n"


def test_misuse_is_no_reason_to_fall_back(person: Builder) -> None:
    person.pack("echo ran")
    for options in (("--bind", "/nonexistent"), ("--run-path", "/tmp/x"), ("--workspace-dir", "/nonexistent")):
        assert person.compile(*DIRECT, *options).refused(125).out == b""
    person.build.chmod(0)
    assert person.compile(*DIRECT).refused(125, "Permission denied").out == b""
    person.build.chmod(0o755)
    person.intact()


@pytest.mark.parametrize("then", [("failed", "start the command", "read", "", 5, "broken"), None])
def test_a_sandbox_that_breaks_once_the_command_has_started(then: tuple[object, ...] | None) -> None:
    """LaunchError, on which callers fall back, is for launches that have not begun."""
    messages = [("started",), *([then] if then else [])]
    with pytest.raises(AfterCommandError):
        running._outcome(messages, 125 << 8, None, {}, {})
    with pytest.raises(LaunchError):
        running._outcome(messages[1:], 125 << 8, None, {}, {})


def test_build_dir_that_cannot_be_put_back_is_no_reason_to_fall_back(person: Builder) -> None:
    """Refused after BUILD_DIR was adopted, and its parent is closed by then."""
    parent = person.site.mkdir("parent")
    person.names.add("parent")
    person.build = person.build.rename(parent / "build")
    person.pack('echo ran >> "$2/log"')

    from support.processes import ROOT, in_child

    from nsbuild.errors import Refused
    from nsbuild.wrap import WrapOptions, compile_

    def action() -> str:
        os.environ.update(person.environment())
        if ROOT:
            become(PERSON, PERSON)
        refuse(1, "move_mount")
        clone = kernel.clone

        def closing(flags: int) -> int:
            parent.chmod(0o555)
            return clone(flags)

        kernel.clone = closing
        directories = (str(person.path / "pack"), str(person.build), str(person.cache))
        try:
            compile_(*directories, "", {}, WrapOptions(fallback="direct"))
        except Refused as error:
            return str(error)
        return "it ran"

    said = in_child(action)
    assert "nsbuild recover" in said
    assert not Path(person.cache, "log").exists()
    parent.chmod(0o755)
    person.nsbuild("recover").ok()
    person.intact()
