"""Running git over a repository that may be anybody's.

Its configuration names programs (filters, hooks, fsmonitor, credential helpers). So git works in a directory of ours
with a configuration of ours; of the user's repository it reads objects, index and ignore files, and HEAD. Nothing is
written there, and nothing fetched.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nsbuild.errors import Refused

_KEPT = ("core.filemode", "core.symlinks", "core.ignorecase", "core.precomposeunicode", "core.autocrlf", "core.eol")
"""What of the repository's configuration a comparison with the work tree needs. None of it names a program."""


@dataclass(frozen=True)
class Checkout:
    """A work tree at `top`, its git directories, the commit (empty before the first one), and below `top` the
    directory that is meant (empty for all of it).
    """

    top: Path
    git_dir: Path
    common_dir: Path
    commit: str
    prefix: str = ""

    @property
    def treeish(self) -> str:
        return f"{self.commit}:{self.prefix}" if self.prefix else self.commit

    def within(self, path: str) -> str:
        """`path`, from the directory that is meant, from `top`."""
        return f"{self.prefix}/{path}" if self.prefix else path


def environment() -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME", "XDG_CONFIG_HOME", "TMPDIR") if name in os.environ},
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_ALLOW_PROTOCOL": "none",  # a partial clone would fetch what it lacks, by whatever its configuration says
    }


def as_owner(git_dir: Path) -> dict[str, int | Sequence[int]]:
    """Root reads a user's repository as that user."""
    info = git_dir.stat()
    if os.geteuid() != 0 or info.st_uid == 0:
        return {}
    return {"user": info.st_uid, "group": info.st_gid, "extra_groups": []}


def start(
    arguments: Sequence[str], env: dict[str, str], git_dir: Path, stdin: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            [
                "git",
                "-c",
                "core.hooksPath=/dev/null",
                "-c",
                "core.fsmonitor=false",
                "-c",
                "core.quotePath=false",
                *arguments,
            ],
            env={**environment(), **env},
            cwd=env.get("GIT_WORK_TREE", "/"),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **as_owner(git_dir),
        )
    except FileNotFoundError:
        raise Refused(f"{git_dir} is a git repository, and git is not installed.", "Install git.") from None


def git(arguments: Sequence[str], env: dict[str, str], git_dir: Path, codes: tuple[int, ...] = (0,)) -> bytes:
    """What git prints. Raises Refused when it ends with none of `codes`."""
    process = start(arguments, env, git_dir, subprocess.DEVNULL)
    printed, said = process.communicate()
    if process.returncode not in codes:
        raise refusal(git_dir, said)
    return bytes(printed)


def refusal(git_dir: Path, said: bytes) -> Refused:
    text = " ".join(said.decode("utf-8", "replace").split())[:300] or "git gave no reason"
    return Refused(f"git cannot read {git_dir}: {text}.", "`git fsck` may tell more.")


@contextlib.contextmanager
def private(checkout: Checkout) -> Iterator[dict[str, str]]:
    """A git directory of ours over the objects, the index and the ignore file of the checkout: the environment."""
    common = checkout.common_dir
    with tempfile.TemporaryDirectory(prefix="nsbuild-git-") as name:
        ours = Path(name)
        ours.chmod(0o755)  # root's git runs as the repository's owner
        (ours / "refs").mkdir()
        (ours / "info").mkdir()
        (ours / "info/exclude").symlink_to(common / "info/exclude")
        (ours / "HEAD").write_text(f"{checkout.commit}\n" if checkout.commit else "ref: refs/heads/none\n")
        for shared in checkout.git_dir.glob("sharedindex.*"):
            (ours / shared.name).symlink_to(shared)
        (ours / "config").write_text(_config(common))
        env = {
            "GIT_DIR": name,
            "GIT_OBJECT_DIRECTORY": str(common / "objects"),
            "GIT_INDEX_FILE": str(checkout.git_dir / "index"),
        }
        yield env


def _config(common: Path) -> str:
    """The lines that tell how names, modes and objects are kept; values are words, never commands or paths."""
    listed = git(["config", "-z", "--no-includes", "--file", str(common / "config"), "--list"], {}, common)
    values = dict(os.fsdecode(line).partition("\n")[::2] for line in listed.split(b"\0") if b"\n" in line)
    lines = ["[core]", "\trepositoryformatversion = 1", "\tbare = false"]
    for name in _KEPT:
        if re.fullmatch(r"[a-z0-9]+", values.get(name, "").lower()):
            lines.append(f"\t{name.removeprefix('core.')} = {values[name].lower()}")
    if values.get("extensions.objectformat") == "sha256":
        lines += ["[extensions]", "\tobjectformat = sha256"]
    return "\n".join(lines) + "\n"
