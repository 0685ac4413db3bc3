"""Archives of strangers: what is kept, and every way of leaving the directory that is refused."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsbuild.tree.unpack import ArchiveError, unpack

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", **values: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    return member(name, type=kind, linkname=target)


def tarred(path: Path, *members: Member, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, mode, format=form) as tar:  # type: ignore[call-overload]
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def refused(archive: Path, out: Path, *words: str, **limits: int) -> str:
    """The sentence; nothing was written beside `out`."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(ArchiveError) as raised:
        unpack(archive, str(out), **limits)  # type: ignore[arg-type]
    for word in (str(archive), *words):
        assert word in str(raised.value), str(raised.value)
    assert sorted(path for path in out.parent.iterdir() if path != out) == before
    return str(raised.value)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A tree with what an app has, to be packed by the tools people use."""
    app = tmp_path / "app"
    (app / "bin").mkdir(parents=True)
    (app / "Procfile").write_text("web: bin/run\n")
    (app / "bin/run").write_text("#!/bin/sh\n")
    (app / "bin/run").chmod(0o755)
    (app / "requirements.txt").symlink_to("Procfile")
    (app / "circle").symlink_to("circle")
    (app / os.fsdecode(b"\xff-name")).write_text("x")
    os.utime(app / "Procfile", (1_000_000_000, 1_000_000_000))
    return app


PACKERS = {
    "app.tar": ["tar", "-cf"],
    "app.tgz": ["tar", "-czf"],
    "app.tar.bz2": ["tar", "-cjf"],
    "app.tar.xz": ["tar", "-cJf"],
    "app.tar.zst": ["tar", "--zstd", "-cf"],
    "ustar.tar": ["tar", "--format=ustar", "-cf"],
    "v7.tar": ["tar", "--format=v7", "-cf"],
    "gnu.tar": ["tar", "--format=gnu", "-cf"],
    "posix.tar": ["tar", "--format=posix", "-cf"],
}


@pytest.mark.parametrize("name", PACKERS)
def test_what_tar_packs_comes_out_the_same(tmp_path: Path, app: Path, name: str) -> None:
    if ".bz2" in name:
        with tarfile.open(tmp_path / name, "w:bz2") as tar:  # bzip2 itself is not on every machine
            tar.add(app, ".")
    else:
        subprocess.run([*PACKERS[name], tmp_path / name, "-C", app, "."], check=True)
    unpack(tmp_path / name, str(tmp_path / "out"))
    out = tmp_path / "out"
    assert {os.fsencode(path.relative_to(out)) for path in out.rglob("*")} == {
        os.fsencode(path.relative_to(app)) for path in app.rglob("*")
    }
    assert (out / "bin/run").stat().st_mode & 0o777 == 0o755
    assert (out / "Procfile").stat().st_mtime == 1_000_000_000
    assert os.readlink(out / "requirements.txt") == "Procfile" and os.readlink(out / "circle") == "circle"
    assert (out / os.fsdecode(b"\xff-name")).read_text() == "x"


def zipped(path: Path, *members: tuple[str, int, bytes], system: int = 3) -> Path:
    """`members` are name, st_mode and content."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode, data in members:
            info = zipfile.ZipInfo(name, (2001, 9, 9, 1, 46, 40))
            info.create_system, info.external_attr = system, mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return path


FILE, LINK = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777


def test_a_zip_with_modes_links_and_names_of_any_bytes(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path / "app.zip",
        ("bin/run", stat.S_IFREG | 0o4755, b"#!/bin/sh"),
        ("h\u00f6he", stat.S_IFREG | 0o640, b"x"),
        ("bytes!", FILE, b"y"),
        ("link", LINK, b"bin/run"),
        ("empty/", stat.S_IFDIR | 0o750, b""),
    )
    # As Info-ZIP has it: no flag that says UTF-8, the name is bytes.
    archive.write_bytes(archive.read_bytes().replace(b"bytes!", b"byt\xff\xfe!"))
    out = tmp_path / "out"
    unpack(archive, str(out))
    assert stat.S_IMODE((out / "bin/run").stat().st_mode) == 0o755
    assert (out / "bin/run").stat().st_mtime == 1_000_000_000
    assert os.readlink(out / "link") == "bin/run"
    assert stat.S_IMODE((out / "empty").stat().st_mode) == 0o750
    assert (out / "h\u00f6he").read_text() == "x"
    assert (out / os.fsdecode(b"byt\xff\xfe!")).read_text() == "y"


def test_a_zip_made_on_windows(tmp_path: Path) -> None:
    unpack(zipped(tmp_path / "app.zip", ("bin/run", 0, b"x"), system=0), str(tmp_path / "out"))
    assert stat.S_IMODE((tmp_path / "out/bin/run").stat().st_mode) == 0o644


def test_modes_lose_their_special_bits_and_never_lock_us_out(tmp_path: Path) -> None:
    archive = tarred(
        tmp_path / "a.tar",
        member("closed", type=tarfile.DIRTYPE, mode=0),
        member("closed/setuid", mode=0o6755),
        member("closed/secret", mode=0),
        member("sticky", type=tarfile.DIRTYPE, mode=0o1777),
    )
    out = tmp_path / "out"
    unpack(archive, str(out))
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in out.rglob("*")}
    assert modes == {"closed": 0o500, "setuid": 0o755, "secret": 0o400, "sticky": 0o777}


def test_a_hard_link_is_one_of_a_file_in_the_archive(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tar", member("d/one", b"x"), link("two", "d/one", tarfile.LNKTYPE))
    unpack(archive, str(tmp_path / "out"))
    assert (tmp_path / "out/two").stat().st_ino == (tmp_path / "out/d/one").stat().st_ino


def test_a_later_member_replaces_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("safe")
    archive = tarred(tmp_path / "a.tar", link("f", "../victim"), member("f", b"new"), member("f", b"newer"))
    unpack(archive, str(tmp_path / "out"), outward_links=True)
    assert (tmp_path / "out/f").read_bytes() == b"newer" and (tmp_path / "victim").read_text() == "safe"


def test_fifty_directories_deep_and_beyond_path_max(tmp_path: Path) -> None:
    deep = "/".join(["d" * 20] * 50) + "/f"
    beyond = "/".join(["e" * 200] * 30) + "/f"
    unpack(tarred(tmp_path / "a.tar", member(deep, b"x"), member(beyond, b"y")), str(tmp_path / "out"))
    assert (tmp_path / "out" / deep).read_bytes() == b"x"
    found = subprocess.run(["find", tmp_path / "out", "-name", "f", "-size", "1c"], capture_output=True, check=True)
    assert len(found.stdout.splitlines()) == 2
    subprocess.run(["rm", "-rf", tmp_path / "out"], check=True)


def test_a_million_years_and_no_number_are_times_too(tmp_path: Path) -> None:
    archive = tarred(
        tmp_path / "a.tar",
        member("late", mtime=1e18),
        member("early", mtime=-5.0),
        member("none", pax_headers={"mtime": "nan"}),
    )
    unpack(archive, str(tmp_path / "out"))
    assert (tmp_path / "out/early").stat().st_mtime == 0


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([member("/etc/evil")], ["'/etc/evil'", "absolute"]),
        ([member("../evil")], ["'../evil'", ".."]),
        ([member("a/../../evil")], [".."]),
        ([member("a/..")], [".."]),
        ([link("l", ".."), member("l/evil", b"x")], ["'l"]),
        ([link("l", "d"), member("d/x"), member("l/evil", b"x")], ["'l/evil'", "below"]),
        ([member("f"), member("f/evil", b"x")], ["'f/evil'", "below"]),
        ([member("d/x"), member("d", b"x")], ["'d'", "twice"]),
        ([member("d", b"x"), member("d", type=tarfile.DIRTYPE)], ["'d'", "twice"]),
        ([link("l", "/etc/passwd")], ["'l'", "leads out", "/etc/passwd"]),
        ([link("d/l", "../../x")], ["'d/l'", "leads out"]),
        ([member("d/e/x"), link("d/e/f", "../.."), link("g", "d/e/f/..")], ["'g'", "leads out"]),
        ([link("h", "../victim", tarfile.LNKTYPE)], ["'../victim'", ".."]),
        ([link("h", "/etc/passwd", tarfile.LNKTYPE)], ["absolute"]),
        ([link("h", "later", tarfile.LNKTYPE), member("later")], ["'h'", "'later'"]),
        ([link("l", "x"), link("h", "l", tarfile.LNKTYPE)], ["'h'", "no regular file"]),
        ([member("null", type=tarfile.CHRTYPE)], ["'null'", "a device"]),
        ([member("sda", type=tarfile.BLKTYPE)], ["'sda'", "a device"]),
        ([member("fifo", type=tarfile.FIFOTYPE)], ["'fifo'", "a FIFO"]),
    ],
)
def test_members_that_have_no_place_in_a_tree(tmp_path: Path, members: list[Member], words: list[str]) -> None:
    (tmp_path / "victim").write_text("safe")
    refused(tarred(tmp_path / "a.tar", *members), tmp_path / "out", *words)
    assert (tmp_path / "victim").read_text() == "safe" and (tmp_path / "victim").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("/etc/evil", FILE, b"")], ["absolute"]),
        ([("../evil", FILE, b"")], [".."]),
        ([("l", LINK, b"/etc"), ("l/evil", FILE, b"")], ["leads out"]),
        ([("d/x", FILE, b""), ("l", LINK, b"d"), ("l/evil", FILE, b"")], ["below"]),
        ([("l", LINK, b"x" * 5000)], ["'l'", "no possible name"]),
        ([("l", LINK, b"a\0b")], ["'l'", "no possible name"]),
        ([("fifo", stat.S_IFIFO | 0o644, b"")], ["'fifo'"]),
    ],
)
def test_members_of_a_zip_too(tmp_path: Path, members: list[tuple[str, int, bytes]], words: list[str]) -> None:
    refused(zipped(tmp_path / "a.zip", *members), tmp_path / "out", *words)


def test_a_source_may_have_links_that_lead_out(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tar", link("public", "/app/storage"), link("up", "../x"))
    unpack(archive, str(tmp_path / "out"), outward_links=True)
    assert os.readlink(tmp_path / "out/public") == "/app/storage"


def test_limits(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tgz", *(member(f"f{number}", b"x" * 1000) for number in range(10)), mode="w:gz")
    unpack(archive, str(tmp_path / "enough"), max_bytes=10_000 + 10_240, max_files=10)
    refused(archive, tmp_path / "bytes", "more than 9999 bytes", max_bytes=9999)
    refused(archive, tmp_path / "files", "more than 9 files", max_files=9)
    small = zipped(tmp_path / "a.zip", ("f", FILE, b"x" * 1000), ("g", FILE, b"x" * 1000))
    refused(small, tmp_path / "zip-bytes", "more than 1999 bytes", max_bytes=1999)
    refused(small, tmp_path / "zip-files", "more than 1 files", max_files=1)


def test_bombs(tmp_path: Path) -> None:
    """300 MB of zeros: in one file, behind the end of the archive, in a hole, and in a header."""
    many = 300 << 20

    def gzipped(name: str, *parts: tuple[bytes, int]) -> Path:
        import gzip

        with gzip.open(tmp_path / name, "wb", 9) as file:
            for block, count in parts:
                for _ in range(count):
                    file.write(block)
        return tmp_path / name

    head = member("f")[0]
    head.size = many
    zeros = bytes(1 << 20)
    refused(gzipped("file.tgz", (head.tobuf(), 1), (zeros, 301)), tmp_path / "1", "times its size")
    refused(gzipped("end.tgz", (bytes(10240), 1), (zeros, 300)), tmp_path / "2", "times its size")
    pax = member("f", type=tarfile.XHDTYPE)[0]
    pax.size = many
    refused(gzipped("header.tgz", (pax.tobuf(), 1), (zeros, 1)), tmp_path / "3", "header takes")
    longname = member("f", type=tarfile.GNUTYPE_LONGNAME)[0]
    longname.size = many
    refused(gzipped("name.tgz", (longname.tobuf(), 1), (zeros, 1)), tmp_path / "4", "header takes")
    with open(tmp_path / "sparse", "wb") as file:  # noqa: PTH123
        file.truncate(5 << 30)
    subprocess.run(["tar", "-C", tmp_path, "--sparse", "-czf", tmp_path / "sparse.tgz", "sparse"], check=True)
    refused(tmp_path / "sparse.tgz", tmp_path / "5", "unpacks to more than")
    assert subprocess.run(["du", "-sm", tmp_path], capture_output=True, check=True).stdout.split()[0] < b"9"


def test_a_negative_size_does_not_go_round_in_a_circle(tmp_path: Path) -> None:
    head = bytearray(member("f")[0].tobuf(tarfile.GNU_FORMAT))
    head[124:136] = b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    (tmp_path / "a.tar").write_bytes(bytes(head) * 3 + bytes(10240))
    refused(tmp_path / "a.tar", tmp_path / "out", "damaged")


def compressors() -> dict[str, Callable[[bytes], bytes]]:
    import bz2
    import gzip
    import lzma

    return {
        "tar": bytes,
        "tgz": gzip.compress,
        "tar.bz2": bz2.compress,
        "tar.xz": lzma.compress,
        "tar.zst": zstandard.ZstdCompressor().compress,
    }


@pytest.mark.parametrize("suffix", compressors())
def test_cut_off_anywhere_is_an_error(tmp_path: Path, suffix: str) -> None:
    """Also between two members, where tarfile sees no more than the end."""
    plain = tarred(tmp_path / "plain", member("one", os.urandom(5000)), member("two", os.urandom(5000))).read_bytes()
    whole = compressors()[suffix](plain)
    for number, cut in enumerate((10, 512, 512 + 5120, len(whole) // 2)):
        archive = tmp_path / f"{number}.{suffix}"
        archive.write_bytes(whole[:cut])
        refused(archive, tmp_path / f"out-{suffix}-{number}")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>404</html>", b"  <html>\n", b"not found", b"PK\3\4"])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tgz").write_bytes(content)
    said = refused(tmp_path / "a.tgz", tmp_path / "out")
    assert ("web page" in said) == (b"<" in content), said
    assert ("is empty" in said) == (not content), said


def test_the_content_counts_not_the_name(tmp_path: Path) -> None:
    unpack(zipped(tmp_path / "a.tgz", ("f", FILE, b"x")), str(tmp_path / "out"))
    assert (tmp_path / "out/f").read_bytes() == b"x"


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data(), kind=st.sampled_from(["tar", "zip"]))
def test_damage_is_an_archive_error_or_harmless(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    """Any bytes of an archive changed: no other exception, and nothing beside the directory."""
    room = tmp_path / os.urandom(8).hex()
    room.mkdir()
    if kind == "tar":
        pax = {"comment": "x" * 30, "path": "höhe"}
        tarred(room / "a", member("d/one", b"x" * 600, pax_headers=pax), link("l", "d"), member("two", b"y"))
    else:
        zipped(room / "a", ("d/one", FILE, b"x" * 600), ("l", LINK, b"d"), ("two", FILE, b"y"))
    raw = bytearray((room / "a").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (room / "a").write_bytes(raw)
    try:
        unpack(room / "a", str(room / "out"), max_bytes=1 << 20)
    except ArchiveError:
        pass
    except OSError as error:
        assert error.strerror == "File name too long", error
    assert {path.name for path in room.iterdir()} <= {"a", "out"}
