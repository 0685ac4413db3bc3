"""Which cgroup v2 was given to us, if any.

A cgroup is shared with whoever else manages that tree. One is made only where the tree was given to us: marked or
named as delegated by systemd, the top of a container's own tree, a directory that belongs to our user.
"""

from __future__ import annotations

import os

from nsbuild.sandbox.limits import Facts

_UNITS = (".service", ".scope", ".slice")


def read_facts(proc: str = "/proc") -> Facts:
    """Look for a cgroup that was delegated to us. Changes nothing."""
    release = os.uname().release.split(".")
    by_namespace = (int(release[0]), int("".join(filter(str.isdigit, release[1])))) >= (5, 14)
    own = None
    on_v1: list[str] = []
    for line in read(f"{proc}/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            own = path
        else:
            on_v1 += controllers.split(",")
    v1 = tuple(name for name in on_v1 if name in ("memory", "pids", "cpu"))
    facts = Facts(on_v1=v1, nproc_by_namespace=by_namespace)
    if own is None:
        return facts.replace(refusal="this host has no cgroup v2")
    where = _mounted(own, read(f"{proc}/self/mountinfo"))
    if where is None:
        return facts.replace(refusal=f"our cgroup {own} is not below a mounted cgroup2 filesystem")
    top, directory = where
    refusals: list[str] = []
    for place, move in _candidates(top, directory):
        refusal = _refusal(top, place, move)
        if not refusal:
            given = tuple(read(f"{place}/cgroup.controllers").split())
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
    others = [pid for pid in pids(place) if not (move and is_ours(pid))]
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


def is_ours(pid: int) -> bool:
    """It is this process or descends from it. One that is gone by now is not in the way either."""
    own = os.getpid()
    try:
        while pid > 1:
            if pid == own:
                return True
            pid = int(read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return True
    return False  # pid 0: of another pid namespace


def pids(directory: str) -> list[int]:
    return [int(pid) for pid in read(f"{directory}/cgroup.procs").split()]


def _comm(pid: int) -> str:
    try:
        return read(f"/proc/{pid}/comm").strip()
    except OSError:
        return ""


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        return file.read()
