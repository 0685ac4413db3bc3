"""Headers of tar members, as GNU tar and Python's tarfile both read them: ustar, and pax where that is too small.

The headers of tarfile cost more than the compression of what they describe, at 30,000 files.
"""

from __future__ import annotations

import functools

FILE, HARD_LINK, SYMLINK, DIRECTORY, _PAX, _GNU_LINK = b"0", b"1", b"2", b"5", b"x", b"K"
BLOCK = 512
END = bytes(2 * BLOCK)

_NAME, _PREFIX, _LINK = 100, 155, 100
_LARGEST = 0o77777777777
"""What a ustar header's size can say, in bytes: 8 GiB less one."""


def member(name: bytes, kind: bytes, mode: int, time: int, size: int = 0, link: bytes = b"") -> bytes:
    """The header of one member, which belongs to root; its `size` bytes and `padding` follow.

    `mode` is twelve bits, `time` in seconds since 1970 (neither negative nor beyond 2242), `link` what a link
    leads to. A name of any bytes and length but NUL can be told: pax records hold what ustar has no room for.
    """
    before = records = b""
    prefix, short = _split(name)
    if short is None:
        records += _record(b"path", name)
        prefix, short = b"", name[:_NAME]
    if len(link) > _LINK:
        # GNU's way: of a pax linkpath, mksquashfs 4.5 takes the leading slash away.
        before = _ustar(b"././@LongLink", b"", _GNU_LINK, 0o644, time, len(link) + 1, b"")
        before += link + b"\0" + padding(len(link) + 1)
        link = link[:_LINK]
    if size > _LARGEST:
        records += _record(b"size", b"%d" % size)
        size = 0
    header = _ustar(short, prefix, kind, mode, time, size, link)
    if not records:
        return before + header
    own = _ustar(b"././@PaxHeader", b"", _PAX, 0o644, time, len(records), b"")
    return before + own + records + padding(len(records)) + header


def padding(size: int) -> bytes:
    """What follows `size` bytes of a member, up to the next header."""
    return bytes(-size % BLOCK)


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """ustar's prefix and name; (b"", None) when the name has no place in them."""
    if len(name) <= _NAME:
        return b"", name
    if len(name) <= _PREFIX + 1 + _NAME:
        # A directory's name ends in a slash, which is no place to cut.
        cut = name.find(b"/", len(name) - _NAME - 1, len(name) - 1)
        if 0 < cut <= _PREFIX:
            return name[:cut], name[cut + 1 :]
    return b"", None


def _record(keyword: bytes, value: bytes) -> bytes:
    """One pax record, whose length counts its own digits."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, keyword, value)


@functools.lru_cache(1024)
def _fields(kind: bytes, mode: int, time: int) -> tuple[bytes, bytes, int]:
    """What surrounds the size, and the sum of all that never changes."""
    before = b"%07o\0%s%s" % (mode, b"0000000\0", b"0000000\0")
    after = b"%011o\0" % time
    owner = b"ustar\00000" + bytes(64) + b"0000000\0" + b"0000000\0"
    return before, after, sum(before) + sum(after) + sum(owner) + kind[0] + 8 * 0x20


def _ustar(name: bytes, prefix: bytes, kind: bytes, mode: int, time: int, size: int, link: bytes) -> bytes:
    before, after, constant = _fields(kind, mode, time)
    length = b"%011o\0" % size
    checksum = constant + sum(name) + sum(length) + sum(link) + sum(prefix)
    return b"%s%s%s%s%06o\0 %s%s%s%s%s" % (
        name.ljust(_NAME, b"\0"),
        before,
        length,
        after,
        checksum,
        kind,
        link.ljust(_LINK, b"\0"),
        b"ustar\00000" + bytes(64) + b"0000000\x000000000\0",
        prefix.ljust(_PREFIX, b"\0"),
        bytes(12),
    )
