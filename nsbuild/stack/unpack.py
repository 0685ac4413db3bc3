"""The process that unpacks an image: never root, little memory, gone with its caller.

`main` is started in a fresh interpreter by `store.py`. It says on stdout which image it was given, waits for a line
on stdin, unpacks into its working directory and says that it has. Both answers are a line of JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gzip
import json
import os
import resource
import stat
import sys
import zlib

import zstandard

from nsbuild.sandbox import privileges
from nsbuild.stack.image import ArchiveFiles, DirectoryFiles, Files, Layer, read_image
from nsbuild.stack.layers import Malformed, RootFileSystem
from nsbuild.tree.beneath import libc

_MEMORY = 2 << 30
"""Address space in bytes: a header of a tar may claim any size, and tarfile reads it whole."""


def main(source: str, uid: str, gid: str, tag: str) -> None:
    """Unpack the image in the descriptor `source`, as uid and gid unless the caller is that already."""
    layout = DirectoryFiles(int(source)) if stat.S_ISDIR(os.fstat(int(source)).st_mode) else None
    # What is imported later may lie in a directory that only root can enter.
    if int(uid) != os.geteuid():
        if layout is not None:
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            layout.open_all()
        os.setgroups([])
        os.setresgid(int(gid), int(gid), int(gid))
        os.setresuid(int(uid), int(uid), int(uid))
    privileges.die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    os.umask(0o022)
    try:
        _unpack(layout or ArchiveFiles(os.fdopen(int(source), "rb")), tag)
    except Malformed as error:
        _say(malformed=str(error))
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        _say(malformed=f"is damaged ({error})")
    except MemoryError:
        _say(malformed=f"needs more than {_MEMORY >> 20} MB of memory to be read")
    except FileNotFoundError as error:
        _say(malformed=f"lacks {os.fsdecode(error.filename or '')}")
    except OSError as error:
        _say(errno=error.errno or errno.EIO, path=os.fsdecode(error.filename or ""))


def _unpack(files: Files, tag: str) -> None:
    image = read_image(files, tag)
    _say(digest=image.digest)
    if not sys.stdin.readline():
        return
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    system = RootFileSystem(root)
    for name, digest in image.layers:
        with contextlib.closing(Layer(files, name)) as layer:
            system.apply(layer)  # type: ignore[arg-type]
            layer.check(digest)
    system.finish()
    # The caller's rename must not reach the disk before what it names.
    if libc.syncfs(root) != 0:
        raise OSError(ctypes.get_errno(), "syncfs")
    _say(done=True)


def _say(**answer: object) -> None:
    print(json.dumps(answer), flush=True)
