"""What a user calls a buildpack by: a directory, a git repository, an archive, or a name such as heroku/python."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from nsbuild.errors import UsageError

REGISTRY: Mapping[str, str] = {"*/*": "https://buildpack-registry.s3.amazonaws.com/buildpacks/{name}.tgz"}
"""Patterns of names, and the reference that each stands for; the first that matches counts. Where Heroku's are:
heroku/cli, packages/buildpacks/src/buildpacks.ts, which calls them urn:buildpack:NAME as well."""

ARCHIVES = (".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2", ".tar", ".zip")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SCP = re.compile(r"(?:[\w.-]+@)?[\w.-]+:(?!//)\S+")
_GIT_SCHEMES = ("https", "http", "ssh", "git", "file")
_GIVE = "Give a directory, a git URL, an archive (.tgz, .tar.gz, .tar.zst, .zip) or a name such as heroku/python."

Kind = Literal["directory", "git", "archive", "url"]


@dataclass(frozen=True)
class Reference:
    """What a reference means.

    `shown` is what the user wrote, without passwords; `location` a path, or the whole URL; `ref` the branch, tag or
    commit after `#`. `kind` is a directory, a git repository, an archive's path, or an archive's URL.
    """

    kind: Kind
    shown: str
    location: str
    ref: str = ""

    @property
    def key(self) -> str:
        """What it is stored under: the same for every way of writing the same place, whoever asks for it."""
        place = "\0".join((self.kind, _without_user(self.location), self.ref))
        return hashlib.sha256(os.fsencode(place)).hexdigest()[:32]

    @property
    def url(self) -> str:
        """The place as a record may show it."""
        return without_secrets(self.location) + (f"#{self.ref}" if self.ref else "")

    @property
    def secret(self) -> bool:
        """Whether the URL holds what must not be written down."""
        return without_secrets(self.location) != self.location


def parse_reference(text: str, *, registry: Mapping[str, str] | None = None, base: str = ".") -> Reference:
    """What `text` refers to. A path that exists comes before a name; a relative one is from the directory `base`.

    Raises UsageError when it can be nothing of the kind, or when a path does not exist.
    """
    return _parse(text, without_secrets(text), registry or {}, base)


def _parse(text: str, shown: str, registry: Mapping[str, str], base: str) -> Reference:
    if not text or "\0" in text or text.startswith("-"):
        raise UsageError(f"The buildpack {shown!r} is no reference.", _GIVE)
    if "://" in text:
        return _url(text, shown)
    path, _, ref = text.partition("#")
    if found := _local(text, shown, base) or (_local(path, shown, base, ref) if ref else None):
        return found
    name = text.removeprefix("urn:buildpack:")
    if _NAME.fullmatch(name):
        return _named(name, shown, registry, base)
    if _SCP.fullmatch(path) and not text.startswith(("/", ".", "~", "urn:")):
        return Reference("git", shown, path, _ref(ref, shown))
    raise UsageError(f"The buildpack {shown} does not exist.", _GIVE)


def _url(text: str, shown: str) -> Reference:
    location, _, ref = text.partition("#")
    try:
        parts = urlsplit(location)
        path = unquote(parts.path)
        usable = parts.scheme in _GIT_SCHEMES and bool(path.strip("/")) and (parts.scheme == "file" or parts.hostname)
    except ValueError:
        usable = None
    if not usable:
        raise UsageError(f"The buildpack {shown} is no URL of a repository or an archive.", _GIVE)
    if path.lower().endswith(ARCHIVES):
        if parts.scheme == "file":
            return Reference("archive", shown, path)
        if parts.scheme in ("https", "http"):
            return Reference("url", shown, location)
    return Reference("git", shown, location, _ref(ref, shown))


def _local(text: str, shown: str, base: str, ref: str = "") -> Reference | None:
    """What exists on this machine under that name."""
    try:
        path = Path(base, Path(text).expanduser())
        if path.is_dir():
            bare = path.name.endswith(".git") and not (path / "bin/compile").exists()
            if ref or bare:
                return Reference("git", shown, str(path.resolve()), _ref(ref, shown))
            return Reference("directory", shown, str(path.resolve()))
        if not path.exists() or ref:
            return None
    except (OSError, RuntimeError):  # a name too long, no home
        return None
    if path.name.lower().endswith(ARCHIVES):
        return Reference("archive", shown, str(path.resolve()))
    raise UsageError(f"The buildpack {shown} is not a directory.", _GIVE)


def _named(name: str, shown: str, registry: Mapping[str, str], base: str) -> Reference:
    for pattern, template in (*registry.items(), *REGISTRY.items()):
        if fnmatchcase(name, pattern):
            meant = template.replace("{name}", name)
            if _NAME.fullmatch(meant):
                raise UsageError(f"The registry maps {pattern} to {template}, which is a name again.", "Give a URL.")
            return _parse(meant, shown, {}, base)
    raise UsageError(f"The buildpack {shown} is in no registry.", _GIVE)


def _ref(ref: str, shown: str) -> str:
    if ref.startswith("-") or any(character.isspace() for character in ref):
        raise UsageError(f"The buildpack {shown}: {ref!r} is no branch, tag or commit.", "Mend what is after #.")
    return ref


def without_secrets(text: str) -> str:
    """A URL without its user's password, or a token that is the user, and without the values of a query."""
    text = _without_user(text)
    return re.sub(r"(?<=\?)[^#]*", "...", text) if "://" in text else text


def _without_user(text: str) -> str:
    return re.sub(r"(?<=://)([^/@#]*)@", lambda match: match[0] if match[1] in ("git", "ssh") else "", text)
