"""Getting one commit of a git repository, with the git of the machine and nothing of what could be set for it."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from nsbuild.buildpack.network import network_needs
from nsbuild.buildpack.reference import Reference, without_secrets
from nsbuild.errors import NsbuildError, Refused, UsageError
from nsbuild.tree import remove_tree

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_KEPT = ("HOME", "PATH", "USER", "LOGNAME", "XDG_CONFIG_HOME", "SSH_AUTH_SOCK", "GIT_SSH_COMMAND", "GIT_SSH")
# Hooks come from a template or from a user's core.hooksPath; ext:: runs a command.
_CONFIG = (
    *("-c", "core.hooksPath=/dev/null", "-c", "init.templateDir=", "-c", "protocol.ext.allow=never"),
    *("-c", "advice.detachedHead=false", "-c", "gc.auto=0", "-c", "maintenance.auto=false"),
    *("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60"),
)
_HEAD = "refs/nsbuild/head"
_UNREACHABLE = re.compile(
    r"Could not resolve|Failed to connect|Couldn't connect|Connection (refused|timed out|reset)"
    r"|Network is unreachable|No route to host|unable to connect|Operation timed out|hung up unexpectedly"
    r"|early EOF|transfer closed|SSL"
    r"|returned error: 5\d\d|Temporary failure|took longer than",
    re.IGNORECASE,
)


class Unreachable(Refused):
    """The network, not the other side's answer: what was fetched before may serve."""


class Git:
    """git for one reference. `timeout` is in seconds, for each call; `max_bytes` for each file it writes."""

    def __init__(self, reference: Reference, *, timeout: float = 900.0, max_bytes: int = 512 << 20) -> None:
        self.reference = reference
        self.url = reference.location
        self.timeout = timeout
        self.max_bytes = max_bytes
        local = ("://" not in self.url and Path(self.url).is_absolute()) or self.url.startswith("file://")
        # A repository somewhere else must not have files of this machine as its submodules.
        self._config = (*_CONFIG, "-c", f"protocol.file.allow={'always' if local else 'never'}")

    def newest(self) -> tuple[str, str] | None:
        """(full name, commit) of the branch, else the tag, that the reference names; None when it names neither.

        Raises Unreachable, and UsageError when there is no such repository.
        """
        ref = self.reference.ref
        wanted = [f"refs/heads/{ref}", f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", ref] if ref else ["HEAD"]
        printed = self._run(None, "ls-remote", "--", self.url, *wanted, timeout=min(60.0, self.timeout))
        found = {name: commit for commit, _, name in (line.partition("\t") for line in printed.splitlines())}
        for name in wanted:
            if name in found:
                return name.removesuffix("^{}"), found[name]
        if not ref:
            raise UsageError(
                f"The git repository {self.reference.shown} is empty, or its default branch is not there.",
                "Give one that has a commit, or name a branch after #.",
            )
        return None

    def checkout(self, name: str, directory: Path) -> str:
        """Put the files of `name` (a full name, or what names a commit) and its submodules, without git's own, into
        a new directory. Returns the commit.

        Only that commit is fetched where the other side can do so. Raises as `newest`.
        """
        self._run(None, "init", "--quiet", "--", str(directory))
        # Submodules may be relative to it.
        self._run(directory, "config", "remote.origin.url", self.url)
        exact = name == "HEAD" or name.startswith("refs/") or COMMIT.fullmatch(name)
        if not (exact and self._fetched(directory, "--depth=1", name)):
            everything = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
            # HEAD may name a branch that is not there: main was pushed to a repository that was made for master.
            if not self._fetched(directory, *everything, f"+HEAD:{_HEAD}"):
                self._run(directory, *_fetch(*everything))
        commit = self._commit(directory, name)
        self._run(directory, "checkout", "--quiet", "--detach", "--force", commit)
        if (directory / ".gitmodules").is_file():
            self._submodules(directory)
        for own in [directory / ".git", *directory.rglob(".git")]:
            remove_tree(str(own))
        return commit

    def _fetched(self, directory: Path, *words: str) -> bool:
        """False where the server cannot give a part of the history, or a commit by its name."""
        try:
            self._run(directory, *_fetch(*words))
        except Unreachable:
            raise
        except NsbuildError:
            return False
        return True

    def _commit(self, directory: Path, name: str) -> str:
        tried = ["FETCH_HEAD"] if (directory / ".git/shallow").exists() else []
        short = name.removeprefix("refs/heads/")
        tried += [name, f"refs/remotes/origin/{short}"] if name != "HEAD" else [_HEAD]
        for candidate in tried:
            with contextlib.suppress(NsbuildError):
                return self._run(directory, "rev-parse", "--verify", "--quiet", f"{candidate}^{{commit}}").strip()
        raise UsageError(
            f"The git repository {without_secrets(self.url)} has no branch, tag or commit {name}.",
            "Mend what is after #.",
        )

    def _submodules(self, directory: Path) -> None:
        update = ("submodule", "--quiet", "update", "--init", "--recursive")
        try:
            self._run(directory, *update, "--depth=1")
        except Unreachable:
            raise
        except NsbuildError:
            self._run(directory, *update)

    def _run(self, directory: Path | None, *words: str, timeout: float | None = None) -> str:
        """Raises Unreachable, UsageError for what else git says, and Refused when there is no git."""
        place = ("-C", str(directory)) if directory is not None else ()
        argv = ("git", *self._config, *place, *words)
        try:
            process = subprocess.Popen(
                argv,
                cwd="/",
                env=_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (self.max_bytes, self.max_bytes)),
            )
        except FileNotFoundError:
            raise Refused("There is no git to fetch a buildpack with.", "Install it.") from None
        try:
            out, said = process.communicate(timeout=self.timeout if timeout is None else timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise self._failed(words[0], f"took longer than {error.timeout:g} seconds") from None
        if process.returncode != 0:
            raise self._failed(words[0], said.decode("utf-8", "replace").replace(f"{directory}/", ""))
        return out.decode("utf-8", "surrogateescape")

    def _failed(self, command: str, said: str) -> NsbuildError:
        shown = self.reference.shown
        lines = [
            line.strip()
            for line in said.replace(self.url, without_secrets(self.url)).replace(":\n", ": ").splitlines()
        ]
        told = [line for line in lines if line.startswith(("fatal:", "error:", "ssh:"))] or lines
        reason = without_secrets("; ".join(told[:2]) or f"git {command} failed")[:400].rstrip(".")
        if _UNREACHABLE.search(said):
            return Unreachable(
                f"The buildpack {shown} cannot be fetched: {reason}.", "Look at the network; try again."
            )
        return UsageError(
            f"The buildpack {shown} cannot be fetched: {reason}.", "Mend the URL, or your access to it."
        )


def _fetch(*words: str) -> tuple[str, ...]:
    options = [word for word in words if word.startswith("--")]
    names = [word for word in words if not word.startswith("--")]
    return ("fetch", "--quiet", "--no-tags", *options, "--", "origin", *names)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Proxies, certificates and the keys of the user; nothing that moves git to another repository or to ask."""
    kept = {name: environ[name] for name in _KEPT if environ.get(name)}
    return {
        **kept,
        **network_needs(environ).variables,
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "SSH_ASKPASS": "true",
        **({} if "GIT_SSH_COMMAND" in kept or "GIT_SSH" in kept else {"GIT_SSH_COMMAND": "ssh -oBatchMode=yes"}),
    }


def is_pinned(ref: str, commit: str) -> bool:
    """Whether a ref names a commit by itself, so that it never means another one."""
    return len(ref) >= 7 and bool(re.fullmatch(r"[0-9a-f]+", ref)) and commit.startswith(ref)
