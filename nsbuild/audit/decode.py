"""What a match in a compiled file means. Everything here is given hostile bytes, and answers without failing."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

_PYC_SUFFIXES = (".pyc", ".pyo")
_SHORT_STRING = frozenset(b"zZ\xfa\xda")
"""TYPE_SHORT_ASCII and TYPE_SHORT_ASCII_INTERNED of CPython's Python/marshal.c, without and with FLAG_REF."""
_LONG_STRING = frozenset(b"uaAt\xf5\xe1\xc1\xf4")
SHEBANG_LIMIT = 127
"""Bytes of a first line that every kernel reads: BINPRM_BUF_SIZE was 128 before Linux 5.1, fs/binfmt_script.c."""


def is_bytecode(path: str) -> bool:
    return path.endswith(_PYC_SUFFIXES)


def bytecode_kind(data: bytes, offset: int) -> str:
    """`bytecode-filename` when the match lies in a marshalled string that ends in .py, else `bytecode-constant`."""
    found = marshalled_string(data, offset)
    return "bytecode-filename" if found is not None and data[: found[2]].endswith(b".py") else "bytecode-constant"


def marshalled_string(data: bytes, offset: int) -> tuple[int, int, int] | None:
    """(where its length begins, its start, its end) of the marshalled string around an offset; None if there is none.

    By the strings' own lengths, without marshal.loads: that can crash on hostile bytes, and knows one Python only.
    """
    for start in range(offset, max(offset - 256, 0), -1):
        if start >= 2 and data[start - 2] in _SHORT_STRING and start + data[start - 1] > offset:
            head, length = start - 1, data[start - 1]
        elif start >= 5 and data[start - 5] in _LONG_STRING:
            head, length = start - 4, int.from_bytes(data[start - 4 : start], "little")
        else:
            continue
        if (
            offset - start < length <= 1 << 16
            and start + length <= len(data)
            and data[start : start + length].isascii()
        ):
            return head, start, start + length
    return None


def shebang(head: bytes) -> tuple[bytes, int] | None:
    """(interpreter, length of the first line) of a script; None for anything else."""
    if not head.startswith(b"#!"):
        return None
    line = head.split(b"\n", 1)[0]
    words = line[2:].split(None, 1)
    return (words[0] if words else b"", len(line))


def is_elf(head: bytes) -> bool:
    return head.startswith(b"\x7fELF")


def elf_paths(data: bytes) -> Iterator[tuple[str, str]]:
    """(kind, text) of what the dynamic loader reads: `rpath` and `elf-interpreter`. A broken file has none."""
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    try:
        for number, segment in enumerate(ELFFile(io.BytesIO(data)).iter_segments()):
            if isinstance(segment, InterpSegment):
                yield "elf-interpreter", segment.get_interp_name()
            elif isinstance(segment, DynamicSegment):
                for count, tag in enumerate(segment.iter_tags()):
                    if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                        yield "rpath", str(getattr(tag, tag.entry.d_tag[3:].lower()))
                    if count > 10_000:
                        return
            if number > 1000:
                return
    except Exception:
        # Its assertions and lookups fail in any way on hostile bytes. The file's bytes are searched all the same.
        return


_TAR_MAGIC = re.compile(rb"ustar[ \0]")
_FIRST = frozenset(b"P\x1fB\xfd\x28#")
HEAD = 1 << 14
"""Bytes that tell what a file is. The script before an executable jar of Spring Boot has 10 kB."""


def container(head: bytes) -> str:
    """By how a file begins: `zip` (also after a script: a zipapp), `gzip`, `tar`, `compressed` (bzip2, xz, zstd), or
    ``.
    """
    if not head or (head[0] not in _FIRST and not head.startswith(b"ustar", 257)):
        return ""  # nearly every file
    if head.startswith(b"PK\x03\x04") or (head.startswith(b"#!") and head.find(b"PK\x03\x04", 0, HEAD) > 0):
        return "zip"
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith((b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")):
        return "compressed"
    if _TAR_MAGIC.match(head, 257):
        return "tar"
    return ""
