"""Kernels that refuse a sandbox, for `prepare`."""

from __future__ import annotations

import os
from collections.abc import Callable

from nsbuild.sandbox import kernel
from support.processes import become, refuse, write
from support.sites import PERSON


def no_user_namespaces() -> None:
    """As `unshare -U`, then `echo 0 > /proc/sys/user/max_user_namespaces`: as on a host that has turned them off."""
    gid = PERSON if os.geteuid() == 0 else os.getgid()
    if os.geteuid() == 0:
        become(PERSON, gid)
    kernel.unshare(kernel.CLONE_NEWUSER)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{PERSON} {PERSON} 1")
    write("/proc/self/gid_map", f"{gid} {gid} 1")
    write("/proc/sys/user/max_user_namespaces", "0")


def no_mounts() -> None:
    """The namespaces can be had, and then nothing can be mounted in them: BUILD_DIR has been adopted by then."""
    if os.geteuid() == 0:
        become(PERSON, PERSON)
    refuse(1, "move_mount")


REFUSALS: dict[str, tuple[Callable[[], None], str]] = {
    "no user namespaces": (no_user_namespaces, "max_user_namespaces"),
    "no mounts": (no_mounts, "seccomp"),
}
"""What to do to this process, and a word of what is then said."""
