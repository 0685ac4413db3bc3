"""What a build is refused: capabilities, system calls, the launcher's memory, its descriptors and its settings."""

from __future__ import annotations

import errno
import os
import signal

import _prctl
import pytest
from support.processes import write
from support.rooms import ENV, Room

from nsbuild.sandbox import Launcher, privileges


def test_no_capability_is_left_and_none_can_come_back(room: Room) -> None:
    text = room.text("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; grep ^Cap /proc/1/status")
    fields = [line.split() for line in text.splitlines()]
    assert len(fields) == 12
    for name, value in fields:
        expected = {"NoNewPrivs:": "1", "Seccomp:": "2"}.get(name, "0" * 16)
        assert value == expected, name


def test_nothing_runs_with_a_capability_left(simple: Room) -> None:
    def before() -> None:
        _prctl.set_caps = lambda *sets: None

    def action(launcher: Launcher) -> str:
        try:
            simple.seen(launcher, "echo ran")
        except Exception as error:
            return str(error)
        return "it ran"

    assert "CapPrm" in simple.run(action, before=before)


def test_securebits_are_locked(either: Room) -> None:
    """No program file, and no change of uid, gives capabilities back, in this user namespace or a new one."""
    bits = either.python("print(ctypes.CDLL(None).prctl(27))")
    assert bits == privileges.SECUREBITS
    assert bits & 0b11101111 == 0b11101111


CALLS = """
libc = ctypes.CDLL(None, use_errno=True)
bad = ctypes.c_void_p(8)
numbers = {
    "x86_64": [321, 298, 250, 248, 323, 227, 164, 246, 313, 155, 169, 165, 166, 16],
    "aarch64": [280, 241, 219, 217, 282, 112, 170, 104, 273, 41, 142, 40, 39, 29],
}
names = "bpf perf_event_open keyctl add_key userfaultfd clock_settime settimeofday kexec_load finit_module"
names += " pivot_root reboot mount umount2 ioctl"
nr = dict(zip(names.split(), numbers[os.uname().machine]))
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *args)
    return errno.errorcode.get(ctypes.get_errno(), "EOTHER") if result < 0 else "ok"
null = os.open("/dev/null", os.O_RDWR)
"""


def test_system_calls_that_are_denied(either: Room) -> None:
    """With arguments for which the kernel would give another answer, wherever there are such."""
    code = (
        CALLS
        + """
seen = {
    "keyctl": call(nr["keyctl"], ctypes.c_long(0), ctypes.c_long(-3), ctypes.c_long(1)),
    "add_key": call(nr["add_key"], bad, bad, bad, 0, 0),
    "userfaultfd": call(nr["userfaultfd"], 1),
    "perf_event_open": call(nr["perf_event_open"], None, 0, -1, -1, 0),
    "bpf": call(nr["bpf"], 9999, None, 0),
    "clock_settime": call(nr["clock_settime"], 0, bad),
    "settimeofday": call(nr["settimeofday"], bad, None),
    "fsopen": call(430, bad, 0),
    "open_tree": call(428, -1, bad, 0),
    "move_mount": call(429, -1, bad, -1, bad, 0),
    "mount_setattr": call(442, -1, bad, 0, bad, 0),
    "mount": call(nr["mount"], bad, bad, bad, 0, bad),
    "umount2": call(nr["umount2"], bad, 0x1000),
    "pivot_root": call(nr["pivot_root"], bad, bad),
    "kexec_load": call(nr["kexec_load"], 0, 0, 0, 0),
    "finit_module": call(nr["finit_module"], -1, bad, 0),
    "reboot": call(nr["reboot"], 0, 0, 0, 0),
    "TIOCSTI": call(nr["ioctl"], null, ctypes.c_ulong(0x5412), bad),
    "TIOCSTI in 64 bits": call(nr["ioctl"], null, ctypes.c_ulong(0x100005412), bad),
    "TIOCLINUX": call(nr["ioctl"], null, ctypes.c_ulong(0x541C), bad),
    "an innocent ioctl": call(nr["ioctl"], null, ctypes.c_ulong(0x5413), bad),
}
print(json.dumps(seen))
"""
    )
    seen = either.python(code)
    assert seen.pop("an innocent ioctl") == "ENOTTY"
    assert seen == dict.fromkeys(seen, "EPERM")


NEW_USER_NAMESPACE = (
    CALLS
    + """
seen = {}
clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
pid = libc.syscall(ctypes.c_long(clone), ctypes.c_long(0x10000000 | 17), None, None, None, None)
if pid == 0:
    os._exit(0)
seen["clone"] = "ok" if pid > 0 else errno.errorcode[ctypes.get_errno()]
seen["unshare"] = "ok" if libc.unshare(0x10000000) == 0 else errno.errorcode[ctypes.get_errno()]
seen["clone3"] = call(435, bad, 0)
seen["mount"] = call(nr["mount"], b"none", b"/tmp", b"tmpfs", 0, None)
print(json.dumps(seen))
"""
)


def test_user_namespaces_are_allowed_but_mounts_in_them_are_not(simple: Room) -> None:
    """Chromium and nested sandboxes need them."""
    seen = simple.python(NEW_USER_NAMESPACE)
    assert (seen["unshare"], seen["clone"], seen["mount"]) == ("ok", "ok", "EPERM")


def test_user_namespaces_can_be_refused(simple: Room) -> None:
    seen = simple.python(NEW_USER_NAMESPACE, user_namespaces=False)
    assert (seen["unshare"], seen["clone"], seen["clone3"]) == ("EPERM", "EPERM", "ENOSYS")


@pytest.mark.parametrize("user_namespaces", [True, False])
def test_processes_and_threads_start_under_the_filter(simple: Room, user_namespaces: bool) -> None:
    code = """
import subprocess, threading
thread = threading.Thread(target=subprocess.run, args=(["true"],))
thread.start()
thread.join()
print(subprocess.run(["true"]).returncode)
"""
    assert simple.python(code, user_namespaces=user_namespaces) == 0


def test_the_launchers_secrets_are_closed(room: Room) -> None:
    def before() -> None:
        os.environ["CONFIG_VAR"] = "s3cret"

    script = (
        "for f in environ mem maps; do head -c 9 /proc/1/$f; done; ls /proc/1/fd; ls /proc/1/root/; cat /proc/1/exe"
    )
    seen = room.launch(script, before=before)
    lines = seen.text.splitlines()
    assert len(lines) == 6
    assert all("Permission denied" in line for line in lines), lines


def test_process_1_shows_none_of_the_launchers_options(room: Room) -> None:
    shown = room.launch(["cat", "/proc/1/cmdline"]).data
    assert shown.rstrip(b"\0") == b"nsbuild"
    ps = room.launch(["cat", "/proc/1/comm", "/proc/1/stat"]).text
    assert "pytest" not in ps


def test_no_descriptor_is_inherited(room: Room) -> None:
    def before() -> None:
        for number in range(40):
            fd = os.open("/etc/passwd", os.O_RDONLY)
            os.set_inheritable(fd, number % 2 == 0)
        os.dup2(fd, 900, inheritable=True)

    code = "print(json.dumps(sorted(int(name) for name in os.listdir('/proc/self/fd'))))"
    assert room.python(code, before=before) == [0, 1, 2, 3], "3 is the listing's own"


def test_a_callers_missing_standard_descriptors(simple: Room) -> None:
    """0, 1 and 2 are then pipes of ours, in any order."""

    def before() -> None:
        for fd in (0, 1, 2):
            os.close(fd)
        os.open("/dev/null", os.O_RDWR)

    code = "print(json.dumps(sorted(int(name) for name in os.listdir('/proc/self/fd'))))"
    assert simple.python(code, before=before) == [0, 1, 2, 3]


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_umask(either: Room, umask: int) -> None:
    script = "umask; touch f; mkdir d; stat -c %a f d /home /run /root /tmp /app /"
    expected = ["0022", "644", "755", "755", "755", "700", "1777", "755", "755"]
    assert either.text(script, before=lambda: _set_umask(umask)).split() == expected


def _set_umask(umask: int) -> None:
    os.umask(umask)


def ignoring_and_blocking() -> None:
    """As under nohup, and as Python itself does with SIGPIPE and SIGXFSZ."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGWINCH, signal.SIGRTMIN})


def test_signals_are_neither_ignored_nor_blocked(room: Room) -> None:
    text = room.text(["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"], before=ignoring_and_blocking)
    blocked, ignored = (int(word, 16) for word in text.split()[1::2])
    internal = 1 << 31 | 1 << 32  # glibc's own, which posix_spawn ignores: of no use to anybody else
    assert (blocked, ignored & ~internal) == (0, 0)


def test_a_writer_ends_with_its_pipe(room: Room) -> None:
    assert room.text("yes | head -1; echo ${PIPESTATUS[0]}").split() == ["y", "141"]


def test_a_file_that_grows_too_large_ends_its_writer(either: Room) -> None:
    assert either.launch("ulimit -f 1; (head -c 100000 /dev/zero >f) 2>/dev/null; echo $?").text.endswith("\n153")


def test_the_environment_is_exactly_what_was_given(room: Room) -> None:
    env = {"A": "1", "NL": "x\ny", "BYTES": "\udcff", "EMPTY": "", "ODD NAME%": "y"}
    seen = room.launch(["/usr/bin/env", "-0"], env=env)
    assert sorted(seen.data.split(b"\0")) == sorted(
        [b"", b"A=1", b"NL=x\ny", b"BYTES=\xff", b"EMPTY=", b"ODD NAME%=y"]
    )


def test_a_file_with_a_capability_or_setuid_gives_nothing(simple: Room) -> None:
    write(simple.host("app/script"), "")
    text = simple.text(
        "cp /usr/bin/grep g; chmod u+s g; ./g -E 'CapPrm|^Uid' /proc/self/status; sudo -n true 2>&1 | tail -1"
    )
    uid = str(simple.uid)
    assert text.split()[:5] == ["Uid:", uid, uid, uid, uid]


def test_a_missing_filter_is_an_error(simple: Room) -> None:
    """Never a launch without one."""

    def action(launcher: Launcher) -> str:
        from nsbuild.sandbox import seccomp

        seccomp.filter_path = lambda machine, user_namespaces: "/nowhere"
        try:
            launcher.launch(simple.view(), ["true"], env=ENV)
        except seccomp.NoFilter as error:
            return str(error)
        return "it ran"

    assert os.uname().machine in simple.run(action)
    assert errno.EPERM == 1
