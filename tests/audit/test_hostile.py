"""What a slug may hold to break who looks into it: reported, bounded, never a crash."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.archives import tarred, zipped

from nsbuild.audit import Auditor, Matcher, audit_directory, needles_for
from nsbuild.audit.audit import AuditOptions, audit
from nsbuild.audit.file import KEPT, FileAudit
from nsbuild.audit.finding import Report
from nsbuild.audit.members import Budget
from nsbuild.build.audited import SlugAudit
from nsbuild.record import Record
from nsbuild.sandbox import app_layout
from nsbuild.slug.archive import write_tree
from nsbuild.stack import HOST
from nsbuild.tree.copy import open_whatever
from nsbuild.workspace import Workspace

PLACE = "/tmp/build_4f2a9c3d"
OPTIONS = AuditOptions(paths=[PLACE])


def reasons(report: Report) -> dict[str, str]:
    return {problem.file: problem.reason for problem in report.problems}


@given(
    head=st.sampled_from(
        [
            b"\x7fELF\x02\x01\x01",
            b"\x7fELF\x01\x02",
            b"PK\x03\x04",
            b"\x1f\x8b\x08",
            b"BZh9",
            b"\xfd7zXZ\0",
            b"\x28\xb5\x2f\xfd",
            b"#!",
            b"",
        ]
    ),
    rest=st.binary(max_size=2000),
    name=st.sampled_from(["a", "a.pyc", "a.zip", "a.tar", "a.pth"]),
)
def test_any_bytes(head: bytes, rest: bytes, name: str) -> None:
    file = FileAudit(Matcher(needles_for([PLACE])), name, executable=True)
    file.feed(head + rest + PLACE.encode() + b"\0" + rest)
    findings, _ = file.close()
    assert any(one.place == PLACE for one in findings)


@given(data=st.data())
def test_a_program_with_bytes_changed(data: st.DataObject) -> None:
    program = bytearray(Path("/bin/true").read_bytes() + PLACE.encode() + b"\0")
    for _ in range(data.draw(st.integers(1, 20))):
        program[data.draw(st.integers(4, 4096))] = data.draw(st.integers(0, 255))
    file = FileAudit(Matcher(needles_for([PLACE])), "true", executable=True)
    file.feed(bytes(program))
    assert [one.place for one in file.close()[0]] == [PLACE]


HELD = {"first.pth": f"{PLACE}\n".encode(), "noise.bin": random.Random(1).randbytes(20_000), "last.txt": b"x" * 600}
ARCHIVES = {
    "a.zip": zipped(HELD),
    "a.whl": zipped(HELD),
    "a.jar": zipped(HELD),
    "a.tar": tarred(HELD),
    "a.gz": gzip.compress(tarred(HELD)),
    "a.tgz": gzip.compress(tarred(HELD)),
    "a.bz2": bz2.compress(tarred(HELD)),
    "a.xz": lzma.compress(tarred(HELD)),
    "a.zst": zstandard.ZstdCompressor(write_checksum=True).compress(tarred(HELD)),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_truncated_archive_of_any_format(tmp_path: Path, name: str) -> None:
    """What comes before the cut is looked into where the format allows, and the cut is said."""
    whole = ARCHIVES[name]
    end = whole.index(b"last.txt") if name == "a.tar" else len(whole)
    for cut in (len(whole) // 2, end - 512, end - 10):
        (tmp_path / name).write_bytes(whole[:cut])
        report = audit(tmp_path, OPTIONS)
        (reason,) = set(reasons(report).values())
        assert "is a broken" in reason or "cannot be read" in reason
        if name == "a.tar":
            assert ("first.pth", "pth") in {(one.member, one.kind) for one in report.findings}
    (tmp_path / name).write_bytes(whole)
    report = audit(tmp_path, OPTIONS)
    assert report.problems == [] and [one.kind for one in report.findings] == ["pth"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_corrupt_archive_of_any_format(tmp_path: Path, name: str) -> None:
    """A changed byte in what is checked (of a tar: in a header) is said; anywhere else nothing comes of it."""
    whole = ARCHIVES[name]
    damaged = bytearray(whole)
    damaged[whole.rindex(b"last.txt") + 2 if name == "a.tar" else len(whole) // 2] ^= 0xFF
    (tmp_path / name).write_bytes(damaged)
    (reason,) = set(reasons(audit(tmp_path, OPTIONS)).values())
    assert "is a broken" in reason or "cannot be read" in reason


@given(name=st.sampled_from(sorted(ARCHIVES)), data=st.data())
def test_an_archive_with_bytes_changed(name: str, data: st.DataObject) -> None:
    damaged = bytearray(ARCHIVES[name])
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file = FileAudit(Matcher(needles_for([PLACE])), name)
    file.feed(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]))
    file.close()


def test_a_zip_bomb_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"size": 1 << 20, "members": 100, "slug": None}
    monkeypatch.setattr(Budget, "__init__", lambda self, **given: self.__dict__.update(small))
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(50 << 20)))
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(200):
            archive.writestr(f"{number}.txt", "")
    said = reasons(audit(tmp_path, OPTIONS))
    assert "1 GiB" in said["bomb.gz"] and "too many members" in said["many.zip"]


def test_many_bombs_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(bytes(2 << 20) + PLACE.encode()))
    auditor = Auditor("x", Matcher(needles_for([PLACE])))
    monkeypatch.setattr(auditor, "_budget", Budget(size=5 << 20))
    audit_directory(auditor, str(tmp_path))
    report = auditor.finish()
    assert [finding.file for finding in report.findings] == ["a.gz", "b.gz"]
    said = reasons(report)
    assert set(said) == {"c.gz", "d.gz"} and "in a slug whose archives" in said["c.gz"]


def test_a_bomb_of_every_kind_is_bounded_in_memory(tmp_path: Path) -> None:
    """A GB of zeros, packed once and twice; a directory of a zip that names a million members, and one that names the
    same member again and again; a header of a tar that wants 8 GB. In another process, to see what it took.
    """
    zeros = gzip.compress(bytes(200 << 20), 9)
    (tmp_path / "zeros.gz").write_bytes(zeros * 6)
    (tmp_path / "twice.gz").write_bytes(gzip.compress(zeros * 6))
    entry = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, *[0] * 8, 1, *[0] * 6) + b"a"
    for name, count in (("flood.zip", 650_000), ("again.zip", 60_000)):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", bytes(10 << 20))
        whole = packed.getvalue()
        start = whole.index(b"PK\x01\x02")
        entries = entry * count if name == "flood.zip" else whole[start : start + 47] * count
        size, end = len(entries), (count, count)
        large = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, *end, size, start)
        large += struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
        last = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        (tmp_path / name).write_bytes(whole[:start] + entries + large + last)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 33
    (tmp_path / "header.tar").write_bytes(header.tobuf() + bytes(10240))
    script = (
        "import resource, sys; from nsbuild.audit.audit import audit; report = audit(sys.argv[1]);"
        # Not its own ru_maxrss, which begins with what the process had that started it.
        "own = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "peak = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss);"
        "print(*[one.file for one in report.problems], peak >> 10)"
    )
    argv = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600)
    *named, peak = done.stdout.split()
    assert {name.partition("!")[0] for name in named} == {path.name for path in tmp_path.iterdir()}
    assert int(peak) < 256, "MB"


def test_an_encrypted_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    data = bytearray((tmp_path / "locked.zip").read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(signature) + offset
        data[at : at + 2] = struct.pack("<H", 1)
    (tmp_path / "locked.zip").write_bytes(data)
    assert "encrypted" in reasons(audit(tmp_path, OPTIONS))["locked.zip"]


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "outside").symlink_to("/etc/shadow")
        report = audit(tmp_path, OPTIONS)
    assert report.findings == [] and report.problems == [] and report.files == 0


def test_what_cannot_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (tmp_path / "closed").write_text(PLACE)
    (tmp_path / "closed").chmod(0)
    (tmp_path / "shut").mkdir(mode=0)
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed/a").write_text(PLACE)
    (tmp_path / "listed").chmod(0o400)
    report = audit(tmp_path, OPTIONS)
    for name in ("shut", "listed"):
        (tmp_path / name).chmod(0o700)
    assert set(reasons(report)) == {"closed", "shut", "listed"}


def test_a_file_that_vanishes_or_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    (tmp_path / "c").write_bytes(bytes(3 << 20))
    real = open_whatever

    def meanwhile(fd: int, name: str, *, unlock: bool) -> int:
        if name == "a":
            (tmp_path / "b").unlink()
        return real(fd, name, unlock=unlock)

    class Slow(Auditor):
        def file(self, path: str, *, executable: bool) -> FileAudit:
            os.truncate(tmp_path / "c", 1 << 20)
            return super().file(path, executable=executable)

    auditor = Slow("x", Matcher(needles_for([PLACE])))
    monkeypatch.setattr("nsbuild.audit.directory.open_whatever", meanwhile)
    audit_directory(auditor, str(tmp_path))
    assert reasons(auditor.finish()) == {"b": "vanished while it was audited", "c": "shrank while it was audited"}


def test_a_file_in_whose_place_is_a_fifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("x")

    def meanwhile(fd: int, name: str, *, unlock: bool) -> int:
        (tmp_path / "a").unlink()
        os.mkfifo(tmp_path / "a")
        return open_whatever(fd, name, unlock=unlock)

    monkeypatch.setattr("nsbuild.audit.directory.open_whatever", meanwhile)
    auditor = Auditor("x", Matcher(needles_for([PLACE])))
    audit_directory(auditor, str(tmp_path))
    assert reasons(auditor.finish()) == {"a": "is no file any more: it changed while it was audited"}


def test_a_directory_in_whose_place_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "first").write_text("x")
    for name in "abc":
        (tmp_path / name).mkdir()

    class Meanwhile(Auditor):
        def entries(self, paths: Iterable[str]) -> None:
            if (tmp_path / "a").is_dir():
                (tmp_path / "a").rmdir()
                (tmp_path / "a").symlink_to(PLACE)
                (tmp_path / "b").rmdir()
                (tmp_path / "b").write_text(PLACE)
            super().entries(paths)

    auditor = Meanwhile("x", Matcher(needles_for([PLACE])))
    audit_directory(auditor, str(tmp_path))
    report = auditor.finish()
    assert [(one.file, one.kind) for one in report.findings] == [("a", "symlink")]
    assert reasons(report) == {"b": "was no file before: it changed while it was audited"}


def test_a_closed_file_keeps_its_writer(tmp_path: Path) -> None:
    """To open it changes its ctime. As somebody whom modes stop."""
    (tmp_path / "closed").write_text(PLACE)
    (tmp_path / "closed").chmod(0)
    for path in (tmp_path, tmp_path / "closed"):
        os.chown(path, *((65534, 65534) if os.geteuid() == 0 else (-1, -1)))
    code = """
import os, sys
from nsbuild.audit import Auditor, Matcher, audit_directory, needles_for
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
was = os.stat("closed").st_ctime
auditor = Auditor("x", Matcher(needles_for([sys.argv[2]])))
audit_directory(auditor, ".", lambda path, changed: "as it was" if changed == was else "now", unlock=True)
print(*[finding.writer for finding in auditor.finish().findings])
"""
    time.sleep(0.02)  # the kernel's clock for files is a coarse one
    ended = subprocess.run([sys.executable, "-c", code, tmp_path, PLACE], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "as it was\n", ended.stderr


def test_holes_and_hard_links_are_to_a_directory_what_they_are_to_an_archive(tmp_path: Path) -> None:
    """The pass that archives it reads the holes."""
    with (tmp_path / "tail").open("wb") as file:
        file.write(PLACE.encode())
        file.truncate(1 << 20)
    with (tmp_path / "head.sh").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"echo " + PLACE.encode())
    with (tmp_path / "x.zip").open("wb") as file:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("zeros", bytes(1 << 20))
            archive.writestr("a.pth", PLACE)
        whole = packed.getvalue()
        start = whole.index(bytes(4096))
        file.write(whole[:start])
        file.seek(1 << 20, os.SEEK_CUR)
        file.write(whole[start + (1 << 20) :])
    (tmp_path / "below").mkdir()
    for name in ("below/tail", "head"):
        os.link(tmp_path / "tail", tmp_path / name)
    assert all(os.stat(tmp_path / name).st_blocks * 512 < 1 << 20 for name in ("tail", "head.sh", "x.zip"))
    auditor = Auditor("slug", Matcher(needles_for([PLACE])))
    audit_directory(auditor, str(tmp_path))
    work = cast(Workspace, SimpleNamespace(path=PLACE))
    archived = SlugAudit(app_layout(), work, HOST, Record("id", "source", "app", "/app", "stack"))
    write_tree(str(tmp_path), lambda data: None, watcher=archived.watch)
    report = archived.finish()
    assert auditor.finish() == report
    assert [one.where for one in report.findings] == ["x.zip!a.pth", "below/tail", "head.sh"]
    assert (report.files, report.bytes) == (5, 3 * (1 << 20) + (tmp_path / "head.sh").stat().st_size + len(whole))


def test_a_file_that_grows_ends(tmp_path: Path) -> None:
    growing = tmp_path / "log"
    growing.write_bytes(bytes(4 << 20))
    stop = threading.Event()

    def grow() -> None:
        with growing.open("ab") as file:
            while not stop.is_set() and file.tell() < 1 << 30:  # of the disk, where the audit is slow to begin
                file.write(bytes(1 << 16))
                file.flush()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        assert audit(tmp_path, OPTIONS).files == 1
    finally:
        stop.set()
        thread.join()


def test_a_hole_of_a_terabyte(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.write(PLACE.encode())
        file.truncate(1 << 40)
        file.seek((1 << 40) - 100)
        file.write(PLACE.encode())
    (one,) = audit(tmp_path, OPTIONS).findings
    assert (one.offset, one.count) == (0, 2)


def test_a_large_archive_is_searched_but_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "large.zip").open("wb") as file:
        file.write(b"PK\x03\x04")
        for _ in range((KEPT >> 20) + 1):
            file.write(os.urandom(1 << 20))
        file.write(PLACE.encode())
    report = audit(tmp_path, OPTIONS)
    assert [one.kind for one in report.findings] == ["binary"]
    assert "larger than" in reasons(report)["large.zip"]


def test_names_of_any_bytes_and_paths_of_any_length(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"odd\xff\n")).write_text(PLACE)
    (tmp_path / "two\nlines.pth").write_text(PLACE)
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        there = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    fd = os.open("deep.pth", os.O_CREAT | os.O_WRONLY, dir_fd=here)
    os.write(fd, PLACE.encode())
    os.close(fd)
    os.close(here)
    report = audit(tmp_path, OPTIONS)
    assert sorted(one.kind for one in report.findings) == ["pth", "pth", "text"]
    level = "d" * 200
    assert f"{'/'.join([level] * 4)}/.../{'/'.join([level] * 4)}/deep.pth" in {one.file for one in report.findings}
    os.system(f"rm -rf {tmp_path}/ddd*")  # pytest's own removal stops at PATH_MAX


def test_members_whose_names_lead_out_are_only_names(tmp_path: Path) -> None:
    slug = tmp_path / "deep/slug"
    slug.mkdir(parents=True)
    with zipfile.ZipFile(slug / "x.zip", "w") as archive:
        archive.writestr("../../outside.pth", PLACE)
    with tarfile.open(slug / "x.tar", "w") as tar:
        for name in ("../../outside.pth", "/tmp/../outside.sh"):
            member = tarfile.TarInfo(name)
            member.size = len(PLACE)
            tar.addfile(member, io.BytesIO(PLACE.encode()))
    report = audit(slug, OPTIONS)
    assert {(one.where, one.kind) for one in report.findings} == {
        ("x.zip!../../outside.pth", "pth"),
        ("x.tar!../../outside.pth", "pth"),
        ("x.tar!/tmp/../outside.sh", "script"),
    }
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "slug", "x.tar", "x.zip"]


def test_a_member_without_a_name(tmp_path: Path) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("qq.pth", PLACE)
    (tmp_path / "x.zip").write_bytes(whole.getvalue().replace(b"qq.pth", b"\0q.pth"))
    report = audit(tmp_path, OPTIONS)
    assert [(one.where, one.kind) for one in report.findings] == [("x.zip!\0q.pth", "pth")]
    assert not report.problems


def test_fifty_archives_in_each_other(tmp_path: Path) -> None:
    data = PLACE.encode()
    for _ in range(50):
        data = gzip.compress(data)
    (tmp_path / "x.gz").write_bytes(data)
    report = audit(tmp_path, OPTIONS)
    assert report.findings == [] and "4 deep" in reasons(report)["x.gz!x!x!x!x"]


@pytest.mark.parametrize("magic", [b"\x03\xf3\r\n", b"\xff\xff\r\n", b"\0\0\0\0"])
def test_bytecode_of_another_python(tmp_path: Path, magic: bytes) -> None:
    """Only its strings are looked at, whatever the rest of it means."""
    name = f"{PLACE}/app.py".encode()
    string = b"\xda" + bytes([len(name)]) + name
    for file, rest in (("x.pyc", string + os.urandom(50)), ("cut.pyc", string[:-1]), ("constant.pyo", string[:-3])):
        (tmp_path / file).write_bytes(magic + bytes(12) + b"\xe3" + os.urandom(30) + rest)
    report = audit(tmp_path, OPTIONS)
    assert report.problems == []
    found = {one.file: one.kind for one in report.findings}
    assert found.keys() == {"x.pyc", "cut.pyc", "constant.pyo"} and found["x.pyc"] == "bytecode-filename"


@pytest.mark.parametrize("size", [100, 1 << 16, 3 << 20])
def test_a_filesystem_that_gives_less_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    (tmp_path / "a").write_bytes(bytes(size - len(PLACE)) + PLACE.encode())
    read = os.read
    monkeypatch.setattr("nsbuild.audit.directory.os.read", lambda fd, count: read(fd, min(count, 7 + size // 10)))
    auditor = Auditor("x", Matcher(needles_for([PLACE])))
    audit_directory(auditor, str(tmp_path))
    report = auditor.finish()
    assert [(one.file, one.offset) for one in report.findings] == [("a", size - len(PLACE))]
    assert not report.problems
    assert report.bytes == size
