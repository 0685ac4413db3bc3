"""Headers of tar members as values: what GNU tar and Python's tarfile make of them."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from nsbuild.slug import tar, write_tree

NAMES = {
    "short": b"./a",
    "hundred": b"./" + b"x" * 98,
    "hundred and one": b"./" + b"x" * 99,
    "in the prefix": b"./" + b"d" * 120 + b"/" + b"f" * 90,
    "not in the prefix": b"./" + b"n" * 250,
    "deeper than PATH_MAX": b"./" + b"a/" * 3000 + b"f",
    "latin-1": b"./caf\xe9",
    "latin-1, long": b"./" + b"\xe9" * 200,
    "UTF-8, long": b"./" + "é".encode() * 120,
    "newline and equals": b"./a\nb=" + b"c" * 200,
}


def read(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data + tar.END)) as archive:
        return archive.getmembers()


def listed(data: bytes) -> bytes:
    """What GNU tar prints, names as they are."""
    words = ["tar", "-tf", "-", "--quoting-style=literal", "--show-transformed-names"]
    return subprocess.run(words, input=data + tar.END, capture_output=True, check=True).stdout


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_of_any_bytes_and_length(name: bytes) -> None:
    data = tar.member(name, tar.FILE, 0o640, 1, 3) + b"abc" + tar.padding(3)
    data += tar.member(b"./next", tar.FILE, 0o600, 2)
    first, last = read(data)
    assert (os.fsencode(first.name), first.size, first.mode, first.mtime) == (name, 3, 0o640, 1)
    assert (last.name, last.mode, last.uid, last.gid) == ("./next", 0o600, 0, 0)
    assert listed(data) == name + b"\n./next\n"


@pytest.mark.parametrize("length", [1, 100, 101, 5000])
def test_a_link_of_any_bytes_and_length(length: int) -> None:
    link = (b"/\xff../" * 2000)[:length]
    data = tar.member(b"./" + b"l" * 150, tar.SYMLINK, 0o777, 1, link=link) + tar.member(
        b"./next", tar.FILE, 0o600, 2
    )
    first, last = read(data)
    assert (os.fsencode(first.linkname), len(first.name), last.name) == (link, 152, "./next")
    shown = subprocess.run(
        ["tar", "-tvf", "-", "--quoting-style=literal"], input=data + tar.END, capture_output=True, check=True
    ).stdout
    assert b" -> " + link + b"\n" in shown


@pytest.mark.parametrize("size", [0, 1, (8 << 30) - 1, 8 << 30, 1 << 50])
def test_a_size_beyond_eight_gigabytes(size: int) -> None:
    header = tar.member(b"./big", tar.FILE, 0o644, 1, size)
    found = tarfile.open(fileobj=io.BytesIO(header + tar.END)).next()
    assert found is not None and found.size == size
    # GNU tar reads the header before it misses what follows.
    shown = subprocess.run(["tar", "-tvf", "-"], input=header, capture_output=True, check=False).stdout
    assert shown.split()[2] == b"%d" % size


def test_a_directory_and_a_hard_link() -> None:
    data = tar.member(b"./d/", tar.DIRECTORY, 0o1755, 1) + tar.member(b"./h", tar.HARD_LINK, 0o600, 1, link=b"./d/f")
    directory, link = read(data)
    assert directory.isdir() and directory.mode == 0o1755
    assert link.islnk() and link.linkname == "./d/f"


def test_the_padding_ends_a_block() -> None:
    assert [len(tar.padding(size)) for size in (0, 1, 511, 512, 513)] == [0, 511, 1, 0, 511]


@pytest.mark.parametrize("size", [3, 3 << 20])
def test_a_sink_that_fails_is_not_the_fault_of_the_file_that_was_read(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)

    def full(data: bytes) -> None:
        if b"xxx" in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError) as refusal:
        write_tree(str(tmp_path), full)
    assert (refusal.value.errno, refusal.value.filename) == (errno.ENOSPC, None)
