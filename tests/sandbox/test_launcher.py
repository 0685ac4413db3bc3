"""Callers: with threads, with much memory, with an environment of another app; many at a time."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import in_child, write
from support.rooms import ENV, Room, reason_against

import nsbuild
from nsbuild.sandbox import Launcher, LaunchError, kernel, launch

SOURCE = os.path.dirname(os.path.dirname(nsbuild.__file__))


def with_threads() -> None:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def with_native_threads() -> None:
    """Which Python knows nothing of."""
    libc = ctypes.CDLL(None)
    thread = ctypes.c_ulong()
    assert libc.pthread_create(ctypes.byref(thread), None, libc.pause, None) == 0


memory: list[bytearray] = []


def with_much_memory() -> None:
    memory.append(bytearray(b"x") * 400_000_000)


def with_nothing() -> None:
    return None


@pytest.mark.parametrize("before", [with_threads, with_native_threads, with_much_memory])
@pytest.mark.parametrize("way", ["root", "user-isolated"])
def test_other_callers_go_through_a_process_of_its_own(ground: str, way: str, before: Callable[[], None]) -> None:
    if reason := reason_against(way, ground):
        pytest.skip(reason)
    room = Room(ground, way)

    def action() -> tuple[bool, int, list[bytes]]:
        room.enter()
        before()
        with Launcher.for_caller() as launcher:
            isolated = launcher._remote is not None
        said: list[bytes] = []
        outcome = launch(room.view(), ["id", "-u"], env=ENV, cwd="/app", on_output=said.append)
        return isolated, outcome.exit_code, said

    assert in_child(action) == (True, 0, [f"{room.uid}\n".encode()])


def test_a_small_caller_launches_by_itself(simple: Room) -> None:
    def action() -> tuple[bool, int]:
        simple.enter()
        # The test runner is not small.
        from nsbuild.sandbox import launcher as module

        module.LARGE_KIB = 10_000_000
        with Launcher.for_caller() as launcher:
            isolated = launcher._remote is not None
        return isolated, launch(simple.view(), ["true"], env=ENV).exit_code

    assert in_child(action) == (False, 0)


def test_signals_to_a_caller_with_threads_end_the_command(ground: str) -> None:
    """They kill the caller in any thread; the Launcher notices."""
    if reason := reason_against("user-isolated", ground):
        pytest.skip(reason)
    room = Room(ground, "user-isolated")
    child, output = room.begin("echo ready; sleep 1000", before=with_nothing)
    output.wait_for(b"ready")
    child.signal(15)
    output.rest()
    assert child.result().exit_code == 143


@pytest.mark.parametrize("closed", [False, True])
def test_a_descriptor_ends_a_launch(launched: Room, closed: bool) -> None:
    """At once, what ignores signals too; what there is to be read is left to the caller."""

    def action(launcher: Launcher) -> tuple[int, bool, bytes]:
        reader, writer = os.pipe()

        def told(_: bytes) -> None:
            if closed:
                os.close(writer)
            else:
                os.write(writer, b"enough")

        argv = ["bash", "-c", "trap '' TERM; sleep 1000 & echo here; sleep 1000"]
        outcome = launcher.launch(launched.view(), argv, env=ENV, cwd="/app", on_output=told, until=reader)
        left = os.read(reader, 100)
        for fd in (reader,) if closed else (reader, writer):
            os.close(fd)
        return outcome.exit_code, outcome.stopped, left

    assert launched.run(action) == (137, True, b"" if closed else b"enough")


def test_a_descriptor_that_stays_quiet_ends_nothing(launched: Room) -> None:
    def action(launcher: Launcher) -> tuple[int, bool]:
        reader, writer = os.pipe()
        outcome = launcher.launch(launched.view(), ["true"], env=ENV, cwd="/app", until=reader)
        os.close(reader)
        os.close(writer)
        return outcome.exit_code, outcome.stopped

    assert launched.run(action) == (0, False)


def test_many_launches_at_a_time_through_one_launcher(ground: str) -> None:
    rooms = []
    way = "root-isolated" if os.geteuid() == 0 else "user-isolated"
    for number in range(4):
        os.mkdir(f"{ground}/{number}")
        rooms.append(Room(f"{ground}/{number}", way))

    def action(launcher: Launcher) -> dict[int, list[str]]:
        said: dict[int, list[str]] = {}

        def use(number: int) -> None:
            script = f"echo {number} >>log; sleep 0.05; cat log | wc -l"
            said[number] = [rooms[number].seen(launcher, script).text for _ in range(5)]

        threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return said

    assert rooms[0].run(action) == {number: ["1", "2", "3", "4", "5"] for number in range(4)}


def test_the_same_workspace_twice_at_once_is_refused(ground: str) -> None:
    room = Room(ground, "root-isolated" if os.geteuid() == 0 else "user-isolated")

    def action(launcher: Launcher) -> list[object]:
        told: list[object] = []

        def use() -> None:
            try:
                told.append(room.seen(launcher, "while [ ! -e go ]; do sleep 0.02; done").code)
            except LaunchError as error:
                told.append(error.step)
                if len(told) == 2:
                    write(room.host("root/app/go"), "")

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return told

    assert sorted(map(str, room.run(action))) == ["0", "skeleton", "skeleton"]


def launch_in_a_fresh_process(room: Room, before: str, after: str, env: dict[str, str], *, isolated: bool) -> str:
    """What a program says that does nothing else. Not by this process, whose modules are many."""
    paths = [SOURCE, *(path for path in sys.path if "-packages" in path)]
    code = f"""
import os, sys
sys.path += {paths!r}
{before}
from nsbuild.sandbox import *
places = {{"/app": "{room.workspace}/app", "/tmp": "{room.workspace}/tmp"}}
view = compose(read_host("/", places), workspace="{room.workspace}", user=User({room.uid}, {room.gid}),
               home="/app", places=places, var_tmp="{room.workspace}/var-tmp")
with Launcher(isolated={isolated}) as launcher:
    outcome = launcher.launch(view, ["/bin/sh", "-c", "echo ran; env"], env={{"A": "b"}}, cwd="/app")
    imported = set(sys.modules)
assert outcome.exit_code == 0, outcome
{after}
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        env=env,
        cwd=room.host("app"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def own(ground: str) -> Room:
    """A room for a launch by whoever runs the tests."""
    return Room(ground, "root" if os.geteuid() == 0 else "user")


SLOW = ("pyroute2", "dataclasses", "typing", "click", "json", "socket", "inspect", "re", "enum", "subprocess")


def test_a_launch_imports_little(own: Room) -> None:
    said = launch_in_a_fresh_process(
        own, "known = set(sys.modules)", "print(*(imported - known))", {}, isolated=False
    )
    imported = set(said.splitlines()[-1].split())
    assert "nsbuild.sandbox.running" in imported
    assert not imported & set(SLOW)


def test_the_sandbox_imports_nothing_of_buildpacks(own: Room) -> None:
    said = launch_in_a_fresh_process(own, "", "print(*sys.modules)", {}, isolated=True)
    ours = {name for name in said.splitlines()[-1].split() if name.startswith("nsbuild.")}
    assert {name.split(".")[1] for name in ours} <= {"sandbox", "tree"}


@pytest.mark.parametrize("isolated", [False, True], ids=["direct", "isolated"])
def test_the_environment_of_another_app(own: Room, isolated: bool) -> None:
    """A builder that has sourced an export file carries the app's PYTHONHOME and PYTHONPATH."""
    app = Path(own.host("app"))
    for name in ("marshal", "socket", "select", "signal", "os", "sitecustomize", "encodings"):
        (app / f"{name}.py").write_text("raise SystemExit('the app was imported')\n")
    env = {
        "PYTHONHOME": str(app),
        "PYTHONPATH": str(app),
        "PYTHONSTARTUP": f"{app}/os.py",
        "PYTHONINSPECT": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    later = "".join(f"os.environ[{name!r}] = {value!r}\n" for name, value in env.items())
    later += "os.environ['LD_LIBRARY_PATH'] = os.environ['LD_PRELOAD'] = '/app/lib'\n"
    said = launch_in_a_fresh_process(own, later, "", env, isolated=isolated)
    assert said.split() == ["ran", "A=b", "PWD=/app"]


def test_a_launchers_process_holds_none_of_the_callers_environment(ground: str) -> None:
    room = Room(ground, "root-isolated" if os.geteuid() == 0 else "user-isolated")

    def action(launcher: Launcher) -> bytes:
        assert launcher._remote is not None
        assert room.seen(launcher, "true").code == 0
        return Path(f"/proc/{launcher._remote._pid}/environ").read_bytes()

    def before() -> None:
        os.environ["CONFIG_VAR"] = "s3cret"

    assert {line.split(b"=")[0] for line in room.run(action, before=before).split(b"\0")} <= {b"", b"LD_LIBRARY_PATH"}


def test_a_launcher_needs_no_current_directory(launched: Room) -> None:
    gone = f"{launched.base}/gone"
    os.mkdir(gone)

    def before() -> None:
        os.chdir(gone)
        os.rmdir(gone)

    assert launched.text("pwd", before=before) == "/app"


def test_a_launcher_can_be_used_after_an_error(launched: Room) -> None:
    def action(launcher: Launcher) -> tuple[str, int]:
        try:
            launched.seen(launcher, "true", network="host", user_namespaces=True, root="/nonexistent")
        except (LaunchError, OSError) as error:
            return type(error).__name__, launched.seen(launcher, "exit 3").code
        return "", 0

    assert launched.run(action) == ("FileNotFoundError", 3)


def test_an_output_sink_that_raises_ends_the_command(launched: Room) -> None:
    """And everything is given back before the exception goes on."""

    def action(launcher: Launcher) -> tuple[bool, list[str]]:
        def sink(_: bytes) -> None:
            raise RuntimeError("disk full")

        try:
            launcher.launch(launched.view(), ["bash", "-c", "echo x; sleep 1000"], env=ENV, on_output=sink)
        except RuntimeError:
            return True, sorted(os.listdir(launched.host("root/app")))
        return False, []

    def whole(launcher: Launcher) -> bool:
        with pytest.raises(FileNotFoundError):
            action(launcher)
        return os.path.isdir(launched.host("app"))

    assert launched.run(whole)


def test_closing_a_launcher_ends_what_runs(ground: str) -> None:
    room = Room(ground, "root-isolated" if os.geteuid() == 0 else "user-isolated")

    def action(launcher: Launcher) -> list[str]:
        told: list[str] = []
        runs = threading.Event()

        def use() -> None:
            argv = ["sh", "-c", "echo runs; exec sleep 1000"]
            try:
                launcher.launch(room.view(), argv, env=ENV, on_output=lambda _: runs.set())
            except LaunchError as error:
                told.append(error.step)

        thread = threading.Thread(target=use)
        thread.start()
        runs.wait()
        launcher.close()
        thread.join()
        return told

    assert room.run(action) == ["launcher"]


def test_an_isolated_launcher_is_cheap_for_a_large_caller(ground: str) -> None:
    """Never a fork of the caller."""
    room = Room(ground, "root-isolated" if os.geteuid() == 0 else "user-isolated")

    def forbidden(*_: object) -> int:
        raise AssertionError("the caller was forked")

    def action(launcher: Launcher) -> list[int]:
        with_much_memory()
        os.fork = os.forkpty = kernel.clone = forbidden  # type: ignore[assignment]
        return [room.seen(launcher, "true").code for _ in range(5)]

    assert room.run(action) == [0] * 5
