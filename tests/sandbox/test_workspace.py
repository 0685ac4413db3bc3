"""The workspace as `/`: plain directories of one mount, given back by rename, hostile after the first command."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.processes import ROOT, write
from support.rooms import ENV, SUBDIRECTORIES, Room, Seen, reason_against

from nsbuild.sandbox import Bind, Launcher, LaunchError, Overlay, compose, read_host

ODD_NAMES = ["a b", "a\nb", "a,b", "a:b", "a\\b", "\\040", "üñ", "\udcff\udcfe", "a'b\"c", "-n", "%s$HOME*"]


def test_hard_links_and_renames_across_app_cache_and_tmp(room: Room) -> None:
    """One mount: rename(2) and link(2) themselves, for mv would copy."""
    seen = room.python("""
open("/app/f", "w").write("x")
os.link("/app/f", "/tmp/cache/f")
os.link("/app/f", "/tmp/f")
os.rename("/tmp/f", "/app/g")
os.mkdir("/tmp/d")
os.rename("/tmp/d", "/tmp/cache/d")
os.rename("/tmp/cache/d", "/app/d")
print(json.dumps([os.stat("/app/f").st_nlink, os.stat("/").st_dev == os.stat("/app").st_dev]))
""")
    assert seen == [3, True]
    assert os.stat(room.host("app/f")).st_ino == os.stat(room.host("cache/f")).st_ino
    assert sorted(os.listdir(room.host("app"))) == ["d", "f", "g"]


def test_the_app_may_be_removed_and_made_anew(room: Room) -> None:
    write(room.host("app/old"), "")
    room.own(room.workspace)
    seen = room.launch("cd /; rm -rf /app && mkdir /tmp/x && echo new >/tmp/x/new && mv /tmp/x /app && ls /app")
    assert (seen.code, seen.text) == (0, "new")
    assert seen.outcome.came_back["/app"] == "directory"
    assert os.listdir(room.host("app")) == ["new"]


def test_the_app_may_be_moved_away_and_a_part_of_it_put_in_place(room: Room) -> None:
    """What subdirectory and monorepo buildpacks do."""
    os.makedirs(room.host("app/packages/web"))
    write(room.host("app/packages/web/index"), "")
    room.own(room.workspace)
    seen = room.launch("cd /; mv /app /tmp/whole; mv /tmp/whole/packages/web /app; ls /app")
    assert (seen.code, seen.text) == (0, "index")
    assert os.listdir(room.host("app")) == ["index"]
    assert os.listdir(room.host("tmp")) == ["whole"]


def repair(room: Room) -> None:
    """What a caller does before it launches again: the directories, with their modes."""
    for sub in SUBDIRECTORIES:
        path = room.host(sub)
        if os.path.lexists(path) and not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
        if not os.path.isdir(path):
            os.mkdir(path)
            if ROOT and not room.root_on_disk:
                os.chown(path, room.uid, room.gid)
        os.chmod(path, 0o1777 if "tmp" in sub else 0o755)


LIST = "cd /; stat -c '%N %a %U' / /* /home/* /run/* /root/* 2>/dev/null; head -1 /etc/passwd; echo alive >/app/f"

HOSTILE: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "nothing": ("true", {}),
    "app is gone": ("rm -rf /app", {"/app": "missing"}),
    "app is a link out": ("rm -rf /app; ln -s $VICTIM /app", {"/app": "symlink"}),
    "app is a link up": ("rm -rf /app; ln -s ../../../victim /app", {"/app": "symlink"}),
    "app is a file": ("rm -rf /app; echo x >/app", {"/app": "file"}),
    "app is a pipe": ("rm -rf /app; mkfifo /app", {"/app": "file"}),
    "tmp is a link out": (
        "rm -rf /tmp; ln -s $VICTIM /tmp",
        {"/tmp": "symlink", "/tmp/cache": "missing", "/tmp/env": "missing"},
    ),
    "tmp is a file": ("rm -rf /tmp; echo >/tmp", {"/tmp": "file", "/tmp/cache": "missing", "/tmp/env": "missing"}),
    "cache is a link out": ("rm -rf /tmp/cache; ln -s $VICTIM/cache /tmp/cache", {"/tmp/cache": "symlink"}),
    "everything is closed": ("chmod 000 /app /tmp/cache /tmp/env /tmp /", {}),
    "root is closed": ("chmod 000 /", {}),
    "root is open": ("chmod 777 /", {}),
    "home is a link out": ("rm -rf /home; ln -s $VICTIM /home", {}),
    "home is somewhere else": ("mv /home /elsewhere; mkdir -m 777 /home", {}),
    "home has things": ("mkdir -p /home/a/b; echo x >/root/.profile; echo x >/run/x", {}),
    "bin is another": ("rm -f /bin || mv /bin /old; mkdir /tmp/evil; ln -s /tmp/evil /bin; rm -f /sbin", {}),
    "etc cannot be": ("mv /etc /old; rmdir /usr; rm -rf /etc/ssl", {}),
    "junk": ("mkdir /junk; for i in $(seq 300); do mkdir -p /junk/$i/a; done; chmod -R 000 /junk", {}),
    "a deep closed tree": (
        "d=/deep; for i in $(seq 60); do d=$d/$(printf %0200d 0); mkdir $d; cd $d; d=.; done; chmod 0 /deep",
        {},
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_build_harms_neither_the_host_nor_the_next(either: Room, what: str) -> None:
    script, expected = HOSTILE[what]
    _hostile(either, script, expected)


@pytest.mark.parametrize(
    "what", ["app is a link out", "tmp is a link out", "everything is closed", "home is a link out"]
)
@pytest.mark.parametrize("way", ["root-owned", "root-isolated"])
def test_a_hostile_build_by_root(ground: str, way: str, what: str) -> None:
    if reason := reason_against(way, ground):
        pytest.skip(reason)
    script, expected = HOSTILE[what]
    _hostile(Room(ground, way), script, expected)


def _hostile(room: Room, script: str, expected: Mapping[str, str]) -> None:
    # Outside of the workspace, but the build's user may change it: only our own steps could do that.
    victim = f"{room.base}/victim"
    for sub in ("", "/cache", "/app", "/env"):
        os.mkdir(victim + sub)
        write(f"{victim}{sub}/precious", "")
        room.own(victim)
        os.chmod(victim + sub, 0o751)
    write(room.host("app/source"), "")
    room.own(room.workspace)
    state = snapshot(victim)

    def action(launcher: Launcher) -> tuple[Seen, Seen, Seen]:
        first = room.seen(launcher, LIST)
        hostile = room.seen(launcher, script, env={**ENV, "VICTIM": victim}, cwd="/")
        repair(room)
        return first, hostile, room.seen(launcher, LIST, cwd="/")

    first, hostile, after = room.run(action)
    assert snapshot(victim) == state
    places = dict.fromkeys(("/app", "/tmp", "/tmp/cache", "/tmp/env"), "directory")
    assert hostile.outcome.came_back == places | dict(expected)
    assert after.text == first.text
    assert (first.code, after.code) == (0, 0)


def snapshot(top: str) -> list[tuple[str, int, int, int]]:
    found = []
    for directory, names, files in os.walk(top):
        for item in (directory, *(os.path.join(directory, name) for name in (*names, *files))):
            info = os.lstat(item)
            found.append((item, info.st_mode, info.st_uid, info.st_nlink))
    return sorted(found)


def test_a_closed_directory_comes_back_closed_and_whole(either: Room) -> None:
    write(either.host("app/kept"), "kept")
    either.own(either.workspace)
    for _ in range(2):
        seen = either.launch("chmod 000 /app", cwd="/")
        assert seen.outcome.came_back["/app"] == "directory"
        assert stat.S_IMODE(os.stat(either.host("app")).st_mode) == 0
    assert either.text("chmod 755 /app; cat /app/kept", cwd="/") == "kept"


def test_a_skeleton_that_nobody_touched_is_used_again(either: Room) -> None:
    def action(launcher: Launcher) -> list[tuple[int, int]]:
        found = []
        for script in (
            "echo x >/app/x; touch /tmp/y /tmp/cache/z",
            "true",
            "mkdir /home/new",
            "true",
            "chmod 777 /run",
            "true",
        ):
            assert either.seen(launcher, script).code == 0
            info = os.stat(either.host("root/usr"))
            found.append((info.st_ino, info.st_ctime_ns))
        return found

    seen = either.run(action)
    assert seen[0] == seen[1] == seen[2]
    assert seen[2] != seen[3]
    assert seen[3] == seen[4]
    assert seen[4] != seen[5]


@pytest.mark.parametrize("run_path", ["/app", "/opt/app", "/home/vcap/app", "/a/b/c"])
def test_a_skeleton_is_used_again_for_every_run_path(simple: Room, run_path: str) -> None:
    def action(launcher: Launcher) -> set[int]:
        made = set()
        for _ in range(3):
            simple.seen(launcher, "true", run_path=run_path)
            made.add(os.stat(simple.host("root/usr")).st_ctime_ns)
        return made

    assert len(simple.run(action)) == 1


def test_another_view_gets_another_skeleton(simple: Room) -> None:
    def action(launcher: Launcher) -> list[str]:
        simple.seen(launcher, "true", run_path="/workspace")
        return [simple.seen(launcher, "ls -d /workspace /app /opt/x 2>/dev/null").text]

    assert simple.run(action) == ["/app"]


def test_a_workspace_is_for_one_launch_at_a_time(launched: Room) -> None:
    """Within a Launcher."""

    def action(launcher: Launcher) -> tuple[str, str, int]:
        caught: list[LaunchError] = []

        def again(_: bytes) -> None:
            try:
                launched.seen(launcher, "true")
            except LaunchError as error:
                caught.append(error)
                write(launched.host("root/app/go"), "")

        script = "echo x; while [ ! -e go ]; do sleep 0.02; done; echo y >/app/y"
        argv = ["bash", "-c", script]
        outcome = launcher.launch(launched.view(), argv, env=ENV, cwd="/app", on_output=again)
        return caught[0].step, caught[0].path, outcome.exit_code

    assert launched.run(action) == ("skeleton", launched.host("root"), 0)
    assert Path(launched.host("app/y")).read_text() == "y\n"


def test_a_live_skeleton_is_safe_from_another_launcher(room: Room) -> None:
    """Removing it would take the app, and the system directories, from the running build."""
    write(room.host("app/source"), "precious")
    room.own(room.workspace)
    child, output = room.begin("echo ready; while [ ! -e go ]; do sleep 0.02; done; cat source; ls / | wc -l")
    output.wait_for(b"ready\n")
    live = room.host("root")
    before = sorted(os.listdir(live))

    def second(launcher: Launcher) -> tuple[str, str]:
        places = {"/app": room.host("var-tmp")}  # one that is there: only the lock stands in the way
        view = compose(
            read_host("/", places),
            workspace=room.workspace,
            user=room.user(),
            home="/app",
            places=places,
            var_tmp=room.host("var-tmp"),
        )
        try:
            launcher.launch(view, ["true"], env=ENV)
        except LaunchError as error:
            return error.step, error.path
        return "launched", ""

    assert room.run(second) == ("skeleton", live)
    assert sorted(os.listdir(live)) == before
    write(f"{live}/app/go", "")
    assert output.rest() == b"ready\nprecious%d\n" % len(before)
    assert child.result().exit_code == 0


def test_what_a_killed_launcher_had_placed_is_not_removed_by_the_next(ground: str) -> None:
    room = Room(ground, "user")
    room.keeps_root = True
    child, output = room.begin("echo kept >/app/f; chmod 000 /; echo ready; sleep 1000")
    output.wait_for(b"ready")
    child.signal(9)
    output.rest()
    child.ended()

    def again(launcher: Launcher) -> str:
        try:
            room.seen(launcher, "true")
        except FileNotFoundError as error:
            return str(error.filename)
        return ""

    assert room.run(again) == room.host("app")
    os.chmod(room.host("root"), 0o755)
    assert Path(room.host("root/app/f")).read_text() == "kept\n"


def test_an_orphaned_skeleton_is_replaced(either: Room) -> None:
    os.makedirs(either.host("root/home/a"))
    write(either.host("root/junk"), "")
    either.own(either.workspace)
    os.chmod(either.host("root"), 0)
    assert either.launch("[ ! -e /junk ] && [ ! -e /home/a ]").code == 0


def test_a_skeleton_that_is_a_link(either: Room) -> None:
    victim = f"{either.base}/victim"
    os.mkdir(victim)
    write(f"{victim}/precious", "")
    either.own(victim)
    os.symlink(victim, either.host("root"))
    assert either.launch("true").code == 0
    assert os.listdir(victim) == ["precious"]


@pytest.mark.parametrize(
    "run_path",
    [
        "/opt/app",
        "/usr/src/app",
        "/usr/local/lib/a b/app",
        "/home/vcap/app",
        "/workspace",
        "/srv/x/y",
        "/var/app",
        "/root/app",
    ],
)
def test_run_paths(either: Room, run_path: str) -> None:
    script = """
pwd; echo ~; echo $HOME
echo x >f; ln f /tmp/cache/f; ls -1 /usr/bin | sha1sum; touch /usr/bin/x /opt/x /usr/src/x; echo
cd /; rm -rf "$RUN"; mkdir "$RUN"; echo new >"$RUN/new"; ls -A /home /root | tr '\\n' ' '; echo
"""
    env = {**ENV, "HOME": run_path, "RUN": run_path}
    parent, name = os.path.split(run_path)
    hidden = parent == "/" or parent.startswith(("/root", "/home"))
    siblings = os.listdir(parent) if os.path.isdir(parent) and not hidden else []
    seen = either.launch(f"{script}ls -A '{parent}'", env=env, run_path=run_path)
    assert seen.text.split("\n")[0] == run_path
    assert seen.outcome.came_back[run_path] == "directory"
    assert os.listdir(either.host("app")) == ["new"]
    last = seen.text.splitlines()
    assert {*siblings, name} <= set(last)
    assert either.text("getent passwd $(id -u) | cut -d: -f6", run_path=run_path) == run_path


def test_the_siblings_of_a_run_path_are_the_hosts(simple: Room) -> None:
    for directory in ("/opt", "/usr/lib", "/var/lib"):
        names = sorted(os.listdir(directory))
        seen = simple.text(f"ls -A1 {directory}", run_path=f"{directory}/app-of-ours").split("\n")
        # Others may install something meanwhile.
        before, after = {*names, "app-of-ours"}, {*os.listdir(directory), "app-of-ours"}
        assert before & after <= set(seen) <= before | after
        assert simple.launch(f"touch {directory}/{names[0]}/x", run_path=f"{directory}/app-of-ours").code != 0


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("way", ["root", "user", "user-isolated"])
def test_odd_paths(ground: str, way: str, name: str) -> None:
    """As a workspace, as what is bound (and where), as an overlay's lower directory, as a run path's part."""
    if reason := reason_against(way, ground):
        pytest.skip(reason)
    room = Room(ground, way, name)
    for path in (f"source {name}", f"lower {name}", f"scratch {name}/upper", f"scratch {name}/work"):
        os.makedirs(f"{ground}/{path}")
    write(f"{ground}/source {name}/f", "bound")
    write(f"{ground}/lower {name}/f", "lower")
    for path in (f"source {name}", f"lower {name}", f"scratch {name}"):
        room.own(f"{ground}/{path}")
    binds = [Bind(f"/srv-{name}/bound", f"{ground}/source {name}")]
    overlays = [Overlay(f"/over-{name}", f"{ground}/lower {name}", f"{ground}/scratch {name}")]
    script = 'cat "$1/f" "$2/f"; pwd; echo changed >"$2/f"; cat "$2/f"; echo x >x'
    words = ["bash", "-c", script, "bash", f"/srv-{name}/bound", f"/over-{name}"]
    text = room.text(words, binds=binds, overlays=overlays, run_path=f"/run path-{name}/app")
    assert text == f"boundlower/run path-{name}/app\nchanged"
    assert Path(f"{ground}/lower {name}/f").read_text() == "lower"
    assert Path(f"{ground}/scratch {name}/upper/f").read_text() == "changed\n"
    assert Path(room.host("app/x")).read_text() == "x\n"


@pytest.mark.parametrize("way", ["root", "root-isolated", "user", "user-isolated"])
def test_an_overlay_leaves_its_lower_directory_alone(ground: str, way: str) -> None:
    if reason := reason_against(way, ground):
        pytest.skip(reason)
    room = Room(ground, way)
    lower, scratch = f"{room.workspace}/lower", f"{room.workspace}/scratch"
    for path in (f"{lower}/sub", f"{scratch}/upper", f"{scratch}/work"):
        os.makedirs(path)
    write(f"{lower}/f", "original")
    write(f"{lower}/gone", "")
    write(f"{lower}/sub/g", "")
    room.own(room.workspace)
    state = snapshot(lower)
    overlays = [Overlay("/slug", lower, scratch)]
    script = "cd /slug; echo more >>f; rm gone; mv sub/g h; mkdir new; echo x >new/x; ls; ls /slug/upper"
    seen = room.launch(script, overlays=overlays)
    assert seen.text.split("\n")[:4] == ["f", "h", "new", "sub"], seen
    assert snapshot(lower) == state
    assert Path(f"{lower}/f").read_text() == "original"
    assert Path(f"{scratch}/upper/f").read_text() == "originalmore\n"


def test_an_overlay_over_what_the_builds_user_cannot_reach_is_told(ground: str) -> None:
    """The step says so: a copy will do then."""
    if not ROOT:
        pytest.skip("needs root")
    room = Room(ground, "root-closed")
    for path in ("lower", "scratch/upper", "scratch/work"):
        os.makedirs(room.host(path))
    room.own(room.workspace)

    def action(launcher: Launcher) -> str:
        try:
            room.seen(launcher, "true", overlays=[Overlay("/slug", room.host("lower"), room.host("scratch"))])
        except LaunchError as error:
            return error.step
        return ""

    assert room.run(action).startswith("overlay")


def test_a_source_that_is_missing_is_an_error_and_the_rest_is_given_back(launched: Room) -> None:
    os.rmdir(launched.host("cache"))

    def action(launcher: Launcher) -> tuple[str, int]:
        try:
            launched.seen(launcher, "true")
        except FileNotFoundError as error:
            os.mkdir(launched.host("cache"))
            return str(error.filename), launched.seen(launcher, "true").code
        return "", 0

    assert launched.run(action) == (launched.host("cache"), 0)
    assert sorted(os.listdir(launched.workspace)) == sorted(SUBDIRECTORIES)


def test_a_bind_that_is_missing_is_told(room: Room) -> None:
    def action(launcher: Launcher) -> tuple[str, int]:
        try:
            room.seen(launcher, "true", binds=[Bind("/srv/x", f"{room.base}/nowhere")])
        except LaunchError as error:
            return error.path, error.errno
        return "", 0

    assert room.run(action) == (f"{room.base}/nowhere", 2)
    assert sorted(os.listdir(room.workspace)) == sorted(SUBDIRECTORIES)
