"""A stream compressed, hashed and written by threads of its own, while the next files are read."""

from __future__ import annotations

import hashlib
import os
import queue
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

_BATCH = 2 << 20
_WAITING = 6
"""Batches that are under way at most: what a slow disk costs in memory."""
_THREADS = min(4, os.cpu_count() or 1)
"""Of zstd each holds 8 MB of the input and its match tables. Their number does not change the output."""
_BEHIND = 5
"""By how much these threads are nicer than the one that reads. That holds Python's lock most of the time: while it
waits for a processor that one of them has, all others wait for the lock.
"""


class Packer(Protocol):
    """Compresses a stream in batches. What `take` returns is called, in turn, for the compressed bytes."""

    def take(self, batch: bytes) -> Callable[[], bytes]: ...

    def end(self) -> Callable[[], bytes]: ...


class _Plain:
    def take(self, batch: bytes) -> Callable[[], bytes]:
        return lambda: batch

    def end(self) -> Callable[[], bytes]:
        return bytes


class _Zstd:
    """libzstd has threads of its own."""

    def __init__(self) -> None:
        import zstandard

        # One worker at least: without any, the output is another than with some.
        self._stream = zstandard.ZstdCompressor(level=3, threads=_THREADS, write_checksum=True).compressobj()

    def take(self, batch: bytes) -> Callable[[], bytes]:
        return lambda: self._stream.compress(batch)

    def end(self) -> Callable[[], bytes]:
        return self._stream.flush


class _Gzip:
    """One gzip member out of batches that are compressed at the same time, each after the end of the one before it,
    as pigz does it.
    """

    # ISA-L's best: between zlib's 4 and 6 in size, several times as fast.
    _LEVEL = 3
    _HISTORY = 32768

    def __init__(self) -> None:
        from isal import isal_zlib

        self._zlib = isal_zlib
        self._pool = ThreadPoolExecutor(_THREADS, "gzip", initializer=os.nice, initargs=(_BEHIND,))
        self._history = b""
        self._crc = 0
        self._length = 0

    def take(self, batch: bytes) -> Callable[[], bytes]:
        # Without a name and a time; 255: an unknown system.
        header = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" if self._length == 0 else b""
        future = self._pool.submit(self._deflate, batch, self._history)
        self._history = batch[-self._HISTORY :]
        self._crc = self._zlib.crc32(batch, self._crc)
        self._length += len(batch)
        return lambda: header + future.result()

    def _deflate(self, batch: bytes, history: bytes) -> bytes:
        stream = self._zlib.compressobj(self._LEVEL, self._zlib.DEFLATED, -15, zdict=history)
        return stream.compress(batch) + stream.flush(self._zlib.Z_SYNC_FLUSH)

    def end(self) -> Callable[[], bytes]:
        self._pool.shutdown(wait=False)
        last = b"\x03\0" + struct.pack("<II", self._crc, self._length & 0xFFFFFFFF)
        return lambda: last


def packer(format_: str) -> Packer:
    """Of `gzip`, `zstd` or `plain`. The same input gives the same bytes, with one version of the library."""
    made: dict[str, type[Packer]] = {"gzip": _Gzip, "zstd": _Zstd, "plain": _Plain}
    return made[format_]()


class Packed:
    """Takes a stream in pieces of any size; `target` is written to from where it is, and stays open.

    As a context manager: at its end, when nothing was raised, everything is compressed and written, not yet on disk.
    `digest` (sha256 of what was written) and `plain_digest` (of what was taken, when `hash_plain`) are there then.
    Raises OSError of the target, at the latest at its end.
    """

    def __init__(self, target: int, format_: str, *, hash_plain: bool = False) -> None:
        self._target = target
        self._packer = packer(format_)
        self._hash = hashlib.sha256()
        self._plain_hash = hashlib.sha256() if hash_plain else None
        self._batch: list[bytes] = []
        self._length = 0
        self._queue: queue.Queue[Callable[[], bytes] | None] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="archive", daemon=True)

    def __call__(self, data: bytes) -> None:
        self._batch.append(data)
        self._length += len(data)
        if self._length >= _BATCH:
            self._hand_over()

    def __enter__(self) -> Packed:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._hand_over()
        finally:
            end = self._packer.end()
            if kind is None:
                self._queue.put(end)
            self._queue.put(None)
            self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    @property
    def plain_digest(self) -> str:
        assert self._plain_hash is not None
        return self._plain_hash.hexdigest()

    def _hand_over(self) -> None:
        if self._error is not None:
            raise self._error
        batch = b"".join(self._batch)
        self._batch = []
        self._length = 0
        if self._plain_hash is not None:
            self._plain_hash.update(batch)
        self._queue.put(self._packer.take(batch))

    def _work(self) -> None:
        """Never stops taking before the end, or `__call__` would wait for ever."""
        os.nice(_BEHIND)  # of this thread, on Linux, and of those that libzstd starts from it
        while (compressed := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._write(compressed())
                except BaseException as error:
                    self._error = error

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._target, rest) :]
