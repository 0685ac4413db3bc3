"""Whom a build runs as."""

from __future__ import annotations

import os

from nsbuild.sandbox.view import User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsbuild.errors import UsageError

DEFAULT_UID = 12000
"""For a build that root starts of root's own files. No account is needed: the build gets its own passwd."""


def build_user(directory: str, wanted: str | None = None) -> User:
    """Never uid 0: the caller, or for root the owner of `directory`, else SUDO_UID, else an unprivileged uid.

    `wanted` is `--user`: a name, UID or UID:GID, for root only. Raises UsageError.
    """
    if os.geteuid() != 0:
        if wanted is not None:
            raise _usage("--user needs root.", "Leave it out: the build runs as you.")
        return User(os.geteuid(), os.getegid())
    if wanted is not None:
        return _named(wanted)
    info = os.stat(directory)
    if info.st_uid != 0:
        return User(info.st_uid, info.st_gid or info.st_uid)
    sudo_uid, sudo_gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if sudo_uid.isdigit() and int(sudo_uid) != 0:
        return User(int(sudo_uid), int(sudo_gid) if sudo_gid.isdigit() and int(sudo_gid) else int(sudo_uid))
    return User(DEFAULT_UID, DEFAULT_UID)


def _named(wanted: str) -> User:
    uid, _, gid = wanted.partition(":")
    if not uid.isdigit():
        import pwd

        try:
            account = pwd.getpwnam(uid)
        except KeyError:
            raise _usage(f"There is no user {uid!r}.", "Give --user a name of /etc/passwd or UID:GID.") from None
        uid, gid = str(account.pw_uid), gid or str(account.pw_gid)
    gid = gid or uid
    if not gid.isdigit() or int(uid) == 0 or int(gid) == 0:
        raise _usage(f"--user {wanted} is not an unprivileged UID:GID.", "A build never runs as root.")
    return User(int(uid), int(gid))


def _usage(sentence: str, fix: str) -> UsageError:
    from nsbuild.errors import UsageError  # a launch has no time for what is only for its failure

    return UsageError(sentence, fix)
