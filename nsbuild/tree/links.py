"""Parting a tree from the files outside that it shares inodes with."""

import os
import stat
from collections import Counter
from contextlib import suppress

from nsbuild.tree.beneath import open_root
from nsbuild.tree.copy import copy_contents, link_again, open_regular
from nsbuild.tree.descent import Descent, Identity, identity
from nsbuild.tree.walk import Event, walk


def break_hard_links(path: str, *, dir_fd: int | None = None) -> int:
    """Give the tree `path` its own copy of every regular file that also has a name outside the tree.

    Each is written beside and renamed into place, with its mode (setuid, setgid and sticky bits aside),
    owner and modification time. Names inside the tree that were one file stay one file (where the first is
    not beyond PATH_MAX); files with all their names inside are left alone. Directories keep mode and times.
    The tree is our own: what its modes close to us is opened all the same.

    `path` is no link to a directory; with `dir_fd` it is beneath that, through no link at all.

    Returns the number of files copied. Raises OSError naming what could not be read or written; the tree is
    whole then, with some links still unbroken.
    """
    names: Counter[Identity] = Counter()
    links: dict[Identity, int] = {}
    with Descent(path, open_root(path, dir_fd)) as descent:
        for event, _, info in walk(descent, unlock=True):
            if event is Event.OTHER and stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
                names[identity(info)] += 1
                links[identity(info)] = info.st_nlink
    shared = {file for file, count in links.items() if count > names[file]}

    if not shared:
        return 0
    copied = 0
    copies: dict[Identity, tuple[str, Identity]] = {}
    with Descent(path, open_root(path, dir_fd)) as descent:
        for event, name, info in walk(descent, unlock=True):
            if event is not Event.OTHER or identity(info) not in shared:
                continue
            try:
                known = copies.get(identity(info))
                new = _replace(descent, name, known)
            except OSError as error:
                raise descent.named(error, name) from None
            if new is None:
                continue
            copied += 1
            if (reachable := descent.reachable(name)) is not None:
                copies[identity(info)] = reachable, new
    return copied


def _replace(descent: Descent, name: str, known: tuple[str, Identity] | None) -> Identity | None:
    """Put a copy in the place of `name`: another link to the one `known` (returns None), else a new one."""
    here = descent.fd
    directory = os.fstat(here)
    beside = f".nsbuild-{os.urandom(8).hex()}"
    locked = directory.st_mode & 0o300 != 0o300
    if locked:
        os.fchmod(here, stat.S_IMODE(directory.st_mode) | 0o300)
    try:
        linked = known is not None and link_again(descent, known, beside)
        new = None if linked else _copy_beside(here, name, beside)
        os.rename(beside, name, src_dir_fd=here, dst_dir_fd=here)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(beside, dir_fd=here)
        raise
    finally:
        if locked:
            os.fchmod(here, stat.S_IMODE(directory.st_mode))
        with suppress(PermissionError):
            os.utime(here, ns=(directory.st_atime_ns, directory.st_mtime_ns))
    return new


def _copy_beside(here: int, name: str, beside: str) -> Identity:
    source = open_regular(here, name, unlock=True)
    try:
        info = os.fstat(source)
        target = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=here)
        try:
            copy_contents(source, target, info)
            made = os.fstat(target)
            if (made.st_uid, made.st_gid) != (info.st_uid, info.st_gid):
                with suppress(PermissionError):
                    os.fchown(target, info.st_uid, info.st_gid)
            os.fchmod(target, info.st_mode & 0o777)
            os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
            return identity(made)
        finally:
            os.close(target)
    finally:
        os.close(source)
