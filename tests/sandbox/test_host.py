"""What a build sees of the host: system directories, read-only; nothing of its people, mounts and secrets."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from support.processes import ROOT, eventually, private_mounts, read, refuse, tmpfs, write
from support.rooms import ENV, Room

from nsbuild.sandbox import Bind, Launcher, kernel

MS_SHARED = 1 << 20
SHOWN = {"usr", "bin", "sbin", "etc", "opt", "var", "srv", "lib", "lib32", "lib64", "libx32"}


def open_to_all(path: str) -> None:
    tmpfs(path)
    os.chmod(path, 0o777)


def with_submounts() -> None:
    private_mounts()
    open_to_all("/srv")
    for sub in ("a", "a b", "c\nd\\e"):
        os.mkdir(f"/srv/{sub}")
        open_to_all(f"/srv/{sub}")


TRY_SRV = r"for d in /srv /srv/a '/srv/a b' $'/srv/c\nd\\e'; do touch $d/x 2>&1; echo $?; done"


def test_the_host_is_read_only_with_its_submounts(room: Room) -> None:
    """In directories that everybody may write to, so that no permission stands in for the mount."""
    text = room.text(f"ls /srv; {TRY_SRV}", before=with_submounts)
    assert text.count("Read-only file system") == 4, text
    assert "a b" in text


def test_a_bind_is_read_only_unless_asked_with_its_submounts(either: Room) -> None:
    source, target = f"{either.base}/source", f"{either.base}/target"
    for path in (f"{source}/sub", f"{target}/sub"):
        os.makedirs(path)
        either.own(os.path.dirname(path))

    def before() -> None:
        private_mounts()
        open_to_all(f"{source}/sub")

    binds = [Bind("/mnt/source", source), Bind("/tmp/target", target, writable=True)]
    script = "touch /mnt/source/x; touch /mnt/source/sub/x; touch /tmp/target/x /tmp/target/sub/x"
    seen = either.launch(script, binds=binds, before=before)
    assert seen.code == 0
    assert seen.text.count("Read-only file system") == 2
    assert os.listdir(source) == ["sub"]
    assert sorted(os.listdir(target)) == ["sub", "x"]


def test_one_source_bound_read_only_and_writable(room: Room) -> None:
    source = room.host("source")
    os.mkdir(source)
    room.own(source)
    script = "touch /mnt/closed/x; touch /mnt/open/y; touch /mnt/again/z; ls /mnt/closed; ls /mnt/shut"
    binds = [
        Bind("/mnt/closed", source),
        Bind("/mnt/open", source, writable=True, root_on_disk=room.root_on_disk),
        Bind("/mnt/again", source, writable=True, root_on_disk=room.root_on_disk),
        Bind("/mnt/shut", source),
    ]
    seen = room.launch(script, binds=binds)
    assert seen.text.splitlines()[1:] == ["y", "z", "y", "z"]
    assert "Read-only file system" in seen.text


@pytest.fixture
def mounter(ground: str) -> Room:
    """A room whose launcher may mount on its own idea of the host."""
    return Room(ground, "root" if ROOT else "user")


def share_everything() -> None:
    private_mounts()
    kernel.mount("none", "/", "", kernel.MS_REC | MS_SHARED)


def test_no_mount_reaches_a_host_that_shares_its_mounts(mounter: Room) -> None:
    def action(launcher: Launcher) -> tuple[str, str]:
        known = read("/proc/self/mountinfo")
        during: list[str] = []
        launcher.launch(
            mounter.view(network="none"),
            ["bash", "-c", "echo ready; sleep 0.1"],
            env=ENV,
            cwd="/app",
            on_output=lambda _: during.append(read("/proc/self/mountinfo")),
        )
        assert during[0] == known
        return known, read("/proc/self/mountinfo")

    known, afterwards = mounter.run(action, before=share_everything)
    assert "shared:" in known
    assert afterwards == known


@pytest.mark.parametrize("old", [False, True], ids=["mount_setattr", "remounts"])
def test_no_later_mount_of_the_host_arrives(either: Room, old: bool) -> None:
    live = f"{either.workspace}/root/app"

    def before() -> None:
        share_everything()
        if os.fork() == 0:
            # Somebody else on this host, who mounts while the command runs.
            try:
                if eventually(lambda: os.path.exists(f"{live}/ready")):
                    open_to_all("/srv")
                    write("/srv/late", "")
                    write(f"{live}/go", "")
            finally:
                os._exit(0)
        if old:
            refuse(errno.ENOSYS, "mount_setattr")

    script = "touch ready; while [ ! -e go ]; do sleep 0.05; done; [ ! -e /srv/late ]"
    assert either.launch(script, before=before).code == 0


def test_a_host_without_app(simple: Room) -> None:
    there = os.path.lexists("/app")
    assert simple.text("pwd; echo x >f; ls") == "/app\nf"
    assert os.path.lexists("/app") == there


def test_run_home_and_root_are_hidden(room: Room) -> None:
    def before() -> None:
        private_mounts()
        tmpfs("/run")
        write("/run/secret", "")

    assert room.text("ls -A /run; ls -A /home; ls -A /root", before=before) == ""


def test_the_hosts_root_is_gone(room: Room) -> None:
    """Not only covered: what lies on top of `/` is where `/..` leads, and the kernel calls that a chroot."""
    text = room.text(
        "stat -c %d-%i / /.. /../..; ls /.. | sort >/tmp/a; ls / | sort | diff - /tmp/a; cat /proc/self/mountinfo"
    )
    lines = text.splitlines()
    assert len(set(lines[:3])) == 1
    points = [line.split()[4] for line in lines[3:]]
    assert points.count("/") == 1
    tops = {point.split("/")[1] for point in points} - {""}
    assert tops <= {*SHOWN, "sys", "proc", "dev"}


def test_nothing_of_the_hosts_top_level_that_is_not_named(simple: Room) -> None:
    """Hosts keep secrets in directories of their own making."""
    names = set(simple.text("ls -A /").split())
    assert names <= {*SHOWN, "app", "tmp", "dev", "proc", "sys", "run", "home", "root"}


@pytest.mark.parametrize(
    ("link", "real"),
    [
        ("../run/resolved/stub.conf", "/run/resolved/stub.conf"),
        ("/run/resolvconf/resolv.conf", "/run/resolvconf/resolv.conf"),
        ("/var/run/nm/resolv.conf", "/run/nm/resolv.conf"),
        ("/mnt/wsl/resolv.conf", "/mnt/wsl/resolv.conf"),
    ],
)
def test_the_resolvers_file_behind_a_link_stays_readable(either: Room, link: str, real: str) -> None:
    def before() -> None:
        private_mounts()
        for top in ("/etc", "/run", "/mnt"):
            tmpfs(top)
        os.makedirs(os.path.dirname(real))
        write(os.path.join(os.path.dirname(real), "secret"), "")
        write(real, "nameserver 192.0.2.1\n")
        os.symlink(link, "/etc/resolv.conf")

    text = either.text(f"cat /etc/resolv.conf; ls -A {os.path.dirname(real)}", before=before)
    assert text.split("\n") == ["nameserver 192.0.2.1", os.path.basename(real)]


def test_the_resolvers_file_can_be_a_link_to_a_link(simple: Room) -> None:
    def before() -> None:
        private_mounts()
        for top in ("/etc", "/run"):
            tmpfs(top)
        os.makedirs("/run/real")
        write("/run/real/conf", "nameserver 192.0.2.1\n")
        os.symlink("real/conf", "/run/stub")
        os.symlink("../run/stub", "/etc/resolv.conf")

    assert simple.text("cat /etc/resolv.conf", before=before) == "nameserver 192.0.2.1"


def test_proc_is_the_builds_own(room: Room) -> None:
    pids = room.text("echo /proc/[0-9]*").split()
    assert pids == ["/proc/1", "/proc/2"]


def test_every_namespace_is_new_but_the_network(room: Room) -> None:
    names = ("user", "mnt", "pid", "ipc", "uts", "net")
    inside = room.text(" ".join(["readlink", *(f"/proc/self/ns/{name}" for name in names)])).split()
    outside = [os.readlink(f"/proc/self/ns/{name}") for name in names]
    same = [name for name, a, b in zip(names, inside, outside, strict=True) if a == b]
    assert same == ["net"]


def test_devices(room: Room) -> None:
    seen = room.python("""
import fcntl, pty, stat
master, slave = os.openpty()
names = ("null", "zero", "full", "random", "urandom")
files = {name: stat.S_ISCHR(os.stat("/dev/" + name).st_mode) for name in names}
open("/dev/null", "w").write("x")
try:
    os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    full = 0
except OSError as error:
    full = error.errno
print(json.dumps({
    "names": sorted(os.listdir("/dev")), "files": files, "full": full,
    "zero": open("/dev/zero", "rb").read(3).hex(), "random": len(open("/dev/urandom", "rb").read(9)),
    "tty": os.ttyname(slave), "shm": oct(os.stat("/dev/shm").st_mode), "in shm": os.listdir("/dev/shm"),
    "links": [os.readlink("/dev/" + name) for name in ("fd", "stdin", "stdout", "stderr")],
}))
""")
    links = ["fd", "ptmx", "stderr", "stdin", "stdout"]
    assert seen["names"] == sorted(["null", "zero", "full", "random", "urandom", "tty", "pts", "shm", *links])
    assert all(seen["files"].values())
    assert (seen["full"], seen["zero"], seen["random"]) == (28, "000000", 9)
    assert seen["tty"] == "/dev/pts/0", "a devpts of its own begins to count anew"
    assert (seen["shm"], seen["in shm"]) == ("0o41777", [])
    assert seen["links"] == ["/proc/self/fd", *(f"/proc/self/fd/{n}" for n in range(3))]


def test_shared_memory_works_and_is_private(simple: Room) -> None:
    code = """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(json.dumps(pool.map(abs, [-1, -2])))
"""
    assert simple.python(code) == [1, 2]
    simple.text("echo x >/dev/shm/nsbuild-test-leak")
    assert not os.path.exists("/dev/shm/nsbuild-test-leak")


def test_tmp_and_var_tmp_are_private_and_open(room: Room) -> None:
    with tempfile.NamedTemporaryFile(dir="/tmp") as one, tempfile.NamedTemporaryFile(dir="/var/tmp") as two:
        script = f"ls {one.name} {two.name}; stat -c %a /tmp /var/tmp; echo x >/tmp/a; echo y >/var/tmp/b; mktemp"
        seen = room.launch(script)
    assert seen.code == 0
    assert seen.text.count("No such file") == 2
    assert seen.text.count("\n1777") == 2
    assert Path(room.host("tmp/a")).read_text() == "x\n"
    assert Path(room.host("var-tmp/b")).read_text() == "y\n"


def test_var_tmp_that_is_a_link_to_tmp() -> None:
    if any(os.path.realpath(path).startswith("/var/") for path in (__file__, sys.prefix)):
        pytest.skip("this checkout is below /var, which the test hides")

    def before() -> None:
        private_mounts()
        tmpfs("/var")
        os.symlink("/tmp", "/var/tmp")

    other = tempfile.mkdtemp(prefix="sandbox-", dir="/tmp")
    os.chmod(other, 0o755)
    try:
        room = Room(other, "user")
        assert room.text("echo x >/var/tmp/x; cat /tmp/x", before=before) == "x"
    finally:
        shutil.rmtree(other)


def test_sys_is_there_and_read_only(simple: Room) -> None:
    seen = simple.launch("ls /sys/kernel >/dev/null && cat /proc/self/mountinfo")
    options = [line.split()[5] for line in seen.text.splitlines() if line.split()[4].split("/")[1] == "sys"]
    assert options
    assert all(option.split(",")[0] == "ro" for option in options)


def test_the_account_has_the_run_path_as_its_home(room: Room) -> None:
    code = """
import grp, pwd
me = pwd.getpwuid(os.getuid())
print(json.dumps([me.pw_name, me.pw_uid, me.pw_gid, me.pw_dir, grp.getgrgid(os.getgid()).gr_name,
                  pwd.getpwnam("root").pw_uid, pwd.getpwnam("dyno").pw_uid, os.path.expanduser("~" + me.pw_name)]))
"""
    assert room.python(code) == ["dyno", room.uid, room.gid, "/app", "dyno", 0, room.uid, "/app"]


def test_openssh_reads_its_configuration_from_the_run_path(simple: Room) -> None:
    """It looks at pw_dir, whatever $HOME says."""
    if shutil.which("ssh", path="/usr/bin:/bin") is None:
        pytest.skip("there is no ssh")
    os.mkdir(simple.host("app/.ssh"), 0o700)
    write(simple.host("app/.ssh/config"), "Host example\n  User from-home\n")
    os.chmod(simple.host("app/.ssh/config"), 0o600)
    simple.own(simple.workspace)
    assert "user from-home" in simple.text("HOME=/elsewhere ssh -G example").splitlines()


def test_accounts_come_from_the_generated_files_only(simple: Room) -> None:
    """A host whose nsswitch.conf asks something else (sss, ldap, systemd) first."""

    def before() -> None:
        private_mounts()
        tmpfs("/etc")
        write("/etc/nsswitch.conf", "passwd: nothing\ngroup: nothing\n")
        write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nperson:x:1500:1500::/home/person:/bin/sh\n")
        write("/etc/group", "root:x:0:\n")

    seen = simple.launch(f"getent passwd {simple.uid}; getent passwd person", before=before)
    assert seen.text == f"dyno:x:{simple.uid}:{simple.gid}:dyno:/app:/bin/bash"


def test_a_host_without_nsswitch(simple: Room) -> None:
    def before() -> None:
        private_mounts()
        tmpfs("/etc")
        write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        write("/etc/own", "")

    assert simple.text("ls /etc; id -un", before=before).split() == [
        "group",
        "nsswitch.conf",
        "own",
        "passwd",
        "dyno",
    ]


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/group", "/etc/nsswitch.conf"])
def test_generated_files_cannot_be_changed(simple: Room, path: str) -> None:
    seen = simple.launch(f"chmod u+w {path}; echo x >>{path}; rm -f {path}; stat -c %a {path}")
    assert seen.text.count("Read-only file system") == 2, seen.text
    assert seen.text.endswith("444")


def test_a_stack_root_instead_of_the_hosts_directories(simple: Room) -> None:
    """Its usr, etc and opt are seen, whatever else it holds is not; what it lacks is made."""
    stack = f"{simple.base}/stack"
    for path in ("usr", "etc", "opt/tool", "home/secret", "data"):
        os.makedirs(f"{stack}/{path}")
    write(f"{stack}/etc/own", "from the stack\n")
    merged = [name for name in os.listdir("/") if os.path.islink(f"/{name}") and os.path.isdir(f"/usr/{name}")]
    for name in merged:
        os.symlink(f"usr/{name}", f"{stack}/{name}")

    def before() -> None:
        private_mounts()
        kernel.mount("/usr", f"{stack}/usr", "", kernel.MS_BIND | kernel.MS_REC)

    if "bin" not in merged:
        pytest.skip("/bin is not in /usr here: a stack root would need a copy of it")
    text = simple.text("cat /etc/own; ls /opt /home; ls / | grep data; id -un; ls /etc", root=stack, before=before)
    assert text.split("\n")[0] == "from the stack"
    assert "tool" in text
    assert "secret" not in text
    assert "data" not in text
    network = [name for name in ("hosts", "resolv.conf") if os.path.isfile(f"/etc/{name}")]
    listed = sorted(["group", "nsswitch.conf", "own", "passwd", *network])
    assert text.split()[-len(listed) :] == listed
