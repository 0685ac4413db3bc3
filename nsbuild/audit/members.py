"""What is inside archives and compressed files, as far as is bounded."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

_BLOCK = 1 << 18
DEEPEST = 4
"""Archives within archives that are opened."""


class NotRead(Exception):
    """Why (the rest of) an archive was not looked into: a sentence without its subject."""


@dataclass
class Budget:
    """What one file of a slug may unpack to, all levels together. It is used up, and with it that of the `slug`."""

    size: int = 1 << 30
    members: int = 200_000
    slug: Budget | None = None

    def member(self) -> None:
        """Raises NotRead when there may be no more."""
        self.members -= 1
        if self.members < 0:
            raise NotRead("has too many members; the rest was not looked into")
        if self.slug is not None:
            self.slug.members -= 1
            if self.slug.members < 0:
                raise NotRead("is in a slug whose archives have too many members; the rest was not looked into")

    def unpacked(self, size: int) -> None:
        """Raises NotRead when there may be no more bytes."""
        self.size -= size
        if self.size < 0:
            raise NotRead("unpacks to more than is looked into (1 GiB); the rest was not")
        if self.slug is not None:
            self.slug.size -= size
            if self.slug.size < 0:
                raise NotRead("is in a slug whose archives unpack to more than is looked into; the rest was not")

    def blocks(self, kind: str, file: _Readable) -> Iterator[bytes]:
        """The blocks of an unpacked file. Raises NotRead, also for one that proves broken on the way."""
        with _explained(kind):
            while block := file.read(_BLOCK):
                self.unpacked(len(block))
                yield block


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@contextlib.contextmanager
def _explained(kind: str) -> Iterator[None]:
    """Whatever the libraries say of hostile bytes, as one sentence."""
    import zstandard

    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
        raise NotRead(f"is a broken {kind} file ({_shown(error)})") from None
    except (OSError, RuntimeError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
        # zipfile raises these for an unknown method, a password, numbers that cannot be
        raise NotRead(f"cannot be read as a {kind} file ({_shown(error)})") from None


def _shown(error: Exception) -> str:
    return str(error)[:100] or type(error).__name__


def members(kind: str, data: bytes, name: str, budget: Budget) -> Iterator[tuple[str, Iterator[bytes]]]:
    """(name, blocks) of each member of an archive of a kind of `decode.container`.

    Raises NotRead for one that is broken, encrypted, or beyond the budget; so do the blocks.
    """
    if kind == "zip":
        yield from _zip(data, budget)
    elif kind == "tar":
        yield from _tar(data, budget)
    else:
        with _explained(kind):
            file = _decompressor(data)
        yield _without_suffix(name), budget.blocks(kind, file)


_ZIP_ENTRY = b"PK\x01\x02"


def _zip(data: bytes, budget: Budget) -> Iterator[tuple[str, Iterator[bytes]]]:
    if data.count(_ZIP_ENTRY) > budget.members:  # zipfile makes half a kB of each before it gives the first
        raise NotRead("has too many members; it was not looked into")
    from nsbuild.tree.unpack import zip_name

    with _explained("zip"):
        archive = zipfile.ZipFile(io.BytesIO(data))
    for info in archive.infolist():
        budget.member()
        if info.filename.endswith("/"):  # is_dir() of Python 3.11 fails for no name at all
            continue
        with _explained("zip"):
            file = archive.open(info)
        yield zip_name(info), budget.blocks("zip", file)


_TAR_BLOCK = 512


def _tar(data: bytes, budget: Budget) -> Iterator[tuple[str, Iterator[bytes]]]:
    with _explained("tar"):
        archive = tarfile.open(fileobj=io.BytesIO(data), mode="r:", errorlevel=2)
    while True:
        budget.member()
        with _explained("tar"):
            member = archive.next()
            if member is None:
                # tarfile takes a header that is none for the end.
                if not data.startswith(bytes(_TAR_BLOCK), archive.offset):
                    raise EOFError("it has no end mark")
                return
            if member.size < 0:
                raise ValueError("a member has a negative size")  # tarfile would read on in a circle
            archive.members.clear()  # type: ignore[attr-defined]  # of all that it has seen
            file = archive.extractfile(member) if member.isreg() else None
        if file is not None:
            yield member.name, budget.blocks("tar", file)
        elif member.issym():
            yield member.name, iter((member.linkname.encode("utf-8", "surrogateescape"),))


def _decompressor(data: bytes) -> _Readable:
    raw = io.BytesIO(data)
    if data.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if data.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    if data.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(raw)
    return _Zstd(data)


class _Zstd:
    """The frames of a zstd file one after the other. The library's own reader takes a cut for the end."""

    _PIECE = 256
    """Bytes that are given at a time: four may stand for 128 kB."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._new()

    def _new(self) -> None:
        import zstandard

        self._frame = zstandard.ZstdDecompressor().decompressobj()

    def read(self, size: int, /) -> bytes:
        """`size` bytes or a few MB more; fewer at the end. Raises EOFError, ZstdError."""
        blocks, left = [], size
        while left > 0 and self._at < len(self._data):
            if self._frame.eof:
                self._new()
            piece = self._data[self._at : self._at + self._PIECE]
            blocks.append(self._frame.decompress(piece))
            self._at += len(piece) - len(self._frame.unused_data)
            left -= len(blocks[-1])
        if left == size and not self._frame.eof:
            raise EOFError("it is cut off")
        return b"".join(blocks)


def _without_suffix(name: str) -> str:
    last = name.rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    if not dot:
        return last
    return f"{stem}.tar" if suffix in ("tgz", "tbz2", "txz", "tzst") else stem
