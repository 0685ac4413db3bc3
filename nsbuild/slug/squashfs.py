"""A tree as a squashfs image, by mksquashfs, which is fed the same tar stream as any other format."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import tempfile
from typing import IO

from nsbuild.errors import said_full
from nsbuild.slug import tar
from nsbuild.slug.archive import TIME, Contents, Watcher, write_tree
from nsbuild.slug.compress import Packed

_OPTIONS = (
    *("-tar", "-noappend", "-no-progress", "-quiet", "-no-xattrs", "-no-exports", "-all-root", "-noI"),
    *("-comp", "zstd", "-Xcompression-level", "3", "-mkfs-time", str(TIME), "-mem", "64M"),
)
_INODE_REFERENCE, _INODE_TABLE = 32, 64
"""Where a superblock says which inode is the root, and where the inodes are: Linux, fs/squashfs/squashfs_fs.h."""


def write_squashfs(app: str, beside: str, target: int, watcher: Watcher | None) -> Contents:
    """Write the tree `app` into the file `beside`, which is there and open as `target`. Raises OSError."""
    mode = f"{stat.S_IMODE(os.stat(app).st_mode) & 0o1777:o}"
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            ["mksquashfs", "-", beside, *_OPTIONS, "-root-mode", mode],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            # Without SOURCE_DATE_EPOCH, which it takes for a contradiction of -mkfs-time.
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
        )
        assert process.stdin is not None
        try:
            try:
                with process.stdin, Packed(process.stdin.fileno(), "plain") as packed:
                    contents = write_tree(app, packed, prefix="", watcher=watcher)
                    packed(tar.END)
            except BrokenPipeError:
                process.wait()
                raise _failure(process.returncode, said, beside) from None
            if process.wait() != 0:
                raise _failure(process.returncode, said, beside)
        except BaseException:
            process.kill()
            process.wait()
            raise
    _date_root(target)
    return contents


def _date_root(fd: int) -> None:
    """mksquashfs 4.5 gives the root the time of day when it reads a tar. Inodes are not compressed (-noI)."""
    (reference,) = struct.unpack("<Q", os.pread(fd, 8, _INODE_REFERENCE))
    (table,) = struct.unpack("<Q", os.pread(fd, 8, _INODE_TABLE))
    # The block's place in the table, its own length in two bytes, the place in the block; type, mode, owner, group.
    os.pwrite(fd, struct.pack("<I", TIME), table + (reference >> 16) + 2 + (reference & 0xFFFF) + 8)


def _failure(status: int, said: IO[bytes], beside: str) -> OSError:
    said.seek(0)
    lines = said.read().decode("utf-8", "replace").strip().splitlines()
    if number := said_full(lines):
        return OSError(number, os.strerror(number), beside)
    return OSError(errno.EIO, f"mksquashfs failed ({lines[-1] if lines else f'status {status}'})", beside)
