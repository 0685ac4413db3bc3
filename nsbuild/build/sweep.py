"""What a build has left in HOME, which is the slug: credentials go, other litter is reported."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass

from nsbuild.tree import copy_tree, open_beneath, read_beneath, remove_tree, tree_size

CREDENTIALS = (".ssh", ".netrc", ".git-credentials", ".gnupg", ".pypirc", ".aws", ".docker", ".npmrc", ".yarnrc.yml")
LITTER = (".cache", ".npm", ".local", ".config", ".node-gyp", ".yarn", ".bundle", ".gem", ".cargo", ".rustup")
_TOKEN = re.compile(rb"(_authToken|_auth|_password|npmAuthToken|npmAuthIdent)\s*[:=]", re.IGNORECASE)
_MANY = 10_000
_ONLY_WITH_TOKEN = (".npmrc", ".yarnrc.yml")


@dataclass(frozen=True)
class Swept:
    """`action` is `removed`, `restored` (to what the source has) or `kept` (`bytes` of litter)."""

    path: str
    action: str
    bytes: int = 0


def keep_home(app: str, kept: str, owner: tuple[int, int] | None) -> None:
    """Copy to the empty directory `kept` what `sweep_home` will want to know of the source, which `app` still is."""
    app_fd = os.open(app, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    kept_fd = os.open(kept, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in CREDENTIALS:
            if _exists(app_fd, name):
                _restore(app_fd, kept_fd, name, owner)
        for name in LITTER:
            if _exists(app_fd, name):
                os.mkdir(name, dir_fd=kept_fd)
    finally:
        os.close(app_fd)
        os.close(kept_fd)


def sweep_home(app: str, source: str, *, keep_credentials: bool, owner: tuple[int, int] | None) -> list[Swept]:
    """Put credential files back to the source's state, which `keep_home` has kept in the directory `source`; report
    what else the build has left.

    Three of three ssh-key buildpacks leave the private key in ~/.ssh.
    """
    swept = []
    app_fd = os.open(app, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    source_fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in () if keep_credentials else CREDENTIALS:
            now, before = _fingerprint(app_fd, name), _fingerprint(source_fd, name)
            if now is None or now == before or (name in _ONLY_WITH_TOKEN and not _has_token(app_fd, name)):
                continue
            remove_tree(name, dir_fd=app_fd)
            if before is not None:
                _restore(source_fd, app_fd, name, owner)
            swept.append(Swept(name, "removed" if before is None else "restored"))
        for name in LITTER:
            if _exists(app_fd, name) and not _exists(source_fd, name):
                swept.append(Swept(name, "kept", _size(app_fd, name)))
    finally:
        os.close(app_fd)
        os.close(source_fd)
    return swept


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _has_token(directory: int, name: str) -> bool:
    try:
        return bool(_TOKEN.search(read_beneath(directory, name, 1 << 20) or b""))
    except OSError:
        return True  # too large or no plain file: nothing an npm client wrote, and nothing to ship unread


def _fingerprint(directory: int, name: str) -> dict[str, bytes | str] | None:
    """Everything below a credential file or directory, to compare; None where there is none."""
    try:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(info.st_mode):
        return {"": os.readlink(name, dir_fd=directory)}
    if not stat.S_ISDIR(info.st_mode):
        return {"": _content(directory, name)}
    found: dict[str, bytes | str] = {}
    pending = [name]
    while pending:
        path = pending.pop()
        if len(found) > _MANY:
            return {"": "more than anybody's credentials"}
        try:
            fd = open_beneath(directory, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return {"": "unreadable"}
        try:
            for entry in os.listdir(fd):
                below = os.stat(entry, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(below.st_mode):
                    pending.append(f"{path}/{entry}")
                elif stat.S_ISLNK(below.st_mode):
                    found[f"{path}/{entry}"] = os.readlink(entry, dir_fd=fd)
                else:
                    found[f"{path}/{entry}"] = _content(fd, entry)
        finally:
            os.close(fd)
    return found


def _content(directory: int, name: str) -> bytes | str:
    try:
        return read_beneath(directory, name, 1 << 20) or b""
    except OSError as error:
        return str(error.errno)


def _restore(source: int, app: int, name: str, owner: tuple[int, int] | None) -> None:
    info = os.stat(name, dir_fd=source, follow_symlinks=False)
    if stat.S_ISDIR(info.st_mode):
        copy_tree(name, name, src_dir_fd=source, dst_dir_fd=app, owner=owner)
    elif stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=app)
    else:
        fd = open_beneath(app, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb") as file:  # noqa: PTH123
            file.write(read_beneath(source, name, 1 << 30) or b"")
            os.fchmod(fd, stat.S_IMODE(info.st_mode) & 0o777)
            if owner is not None:
                os.fchown(fd, *owner)


def _size(directory: int, name: str) -> int:
    info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return tree_size(name, dir_fd=directory)[0] if stat.S_ISDIR(info.st_mode) else info.st_size
