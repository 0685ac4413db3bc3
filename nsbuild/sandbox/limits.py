"""What a launch may use, what holds it to that (a delegated cgroup v2, an rlimit, nothing), what it has used.

A cgroup is shared with whoever else manages that tree. One is made only where the tree was given to us: marked or
named as delegated by systemd, the top of a container's own tree, a directory that belongs to our user. And only
processes of ours are ever moved.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import time

from nsbuild.sandbox.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nsbuild.sandbox.outcome import Outcome

LEAF = "nsbuild-launcher"
LAUNCH = "nsbuild-launch-"
CPU_PERIOD = 100_000
"""Microseconds, the kernel's default; it takes no quota below 1000 of them."""
_ACCOUNTING = ("memory", "pids", "io")
_UNITS = (".service", ".scope", ".slice")
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


def read_facts(proc: str = "/proc") -> Facts:
    """Look for a cgroup that was delegated to us. Changes nothing."""
    release = os.uname().release.split(".")
    by_namespace = (int(release[0]), int("".join(filter(str.isdigit, release[1])))) >= (5, 14)
    own = None
    on_v1: list[str] = []
    for line in _read(f"{proc}/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            own = path
        else:
            on_v1 += controllers.split(",")
    v1 = tuple(name for name in on_v1 if name in ("memory", "pids", "cpu"))
    facts = Facts(on_v1=v1, nproc_by_namespace=by_namespace)
    if own is None:
        return facts.replace(refusal="this host has no cgroup v2")
    where = _mounted(own, _read(f"{proc}/self/mountinfo"))
    if where is None:
        return facts.replace(refusal=f"our cgroup {own} is not below a mounted cgroup2 filesystem")
    top, directory = where
    refusals: list[str] = []
    for place, move in _candidates(top, directory):
        refusal = _refusal(top, place, move)
        if not refusal:
            given = tuple(_read(f"{place}/cgroup.controllers").split())
            return facts.replace(place=place, move=move, controllers=given, refusal="".join(refusals))
        refusals.append(refusal)
    return facts.replace(refusal=refusals[-1])


def _mounted(own: str, mountinfo: str) -> tuple[str, str] | None:
    """(mount point, directory of our cgroup). A cgroup namespace or a bind may show us a part of the tree only."""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if fields[fields.index("-") + 1] != "cgroup2":
            continue
        root, top = fields[3].rstrip("/"), fields[4]
        if (own == root or own.startswith(f"{root}/")) and "/../" not in f"{own}/":
            directory = top + own[len(root) :].rstrip("/")
            if os.path.isdir(directory):
                return top, directory
    return None


def _is_real_root(directory: str) -> bool:
    # Only the root of the hierarchy has no type, and only there processes and subtrees may live side by side.
    return not os.path.exists(f"{directory}/cgroup.type")


def _candidates(top: str, directory: str) -> list[tuple[str, bool]]:
    """(where a cgroup could be made, whether we have to leave it first), the better one first."""
    here = (directory, not _is_real_root(directory))
    above = os.path.dirname(directory)
    if directory == top or directory.endswith(_UNITS) or _is_real_root(above):
        return [here]  # above a unit is systemd's own, and the root is nobody's to give
    return [(above, False), here]


def _refusal(top: str, place: str, move: bool) -> str:
    """Why no cgroup can be made in `place`; empty when one can."""
    if reason := _not_delegated(top, place):
        return reason
    # Moving a process asks for write permission on cgroup.procs of the common ancestor too: that is `place`.
    for path in (place, f"{place}/cgroup.procs", f"{place}/cgroup.subtree_control"):
        if not os.access(path, os.W_OK):
            return f"{path} is not writable"
    if _is_real_root(place):
        return ""
    others = [pid for pid in _pids(place) if not (move and _is_ours(pid))]
    if others:
        # The kernel gives controllers to a cgroup's children only while the cgroup itself holds no process.
        names = ", ".join(f"{pid} {_comm(pid)}".rstrip() for pid in others[:3])
        return f"{place} holds processes that are not ours ({names}); with DelegateSubgroup= it would not"
    return ""


def _not_delegated(top: str, place: str) -> str:
    walk = place
    while True:
        if _attribute(walk, "user.delegate") == b"1" or _attribute(walk, "trusted.delegate") == b"1":
            return ""
        name = os.path.basename(walk)
        if name.endswith(_UNITS) and walk != top:
            if not name.endswith(".slice") and _systemd_delegates(walk, name):
                return ""
            return f"systemd manages {name} itself, without Delegate=yes"
        if walk == top:
            break
        walk = os.path.dirname(walk)
    if not _is_real_root(top):
        return ""  # a container's tree: the boundary of a cgroup namespace is one of delegation
    uid = os.geteuid()
    if uid == 0 and place == top:
        return ""  # no manager here: one that existed would not leave root's processes in the root cgroup
    if uid != 0 and os.stat(place).st_uid == uid:
        return ""
    return f"{place} has not been delegated to us"


def _attribute(path: str, name: str) -> bytes:
    try:
        return os.getxattr(path, name)
    except OSError:
        return b""


def _systemd_delegates(path: str, unit: str) -> bool:
    """What systemd says: a user's manager leaves no mark, nor does a system's before 251 that we could read."""
    import subprocess

    environment = {"XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}", **os.environ}
    manager = ["--user"] if "/user@" in os.path.dirname(path) else []
    question = ["systemctl", *manager, "show", "--property=Delegate", "--value", "--", unit]
    try:
        answer = subprocess.run(
            question, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.stdout.strip() == b"yes"


def _is_ours(pid: int) -> bool:
    """It is this process or descends from it. One that is gone by now is not in the way either."""
    own = os.getpid()
    try:
        while pid > 1:
            if pid == own:
                return True
            pid = int(_read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return True
    return False  # pid 0: of another pid namespace


def settle() -> Facts:
    """Move this process and its children into a leaf of the delegated cgroup, where one is needed; else nothing.

    A launch with limits does so by itself. A program that starts helpers which outlive their parent calls it
    first: such an orphan is no longer recognised as ours.
    """
    facts = read_facts()
    if facts.move and facts.place:
        _leave(facts.place)
    return facts


def _leave(place: str) -> None:
    leaf = f"{place}/{LEAF}"
    try:
        _make(leaf)
    except FileExistsError:
        pass
    for pid in _pids(place):
        if not _is_ours(pid):
            raise OSError(errno.EBUSY, f"process {pid} is not ours", place)
        try:
            _write(f"{leaf}/cgroup.procs", str(pid))
        except ProcessLookupError:
            continue


class Confinement:
    """Holds one launch to its limits, until it is closed. `directory` is its cgroup, empty without one.

    Where a cgroup turns out to be impossible rlimits take over, and `plan` says so. Raises ValueError for a
    limit that cannot be meant.
    """

    def __init__(self, limits: Limits, facts: Facts | None = None) -> None:
        self._facts = read_facts() if facts is None else facts
        self._lock = -1
        self.directory = ""
        self.plan = plan(limits, self._facts)
        if not self.plan.place:
            return
        try:
            self._prepare()
        except OSError as error:
            self.close()
            refusal = f"{error.filename}: {error.strerror}"
            self.plan = plan(limits, self._facts.replace(place="", controllers=(), refusal=refusal))

    def __enter__(self) -> Confinement:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        place = self.plan.place
        for attempt in range(3):
            if self.plan.move:
                _leave(place)
            try:
                _enable(place, self.plan.controllers)
                break
            except OSError as error:
                # A child that another thread of ours has started meanwhile.
                if error.errno != errno.EBUSY or not self.plan.move or attempt == 2:
                    raise
        for controller in self.plan.accounting:
            try:
                _enable(place, (controller,))
            except OSError:
                continue
        _sweep(place)
        while self._lock < 0:
            self.directory = f"{place}/{LAUNCH}{os.urandom(6).hex()}"
            _make(self.directory)
            self._lock = _locked(self.directory)
        for name, value in self.plan.settings.items():
            try:
                _write(f"{self.directory}/{name}", value)
            except FileNotFoundError:
                # No swap in this kernel; group kills came with 4.19.
                if name not in ("memory.swap.max", "memory.oom.group"):
                    raise

    def measure(self, outcome: Outcome) -> Outcome:
        """The outcome with `usage` and `limited`. To be called before the cgroup is closed."""
        usage = Usage(
            "rusage",
            outcome.max_rss_kib * 1024,
            "the largest process",
            outcome.user_seconds,
            outcome.system_seconds,
            outcome.read_bytes,
            outcome.written_bytes,
        )
        if self.directory:
            usage = _measured(self.directory, usage)
        return outcome.replace(usage=usage, limited=self.plan.sentences)

    def close(self) -> None:
        """Kill what is left in the cgroup and remove it; one that stays is removed by a later launch."""
        if self.directory:
            _remove(self.directory)
            self.directory = ""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _enable(place: str, controllers: Sequence[str]) -> None:
    enabled = _read(f"{place}/cgroup.subtree_control").split()
    for controller in controllers:
        if controller not in enabled:
            _write(f"{place}/cgroup.subtree_control", f"+{controller}")


def _locked(directory: str) -> int:
    """A descriptor that keeps others from sweeping the cgroup; -1 when one of them was faster."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.isdir(directory):
            return fd
    except OSError:
        pass
    os.close(fd)
    return -1


def _sweep(place: str) -> None:
    """Remove what killed launchers have left. rmdir refuses a cgroup that has processes."""
    for name in os.listdir(place):
        if name.startswith(LAUNCH):
            fd = _locked(f"{place}/{name}")
            if fd >= 0:
                try:
                    _unmake(f"{place}/{name}")
                except OSError:
                    pass
                os.close(fd)


def _remove(directory: str) -> None:
    for _ in range(100):
        try:
            _unmake(directory)
            return
        except FileNotFoundError:
            return
        except OSError:
            # Processes are left, or still leaving: a kill is not done when it returns.
            try:
                _write(f"{directory}/cgroup.kill", "1")
            except OSError:
                _kill_each(directory)  # before Linux 5.14
            time.sleep(0.01)


def _kill_each(directory: str) -> None:
    for pid in _pids(directory):
        try:
            os.kill(pid, 9)
        except OSError:
            continue


def _measured(directory: str, rusage: Usage) -> Usage:
    """What the cgroup counted; what an older kernel or a missing controller leaves out stays as rusage has it."""
    changes: dict[str, object] = {"source": "cgroup v2"}

    def take(name: str, parse: Callable[[str], dict[str, object]]) -> None:
        try:
            changes.update(parse(_read(f"{directory}/{name}")))
        except (OSError, KeyError, ValueError):
            return

    take("memory.peak", lambda text: {"memory": int(text), "memory_of": "all processes"})  # Linux 5.19
    take("pids.peak", lambda text: {"pids": int(text)})  # Linux 6.1
    take("cpu.stat", _cpu)
    take("io.stat", _io)
    take("memory.events", _oom)
    return rusage.replace(**changes)


def _cpu(text: str) -> dict[str, object]:
    stat = _pairs(text)
    return {"user_seconds": stat["user_usec"] / 1e6, "system_seconds": stat["system_usec"] / 1e6}


def _io(text: str) -> dict[str, object]:
    words = [word.partition("=") for line in text.splitlines() for word in line.split()[1:]]
    return {
        "read_bytes": sum(int(value) for name, _, value in words if name == "rbytes"),
        "written_bytes": sum(int(value) for name, _, value in words if name == "wbytes"),
    }


def _oom(text: str) -> dict[str, object]:
    # `oom_kill` counts our dead whoever was short of memory, `oom` only our own limit's refusals.
    events = _pairs(text)
    return {"oom_killed": events["oom_kill"] > 0, "oom_at_limit": events["oom_kill"] > 0 and events["oom"] > 0}


def _pairs(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def _pids(directory: str) -> list[int]:
    return [int(pid) for pid in _read(f"{directory}/cgroup.procs").split()]


def _comm(pid: int) -> str:
    try:
        return _read(f"/proc/{pid}/comm").strip()
    except OSError:
        return ""


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        return file.read()


# What changes the tree: tests put a kernel's answers in their place.


def _make(directory: str) -> None:
    os.mkdir(directory)


def _unmake(directory: str) -> None:
    os.rmdir(directory)


def _write(path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        error.filename = path
        raise
