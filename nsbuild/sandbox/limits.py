"""What a launch may use, what holds it to that (a delegated cgroup v2, an rlimit, nothing), what it has used."""

from __future__ import annotations

import resource

from nsbuild.sandbox.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

CPU_PERIOD = 100_000
"""Microseconds, the kernel's default; it takes no quota below 1000 of them."""
_ACCOUNTING = ("memory", "pids", "io")
_MIB = 1 << 20


class Limits(Value):
    """What the processes of one launch may use, all together. None: no limit.

    `memory` in bytes; `pids` counts processes and threads, and the sandbox's pid 1 is one of them; `cpu` in cores
    (1.5 is 150 ms in every 100 ms). `file` is what one file may grow to, in bytes.
    """

    memory: int | None = None
    pids: int | None = None
    cpu: float | None = None
    file: int | None = None


class Facts(Value):
    """What can hold a launch to its limits here.

    `place` is the cgroup in which one for the launch can be made; empty when there is none, and `refusal` says why
    (or why a better one was passed over).
    `move`: our own processes are in it and have to go into a leaf first. `controllers` can be used there, `on_v1`
    are in the hands of cgroup v1. `nproc_by_namespace`: RLIMIT_NPROC counts the processes of one user namespace.
    """

    place: str = ""
    refusal: str = ""
    move: bool = False
    controllers: tuple[str, ...] = ()
    on_v1: tuple[str, ...] = ()
    nproc_by_namespace: bool = True


class Limited(Value):
    """How one limit is kept: `mechanism` is `cgroup`, `rlimit` or `none`; `sentence` is for a person."""

    what: str
    mechanism: str
    sentence: str


class Plan(Value):
    """How all of them are kept.

    `place` is empty when no cgroup is made. `settings` are written to files of the launch's cgroup, `rlimits` are
    (resource, value) for the command; `controllers` have to be enabled for them, `accounting` would be nice.
    """

    limited: tuple[Limited, ...]
    place: str = ""
    move: bool = False
    controllers: tuple[str, ...] = ()
    accounting: tuple[str, ...] = ()
    settings: Mapping[str, str] = {}
    rlimits: tuple[tuple[int, int], ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(limit.sentence for limit in self.limited)


class Usage(Value):
    """What a launch has used.

    `memory` is a peak in bytes, of all processes together or of the largest one (`memory_of`). Bytes read and
    written are those that reached storage. `pids` is a peak; None, like `oom_killed`, where nobody counts.
    `oom_at_limit`: the memory limit was the reason, not a shortage outside. `source`: `cgroup v2` or `rusage`.
    """

    source: str
    memory: int
    memory_of: str
    user_seconds: float
    system_seconds: float
    read_bytes: int
    written_bytes: int
    pids: int | None = None
    oom_killed: bool | None = None
    oom_at_limit: bool = False


def oom_sentence(usage: Usage | None, limits: Limits | None) -> str:
    """Names an OOM kill for a person; empty when there was none that we know of."""
    if usage is None or not usage.oom_killed:
        return ""
    if usage.oom_at_limit and limits is not None and limits.memory is not None:
        return f"out of memory: the kernel killed it at its limit of {_bytes(limits.memory)}"
    peak = f"it had used {_bytes(usage.memory)}"
    return f"out of memory: the kernel killed it because the host, or a cgroup around it, had run out; {peak}"


def plan(limits: Limits, facts: Facts) -> Plan:
    """Which mechanism keeps which limit. Raises ValueError for a limit that cannot be meant."""
    check(limits)
    limited: list[Limited] = []
    needed: list[str] = []
    settings: dict[str, str] = {}
    rlimits: list[tuple[int, int]] = []

    def by_cgroup(what: str, text: str, files: Mapping[str, str]) -> None:
        needed.append(what)
        settings.update(files)
        limited.append(Limited(what, "cgroup", f"{what}: {text}, by cgroup v2"))

    def otherwise(what: str, mechanism: str, text: str) -> None:
        limited.append(Limited(what, mechanism, f"{what}: {text} ({_why_no_cgroup(what, facts)})"))

    if limits.memory is not None:
        amount = _bytes(limits.memory)
        if "memory" in facts.controllers:
            # Without swap, or the limit would only decide where the pages are. The group dies as a whole: a build
            # that lost a compiler to the OOM killer may go on and look finished.
            files = {"memory.max": str(limits.memory), "memory.swap.max": "0", "memory.oom.group": "1"}
            by_cgroup("memory", f"{amount} for all processes together, none of it swap", files)
        else:
            # Not RLIMIT_AS: node, Java and Go reserve gigabytes of addresses they never touch, and do not start.
            # RLIMIT_DATA counts private writable memory only (Linux 4.7).
            rlimits.append((resource.RLIMIT_DATA, limits.memory))
            text = f"{amount} of private memory for each process, not for all together, by RLIMIT_DATA"
            otherwise("memory", "rlimit", text)
    if limits.pids is not None:
        if "pids" in facts.controllers:
            by_cgroup("pids", f"{limits.pids} processes and threads", {"pids.max": str(limits.pids)})
        elif facts.nproc_by_namespace:
            rlimits.append((resource.RLIMIT_NPROC, limits.pids))
            otherwise("pids", "rlimit", f"{limits.pids} processes and threads, by RLIMIT_NPROC")
        else:
            text = "not limited: before Linux 5.14 RLIMIT_NPROC counts everything the user runs on this host"
            otherwise("pids", "none", text)
    if limits.cpu is not None:
        if "cpu" in facts.controllers:
            quota = round(limits.cpu * CPU_PERIOD)
            by_cgroup("cpu", f"{limits.cpu:g} cores", {"cpu.max": f"{quota} {CPU_PERIOD}"})
        else:
            otherwise("cpu", "none", "not limited: no rlimit can hold processes to a number of cores")
    if limits.file is not None:
        rlimits.append((resource.RLIMIT_FSIZE, limits.file))
        limited.append(Limited("file", "rlimit", f"file: {_bytes(limits.file)} each, by RLIMIT_FSIZE"))
    by_rlimit = limits.file is not None and limits == Limits(file=limits.file)
    if by_rlimit or (not needed and "memory" not in facts.controllers):
        return Plan(tuple(limited), rlimits=tuple(rlimits))
    accounting = tuple(name for name in _ACCOUNTING if name in facts.controllers and name not in needed)
    return Plan(tuple(limited), facts.place, facts.move, tuple(needed), accounting, settings, tuple(rlimits))


def check(limits: Limits) -> None:
    """Raises ValueError for a limit that cannot be meant, with a sentence about it."""
    if limits.memory is not None and limits.memory < _MIB:
        raise ValueError(f"a memory limit of {limits.memory} bytes is less than 1 MiB")
    if limits.pids is not None and limits.pids < 2:
        raise ValueError("a limit of less than 2 processes leaves none for the command: the sandbox's pid 1 counts")
    if limits.file is not None and limits.file < 1:
        raise ValueError(f"a file limit of {limits.file} bytes is less than 1")
    if limits.cpu is not None and not limits.cpu >= 0.01:
        raise ValueError(f"a limit of {limits.cpu} cores is less than 0.01, the kernel's least")


def _why_no_cgroup(controller: str, facts: Facts) -> str:
    if controller in facts.on_v1:
        return f"no cgroup v2: the {controller} controller is in the hands of cgroup v1 on this host"
    return f"no cgroup: {facts.refusal or f'{facts.place} is not given the {controller} controller'}"


def _bytes(number: int) -> str:
    return f"{number / _MIB:.10g} MiB" if number % _MIB == 0 else f"{number / _MIB:.1f} MiB"
