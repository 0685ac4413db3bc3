"""The git work tree that a directory is in, and how it differs from HEAD."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from nsbuild.build.git import Checkout, as_owner, environment, git, private
from nsbuild.errors import UsageError


def find_checkout(directory: Path) -> Checkout | None:
    """The work tree that `directory` (absolute, resolved) is in; None where it is in none, or HEAD does not have it.

    As git itself does, it passes over a repository that belongs to neither the caller nor the directory's owner
    nor root: anybody can make /tmp/.git. Raises UsageError for a bare repository, Refused when git refuses.
    """
    if is_git_dir(directory):
        raise UsageError(
            f"The source {directory} is a bare git repository.", "Give a work tree: `git clone` it first."
        )
    trusted = {os.geteuid(), 0, directory.stat().st_uid}
    for top in (directory, *directory.parents):
        found = open_git_dir(top / ".git")
        if found is None:
            continue
        if (top / ".git").lstat().st_uid not in trusted:
            return None
        prefix = "" if top == directory else str(directory.relative_to(top))
        checkout = Checkout(top, found, common_dir(found), head_of(found), prefix)
        return checkout if not prefix or (checkout.commit and _has_tree(checkout)) else None
    return None


def is_git_dir(path: Path) -> bool:
    return (path / "HEAD").is_file() and (path / "objects").is_dir() and (path / "refs").is_dir()


def open_git_dir(path: Path) -> Path | None:
    """What `.git` is: the directory itself, or the one that a file (of a worktree or submodule) names."""
    if path.is_dir():
        return path if is_git_dir(path) else None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        text = os.fsdecode(file.read(4096))
    if not text.startswith("gitdir: "):
        return None
    found = path.parent / text.removeprefix("gitdir: ").rstrip("\r\n")
    if not found.is_dir():
        raise UsageError(
            f"{path} names {found}, which is not there.", "`git worktree repair` mends a moved work tree."
        )
    return found.resolve()


def common_dir(git_dir: Path) -> Path:
    """Of a worktree made by `git worktree add`, the repository that it shares."""
    try:
        with (git_dir / "commondir").open("rb") as file:
            return (git_dir / os.fsdecode(file.read(4096)).rstrip("\n")).resolve()
    except FileNotFoundError:
        return git_dir


def head_of(git_dir: Path) -> str:
    """The commit; empty where there is none yet."""
    found = git(["rev-parse", "--verify", "--quiet", "HEAD^{commit}"], {"GIT_DIR": str(git_dir)}, git_dir, (0, 1))
    return os.fsdecode(found).strip()


def _has_tree(checkout: Checkout) -> bool:
    with private(checkout) as env:
        kind = git(["cat-file", "-t", checkout.treeish], env, checkout.git_dir, (0, 128))
    return kind.strip() == b"tree"


def _work_tree(checkout: Checkout, env: dict[str, str]) -> dict[str, str]:
    """With what the user's own configuration ignores everywhere; root does not read that of another user."""
    found = {**env, "GIT_WORK_TREE": str(checkout.top)}
    if not as_owner(checkout.git_dir):
        ask = ["config", "--global", "--type=path", "--get", "core.excludesFile"]
        own = {name: os.environ[name] for name in ("GIT_CONFIG_GLOBAL",) if name in os.environ}
        process = subprocess.run(
            ["git", *ask],
            env={**{key: value for key, value in environment().items() if key != "GIT_CONFIG_GLOBAL"}, **own},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if process.returncode == 0:
            excludes = os.fsdecode(process.stdout).rstrip("\n")
            found |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "core.excludesFile",
                "GIT_CONFIG_VALUE_0": excludes,
            }
    return found


def _pathspec(checkout: Checkout) -> list[str]:
    return ["--", f":(top,literal){checkout.prefix}"] if checkout.prefix else []


def differences(checkout: Checkout) -> list[str]:
    """Files of the work tree that are not as in HEAD, as paths from the directory that is meant: modified, deleted,
    or neither in HEAD nor ignored. Submodules count by the commit that is checked out.
    """
    with private(checkout) as env:
        printed = git(
            [
                "status",
                "--porcelain",
                "-z",
                "-uall",
                "--no-renames",
                "--ignore-submodules=dirty",
                *_pathspec(checkout),
            ],
            _work_tree(checkout, env),
            checkout.git_dir,
        )
    cut = len(checkout.prefix) + 1 if checkout.prefix else 0
    return [os.fsdecode(line)[3 + cut :] for line in printed.split(b"\0") if line]


def work_tree_files(checkout: Checkout) -> set[str]:
    """Every file that is in the index, or neither there nor ignored, with those of submodules: paths from the
    directory that is meant. One that ends in `/` is a directory with all that is in it.

    Raises UsageError for a submodule that is not there.
    """
    found: set[str] = set()
    modules: list[str] = []
    with private(checkout) as env:
        env = _work_tree(checkout, env)
        tracked = git(["ls-files", "-z", "--stage", "--full-name", *_pathspec(checkout)], env, checkout.git_dir)
        for line in tracked.split(b"\0"):
            mode, _, name = os.fsdecode(line).partition(" ")
            if name:
                (modules.append if mode == "160000" else found.add)(name.partition("\t")[2])
        others = ["ls-files", "-z", "--others", "--exclude-standard", "--full-name", *_pathspec(checkout)]
        found.update(os.fsdecode(name) for name in git(others, env, checkout.git_dir).split(b"\0") if name)
    for module in modules:
        git_dir = open_git_dir(checkout.top / module / ".git")
        if git_dir is None:
            raise no_submodule(module, "")
        within = Checkout(checkout.top / module, git_dir, common_dir(git_dir), head_of(git_dir))
        found.update(f"{module}/{name}" for name in work_tree_files(within))
    cut = len(checkout.prefix) + 1 if checkout.prefix else 0
    return {name[cut:] for name in found}


def no_submodule(path: str, commit: str) -> UsageError:
    which = f" at the commit {commit[:12]} that HEAD records" if commit else ""
    return UsageError(f"The submodule {path} is not here{which}.", "Run `git submodule update --init --recursive`.")
