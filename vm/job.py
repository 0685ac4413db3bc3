"""The disk that tells a VM what to do, and the one with its answer: both are tars."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vm import rootfs
from vm.apt import run
from vm.errors import Unavailable

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Conditions:
    """What a variant makes of the VM before the command runs. variants.toml explains the names."""

    name: str = "plain"
    command_line: str = ""
    sysctls: Mapping[str, int | str] = field(default_factory=dict)
    apparmor: tuple[str, ...] = ()
    label: str = ""
    container: str = ""
    cgroup: str = ""
    pids_max: str = ""
    limits: str = ""
    groups: str = ""
    user: str = "builder"
    chroot: str = ""
    initramfs_root: bool = False
    setup: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


def write(job: BinaryIO, kernel: str, command: Sequence[str], conditions: Conditions, net: bool, shell: bool) -> None:
    size = shutil.get_terminal_size()
    scalars = {
        "variant": conditions.name,
        "kernel": kernel,
        "net": "yes" if net else "",
        "shell": "yes" if shell else "",
        "rows": str(size.lines),
        "columns": str(size.columns),
        **{
            name: getattr(conditions, name)
            for name in ("label", "container", "cgroup", "pids_max", "limits", "groups", "user", "chroot")
        },
    }
    arrays = {
        "command": command,
        "apparmor": conditions.apparmor,
        "sysctls": [f"{name}={value}" for name, value in conditions.sysctls.items()],
        "env": [f"{name}={value}" for name, value in conditions.env.items()],
    }
    settings = "".join(f"{name}={shlex.quote(value)}\n" for name, value in scalars.items())
    settings += "".join(f"{name}=({shlex.join(words)})\n" for name, words in arrays.items())
    with tarfile.open(fileobj=job, mode="w") as tar:
        _add(tar, "settings", settings.encode())
        _add(tar, "checkout.tar", checkout())
        for path in sorted((HERE / "guest").iterdir()):
            if path.name != "init":
                _add(tar, path.name, path.read_bytes())
        for path in sorted((HERE / "apparmor").glob("*")):
            _add(tar, f"apparmor/{path.name}", path.read_bytes())
        if conditions.setup:
            _add(tar, "setup", conditions.setup.encode())
        if conditions.initramfs_root:
            _add(tar, "initramfs-root", b"")
    job.flush()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def checkout() -> bytes:
    """What git would commit of this checkout, as a tar; all of it but .venv where git does not say."""
    try:
        # Root builds from a checkout that may be somebody else's.
        git = ["git", "-c", f"safe.directory={rootfs.ROOT}", "-C", str(rootfs.ROOT)]
        listed = run([*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        names = [name for name in listed.split("\0") if name and os.path.lexists(rootfs.ROOT / name)]
    except Unavailable:
        names = [path.name for path in rootfs.ROOT.iterdir() if path.name not in (".venv", ".git")]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in sorted(names):
            tar.add(
                rootfs.ROOT / name, name, filter=lambda entry: None if "__pycache__" in entry.name else _owned(entry)
            )
    return content.getvalue()


def _owned(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def take(answer: BinaryIO, results: Path | None) -> int | None:
    """The status in the results' tar, and the files; None when there is none."""
    path = f"/proc/self/fd/{answer.fileno()}"
    listing = subprocess.run(
        ["tar", "-xOf", path, "./status"], pass_fds=[answer.fileno()], capture_output=True, text=True, check=False
    )
    if not listing.stdout.strip().isdigit():
        return None
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        # GNU tar keeps below the directory what a name would put elsewhere.
        unpack = [
            "tar",
            "-xf",
            path,
            "-C",
            str(results),
            "--strip-components=2",
            "--no-same-owner",
            "--touch",
            "./files",
        ]
        subprocess.run(unpack, pass_fds=[answer.fileno()], check=False)
    return int(listing.stdout)
