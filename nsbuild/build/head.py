"""What `git push` would send of a work tree: HEAD, byte for byte."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from nsbuild.build.checkout import common_dir, is_git_dir, no_submodule, open_git_dir
from nsbuild.build.git import Checkout, git, private, refusal, start
from nsbuild.errors import Refused
from nsbuild.tree import NameRefused, TreeWriter

_BLOCK = 1 << 20
_MANY = 2_000_000
"""Files of one commit: a small repository can claim 10^10 of them."""


def head_file(checkout: Checkout, name: str) -> bytes:
    """The content of a file of HEAD; empty where there is none."""
    with private(checkout) as env:
        return git(
            ["cat-file", "blob", f"{checkout.commit}:{checkout.within(name)}"], env, checkout.git_dir, (0, 128)
        )


def write_head(checkout: Checkout, writer: TreeWriter, skip: Callable[[str, bool], bool]) -> tuple[int, int]:
    """Write the tree of HEAD, submodules at the commits it records; returns how many files and symbolic links.

    Contents are those of the objects: no filter, no line ending and no export attribute is applied, for a push
    applies none. Every file has the time of the commit. `skip` is asked for every path, and all that it is in.

    Raises UsageError for a submodule that is not there, Refused for objects or names that cannot be.
    """
    try:
        return _write(checkout, writer, "", skip)
    except NameRefused as error:
        raise Refused(f"The commit {checkout.commit} cannot be written out: {error}.") from None


def _write(checkout: Checkout, writer: TreeWriter, below: str, skip: Callable[[str, bool], bool]) -> tuple[int, int]:
    with private(checkout) as env:
        entries, modules = _entries(checkout, env, below, skip)
        when = _time_of(checkout, env)
        files = links = 0
        with _blobs(checkout, env, [oid for _, _, oid in entries]) as read:
            for mode, name, oid in entries:
                content = read(oid, name)
                if mode == "120000":
                    target = b"".join(content)
                    writer.symlink(below + name, os.fsdecode(target), when)
                    links += 1
                else:
                    writer.file(below + name, 0o755 if mode == "100755" else 0o644, when, content)
                    files += 1
        for name, commit in modules:
            more = _write(_submodule(checkout, env, name, commit), writer, f"{below}{name}/", skip)
            files, links = files + more[0], links + more[1]
    return files, links


def _entries(
    checkout: Checkout, env: dict[str, str], below: str, skip: Callable[[str, bool], bool]
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """(mode, name, object) of every file, and (name, commit) of every submodule."""
    entries: list[tuple[str, str, str]] = []
    modules: list[tuple[str, str]] = []
    skipped: dict[str, bool] = {}

    def left_out(path: str, directory: bool) -> bool:
        above = path.rpartition("/")[0]
        if above and above not in skipped:
            skipped[above] = left_out(above, True)
        return (skipped[above] if above else False) or skip(path, directory)

    process = start(
        ["ls-tree", "-r", "-z", "--full-tree", checkout.treeish], env, checkout.git_dir, subprocess.DEVNULL
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        for record in _records(process.stdout):
            head, _, name = os.fsdecode(record).partition("\t")
            mode, _, oid = head.split(" ")
            if len(entries) + len(modules) > _MANY:
                process.kill()
                raise Refused(f"The commit {checkout.commit} has more than {_MANY} files.")
            if left_out(below + name, mode == "160000"):
                continue
            if mode == "160000":
                modules.append((name, oid))
            else:
                entries.append((mode, name, oid))
        said = process.stderr.read()
    if process.returncode != 0:
        raise refusal(checkout.git_dir, said)
    return entries, modules


def _records(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while block := stream.read(_BLOCK):
        *records, rest = (rest + block).split(b"\0")
        yield from records


def commit_time(checkout: Checkout) -> int:
    """When HEAD was committed, in seconds since 1970. Raises Refused."""
    with private(checkout) as env:
        return _time_of(checkout, env)


def _time_of(checkout: Checkout, env: dict[str, str]) -> int:
    text = git(["cat-file", "commit", checkout.commit], env, checkout.git_dir)
    found = re.search(rb"^committer .* (\d+) [+-]\d+$", text, re.MULTILINE)
    return int(found[1]) if found else 0


@contextlib.contextmanager
def _blobs(
    checkout: Checkout, env: dict[str, str], wanted: Sequence[str]
) -> Iterator[Callable[[str, str], Iterator[bytes]]]:
    """A function that gives the content of the next of the `wanted` objects; each must be read to its end."""
    with tempfile.TemporaryFile() as asked:
        asked.write("".join(f"{oid}\n" for oid in wanted).encode())
        asked.seek(0)
        process = start(["cat-file", "--batch", "--buffer"], env, checkout.git_dir, asked)
        assert process.stdout is not None
        stream = process.stdout

        def read(oid: str, name: str) -> Iterator[bytes]:
            answer = stream.readline().split()
            if len(answer) != 3 or answer[:2] != [oid.encode(), b"blob"]:
                raise Refused(
                    f"{name} is in the commit {checkout.commit}, and its content is not in {checkout.git_dir}.",
                    "In a partial clone, `git checkout HEAD -- .` fetches it.",
                )
            left = int(answer[2])
            while left:
                block = stream.read(min(left, _BLOCK))
                if not block:
                    raise Refused(f"git cannot read {name} in {checkout.git_dir}.", "`git fsck` may tell more.")
                left -= len(block)
                yield block
            stream.read(1)

        try:
            yield read
        finally:
            process.kill()
            process.communicate()


def _submodule(checkout: Checkout, env: dict[str, str], path: str, commit: str) -> Checkout:
    """The submodule at `path` at the commit that HEAD records: its own .git, or the one in `modules`."""
    whole = checkout.within(path)
    places = [checkout.top / whole / ".git"]
    if (name := _module_name(checkout, env, whole)) is not None:
        places.append(checkout.common_dir / "modules" / name)
    for place in places:
        git_dir = open_git_dir(place) if place.name == ".git" else place.resolve() if is_git_dir(place) else None
        if git_dir is None:
            continue
        found = Checkout(checkout.top / whole, git_dir, common_dir(git_dir), commit)
        with private(found) as within:
            if git(["cat-file", "-t", commit], within, git_dir, (0, 128)).strip() == b"commit":
                return found
    raise no_submodule(whole, commit)


def _module_name(checkout: Checkout, env: dict[str, str], path: str) -> str | None:
    """The name in .gitmodules, which is the directory's below `modules`."""
    ask = ["config", "-z", "--blob", f"{checkout.commit}:.gitmodules", "--get-regexp", r"^submodule\..*\.path$"]
    for line in git(ask, env, checkout.git_dir, (0, 1, 128)).split(b"\0"):
        key, _, value = os.fsdecode(line).partition("\n")
        name = key.removeprefix("submodule.").removesuffix(".path")
        if value == path and ".." not in name.split("/") and not name.startswith("/"):
            return name
    return None
