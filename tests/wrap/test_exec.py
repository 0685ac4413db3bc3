"""`nsbuild exec` on a builder: hooks in the same view, and the workspaces that launches take turns on."""

from __future__ import annotations

import os
import pty
import shutil
from pathlib import Path

import pytest
from support.builders import Builder
from support.processes import descriptors, in_child
from support.rooms import Output
from support.sites import PERSON, snapshot

from nsbuild.wrap import WrapOptions, exec_in_view, explain_view, pool

pytest_plugins = ["support.builder_fixtures"]


# -- the same view


def test_the_other_scripts_of_a_buildpack(builder: Builder) -> None:
    """detect, release and report see BUILD_DIR where compile saw it."""
    pack = builder.pack('echo compiled > "$1/compiled"')
    builder.site.write(
        "pack/bin/release", '#!/bin/sh\ncat "$1/compiled"; echo "$HOME $PWD"; echo x > "$1/made"\n', 0o755
    )
    builder.own(pack)
    builder.compile().ok()
    result = builder.exec(f"{pack}/bin/release", "/app", options=("--bind", pack)).ok()
    assert result.text.splitlines() == ["compiled", "/app /app"]
    assert (builder.build / "made").stat().st_uid == builder.owner
    builder.intact()


def test_paths_in_the_environment_and_the_command_line(person: Builder) -> None:
    """Variables are mapped, arguments are the caller's own business."""
    env = {"BUILD_DIR": str(person.build)}
    result = person.exec("sh", "-c", 'echo "$BUILD_DIR $0"', str(person.build), env=env).ok()
    assert result.text == f"/app {person.build}\n"


def test_a_relative_command_and_the_path(person: Builder) -> None:
    person.site.write("build/bin/tool", "#!/bin/sh\necho tool\n", 0o755)
    assert person.exec("bin/tool").ok().text == "tool\n"
    assert person.exec("./bin/tool").ok().text == "tool\n"
    assert person.exec("tool", env={"PATH": f"{person.build}/bin:/usr/bin:/bin"}).ok().text == "tool\n"
    person.exec("tool").refused(127, "tool", "not found")
    person.exec("/app/source").refused(126, "/app/source", "Permission denied")
    person.exec("/app").refused(126, "/app")


def test_a_chain_of_commands_with_one_tmp(builder: Builder) -> None:
    builder.names.add("tmp")
    options = ("--tmp", builder.path / "tmp")
    builder.exec("sh", "-c", "echo kept > /tmp/file; stat -c %a /tmp", options=options).ok()
    assert builder.exec("cat", "/tmp/file", options=options).ok().text == "kept\n"
    assert builder.exec("ls", "-A", "/tmp").ok().text.split() != ["file"]
    builder.intact()


@pytest.mark.parametrize("tmp", ["build", "build/tmp", "."])
def test_a_tmp_that_holds_build_dir_or_lies_in_it(person: Builder, tmp: str) -> None:
    person.exec("true", options=("--tmp", person.path / tmp)).refused(125, "--tmp", "one another")
    shutil.rmtree(person.build / "tmp", ignore_errors=True)
    person.intact()


def test_the_hosts_own_tmp_is_never_renamed(builder: Builder) -> None:
    before = os.stat("/tmp").st_ino
    result = builder.exec("test", "-d", "/tmp", options=("--tmp", "/tmp", "--verbose")).ok()
    assert "nsbuild: /tmp: bind, since " in result.err
    assert os.stat("/tmp").st_ino == before


def test_explain_makes_nothing(person: Builder) -> None:
    before = snapshot(person.path)
    options = ("--build-dir", person.build, "--explain", "--tmp", person.path / "nowhere")
    result = person.nsbuild("exec", *options).ok()
    assert snapshot(person.path) == before
    assert f"/app  (writable) from {person.build}" in result.text

    def action() -> str:
        return explain_view(str(person.build), {}, WrapOptions(attach="bind"))

    assert "bind       /app  (writable)" in in_child(action)


def test_verbose_says_how_and_why(person: Builder) -> None:
    result = person.exec("true", options=("--verbose",)).ok()
    assert result.err == f"nsbuild: {person.build}: adopt, since it can be renamed.\n"
    assert person.exec("true").ok().err == ""


def test_a_terminal_that_goes_away(person: Builder) -> None:
    """The command is told by SIGPIPE, as by a reader that leaves; its status is what counts."""
    more = "while echo more; do sleep 0.02; done 2>/dev/null"
    for script, code in ((more, 141), (f"trap '' PIPE; {more}; echo x > /app/done; exit 3", 3)):
        controller, terminal = pty.openpty()
        wait = "echo ready; while [ ! -e /tmp/gate/go ]; do sleep 0.02; done; "
        gate = person.site.mkdir("gate")
        options = ("--build-dir", person.build, "--bind", f"{gate}:/tmp/gate", "--")
        process = person.start("exec", *options, "sh", "-c", wait + script, stdout=terminal)
        os.close(terminal)
        Output(controller).wait_for(b"ready")
        os.close(controller)
        (gate / "go").touch()
        assert process.wait(timeout=50) == code
        assert process.stderr is not None
        process.stderr.close()
        shutil.rmtree(gate)
        person.intact()
    assert (person.build / "done").exists()


# -- the pool


HOSTILE = [
    "echo x > /x; mkdir /y; mkfifo /z",
    "rmdir /home && ln -s /usr /home",
    "ln -s /etc/passwd /run/x; mkdir -p /root/a/b; echo x > /root/.profile",
    "rm -rf /bin; mkdir /bin; echo '#!/bin/false' > /bin/sh; chmod 755 /bin/sh",
    "mv /etc /old; ln -s old /etc",
    "chmod 0 /",
    "chmod 777 / /home; chmod 0 /root /run",
    "mkdir -m 0 /closed; mkdir -p /deep/er/est; chmod 0 /deep/er",
    "d=/deep; mkdir $d; cd $d; for i in $(seq 60); do d=$(printf %0200d 0); mkdir $d; cd $d; done",
    "rm -rf /tmp; ln -s /usr /tmp",
    "rm -rf /tmp; echo file > /tmp",
    "echo x > /tmp/x; echo x > /var/tmp/x; chmod 0 /tmp /var/tmp",
    "(setsid sleep 60; echo x > /x) >/dev/null 2>&1 &",
]
CLEAN = """
ls -A / /home /root /run /tmp /var/tmp | grep -v -e ^lib -e : | sort | tr '\\n' ' '
stat -c '%a %F' / /home /root /run /tmp; readlink /bin; id -un
"""


def test_a_hostile_command_does_no_harm_to_the_next(builder: Builder) -> None:
    clean = builder.exec("sh", "-c", CLEAN).ok().text
    for command in HOSTILE:
        builder.exec("bash", "-c", command)
        assert builder.exec("sh", "-c", CLEAN).ok().text == clean, command
        builder.intact()


def test_the_skeleton_of_the_launch_before_is_used_again(builder: Builder) -> None:
    builder.exec("true").ok()
    (workspace,) = builder.workspaces()
    inode = (workspace / "root").stat().st_ino
    builder.exec("touch", "/app/x").ok()
    assert builder.workspaces() == [workspace] and (workspace / "root").stat().st_ino == inode
    builder.exec("touch", "/x").ok()
    builder.exec("true").ok()
    assert (workspace / "root").stat().st_ino != inode or not (workspace / "root/x").exists()


def test_thirty_launches_leave_nothing_but_the_pool(builder: Builder) -> None:
    builder.pack('(sleep 60 &) >/dev/null 2>&1; mkdir -p "$1/made" "$2/made"; mkdir /made; echo x > /tmp/x')
    for number in range(15):
        builder.compile("--timeout", f"{60 + number}s", "--attach", ("auto", "bind")[number % 2]).ok()
        builder.exec("true", options=("--run-path", f"/run-path-{number}")).ok()
    builder.intact()
    assert len(list(builder.state.glob("nsbuild/workspaces/*"))) <= pool.SHAPES
    assert list(builder.state.glob("nsbuild/turns/*")) == []
    builder.site.nothing_left()


def test_the_pool_does_not_grow_with_what_is_asked_for(person: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    def action() -> tuple[int, bool]:
        monkeypatch.setattr(pool, "SHAPES", 3)
        os.environ.update(person.environment())
        if os.geteuid() == 0:
            from support.processes import become

            become(PERSON, PERSON)
        opened = descriptors()
        for number in range(12):
            options = WrapOptions(timeout=100 + number, run_path=f"/x{number}")
            assert exec_in_view(str(person.build), ["true"], {}, options).outcome.exit_code == 0
        return len(list(Path(person.state, "nsbuild/workspaces").iterdir())), descriptors() == opened

    assert in_child(action) == (3, True)


def test_launches_at_a_time_have_workspaces_of_their_own(builder: Builder) -> None:
    script = (
        'echo ready; echo "$0" > /tmp/mine; while [ ! -e /app/go ] && [ ! -e go ]; do sleep 0.02; done; cat /tmp/mine'
    )
    gate = builder.site.mkdir("gate")
    builder.names.add("gate")
    running = []
    for number in range(5):
        directory = builder.site.mkdir(f"app-{number}")
        builder.own(directory)
        builder.names.add(directory.name)
        command = script.replace("/app/go", f"{gate}/go")
        words = ("--bind", gate, "--", "sh", "-c", command, str(number))
        process = builder.start("exec", "--build-dir", directory, *words)
        assert process.stdout is not None
        Output(os.dup(process.stdout.fileno())).wait_for(b"ready")
        running.append(process)
    assert len(builder.workspaces()) == 5
    (gate / "go").touch()
    assert [process.communicate(timeout=50)[0] for process in running] == [b"%d\n" % number for number in range(5)]
    builder.exec("true").ok()
    builder.intact()


def test_a_pool_that_somebody_has_made_a_mess_of(person: Builder) -> None:
    person.exec("true").ok()
    (workspace,) = person.workspaces()
    shutil.rmtree(workspace / "root")
    (workspace / "root").symlink_to("/etc")
    person.site.write(str((workspace / "junk/file").relative_to(person.path)))
    person.exec("true").ok()
    assert os.listdir(workspace) == ["root"] and not (workspace / "root").is_symlink()
    shutil.rmtree(person.state / "nsbuild/workspaces")
    person.exec("true").ok()
    person.intact()


# -- the API


def test_a_caller_that_is_a_library(person: Builder) -> None:
    """Nothing of it is changed: neither signal mask, environment, directory nor descriptors."""
    import signal

    def action() -> tuple[object, ...]:
        os.environ.update(person.environment())
        if os.geteuid() == 0:
            from support.processes import become

            become(PERSON, PERSON)

        def state() -> tuple[object, ...]:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            return mask, dict(os.environ), os.getcwd(), descriptors(), signal.getsignal(signal.SIGINT)

        before = state()
        result = exec_in_view(str(person.build), ["sh", "-c", "exit 3"], {"PATH": "/bin"}, WrapOptions())
        assert state() == before
        return result.outcome.exit_code, result.path, [choice.how for choice in result.attached.values()]

    assert in_child(action) == (3, "namespace", ["adopt"])
