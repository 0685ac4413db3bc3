"""A launch in a cgroup of its own, and what that has counted. Only processes of ours are ever moved."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from nsbuild.sandbox.delegation import is_ours, pids, read, read_facts
from nsbuild.sandbox.limits import Facts, Limits, Usage, plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nsbuild.sandbox.outcome import Outcome

LEAF = "nsbuild-launcher"
LAUNCH = "nsbuild-launch-"


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
    for pid in pids(place):
        if not is_ours(pid):
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
    enabled = read(f"{place}/cgroup.subtree_control").split()
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
    for pid in pids(directory):
        try:
            os.kill(pid, 9)
        except OSError:
            continue


def _measured(directory: str, rusage: Usage) -> Usage:
    """What the cgroup counted; what an older kernel or a missing controller leaves out stays as rusage has it."""
    changes: dict[str, object] = {"source": "cgroup v2"}

    def take(name: str, parse: Callable[[str], dict[str, object]]) -> None:
        try:
            changes.update(parse(read(f"{directory}/{name}")))
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
