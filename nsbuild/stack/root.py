"""The root file system that a stack is: where `/usr`, `/etc` and the like of a view come from."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass

from nsbuild.errors import UsageError
from nsbuild.sandbox.host import is_system, leads_to
from nsbuild.stack.layers import open_in_root
from nsbuild.stack.store import Reference, Store, not_an_image
from nsbuild.tree.beneath import UNAVAILABLE

_LAYOUT = "oci:"
_PACKAGES = ("etc/os-release", "var/lib/dpkg/status")
_LARGEST = 64 << 20
"""Bytes of a list of packages."""


@dataclass(frozen=True)
class StackRoot:
    """`path` is a directory, for `read_host`. `digest` tells it from others, and is empty for the host's own.

    An image's digest is its id, `sha256:...`. A directory's, `packages:...`, is made of its release and list of
    packages: its files may change at any time.
    """

    path: str
    digest: str

    def starts(self, path: str) -> bool | None:
        """Whether a process of a slug on this root finds a program at the absolute `path`; None when that cannot be
        told. Links lead into the root, as there; what no process is shown, `/home` say, is not found.
        """
        place = leads_to(self.path, os.path.normpath(f"/{path.lstrip('/')}")) if "\0" not in path else None
        if place is None or not is_system(place.split("/")[1]):
            return False
        try:
            mode = os.lstat(place if self.path == "/" else self.path + place).st_mode
        except PermissionError:
            return None
        except OSError:
            return False
        return stat.S_ISREG(mode) and bool(mode & 0o111)


HOST = StackRoot("/", "")


def open_stack_root(reference: str) -> StackRoot:
    """What `--stack-root` names: a directory, an OCI layout (`oci:DIR[:TAG]` or its directory), or an archive of
    `docker save` or `skopeo copy`. `/` is the host's own.

    An image is unpacked into the user's cache directory, once. Raises UsageError for what is no root file system,
    Refused, OSError.
    """
    found = _parse(reference)
    if isinstance(found, Reference):
        digest, path = Store().get(found)
        root = StackRoot(path, digest)
    elif found == "/":
        return HOST
    else:
        root = StackRoot(found, _packages(found, reference))
    _check(root, reference)
    return root


def stored_stack_root(digest: str) -> StackRoot | None:
    """The stack root that a slug was built on, when its image has been unpacked here."""
    path = Store().find(digest) if digest.startswith("sha256:") else None
    return None if path is None else StackRoot(path, digest)


def _parse(reference: str) -> Reference | str:
    name, tag = reference.removeprefix(_LAYOUT), ""
    if reference.startswith(_LAYOUT) and not os.path.exists(name) and ":" in name:
        name, _, tag = name.rpartition(":")
    path = os.path.realpath(name)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise not_an_image(reference, f"cannot be read: {error.strerror}") from error
    if stat.S_ISREG(mode) and not reference.startswith(_LAYOUT):
        return Reference(reference, path)
    if not stat.S_ISDIR(mode):
        raise not_an_image(reference, "is neither a directory nor a file")
    if reference.startswith(_LAYOUT) or os.path.isfile(f"{path}/oci-layout"):
        if not os.path.isfile(f"{path}/index.json"):
            raise not_an_image(reference, "is no OCI layout: it has no index.json")
        return Reference(reference, path, tag)
    return path


def _packages(path: str, reference: str) -> str:
    """Cheap, and different for another release or other packages."""
    content = hashlib.sha256()
    fd = _open_root(path, reference)
    try:
        for name in _PACKAGES:
            try:
                found = open_in_root(fd, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError:
                continue
            with open(found, "rb") as file:  # noqa: PTH123
                if stat.S_ISREG(os.fstat(found).st_mode):
                    content.update(file.read(_LARGEST))
    finally:
        os.close(fd)
    return f"packages:{content.hexdigest()}"


def _check(root: StackRoot, reference: str) -> None:
    """Buildpacks are bash scripts, and so is what starts a process of a slug."""
    fd = _open_root(root.path, reference)
    try:
        if os.path.islink(f"{root.path}/etc"):
            raise _no_root(reference, "has a link for /etc, where files must be put")
        shell = open_in_root(fd, "bin/bash", os.O_PATH)
    except OSError as error:
        if error.errno in UNAVAILABLE:
            raise
        names = set(os.listdir(fd))
        problem = (
            "has no /bin/bash"
            if names & {"usr", "bin", "etc"}
            else "is no root file system: it has no /usr, /bin or /etc"
        )
        raise _no_root(reference, problem) from error
    finally:
        os.close(fd)
    mode = os.fstat(shell).st_mode
    os.close(shell)
    if not stat.S_ISREG(mode) or not mode & 0o111:
        raise _no_root(reference, "has a /bin/bash that cannot be executed")


def _open_root(path: str, reference: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_root(reference, f"cannot be read: {error.strerror}") from error


def _no_root(reference: str, problem: str) -> UsageError:
    return UsageError(f"The stack root {reference} {problem}.", "Give a root file system in which bash runs.")
