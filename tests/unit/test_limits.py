"""Which mechanism keeps which limit, where a cgroup may be made, and what is read from it: with a kernel's rules
for cgroup v2 played on plain directories. tests/sandbox/test_limits.py has what a real kernel shows.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nsbuild.sandbox import Outcome, confinement, delegation
from nsbuild.sandbox.confinement import Confinement
from nsbuild.sandbox.delegation import read_facts
from nsbuild.sandbox.limits import Facts, Limits, Usage, oom_sentence, plan

MIB = 1 << 20
US, STRANGER = os.getpid(), os.getppid()
ALL = "cpu io memory pids"


class Tree:
    """A cgroup2 hierarchy on plain directories, with the kernel's answers to writes, mkdir and rmdir."""

    def __init__(self, base: Path, patch: pytest.MonkeyPatch, mount_root: str = "/") -> None:
        self.top = str(base / "cgroup")
        self.proc = str(base / "proc")
        self.patch = patch
        self.mount_root = mount_root
        self.killed: list[str] = []
        self.old = False
        """A kernel that has neither memory.peak nor cgroup.kill."""
        os.makedirs(f"{self.proc}/self")
        os.mkdir(self.top)
        for name in ("cgroup.procs", "cgroup.subtree_control"):
            self.put(f"{self.top}/{name}", "")
        self.put(f"{self.top}/cgroup.controllers", ALL)
        patch.setattr(confinement, "_make", self.make)
        patch.setattr(confinement, "_unmake", self.unmake)
        patch.setattr(confinement, "_write", self.write)
        patch.setattr(delegation, "_attribute", lambda path, name: self.marks.get(path, b""))
        patch.setattr(delegation, "_systemd_delegates", lambda path, unit: unit in self.asked_units)
        self.marks: dict[str, bytes] = {}
        self.asked_units: tuple[str, ...] = ()

    @staticmethod
    def put(path: str, text: str) -> None:
        with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)

    @staticmethod
    def get(path: str) -> str:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            return file.read()

    def within_namespace(self) -> None:
        """The top that we see is not the real one."""
        self.put(f"{self.top}/cgroup.type", "domain\n")

    def group(self, path: str, *pids: int, controllers: str = ALL) -> str:
        """Make the cgroups of a path; the last one holds `pids`. Every parent passes `controllers` on."""
        directory = self.top
        for name in path.strip("/").split("/"):
            self.put(f"{directory}/cgroup.subtree_control", controllers)
            directory += f"/{name}"
            if not os.path.isdir(directory):
                self.make(directory)
        self.put(f"{directory}/cgroup.procs", "".join(f"{pid}\n" for pid in pids))
        return directory

    def facts(self, own: str, v1: str = "", fstype: str = "cgroup2") -> Facts:
        self.put(f"{self.proc}/self/cgroup", f"{v1}0::{own}\n")
        other = "22 1 0:20 / /proc rw shared:5 - proc proc rw\n"
        here = f"31 23 0:28 {self.mount_root} {self.top} rw,nosuid shared:9 - {fstype} cgroup2 rw,nsdelegate\n"
        self.put(f"{self.proc}/self/mountinfo", other + here)
        return read_facts(self.proc)

    # the kernel

    def make(self, directory: str) -> None:
        os.mkdir(directory)
        controllers = self.get(f"{os.path.dirname(directory)}/cgroup.subtree_control").split()
        files = {"cgroup.procs": "", "cgroup.subtree_control": "", "cgroup.type": "domain\n"}
        files["cgroup.controllers"] = " ".join(controllers)
        files["cpu.stat"] = "usage_usec 3500000\nuser_usec 2500000\nsystem_usec 1000000\n"
        if not self.old:
            files["cgroup.kill"] = ""
        if "memory" in controllers:
            files |= {"memory.max": "max\n", "memory.oom.group": "0\n"}
            files["memory.events"] = "low 0\nhigh 0\nmax 7\noom 1\noom_kill 3\noom_group_kill 1\n"
            if not self.old:
                files |= {"memory.swap.max": "max\n", "memory.peak": f"{300 * MIB}\n"}
        if "pids" in controllers:
            files["pids.max"] = "max\n"
            if not self.old:
                files["pids.peak"] = "17\n"
        if "cpu" in controllers:
            files["cpu.max"] = "max 100000\n"
        if "io" in controllers:
            files["io.stat"] = "8:0 rbytes=4096 wbytes=100 rios=1 wios=1 dbytes=0 dios=0\n254:0 rbytes=1 wbytes=2\n"
        for name, text in files.items():
            self.put(f"{directory}/{name}", text)

    def unmake(self, directory: str) -> None:
        if self.get(f"{directory}/cgroup.procs").strip():
            raise OSError(errno.EBUSY, "Device or resource busy", directory)
        shutil.rmtree(directory)

    def write(self, path: str, text: str) -> None:
        if not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        directory, name = os.path.split(path)
        if name == "cgroup.subtree_control":
            assert text[0] == "+"
            if self.get(f"{directory}/cgroup.procs").strip() and os.path.exists(f"{directory}/cgroup.type"):
                raise OSError(errno.EBUSY, "Device or resource busy", path)
            assert text[1:] in self.get(f"{directory}/cgroup.controllers").split()
            text = f"{self.get(path)} {text[1:]}"
        elif name == "cgroup.procs":
            for other in Path(self.top).rglob("cgroup.procs"):
                pids = [pid for pid in other.read_text().split() if pid != text]
                other.write_text("".join(f"{pid}\n" for pid in pids))
            text = f"{self.get(path)}{text}\n"
        elif name == "cgroup.kill":
            self.killed.append(directory)
            self.put(f"{directory}/cgroup.procs", "")
        self.put(path, text)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


def as_user(tree: Tree, owned: str = "") -> None:
    """We are user 1000, who may write to what is below `owned`."""
    real = os.stat
    tree.patch.setattr(os, "geteuid", lambda: 1000)
    tree.patch.setattr(os, "access", lambda path, mode: bool(owned) and f"{path}/".startswith(f"{owned}/"))

    def stat(path: str, **options: bool) -> os.stat_result:
        fields = list(real(path, **options))
        fields[4] = 1000 if owned and f"{path}/".startswith(f"{owned}/") else 0
        return os.stat_result(fields)

    tree.patch.setattr(os, "stat", stat)


# plan


EVERYTHING = Limits(memory=512 * MIB, pids=100, cpu=1.5)


def test_a_delegated_cgroup_keeps_all_limits() -> None:
    made = plan(EVERYTHING, Facts(place="/c", controllers=("cpu", "io", "memory", "pids")))
    assert made.sentences == (
        "memory: 512 MiB for all processes together, none of it swap, by cgroup v2",
        "pids: 100 processes and threads, by cgroup v2",
        "cpu: 1.5 cores, by cgroup v2",
    )
    assert made.settings == {
        "memory.max": "536870912",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "100",
        "cpu.max": "150000 100000",
    }
    assert (made.place, made.controllers, made.accounting) == ("/c", ("memory", "pids", "cpu"), ("io",))
    assert made.rlimits == ()


def test_without_a_cgroup_rlimits_do_what_they_can() -> None:
    made = plan(EVERYTHING, Facts(refusal="/c is not writable"))
    assert [limit.mechanism for limit in made.limited] == ["rlimit", "rlimit", "none"]
    assert made.sentences == (
        "memory: 512 MiB of private memory for each process, not for all together, by RLIMIT_DATA"
        " (no cgroup: /c is not writable)",
        "pids: 100 processes and threads, by RLIMIT_NPROC (no cgroup: /c is not writable)",
        "cpu: not limited: no rlimit can hold processes to a number of cores (no cgroup: /c is not writable)",
    )
    assert made.rlimits == ((resource.RLIMIT_DATA, 512 * MIB), (resource.RLIMIT_NPROC, 100))
    assert (made.place, made.settings) == ("", {})


def test_processes_of_a_user_are_no_limit_on_a_build() -> None:
    made = plan(Limits(pids=100), Facts(refusal="none", nproc_by_namespace=False))
    assert made.rlimits == ()
    assert made.limited[0].mechanism == "none"
    assert "before Linux 5.14" in made.sentences[0]


def test_limits_can_be_kept_by_different_mechanisms() -> None:
    made = plan(EVERYTHING, Facts(place="/c", controllers=("pids",), on_v1=("memory",)))
    assert [limit.mechanism for limit in made.limited] == ["rlimit", "cgroup", "none"]
    assert "the memory controller is in the hands of cgroup v1" in made.sentences[0]
    assert "/c is not given the cpu controller" in made.sentences[2]
    assert made.settings == {"pids.max": "100"}


def test_a_cgroup_that_would_neither_limit_nor_count_is_not_made() -> None:
    assert plan(EVERYTHING, Facts(place="/c", controllers=("hugetlb",))).place == ""
    assert plan(Limits(), Facts(place="/c", controllers=("cpu", "pids"))).place == ""
    counting = plan(Limits(), Facts(place="/c", controllers=("cpu", "memory")))
    assert (counting.place, counting.sentences, counting.settings) == ("/c", (), {})


def test_a_limit_of_files_alone_makes_no_cgroup() -> None:
    given = Facts(place="/c", controllers=("memory", "pids"))
    assert plan(Limits(file=5), given).place == ""
    assert plan(Limits(file=5, pids=9), given).place == "/c"


@pytest.mark.parametrize(
    "bad", [Limits(file=0), Limits(memory=0), Limits(memory=-1), Limits(pids=1), Limits(cpu=0.0), Limits(cpu=-1)]
)
def test_limits_that_cannot_be_meant(bad: Limits) -> None:
    with pytest.raises(ValueError):
        plan(bad, Facts())


# where


def test_systemd_scope_with_delegation_is_left_for_a_leaf(tree: Tree) -> None:
    scope = tree.group("/user.slice/user@1000.service/app.slice/run-1.scope", US)
    tree.marks = {scope: b"1"}
    facts = tree.facts("/user.slice/user@1000.service/app.slice/run-1.scope")
    assert (facts.place, facts.move, facts.refusal) == (scope, True, "")
    with Confinement(EVERYTHING, facts) as made:
        assert os.path.dirname(made.directory) == scope
        assert tree.get(f"{made.directory}/memory.max") == str(512 * MIB)
        assert tree.get(f"{made.directory}/cpu.max") == "150000 100000"
        assert tree.get(f"{scope}/cgroup.procs") == ""
        assert tree.get(f"{scope}/{confinement.LEAF}/cgroup.procs") == f"{US}\n"
        assert set(tree.get(f"{scope}/cgroup.subtree_control").split()) == {"cpu", "io", "memory", "pids"}
        directory = made.directory
    assert not os.path.exists(directory)
    # From then on we are in the leaf, and nothing has to be moved.
    facts = tree.facts(f"/user.slice/user@1000.service/app.slice/run-1.scope/{confinement.LEAF}")
    assert (facts.place, facts.move) == (scope, False)


def test_systemd_is_asked_where_it_leaves_no_mark(tree: Tree) -> None:
    scope = tree.group("/user.slice/user@1000.service/app.slice/run-1.scope", US)
    tree.asked_units = ("run-1.scope",)
    assert tree.facts("/user.slice/user@1000.service/app.slice/run-1.scope").place == scope


def test_a_subgroup_of_a_delegated_service(tree: Tree) -> None:
    tree.group("/system.slice/builder.service/main", US, STRANGER)
    service = f"{tree.top}/system.slice/builder.service"
    tree.marks = {service: b"1"}
    facts = tree.facts("/system.slice/builder.service/main")
    assert (facts.place, facts.move) == (service, False)
    with Confinement(EVERYTHING, facts) as made:
        assert os.path.dirname(made.directory) == service
        assert tree.get(f"{service}/main/cgroup.procs") == f"{US}\n{STRANGER}\n"
        assert not os.path.exists(f"{service}/{confinement.LEAF}")


def test_a_unit_that_is_not_delegated_is_systemds(tree: Tree) -> None:
    """Though a user's own manager has the directory owned by the user, and root may write everywhere."""
    tree.group("/user.slice/user@1000.service/app.slice/vim.scope", US)
    tree.marks = {f"{tree.top}/user.slice/user@1000.service": b"1"}
    for user in (False, True):
        if user:
            as_user(tree, f"{tree.top}/user.slice")
        facts = tree.facts("/user.slice/user@1000.service/app.slice/vim.scope")
        assert facts.place == ""
        assert facts.refusal == "systemd manages vim.scope itself, without Delegate=yes"


def test_strangers_are_never_moved(tree: Tree) -> None:
    scope = tree.group("/run-1.scope", STRANGER, US)
    tree.marks = {scope: b"1"}
    facts = tree.facts("/run-1.scope")
    assert facts.place == ""
    assert f"processes that are not ours ({STRANGER} " in facts.refusal
    with Confinement(EVERYTHING, facts) as made:
        assert made.directory == ""
    assert tree.get(f"{scope}/cgroup.procs") == f"{STRANGER}\n{US}\n"
    assert not [name for name in os.listdir(scope) if name.startswith("nsbuild")]


def test_a_stranger_that_comes_late_ends_in_rlimits(tree: Tree) -> None:
    scope = tree.group("/run-1.scope", US)
    tree.marks = {scope: b"1"}
    facts = tree.facts("/run-1.scope")
    tree.put(f"{scope}/cgroup.procs", f"{STRANGER}\n")
    with Confinement(EVERYTHING, facts) as made:
        assert made.directory == ""
        assert [limit.mechanism for limit in made.plan.limited] == ["rlimit", "rlimit", "none"]
        assert f"process {STRANGER} is not ours" in made.plan.sentences[0]
    assert tree.get(f"{scope}/cgroup.procs") == f"{STRANGER}\n"


def test_a_child_of_ours_is_moved_along(tree: Tree) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        scope = tree.group("/run-1.scope", US, child.pid)
        tree.marks = {scope: b"1"}
        tree.facts("/run-1.scope")
        tree.patch.setattr(confinement, "read_facts", lambda: tree.facts("/run-1.scope"))
        assert confinement.settle().place == scope
        assert tree.get(f"{scope}/{confinement.LEAF}/cgroup.procs") == f"{US}\n{child.pid}\n"
        assert child.stdin is not None
        child.stdin.close()


def test_pids_of_another_namespace_are_strangers(tree: Tree) -> None:
    tree.marks = {tree.group("/run-1.scope", US, 0): b"1"}
    assert "not ours (0" in tree.facts("/run-1.scope").refusal


def test_a_container_owns_its_tree(tree: Tree) -> None:
    tree.within_namespace()
    tree.put(f"{tree.top}/cgroup.procs", f"{US}\n")
    facts = tree.facts("/")
    assert (facts.place, facts.move) == (tree.top, True)
    with Confinement(Limits(pids=50), facts) as made:
        assert tree.get(f"{made.directory}/pids.max") == "50"
        assert tree.get(f"{tree.top}/{confinement.LEAF}/cgroup.procs") == f"{US}\n"


def test_a_container_with_an_entry_script(tree: Tree) -> None:
    tree.within_namespace()
    tree.put(f"{tree.top}/cgroup.procs", f"{STRANGER}\n{US}\n")
    assert "not ours" in tree.facts("/").refusal


def test_a_part_of_the_tree_that_is_bound(tree: Tree) -> None:
    tree.mount_root = "/docker/abc"
    tree.within_namespace()
    tree.put(f"{tree.top}/cgroup.procs", f"{US}\n")
    assert tree.facts("/docker/abc").place == tree.top
    assert "not below a mounted cgroup2" in tree.facts("/docker/abcd").refusal
    assert "not below a mounted cgroup2" in tree.facts("/").refusal


def test_outside_of_the_namespace(tree: Tree) -> None:
    assert "not below a mounted cgroup2" in tree.facts("/../other").refusal


def test_root_without_any_manager(tree: Tree) -> None:
    tree.patch.setattr(os, "geteuid", lambda: 0)
    tree.put(f"{tree.top}/cgroup.procs", f"{STRANGER}\n{US}\n")
    facts = tree.facts("/")
    assert (facts.place, facts.move) == (tree.top, False), "the real root may hold processes beside its children"
    with Confinement(EVERYTHING, facts) as made:
        assert made.directory
    assert tree.get(f"{tree.top}/cgroup.procs") == f"{STRANGER}\n{US}\n"


def test_a_directory_somebody_gave_us(tree: Tree) -> None:
    tree.group("/build/main", US, STRANGER)
    as_user(tree, f"{tree.top}/build")
    assert tree.facts("/build/main").place == f"{tree.top}/build"


def test_a_directory_nobody_gave_us(tree: Tree) -> None:
    tree.group("/build/main", US)
    as_user(tree)
    assert tree.facts("/build/main").refusal == f"{tree.top}/build/main has not been delegated to us"
    tree.patch.setattr(os, "geteuid", lambda: 0)
    assert "has not been delegated" in tree.facts("/build/main").refusal, (
        "root may write there, and that says nothing"
    )


def test_root_in_a_child_of_the_root_cgroup(tree: Tree) -> None:
    tree.group("/build", US)
    tree.patch.setattr(os, "geteuid", lambda: 0)
    assert tree.facts("/build").place == ""
    tree.marks = {f"{tree.top}/build": b"1"}
    assert tree.facts("/build").place == f"{tree.top}/build"


def test_why_the_better_place_was_passed_over(tree: Tree) -> None:
    tree.group("/build", STRANGER)
    tree.make(f"{tree.top}/build/main")
    tree.put(f"{tree.top}/build/main/cgroup.procs", f"{US}\n")
    tree.marks = {f"{tree.top}/build": b"1"}
    facts = tree.facts("/build/main")
    assert (facts.place, facts.move, facts.controllers) == (f"{tree.top}/build/main", True, ())
    assert f"not ours ({STRANGER} " in plan(EVERYTHING, facts).sentences[0]


def test_delegated_but_read_only(tree: Tree) -> None:
    scope = tree.group("/run-1.scope", US)
    tree.marks = {scope: b"1"}
    as_user(tree)
    assert tree.facts("/run-1.scope").refusal == f"{scope} is not writable"


def test_cgroup_v1_only(tree: Tree) -> None:
    tree.put(f"{tree.proc}/self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/x\n")
    tree.put(f"{tree.proc}/self/mountinfo", "")
    facts = read_facts(tree.proc)
    assert (facts.refusal, facts.on_v1) == ("this host has no cgroup v2", ("memory", "cpu"))


def test_hybrid(tree: Tree) -> None:
    tree.put(f"{tree.top}/cgroup.controllers", "hugetlb")
    tree.patch.setattr(os, "geteuid", lambda: 0)
    facts = tree.facts("/", v1="8:pids:/\n4:memory:/a:b\n")
    assert (facts.place, facts.controllers, facts.on_v1) == (tree.top, ("hugetlb",), ("pids", "memory"))


# a cgroup's life


@pytest.fixture
def service(tree: Tree) -> Facts:
    tree.group("/builder.service/main", US)
    tree.marks = {f"{tree.top}/builder.service": b"1"}
    return tree.facts("/builder.service/main")


OUTCOME = Outcome(0, max_rss_kib=1024, user_seconds=0.5, system_seconds=0.25, read_bytes=512, written_bytes=1024)


def test_usage_of_a_cgroup(tree: Tree, service: Facts) -> None:
    with Confinement(EVERYTHING, service) as made:
        measured = made.measure(OUTCOME)
    assert measured.usage == Usage(
        "cgroup v2", 300 * MIB, "all processes", 2.5, 1.0, 4097, 102, pids=17, oom_killed=True, oom_at_limit=True
    )
    assert measured.limited == made.plan.sentences
    assert measured.replace(usage=None, limited=()) == OUTCOME


def test_what_an_older_kernel_does_not_count_is_as_rusage_has_it(tree: Tree, service: Facts) -> None:
    tree.old = True
    with Confinement(EVERYTHING, service) as made:
        usage = made.measure(OUTCOME).usage
    assert usage is not None
    assert (usage.memory, usage.memory_of, usage.pids) == (MIB, "the largest process", None)
    assert (usage.user_seconds, usage.oom_killed) == (2.5, True)


def test_usage_without_a_cgroup() -> None:
    with Confinement(EVERYTHING, Facts(refusal="none")) as made:
        measured = made.measure(OUTCOME)
    assert measured.usage == Usage("rusage", MIB, "the largest process", 0.5, 0.25, 512, 1024)


def test_what_is_left_in_it_is_killed(tree: Tree, service: Facts) -> None:
    with Confinement(EVERYTHING, service) as made:
        directory = made.directory
        tree.put(f"{directory}/cgroup.procs", "999999\n")
    assert tree.killed == [directory]
    assert not os.path.exists(directory)


def test_what_is_left_in_it_is_killed_one_by_one_before_5_14(tree: Tree, service: Facts) -> None:
    tree.old = True
    with subprocess.Popen(["sleep", "60"]) as child:
        with Confinement(EVERYTHING, service) as made:
            procs = f"{made.directory}/cgroup.procs"
            tree.put(procs, f"{child.pid}\n")
            real = os.kill

            def kill(pid: int, number: int) -> None:
                real(pid, number)
                tree.put(procs, "")

            tree.patch.setattr(os, "kill", kill)
        assert child.wait() == -9
    assert not os.path.exists(os.path.dirname(procs))


def test_what_killed_launchers_left_is_swept_and_the_living_are_not(tree: Tree, service: Facts) -> None:
    orphan = f"{service.place}/{confinement.LAUNCH}orphan"
    tree.make(orphan)
    with Confinement(EVERYTHING, service) as one, Confinement(EVERYTHING, service) as two:
        assert not os.path.exists(orphan)
        assert os.path.isdir(one.directory)
        assert one.directory != two.directory
    assert not [name for name in os.listdir(service.place) if name.startswith(confinement.LAUNCH)]


def test_a_setting_the_kernel_refuses_ends_in_rlimits(tree: Tree, service: Facts) -> None:
    write = tree.write

    def refuse(path: str, text: str) -> None:
        if path.endswith("memory.max"):
            raise OSError(errno.EACCES, "Permission denied", path)
        write(path, text)

    tree.patch.setattr(confinement, "_write", refuse)
    with Confinement(EVERYTHING, service) as made:
        assert made.directory == ""
        assert made.plan.rlimits
        assert "memory.max: Permission denied" in made.plan.sentences[0]
    assert not [name for name in os.listdir(service.place) if name.startswith(confinement.LAUNCH)]


# words


USED = Usage("cgroup v2", 300 * MIB, "all processes", 1.0, 1.0, 0, 0, 3)


def test_an_oom_kill_is_named() -> None:
    at_limit = USED.replace(oom_killed=True, oom_at_limit=True)
    assert oom_sentence(at_limit, EVERYTHING) == "out of memory: the kernel killed it at its limit of 512 MiB"


def test_an_oom_kill_from_outside_is_not_blamed_on_the_limit() -> None:
    outside = USED.replace(oom_killed=True)
    for given in (EVERYTHING, Limits(), None):
        assert "the host, or a cgroup around it, had run out; it had used 300 MiB" in oom_sentence(outside, given)


def test_no_oom_kill_no_sentence() -> None:
    assert oom_sentence(None, EVERYTHING) == ""
    assert oom_sentence(USED.replace(oom_killed=False), EVERYTHING) == ""
    assert oom_sentence(USED, EVERYTHING) == "", "nobody counted"
