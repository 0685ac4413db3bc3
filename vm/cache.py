"""Files that are made once and kept by the digest of what they are made from: kernels, initramfs, images.

A file appears under its name when it is complete, and two who make it at once get the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import platformdirs


def directory() -> Path:
    """Where all of them are; `vm/clean` removes it."""
    path = Path(platformdirs.user_cache_dir("nsbuild")) / "vm"
    path.mkdir(parents=True, exist_ok=True)
    return path


def digest(*parts: str | bytes | Path) -> str:
    """A name for what is made from these texts and files."""
    total = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part if isinstance(part, bytes) else part.encode()
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


def digest_of(file: Path) -> str:
    """The sha256 of a file, as `sha256sum` prints it."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory in the cache that is removed in the end; one of a process that was killed goes with the next."""
    top = directory() / "scratch"
    top.mkdir(exist_ok=True)
    with (directory() / "scratch.lock").open("w") as lock:
        # Shared while something is made: who gets it exclusively knows that all that is there was left.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in top.iterdir():
                shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            pass
        fcntl.flock(lock, fcntl.LOCK_SH)
        with tempfile.TemporaryDirectory(dir=top) as made:
            Path(made).chmod(0o755)
            yield Path(made)


def made(name: str, what: str, make: Callable[[Path], Path]) -> Path:
    """The file or directory `name` in the cache; `make` gets an empty directory and gives back what to keep."""
    path = directory() / name
    if path.exists():
        return path
    with (directory() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            click.echo(f"vm: making {what}", err=True)
            with scratch() as work:
                make(work).rename(path)
    return path
