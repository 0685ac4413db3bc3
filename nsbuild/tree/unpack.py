"""Unpacking an archive that cannot be trusted: .tar (plain, gzip, bzip2, xz, zstd) and .zip.

Python's own tarfile has no filters before 3.11.4, and none that bounds what a small archive unpacks to.
"""

from __future__ import annotations

import calendar
import errno
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from nsbuild.tree.write import NameRefused, TreeWriter

_BLOCK = 256 * 1024
_LONGEST_HEADER = 1 << 20
"""tarfile reads a member's extended header, of whatever size it claims, into memory."""
_ALWAYS = 256 << 20
_RATIO = 500
"""What unpacks to more than `_ALWAYS` bytes may not be this many times its own size: deflate reaches 1032."""
_BROKEN = (
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    tarfile.TarError,
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
)


class ArchiveError(ValueError):
    """An archive that is none, is damaged, or holds what has no place in a tree. One sentence, naming the member."""


def unpack(
    archive: Path,
    directory: str,
    *,
    max_bytes: int = 4 << 30,
    max_files: int = 1_000_000,
    outward_links: bool = False,
    owner: tuple[int, int] | None = None,
) -> None:
    """Unpack `archive`, whatever its name, into `directory`, which does not exist or is empty and ours.

    Contents, names of any bytes, x bits, symbolic and hard links and times (seconds; a .zip's are taken as UTC) are
    kept; setuid, setgid and sticky bits and owners are not: everything belongs to the caller or, for root, to
    `owner`. Nothing is written outside `directory`, or through a link. What was unpacked before an error stays: the
    caller removes it.

    Raises ArchiveError for absolute names and `..`, devices and FIFOs, hard links to anything but a file of
    the archive, symbolic links that lead out of the tree (unless `outward_links`), more than `max_files` members,
    `max_bytes` of content or 500 times the archive's size, encryption, and an archive that is cut off,
    damaged, or no archive at all; OSError for what cannot be read or written.
    """
    with archive.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        limit = _Limit(archive, min(max_bytes, max(_ALWAYS, size * _RATIO)), max_bytes, max_files)
        start = file.read(512)
        file.seek(0)
        try:
            with TreeWriter(directory, owner) as writer:
                if start.startswith(b"PK"):
                    _unzip(file, writer, limit, outward_links)
                else:
                    _untar(_Forward(_decompressed(file, start, archive), limit), writer, limit, outward_links)
        except NameRefused as error:
            raise ArchiveError(f"{archive}: {error}.") from None
        except ArchiveError:
            raise
        except _BROKEN as error:
            raise ArchiveError(f"{archive} is cut off or damaged: {str(error) or 'it ends too early'}.") from None
        except OSError as error:
            # gzip and bz2 say so of bad data without a number; zipfile seeks to where a damaged offset says.
            if error.errno not in (None, errno.EINVAL):
                raise
            raise ArchiveError(f"{archive} is damaged: {error}.") from None


class _Limit:
    """Counts what is unpacked."""

    def __init__(self, archive: Path, max_bytes: int, asked: int, max_files: int) -> None:
        self.archive = archive
        self._bytes = max_bytes
        self._reason = f"{asked} bytes" if max_bytes == asked else f"{_RATIO} times its size"
        self._files = self._max_files = max_files

    def member(self) -> None:
        self._files -= 1
        if self._files < 0:
            raise ArchiveError(f"{self.archive} holds more than {self._max_files} files.")

    def content(self, count: int) -> None:
        self._bytes -= count
        if self._bytes < 0:
            raise ArchiveError(f"{self.archive} unpacks to more than {self._reason}.")


def _decompressed(file: IO[bytes], start: bytes, archive: Path) -> IO[bytes]:
    if start.startswith(b"\x1f\x8b"):
        import gzip

        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if start.startswith(b"BZh"):
        import bz2

        return bz2.BZ2File(file)
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(file)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise ArchiveError(f"{archive} is empty.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise ArchiveError(f"{archive} is a web page (HTML), not an archive.")
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        # Two blocks of zeros are an archive of nothing.
        if start.strip(b"\0") or len(start) < 512:
            raise ArchiveError(f"{archive} is no archive: neither .zip nor .tar, plain or compressed.") from None
    return file


class _Forward:
    """What tarfile asks of a file, over a stream that cannot seek: it never wants to go back."""

    def __init__(self, stream: IO[bytes], limit: _Limit) -> None:
        self._stream = stream
        self._limit = limit
        self._position = 0
        self.last = b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise EOFError("a member has a negative size")  # a tarfile before 3.13.6 reads on in a circle
        while self._position < position:
            if not self._take(min(position - self._position, _BLOCK)):
                raise EOFError

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            raise ArchiveError(f"{self._limit.archive} has a member whose header takes {size} bytes.")
        parts = []
        while size > 0 and (block := self._take(size)):
            parts.append(block)
            size -= len(block)
        self.last = b"".join(parts)
        return self.last

    def drain(self) -> None:
        """Up to the end, where checksums are."""
        while block := self._take(_BLOCK):
            self._limit.content(len(block))

    def _take(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._position += len(block)
        return block


def _untar(stream: _Forward, writer: TreeWriter, limit: _Limit, outward_links: bool) -> None:
    with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            tar.members.clear()  # it would keep them all
            limit.member()
            if member.isdir():
                writer.directory(member.name, member.mode, member.mtime)
            elif member.issym():
                writer.symlink(member.name, member.linkname, member.mtime, outward=outward_links)
            elif member.islnk():
                writer.hard_link(member.name, member.linkname)
            elif member.isreg():
                limit.content(member.size)
                writer.file(member.name, member.mode, member.mtime, _content(tar, member))
            else:
                kinds = {tarfile.FIFOTYPE: "a FIFO", tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device"}
                raise NameRefused(
                    f"{member.name!r} is {kinds.get(member.type, f'of the unknown kind {member.type!r}')}"
                )
    # tarfile takes a damaged header, and the want of one, for the end.
    if len(stream.last) < 512 or stream.last.strip(b"\0"):
        raise ArchiveError(f"{limit.archive} is cut off or damaged: it has no end mark.")
    stream.drain()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    file = tar.extractfile(member)
    assert file is not None
    left = member.size
    while left:
        block = file.read(min(left, _BLOCK))
        if not block:
            raise EOFError(f"{member.name!r} is not whole")
        left -= len(block)
        yield block


def _unzip(file: IO[bytes], writer: TreeWriter, limit: _Limit, outward_links: bool) -> None:
    with zipfile.ZipFile(file) as zipped:
        for member in zipped.infolist():
            limit.member()
            name = zip_name(member)
            if member.flag_bits & 0x1:
                raise NameRefused(f"{name!r} is encrypted")
            mtime = _zip_time(member)
            mode = member.external_attr >> 16 if member.create_system == 3 else 0
            kind = stat.S_IFMT(mode)
            if name.endswith("/") or kind == stat.S_IFDIR:
                writer.directory(name, mode & 0o777 or 0o755, mtime)
            elif kind == stat.S_IFLNK:
                target = b"".join(_zip_content(zipped, member, limit, 4096))
                writer.symlink(name, os.fsdecode(target), mtime, outward=outward_links)
            elif kind in (0, stat.S_IFREG):
                writer.file(name, mode & 0o777 or 0o644, mtime, _zip_content(zipped, member, limit))
            else:
                raise NameRefused(f"{name!r} is neither a file, a directory nor a link")


def zip_name(member: zipfile.ZipInfo) -> str:
    """On Unix a name without the UTF-8 flag is bytes, which zipfile takes for those of an IBM PC."""
    name = member.orig_filename
    if member.create_system == 3 and not member.flag_bits & 0x800:
        name = os.fsdecode(name.encode("cp437"))
    return name


def _zip_time(member: zipfile.ZipInfo) -> int | None:
    try:
        return calendar.timegm((*member.date_time, 0, 0, 0))
    except ValueError:  # day and month 0: none was kept
        return None


def _zip_content(
    zipped: zipfile.ZipFile, member: zipfile.ZipInfo, limit: _Limit, most: int | None = None
) -> Iterator[bytes]:
    try:
        with zipped.open(member) as content:
            while block := content.read(_BLOCK):
                limit.content(len(block))
                if most is not None and content.tell() > most:
                    raise NameRefused(f"{member.filename!r} is a symbolic link to no possible name")
                yield block
    except (NotImplementedError, RuntimeError) as error:
        raise NameRefused(f"{member.filename!r} cannot be unpacked: {error}") from None
