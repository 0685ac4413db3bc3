"""Who a build is: the identity map, never uid 0, whoever launches it and whoever owns the workspace."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
from support.processes import ROOT
from support.rooms import Room

import nsbuild


def test_uid_inside_is_uid_outside(room: Room) -> None:
    text = room.text("id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map; cat /proc/self/setgroups")
    uid, gid, uid_map, gid_map, setgroups = text.splitlines()
    assert (int(uid), int(gid)) == (room.uid, room.gid)
    assert uid_map.split() == [str(room.uid), str(room.uid), "1"]
    assert gid_map.split() == [str(room.gid), str(room.gid), "1"]
    assert setgroups == "deny"
    assert int(uid) != 0


def test_supplementary_groups_of_root_are_dropped(room: Room) -> None:
    if not ROOT:
        pytest.skip("an ordinary user cannot drop its groups")

    def before() -> None:
        os.setgroups([0, 4242])

    assert room.text("grep ^Groups: /proc/self/status", before=before) == "Groups:"


def test_what_a_build_writes_belongs_to_the_workspaces_owner(room: Room) -> None:
    room.text("echo a >/app/f; mkdir /tmp/cache/d; ln -s x /tmp/l; echo v >/var/tmp/v; [ -O /app/f ] && [ -O / ]")
    owner = (0, 0) if room.root_on_disk else (room.uid, room.gid)
    for path in ("app/f", "cache/d", "tmp/l", "var-tmp/v", "app", "tmp", "cache"):
        info = os.lstat(room.host(path))
        assert (info.st_uid, info.st_gid) == owner, path


def test_root_owned_files_are_the_builds_own_inside(room: Room) -> None:
    """It may chmod, overwrite and remove what was there before it."""
    Path(room.host("app/old")).write_text("old\n")
    os.chmod(room.host("app/old"), 0o600)
    room.own(room.workspace)
    assert room.text("cat old; chmod 640 old; echo new >old; stat -c '%u %g' old").split() == [
        "old",
        str(room.uid),
        str(room.gid),
    ]
    assert Path(room.host("app/old")).read_text() == "new\n"
    assert stat.S_IMODE(os.stat(room.host("app/old")).st_mode) == 0o640


def test_tar_does_not_try_to_chown(room: Room) -> None:
    """Under a map to uid 0 it would, and fail on every owner that is not mapped."""
    with tarfile.open(room.host("app/other.tar"), "w") as archive:
        for name, owner in (("a", 0), ("b", 12345), ("c", 65534)):
            item = tarfile.TarInfo(name)
            item.uid = item.gid = owner
            item.size = 1
            archive.addfile(item, io.BytesIO(b"x"))
    room.own(room.workspace)
    assert room.text("tar -xf other.tar; stat -c %u a b c").split() == [str(room.uid)] * 3


def test_a_workspace_behind_a_closed_door_is_reached(ground: str) -> None:
    if not ROOT:
        pytest.skip("needs root")
    room = Room(ground, "root-closed")
    assert stat.S_IMODE(os.stat(os.path.dirname(room.workspace)).st_mode) == 0o700
    assert os.stat(os.path.dirname(room.workspace)).st_uid == 0
    assert room.text("echo hello >/app/f; cat /app/f; id -u").split() == ["hello", str(room.uid)]


@pytest.mark.parametrize("isolated", [False, True], ids=["direct", "isolated"])
@pytest.mark.parametrize("network", ["host", "none"])
def test_an_interpreter_that_the_builds_user_cannot_read(ground: str, network: str, isolated: bool) -> None:
    """pyenv below /root: after the change of user nothing can be imported any more."""
    if not ROOT:
        pytest.skip("needs root")
    hidden = f"{ground}/hidden"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    os.mkdir(hidden, 0o700)
    for sub in ("bin", "lib"):
        os.mkdir(f"{hidden}/{sub}")
    # A copy finds its standard library beside itself, through the closed directory.
    base = os.path.realpath(sys.executable)
    Path(f"{hidden}/bin/python").write_bytes(Path(base).read_bytes())
    os.chmod(f"{hidden}/bin/python", 0o755)
    os.symlink(sysconfig.get_path("stdlib"), f"{hidden}/lib/{version}")
    os.symlink(sysconfig.get_path("purelib"), f"{hidden}/packages")
    os.symlink(os.path.dirname(os.path.dirname(nsbuild.__file__)), f"{hidden}/source")
    os.symlink(os.path.dirname(os.path.dirname(__file__)), f"{hidden}/tests")
    room = Room(ground, "root")
    code = f"""
import sys
sys.path[1:1] = ["{hidden}/source"]
sys.path += ["{hidden}/packages", "{hidden}/tests"]
from nsbuild.sandbox import *
from nsbuild.sandbox.launcher import Launcher
assert sys.prefix == "{hidden}", sys.prefix
places = {{"/app": "{room.workspace}/app", "/tmp": "{room.workspace}/tmp"}}
view = compose(read_host("/", places), workspace="{room.workspace}", user=User({room.uid}, {room.gid}),
               home="/app", places=places, network="{network}", var_tmp="{room.workspace}/var-tmp")
with Launcher(isolated={isolated}) as launcher:
    outcome = launcher.launch(view, ["id", "-u"], env={{"PATH": "/usr/bin:/bin"}}, cwd="/app")
sys.exit(outcome.exit_code)
"""
    done = subprocess.run(
        [f"{hidden}/bin/python", "-I", "-S", "-c", code], cwd=hidden, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(room.uid)), done.stderr
