"""What a build may use and must not keep: the caller's ssh agent, and secrets in files."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nsbuild.errors import Refused, UsageError
from nsbuild.sandbox import Bind, User
from nsbuild.tree.copy import open_regular
from nsbuild.tree.descent import Descent
from nsbuild.tree.walk import Event, walk

AGENT = "/run/ssh-agent.sock"
SECRETS = "/run/secrets"
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_SHORTEST = 8
_LONGEST = 64 * 1024
_BLOCK = 1 << 20


def agent_bind(environ: Mapping[str, str], user: User) -> Bind:
    """Shows the agent's socket at AGENT, which SSH_AUTH_SOCK must then name; nothing else of the caller's ssh.

    Raises UsageError where there is no agent, Refused where it would not talk to the build's user.
    """
    path = environ.get("SSH_AUTH_SOCK", "")
    try:
        info = os.stat(path)
    except OSError:
        info = None
    if info is None or not stat.S_ISSOCK(info.st_mode):
        what = f"SSH_AUTH_SOCK names {path}, which is no socket" if path else "SSH_AUTH_SOCK is not set"
        raise UsageError(f"--ssh: there is no agent: {what}.", "Start one: eval $(ssh-agent), ssh-add.")
    if info.st_uid != user.uid:
        raise Refused(
            f"--ssh: the agent belongs to uid {info.st_uid}, and answers nobody else; the build runs as {user.uid}.",
            f"Build as that user, or with --user {info.st_uid}.",
        )
    return Bind(AGENT, os.path.realpath(path), directory=False)


def secret_binds(secrets: Sequence[tuple[str, str]], user: User) -> list[Bind]:
    """Shows each (ID, file) at /run/secrets/ID, read-only, as `docker build --secret` does.

    Raises UsageError, Refused.
    """
    binds: list[Bind] = []
    for name, file in secrets:
        if not _ID.fullmatch(name):
            raise UsageError(f"--secret {name}: an ID has letters, digits, `_`, `-` and `.` only.")
        if any(bind.path == f"{SECRETS}/{name}" for bind in binds):
            raise UsageError(f"--secret {name} is there twice.")
        path = os.path.realpath(file)
        if not os.path.isfile(path):
            raise UsageError(f"--secret {name}: {file} is no file.")
        info = os.stat(path)
        wanted = 0o400 if info.st_uid == user.uid else 0o040 if info.st_gid == user.gid else 0o004
        if not info.st_mode & wanted:
            raise Refused(f"--secret {name}: {file} is not readable for uid {user.uid}, which the build runs as.")
        binds.append(Bind(f"{SECRETS}/{name}", path, directory=False))
    return binds


def secrets_within(directory: str, secrets: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(ID, path from `directory`) of each file there that holds a secret's bytes, white space around it apart.

    Not looked for: secrets shorter than 8 bytes, and of long ones what is beyond 64 KiB. Raises OSError.
    """
    values = {name: Path(file).open("rb").read(_LONGEST).strip() for name, file in secrets}
    values = {name: value for name, value in values.items() if len(value) >= _SHORTEST}
    if not values:
        return
    with Descent(directory, os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)) as descent:
        for event, name, info in walk(descent, unlock=True):
            if event is Event.OTHER and stat.S_ISREG(info.st_mode):
                for found in _held(descent, name, values):
                    yield found, descent.shown(name)


def _held(descent: Descent, name: str, values: Mapping[str, bytes]) -> set[str]:
    found: set[str] = set()
    overlap = max(len(value) for value in values.values()) - 1
    fd = open_regular(descent.fd, name, unlock=True)
    try:
        data = b""
        while block := os.read(fd, _BLOCK):
            data = data[-overlap:] + block if overlap else block
            found.update(key for key, value in values.items() if value in data)
    finally:
        os.close(fd)
    return found


def secret_values(secrets: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What is in each secret's file, to keep it out of the record. Raises OSError."""
    return {name: Path(file).open("rb").read(_LONGEST).decode("utf-8", "surrogateescape") for name, file in secrets}
