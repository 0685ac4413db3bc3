"""A large directory is read by several processes: they find what one finds, and none outlives the audit."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.processes import children, eventually

from nsbuild.audit import Auditor, Matcher, Report, audit_directory, needles_for
from nsbuild.audit.directory import Writer
from nsbuild.audit.workers import FDS, Part, Workers
from nsbuild.cli import main
from nsbuild.interrupts import ENDING
from nsbuild.tree.copy import open_whatever

PLACE = "/tmp/build_4f2a9c3d"
NOBODY = 65534


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """3,000 files; every tenth holds a leak of one kind or another."""
    for number in range(100):
        directory = tmp_path / f"tree/{number % 7}/{number}"
        directory.mkdir(parents=True)
        for name in range(30):
            text = f"#!{PLACE}/bin/python\n" if name == 3 else f"{number} " * name
            (directory / f"{name}.py").write_text(text + (PLACE if name % 10 == 7 else ""))
            (directory / f"{name}.py").chmod(0o755 if name == 3 else 0o644)
        (directory / "\udcff\udcfe").write_text(PLACE)
        (directory / "script").write_text(f"#!/app/{number % 7}/{number + number % 2}/0.py\n")
        (directory / "script").chmod(0o755)
        (directory / "link").symlink_to(PLACE)
        os.link(directory / "7.py", directory / "again")
    (tmp_path / "tree/big").write_bytes(bytes(9 << 20) + PLACE.encode())
    shut = tmp_path / "tree/shut"
    shut.mkdir()
    (shut / "in it").write_text(PLACE)
    (shut / "in it").chmod(0)
    shut.chmod(0)
    return tmp_path / "tree"


def report(tree: Path, processes: int, monkeypatch: pytest.MonkeyPatch, writer: Writer | None = None) -> Report:
    monkeypatch.setattr("nsbuild.audit.directory.PROCESSES", processes)
    auditor = Auditor("x", Matcher(needles_for([PLACE])))
    audit_directory(auditor, str(tree), writer, unlock=True)
    return auditor.finish()


def test_several_find_what_one_finds(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def writer(path: str, changed: float) -> str:
        return path if changed > 0 else ""

    forked: list[int] = []
    fork = os.fork

    def counted() -> int:
        forked.append(fork())
        return forked[-1]

    monkeypatch.setattr(os, "fork", counted)
    one = report(tree, 1, monkeypatch, writer)
    assert not forked
    assert report(tree, 3, monkeypatch, writer) == one
    assert len(forked) == 2 and not children()
    assert one.files == 100 * 33 + 2
    assert len(one.findings) == 100 * 6 + 2 + 50  # 3.py, 7, 17, 27, one not in UTF-8, link; an interpreter of 50
    assert {finding.writer for finding in one.findings} == {finding.file for finding in one.findings}
    assert not one.problems
    assert (tree / "shut").stat().st_mode & 0o777 == 0


def test_a_file_of_many_names_is_told_under_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2000):
        directory = tmp_path / f"{number // 20:03}"
        directory.mkdir(exist_ok=True)
        if number:
            os.link(tmp_path / "000/0000", directory / f"{number:04}")
        else:
            (directory / "0000").write_text(PLACE)
    for processes in (1, 2, 4):
        found = report(tmp_path, processes, monkeypatch)
        assert [finding.file for finding in found.findings] == ["000/0000"]
        assert (found.files, found.bytes) == (2000, 2000 * len(PLACE))


def test_a_closed_file_of_many_names_keeps_its_mode(tmp_path: Path) -> None:
    """Whoever opens it gives back the mode that it found. As somebody whom modes stop."""
    for number in range(40):
        (tmp_path / f"{number:02}").mkdir()
        for name in range(50):
            if (number, name) != (0, 0):
                os.link(tmp_path / "00/0", tmp_path / f"{number:02}/{name}")
            else:
                (tmp_path / "00/0").write_text(PLACE)
    (tmp_path / "00/0").chmod(0)
    if os.geteuid() == 0:
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    code = """
import os, sys
from nsbuild.audit import Auditor, Matcher, audit_directory, needles_for, directory
from nsbuild.tree.beneath import open_root
top = open_root(sys.argv[1], None)
os.fchdir(top)
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
directory.PROCESSES = 3
for _ in range(10):
    auditor = Auditor("x", Matcher(needles_for([sys.argv[2]])))
    audit_directory(auditor, ".", unlock=True)
    report = auditor.finish()
    mode = os.stat("00/0").st_mode & 0o777
    print(report.files, report.problems, [finding.file for finding in report.findings], mode)
""".replace("NOBODY", str(NOBODY))
    ended = subprocess.run([sys.executable, "-c", code, tmp_path, PLACE], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "2000 [] ['00/0'] 0\n" * 10, ended.stderr


def test_where_no_process_can_be_had_one_does_it_all(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, fork, asked = report(tree, 1, monkeypatch), os.fork, 0

    def once() -> int:
        nonlocal asked
        asked += 1
        if asked == 2:
            return fork()
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", once)
    before = os.listdir("/proc/self/fd")
    assert report(tree, 4, monkeypatch) == one and asked == 1
    assert report(tree, 4, monkeypatch) == one and asked == 3
    assert os.listdir("/proc/self/fd") == before and not children()


def test_paths_that_are_more_than_a_batch_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(310):
        (tmp_path / f"{number}").write_text("x")
    where, start = os.getcwd(), os.open(tmp_path, os.O_RDONLY)
    try:
        os.fchdir(start)
        for _ in range(14):
            os.mkdir(b"\xff" * 255)
            os.chdir(b"\xff" * 255)
        for number in range(32):
            name = b"%03d" % number + b"\xff" * 250
            os.mkdir(name)
            for file in b"0123":
                Path(os.fsdecode(name), chr(file)).write_text(PLACE)
    finally:
        os.chdir(where)
        os.close(start)
    found = report(tmp_path, 2, monkeypatch)
    assert found.files == 310 + 128 and len(found.findings) == 128 and not found.problems


def test_a_process_of_threads_does_not_fork(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert report(tree, 3, monkeypatch).files == 100 * 33 + 2
    finally:
        done.set()
        thread.join()


def test_few_descriptors(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(400):
        (tree / f"0/one/{number}").mkdir(parents=True)
        (tree / f"0/one/{number}/file").write_text(PLACE)
    whole = report(tree, 3, monkeypatch)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 48, hard))
    try:
        assert report(tree, 3, monkeypatch) == whole
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_more_directories_are_kept_open_than_a_batch_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        for name in range(12 + (number % 5 < 4) if number < 15 else 1):  # three times 64, in 15 directories
            (tmp_path / f"{number:02}").mkdir(exist_ok=True)
            (tmp_path / f"{number:02}/{name}").write_text("x")
    most = 0

    def counted(fd: int, name: str, *, unlock: bool) -> int:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))
        return open_whatever(fd, name, unlock=unlock)

    monkeypatch.setattr("nsbuild.audit.directory.open_whatever", counted)
    before = len(os.listdir("/proc/self/fd"))
    assert report(tmp_path, 1, monkeypatch).files == 3 * 64 + 25
    assert most - before == FDS + 3  # the top, where the walk is, and whose turn it is to unlock


def some(fd: int, workers: Workers, taken: Path) -> int:
    """Gives batches until one of the others has `taken` one, and more; how many."""
    given = 0

    def give() -> bool:
        nonlocal given
        given += workers.give([(str(given), ["x" * 250] * 40)], [fd])
        return taken.exists()

    assert eventually(give)
    for _ in range(1000):
        give()
    return given


def test_each_batch_is_done_once(tmp_path: Path) -> None:
    done: list[tuple[str, int]] = []
    here, taken = os.open(tmp_path, os.O_RDONLY), tmp_path / "taken"

    def work(part: Part, fd: int) -> None:
        done.append((part[0], os.getpid()))
        taken.touch()

    with Workers(2, done.clear, work, lambda: done) as workers:
        given = some(here, workers, taken)
        for result in workers.finish():
            done += result
    assert len(done) == given == len({name for name, _ in done})
    assert {pid for _, pid in done} - {os.getpid()}
    os.close(here)


def test_what_goes_wrong_elsewhere_is_raised_here(tmp_path: Path) -> None:
    me, here, taken = os.getpid(), os.open(tmp_path, os.O_RDONLY), tmp_path / "taken"

    def work(part: Part, fd: int) -> None:
        if os.getpid() != me:
            taken.touch()
            raise ValueError("as it was written there")

    with Workers(2, lambda: None, work, lambda: None) as workers, pytest.raises(ValueError, match="written there"):
        some(here, workers, taken)
        workers.finish()
    assert not children()
    os.close(here)


def test_an_audit_whose_helper_is_killed_says_so(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nsbuild.audit.directory.PROCESSES", 2)
    monkeypatch.setattr(
        "nsbuild.audit.directory._Reading._begin", lambda reading: os.kill(os.getpid(), signal.SIGKILL)
    )
    assert main(["audit", "--path", PLACE, str(tree)]) == 2
    assert "was killed" in capsys.readouterr().err


def test_an_audit_without_memory_says_so(tree: Path) -> None:
    code = f"""
import resource, sys
from nsbuild.cli import main
import nsbuild.cli.audit
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 20), resource.RLIM_INFINITY))
sys.exit(main(["audit", "--path", {PLACE!r}, sys.argv[1]]))
"""
    (tree / "large.pyc").write_bytes(bytes(16 << 20))
    ended = subprocess.run([sys.executable, "-c", code, tree], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and ended.stderr == "nsbuild: There is not enough memory.\n"


def test_what_cannot_be_handed_back_is_raised_here() -> None:
    def too_much() -> object:
        raise MemoryError

    with Workers(1, lambda: None, lambda part, fd: None, too_much) as workers, pytest.raises(MemoryError):
        workers.finish()


def test_those_of_a_killed_process_end() -> None:
    code = """
import os, signal
from nsbuild.audit.workers import Workers
more_than_a_pipe_holds = bytes(1 << 20)
workers = Workers(3, lambda: None, lambda part, fd: None, lambda: more_than_a_pipe_holds)
print(*(pid for pid, _ in workers._children), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pids = ended.stdout.split()
    assert ended.returncode == -signal.SIGKILL and len(pids) == 3
    assert eventually(lambda: not any(running(pid) for pid in pids))


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_signals_end_them_but_those_that_are_ignored() -> None:
    def how() -> object:
        handlers = {number: signal.getsignal(number) for number in ENDING}
        return handlers, signal.pthread_sigmask(signal.SIG_BLOCK, ())

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with Workers(1, lambda: None, lambda part, fd: None, how) as workers:
            ((handlers, masked),) = workers.finish()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert handlers.pop(signal.SIGHUP) == signal.SIG_IGN
    assert set(handlers.values()) == {signal.SIG_DFL} and not masked


def test_one_that_is_interrupted_takes_them_along(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    with (
        pytest.raises(KeyboardInterrupt),
        Workers(3, lambda: None, lambda part, fd: time.sleep(60), lambda: None) as workers,
    ):
        workers.give([("", [])], [here])
        raise KeyboardInterrupt
    assert not children()
    os.close(here)
