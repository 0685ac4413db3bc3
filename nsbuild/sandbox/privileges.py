"""Give up every privilege, in the order the kernel allows: python-prctl, and kernel.py for what it lacks.

python-prctl's extension module, that is: `prctl` itself makes a few hundred names from it when it is imported, and a
launch would wait for that longer than for everything here.
"""

from __future__ import annotations

import _prctl

from nsbuild.sandbox import kernel

SIGKILL = 9
SECBIT_NO_CAP_AMBIENT_RAISE, SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED = 1 << 6, 1 << 7  # python-prctl refuses them
SECUREBITS = (
    _prctl.SECBIT_NOROOT
    | _prctl.SECBIT_NOROOT_LOCKED
    | _prctl.SECBIT_NO_SETUID_FIXUP
    | _prctl.SECBIT_NO_SETUID_FIXUP_LOCKED
    | _prctl.SECBIT_KEEP_CAPS_LOCKED
    | SECBIT_NO_CAP_AMBIENT_RAISE
    | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED
)


class StillPrivileged(RuntimeError):
    """A capability set is not empty after it was dropped: never run anything then."""


def die_with_parent() -> None:
    """Be killed when the thread that cloned us ends. A change of uid or capabilities clears it: call it late."""
    _prctl.prctl(_prctl.PR_SET_PDEATHSIG, SIGKILL)


def set_dumpable(dumpable: bool) -> None:
    """Whether our /proc entries belong to us. A changed uid clears it, and uid_map is EACCES without it."""
    _prctl.prctl(_prctl.PR_SET_DUMPABLE, dumpable)


def drop_all() -> None:
    """Empty every capability set for good and set no_new_privs.

    Raises StillPrivileged when /proc/self/status disagrees.
    """
    # Securebits and the bounding set need CAP_SETPCAP, so they come before the sets that hold it.
    kernel.prctl(kernel.PR_SET_SECUREBITS, SECUREBITS)
    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    # As this kernel lists them: python-prctl knows those of the headers that it was compiled with.
    held = _status()
    for bit in _bits(held["CapBnd"]):
        kernel.prctl(kernel.PR_CAPBSET_DROP, bit)
    everything = _bits(held["CapEff"] | held["CapPrm"] | held["CapInh"])
    _prctl.set_caps([], [], [], everything, everything, everything)
    _prctl.prctl(_prctl.PR_SET_NO_NEW_PRIVS, 1)
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

    Not python-prctl's set_proctitle, which crashes an interpreter started with -c.
    """
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5), counted from the state
    kernel.overwrite(start, b"nsbuild".ljust(end - start, b"\0")[: end - start])
