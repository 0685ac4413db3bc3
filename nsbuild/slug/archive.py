"""A tree as an archive."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile

from nsbuild.tree.beneath import open_root
from nsbuild.tree.copy import open_regular
from nsbuild.tree.descent import Descent, Identity, identity
from nsbuild.tree.walk import Event, walk


def write_tgz(app: str, target: int) -> tuple[str, int]:
    """Sorted, one owner, whole seconds: the same tree gives the same bytes. `target` stays open."""
    links: dict[Identity, str] = {}
    with open(target, "w+b", closefd=False) as raw:
        with (
            gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, errorlevel=2) as archive,
            Descent(app, open_root(app, None)) as descent,
        ):
            for event, name, info in walk(descent, unlock=True):
                if event is Event.ENTER:
                    archive.addfile(_member(descent.relative(""), info, tarfile.DIRTYPE))
                elif event is Event.OTHER:
                    _add(archive, descent, name, info, links)
        raw.flush()
        os.fsync(target)
        raw.seek(0)
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    return f"sha256:{digest}", os.fstat(target).st_size


def _member(relative: str, info: os.stat_result, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(f"./{relative}")
    member.type = kind
    member.mode = stat.S_IMODE(info.st_mode) & (0o777 if stat.S_ISREG(info.st_mode) else 0o1777)
    member.mtime = int(info.st_mtime)
    return member


def _add(
    archive: tarfile.TarFile, descent: Descent, name: str, info: os.stat_result, links: dict[Identity, str]
) -> None:
    relative = descent.relative(name)
    if stat.S_ISLNK(info.st_mode):
        member = _member(relative, info, tarfile.SYMTYPE)
        member.linkname = os.readlink(name, dir_fd=descent.fd)
        archive.addfile(member)
    elif stat.S_ISREG(info.st_mode):
        first = links.setdefault(identity(info), relative) if info.st_nlink > 1 else relative
        if first != relative:
            member = _member(relative, info, tarfile.LNKTYPE)
            member.linkname = f"./{first}"
            archive.addfile(member)
            return
        fd = open_regular(descent.fd, name, unlock=True)
        with open(fd, "rb") as file:  # noqa: PTH123
            member = _member(relative, info, tarfile.REGTYPE)
            member.size = os.fstat(fd).st_size
            archive.addfile(member, file)
