"""The shipped seccomp filters: what the rules compile to, and what they answer."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nsbuild.sandbox import seccomp

pytest.importorskip("pyseccomp", reason="the rules need pyseccomp (and libseccomp) to be compiled")

from nsbuild.sandbox.seccomp import __main__ as rules

ALLOW = 0x7FFF0000
EPERM = 0x00050000 | errno.EPERM
ENOSYS = 0x00050000 | errno.ENOSYS
AUDIT_ARCH = {"x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
X32 = 0x40000000
NUMBERS = {
    "x86_64": {
        "read": 0, "write": 1, "ioctl": 16, "clone": 56, "execve": 59, "mount": 165, "umount2": 166,
        "pivot_root": 155,
        "keyctl": 250, "add_key": 248, "request_key": 249, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246, "clock_settime": 227,
        "settimeofday": 164, "reboot": 169, "unshare": 272, "setns": 308, "swapon": 167, "acct": 163, "chroot": 161,
    },
    "aarch64": {
        "read": 63, "write": 64, "ioctl": 29, "clone": 220, "execve": 221, "mount": 40, "umount2": 39,
        "pivot_root": 41,
        "keyctl": 219, "add_key": 217, "request_key": 218, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "init_module": 105, "finit_module": 273, "delete_module": 106, "kexec_load": 104, "clock_settime": 112,
        "settimeofday": 170, "reboot": 142, "unshare": 97, "setns": 268, "swapon": 224, "acct": 89, "chroot": 51,
    },
    "i386": {"read": 3, "ioctl": 54, "clone": 120, "mount": 21, "umount": 22, "umount2": 52, "keyctl": 288,
             "bpf": 357, "stime": 25, "clock_settime": 264, "clock_settime64": 404, "unshare": 310, "execve": 11},
    "arm": {"read": 3, "ioctl": 54, "clone": 120, "mount": 21, "keyctl": 311, "bpf": 386, "clock_settime64": 404,
            "unshare": 337, "execve": 11},
}  # fmt: skip
EVERYWHERE = {"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
              "mount_setattr": 442, "quotactl_fd": 443}  # fmt: skip
DENIED = {
    *("mount", "umount", "umount2", "pivot_root", "keyctl", "add_key", "request_key", "bpf", "perf_event_open"),
    *(
        "userfaultfd",
        "init_module",
        "finit_module",
        "delete_module",
        "kexec_load",
        "clock_settime",
        "clock_settime64",
    ),
    *("settimeofday", "stime", "reboot", "swapon", "acct", *EVERYWHERE),
}
"""By the design, not by the rules: a name that falls out of them is missed here."""
TIOCSTI, TIOCLINUX, TIOCGWINSZ = 0x5412, 0x541C, 0x5413
NEWUSER, NEWNS, SIGCHLD = 0x10000000, 0x00020000, 17
FAMILY = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}


def answer(program: bytes, arch: str, number: int, *arguments: int) -> int:
    """Run a classic BPF program on one system call, as the kernel does."""
    data = struct.pack("<iIQ6Q", number, AUDIT_ARCH[arch], 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    code = list(struct.iter_unpack("<HBBI", program))
    a, at = 0, 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op == 0x20:  # load a word
            (a,) = struct.unpack_from("<I", data, k)
        elif op == 0x54:  # and
            a &= k
        elif op == 0x05:  # jump
            at += k
        elif op in (0x15, 0x25, 0x35, 0x45):  # equal, greater, greater or equal, any bit
            true = {0x15: a == k, 0x25: a > k, 0x35: a >= k, 0x45: bool(a & k)}[op]
            at += jt if true else jf
        elif op == 0x06:  # return
            return int(k)
        else:
            raise AssertionError(f"instruction {op:#x}")


def calls(arch: str) -> dict[str, int]:
    return {**NUMBERS[arch], **EVERYWHERE}


EVERY = [(machine, arch, userns) for machine, family in FAMILY.items() for arch in family for userns in (True, False)]


@pytest.mark.parametrize(("machine", "arch", "user_namespaces"), EVERY)
def test_what_is_denied(machine: str, arch: str, user_namespaces: bool) -> None:
    program = seccomp.load(machine, user_namespaces)
    for name, number in calls(arch).items():
        if name in DENIED:
            assert answer(program, arch, number) == EPERM, name
    for request in (TIOCSTI, TIOCLINUX):
        for high in (0, 1 << 32, 0xFFFFFFFF << 32):
            assert answer(program, arch, calls(arch)["ioctl"], 0, high | request) == EPERM


@pytest.mark.parametrize(("machine", "arch", "user_namespaces"), EVERY)
def test_what_is_allowed(machine: str, arch: str, user_namespaces: bool) -> None:
    program = seccomp.load(machine, user_namespaces)
    for name in ("read", "execve"):
        assert answer(program, arch, calls(arch)[name]) == ALLOW, name
    assert answer(program, arch, calls(arch)["ioctl"], 0, TIOCGWINSZ) == ALLOW
    assert answer(program, arch, calls(arch)["clone"], SIGCHLD) == ALLOW
    assert answer(program, arch, calls(arch)["unshare"], NEWNS) == ALLOW


@pytest.mark.parametrize(("machine", "arch", "user_namespaces"), EVERY)
def test_user_namespaces(machine: str, arch: str, user_namespaces: bool) -> None:
    program = seccomp.load(machine, user_namespaces)
    expected = ALLOW if user_namespaces else EPERM
    for flags in (NEWUSER, NEWUSER | NEWNS | SIGCHLD):
        assert answer(program, arch, calls(arch)["clone"], flags) == expected
        assert answer(program, arch, calls(arch)["unshare"], flags) == expected
    assert answer(program, arch, 435) == (ALLOW if user_namespaces else ENOSYS), "clone3"
    if "setns" in calls(arch):
        assert answer(program, arch, calls(arch)["setns"]) == expected


@pytest.mark.parametrize("user_namespaces", [True, False])
def test_x32_is_no_way_round(user_namespaces: bool) -> None:
    program = seccomp.load("x86_64", user_namespaces)
    for name in ("mount", "keyctl", "bpf", "umount2", "reboot"):
        assert answer(program, "x86_64", X32 | NUMBERS["x86_64"][name]) == EPERM, name
    assert answer(program, "x86_64", X32 | 514, 0, TIOCSTI) == EPERM, "x32 has an ioctl of its own"


def test_the_shipped_filters_are_what_the_rules_compile_to() -> None:
    """Another libseccomp may order things in another way: then they must answer alike."""
    source = str(Path(seccomp.__file__).parents[3])
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            [sys.executable, "-m", "nsbuild.sandbox.seccomp", directory],
            cwd=source,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        made = {path.name: path.read_bytes() for path in Path(directory).iterdir()}
    shipped = {path.name: path.read_bytes() for path in Path(seccomp.__file__).parent.glob("*.bpf")}
    assert made.keys() == shipped.keys()
    for name in made:
        if made[name] != shipped[name]:
            _answer_alike(name.split(".")[0].split("-")[0], made[name], shipped[name])


def _answer_alike(machine: str, one: bytes, other: bytes) -> None:
    for arch in FAMILY[machine]:
        for number in [*range(600), *(X32 + n for n in range(600) if arch == "x86_64")]:
            for arguments in ((), (NEWUSER,), (SIGCHLD,), (0, TIOCSTI), (0, TIOCLINUX), (0, 1 << 32 | TIOCSTI)):
                assert answer(one, arch, number, *arguments) == answer(other, arch, number, *arguments), (
                    arch,
                    number,
                )


def test_filters_are_of_a_size_the_kernel_takes() -> None:
    for machine in rules.MACHINES:
        for user_namespaces in (True, False):
            program = seccomp.load(machine, user_namespaces)
            assert 0 < len(program) // 8 <= 4096
            assert len(program) % 8 == 0


def test_a_machine_without_a_filter() -> None:
    with pytest.raises(seccomp.NoFilter, match="riscv64"):
        seccomp.load("riscv64", True)
    assert os.path.isfile(seccomp.filter_path("x86_64", True))
