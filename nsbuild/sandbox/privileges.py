"""Give up every privilege, in the order the kernel allows: python-prctl, and kernel.py for what it lacks."""

from __future__ import annotations

import prctl

from nsbuild.sandbox import kernel

SIGKILL = 9
SECBIT_NO_CAP_AMBIENT_RAISE, SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED = 1 << 6, 1 << 7  # python-prctl refuses them
SECUREBITS = (
    prctl.SECBIT_NOROOT
    | prctl.SECBIT_NOROOT_LOCKED
    | prctl.SECBIT_NO_SETUID_FIXUP
    | prctl.SECBIT_NO_SETUID_FIXUP_LOCKED
    | prctl.SECBIT_KEEP_CAPS_LOCKED
    | SECBIT_NO_CAP_AMBIENT_RAISE
    | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED
)


class StillPrivileged(RuntimeError):
    """A capability set is not empty after it was dropped: never run anything then."""


def die_with_parent() -> None:
    """Be killed when the thread that cloned us ends. A change of uid or capabilities clears it: call it late."""
    prctl.set_pdeathsig(SIGKILL)


def set_dumpable(dumpable: bool) -> None:
    """Whether our /proc entries belong to us. A changed uid clears it, and uid_map is EACCES without it."""
    prctl.set_dumpable(1 if dumpable else 0)


def drop_all() -> None:
    """Empty every capability set for good and set no_new_privs.

    Raises StillPrivileged when /proc/self/status disagrees.
    """
    # Securebits and the bounding set need CAP_SETPCAP, so they come before the sets that hold it.
    kernel.prctl(kernel.PR_SET_SECUREBITS, SECUREBITS)
    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    prctl.capbset.limit()
    # python-prctl knows the capabilities of the headers it was compiled with; the kernel may be newer.
    for bit in _bits(_status()["CapBnd"]):
        kernel.prctl(kernel.PR_CAPBSET_DROP, bit)
    prctl.cap_effective.limit()
    prctl.cap_permitted.limit()
    prctl.cap_inheritable.limit()
    prctl.set_no_new_privs(1)
    status = _status()
    left = {name: value for name, value in status.items() if value}
    if left:
        raise StillPrivileged(", ".join(f"{name} is {value:016x}" for name, value in left.items()))


def _status() -> dict[str, int]:
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123
        lines = (line.split() for line in file if line.startswith(b"Cap"))
        return {fields[0].decode().rstrip(":"): int(fields[1], 16) for fields in lines}


def _bits(mask: int) -> list[int]:
    return [bit for bit in range(64) if mask >> bit & 1]


def hide_command_line() -> None:
    """What `ps` shows of us: the kernel lets everybody read it, and options may hold config vars.

    Not prctl.set_proctitle, which crashes an interpreter started with -c.
    """
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5), counted from the state
    kernel.overwrite(start, b"nsbuild".ljust(end - start, b"\0")[: end - start])
