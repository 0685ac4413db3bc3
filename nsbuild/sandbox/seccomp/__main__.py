"""Compile the filters with libseccomp: `python -m nsbuild.sandbox.seccomp [DIRECTORY]`.

Everything here is refused with EPERM, as a kernel without the privilege would, so that programs take the branch
they have for that. User namespaces stay allowed by default: Chromium's own sandbox needs them.
"""

from __future__ import annotations

import errno
import sys
import tempfile
from pathlib import Path

import pyseccomp

from nsbuild.sandbox.seccomp import filter_path

MACHINES = {
    "x86_64": (pyseccomp.Arch.X86_64, pyseccomp.Arch.X86, pyseccomp.Arch.X32),
    "aarch64": (pyseccomp.Arch.AARCH64, pyseccomp.Arch.ARM),
}

DENIED: tuple[str, ...] = (
    *("mount", "umount", "umount2", "pivot_root", "open_tree", "move_mount", "mount_setattr"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "swapon", "swapoff", "quotactl", "acct", "quotactl_fd"),
    *("keyctl", "add_key", "request_key"),
    *("bpf", "perf_event_open", "userfaultfd"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load"),
    *("clock_settime", "clock_settime64", "settimeofday", "stime", "clock_adjtime", "clock_adjtime64"),
    *("reboot", "nfsservctl", "lookup_dcookie"),
)
"""open_tree_attr (6.15) is younger than Debian 12's libseccomp; what it returns cannot be attached anyway."""

TIOCSTI = 0x5412
TIOCLINUX = 0x541C
CLONE_NEWUSER = 0x10000000


def compile_filter(machine: str, user_namespaces: bool) -> bytes:
    """The BPF program for one machine (its 32-bit modes included)."""
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for arch in MACHINES[machine]:
        if not rules.exist_arch(arch):
            rules.add_arch(arch)
    native = pyseccomp.system_arch()
    if native not in MACHINES[machine]:
        rules.remove_arch(native)
    refuse = pyseccomp.ERRNO(errno.EPERM)
    for call in DENIED:
        rules.add_rule(refuse, call)
    for request in (TIOCSTI, TIOCLINUX):
        # The kernel looks at 32 bits of the request; comparing 64 was CVE-2019-10063 in flatpak.
        rules.add_rule(refuse, "ioctl", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, request))
    if not user_namespaces:
        for call in ("clone", "unshare"):
            mask = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, CLONE_NEWUSER, CLONE_NEWUSER)
            rules.add_rule(refuse, call, mask)
        # clone3 passes its flags in memory, where a filter cannot look; glibc falls back to clone on ENOSYS.
        rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
        rules.add_rule(refuse, "setns")
    with tempfile.TemporaryFile() as out:
        rules.export_bpf(out)
        out.seek(0)
        return out.read()


def main() -> None:
    for machine in MACHINES:
        for user_namespaces in (True, False):
            target = Path(filter_path(machine, user_namespaces))
            if len(sys.argv) > 1:
                target = Path(sys.argv[1]) / target.name
            target.write_bytes(compile_filter(machine, user_namespaces))
            print(target)


if __name__ == "__main__":
    main()
