"""What buildpacks do that matters when BUILD_DIR is at /app: the classes that `lint` knows, as data.

A pattern is searched in a command as `shell.Command` has it: `rm -rf <BUILD_DIR>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from nsbuild.buildpack.shell import Kind

Verdict = Literal["safe", "needs care", "unfit"]
VERDICTS: tuple[Verdict, ...] = ("safe", "needs care", "unfit")

_END = r"(?= |$)"
_OPTIONS = r"(?:-\S+ )*"
_HOME = r"(?:/app|<HOME>)"
_SYSTEM = r"/(?:usr|etc|opt|bin|sbin|lib\d*|boot|srv|root|home|run|var(?!/tmp(?:/|\b)))(?:/\S*)?"
_SECRET = r"(?:/app|<HOME>|<BUILD_DIR>|<PWD>)/\.(?:ssh|netrc|git-credentials|gnupg|pypirc|aws|docker)(?:/\S*)?"


@dataclass(frozen=True)
class Rule:
    """A class: what it is called, how grave it is, what it looks like, what it does and what becomes of it.

    With `alone`, it does not count in a script one of whose commands matches that.
    """

    name: str
    verdict: Verdict
    kinds: tuple[Kind, ...]
    pattern: re.Pattern[str]
    says: str
    alone: re.Pattern[str] | None = None


def _rule(
    name: str, verdict: Verdict, kinds: tuple[Kind, ...], patterns: tuple[str, ...], says: str, alone: str = ""
) -> Rule:
    return Rule(name, verdict, kinds, re.compile("|".join(patterns)), says, re.compile(alone) if alone else None)


RULES = (
    _rule(
        "build-dir-removed",
        "needs care",
        ("command",),
        (
            rf"^(?:rm|rmdir) (?:.* )?<BUILD_DIR>/?{_END}",
            rf"^mv {_OPTIONS}<BUILD_DIR>/?{_END}",
        ),
        "It removes or moves BUILD_DIR itself. `build` allows it, and `compile` where BUILD_DIR is adopted; where it"
        " is bind-mounted it is EBUSY. Afterwards there must be a directory again.",
    ),
    _rule(
        "app-moved",
        "needs care",
        ("command",),
        (rf"^(?:rm|rmdir|mv) (?:.* )?{_HOME}/?{_END}", rf"^ln {_OPTIONS}\S+ /app/?{_END}"),
        "It moves, removes or replaces /app, which is BUILD_DIR now: what it then copies from BUILD_DIR is gone.",
    ),
    _rule(
        "onto-itself",
        "needs care",
        ("command",),
        (
            rf"^(?:cp|mv|ln|rsync|install) (?=(?:.* )?<BUILD_DIR>(?:/\S*)?{_END})(?=(?:.* )?{_HOME}(?:/\S*)?{_END})",
            rf"^(?:mv|cp|rsync) {_OPTIONS}{_HOME}/\S+ (?![/<])\S+$",
        ),
        "It copies, moves or links between BUILD_DIR and /app, which are one directory now: `same file`, or a link to"
        " itself.",
    ),
    _rule(
        "home-compared",
        "needs care",
        ("test",),
        (rf"^<(?:BUILD_DIR|PWD)>/? = {_HOME}/?$", rf"^{_HOME}/? = <(?:BUILD_DIR|PWD)>/?$"),
        "It compares BUILD_DIR with HOME or /app. They are equal now: look at what it does then.",
    ),
    _rule(
        "realpath-compared",
        "needs care",
        ("test",),
        (r"^<REALPATH>\S* = (?!<REALPATH>|<\?>)\S+$", r"^(?!<REALPATH>|<\?>)\S+ = <REALPATH>"),
        "It compares a path as it was written with a real path. They differ where a directory on the way is a link.",
    ),
    _rule(
        "ssh",
        "needs care",
        ("command",),
        (r"^(?:ssh|scp|sftp|ssh-keygen|ssh-keyscan|ssh-add|ssh-agent)\b",),
        "OpenSSH takes its directory from the password file, not from HOME. nsbuild makes them equal: ~/.ssh is in"
        " BUILD_DIR.",
    ),
    _rule(
        "credentials-left",
        "needs care",
        ("command", "redirect"),
        (
            rf"^> {_SECRET}$",
            rf"^(?:cp|mv|ln|install|tee|touch|mkdir|ssh-keygen|chmod) (?:.* )?{_SECRET}{_END}",
            r"^git config (?:.* )?credential\.",
        ),
        "It leaves credentials in the home directory, which is BUILD_DIR now. `build` takes them away after the last"
        " compile unless --keep-credentials is given; `compile` does not.",
    ),
    _rule(
        "hard-links",
        "needs care",
        ("command",),
        (
            r"^cp (?:.* )?(?:-[a-zA-Z]*l[a-zA-Z]*|--link)(?= |$)",
            r"^ln (?!(?:.* )?(?:-[a-zA-Z]*s[a-zA-Z]*|--symbolic)(?= |$))",
            r"^rsync (?:.* )?--link-dest",
        ),
        "It makes hard links. Between BUILD_DIR, cache and /tmp they work; where one is bind-mounted they are EXDEV.",
    ),
    _rule(
        "app-cleaned",
        "needs care",
        ("command",),
        (rf"^rm (?:.* )?{_HOME}/\S+{_END}", rf"^find {_OPTIONS}{_HOME}(?:/\S*)? .*-(?:delete|exec rm)"),
        "It removes something below /app or HOME that was no part of the slug. It is now: is it needed at run time?",
    ),
    _rule(
        "apt-sources",
        "needs care",
        ("command", "redirect"),
        (r"/etc/apt/sources\.list(?!\.d)",),
        "It reads /etc/apt/sources.list, which Debian 12 and Ubuntu 24.04 lack (sources.list.d is there).",
    ),
    _rule(
        "background",
        "needs care",
        ("background", "command"),
        (r"^(?:nohup|setsid|daemonize|start-stop-daemon)\b", r"^pg_ctl (?:.* )?start\b", r"--daemonize\b"),
        "It leaves a process in the background. All of them are killed when the script ends.",
    ),
    _rule(
        "background",
        "needs care",
        ("background",),
        (r"^\S",),
        "It leaves a process in the background. All of them are killed when the script ends.",
        alone=r"^(?:wait|kill|trap)\b",
    ),
    _rule(
        "needs-root",
        "unfit",
        ("command",),
        (
            r"^(?:sudo|su|doas|mount|umount|losetup|chroot|systemctl|service|modprobe|insmod|sysctl)(?= |$)",
            r"^(?:useradd|adduser|usermod|groupadd|addgroup|swapon|iptables|docker|dockerd|podman|buildah)(?= |$)",
        ),
        "It needs root, or a daemon of the host. A build has neither.",
    ),
    _rule(
        "installs-packages",
        "unfit",
        ("command",),
        (
            r"^(?:apt-get|apt|aptitude|yum|dnf|microdnf) (?!(?:.* )?(?:-d|--download-only|--print-uris|-s)(?= |$))"
            r"(?:.* )?install(?= |$)",
            r"^apk (?:.* )?add(?= |$)",
            r"^dpkg (?:.* )?(?:-i|--install)(?= |$)",
        ),
        "It installs packages into the system, which is read-only. heroku-buildpack-apt unpacks them into BUILD_DIR.",
    ),
    _rule(
        "writes-system",
        "unfit",
        ("command", "redirect"),
        (
            rf"^> {_SYSTEM}$",
            rf"^(?:cp|mv|ln|install|rsync) .* {_SYSTEM}$",
            rf"^(?:mkdir|touch|tee|rm|chmod|chown|truncate|sed {_OPTIONS}-i\S*) (?:.* )?{_SYSTEM}{_END}",
            rf"^(?:tar|unzip|curl|wget|git) (?:.* )?(?:-C|-d|-o|-O|-P|--directory|--output) {_SYSTEM}{_END}",
        ),
        "It writes to a system directory, which is read-only, and no part of the slug.",
    ),
)
"""Each stands for a report of a buildpack that broke, or for what cannot work."""

UNREAD = Rule(
    "not-read",
    "needs care",
    (),
    re.compile(r"(?!)"),
    "It is not shell, or cannot be read as such: look at it by hand.",
)
