"""The disk image: Debian with what scripts/setup asks for, and a set-up checkout in the home of the user `builder`.

What is in the checkout comes with every job; the image has only what `scripts/setup` makes of it, which is why the
image is kept by the digest of the files that are its inputs.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vm import cache
from vm.apt import ARCHITECTURE, KEYRING, bound, mirror, run
from vm.errors import Unavailable

ROOT = Path(__file__).parent.parent
SUITE = "trixie"
PYTHON = "3.13"
PACKAGES = (
    "apparmor",
    "busybox-static",
    "crun",
    "e2fsprogs",
    "iproute2",
    "libarchive13t64",
    "procps",
    "python3-dev",
    "python3-venv",
)
"""Beside those of `scripts/setup --print-packages`."""
SDISTS = ("python-prctl",)
"""Dependencies without wheels: compiled in the image."""
INPUTS = ("pyproject.toml", "README.md", "LICENSE", "scripts/setup", "scripts/nsbuild", "tests/wheelhouse.txt")
CHECKOUT = "home/builder/checkout"
EPOCH = "1700000000"
UUID = "6e736275-696c-4264-8000-000000000000"
SIZE = "6G"


def get() -> tuple[Path, Path]:
    """The root file system, as a tar and as an ext4 image. Takes minutes the first time."""
    key = _key()
    tar = cache.made(f"rootfs-{key}.tar", f"the image's files (Debian {SUITE}; some minutes)", _tar)
    return tar, cache.made(f"rootfs-{key}.ext4", "the disk image", lambda work: _ext4(tar, work))


@functools.cache
def _key() -> str:
    """Once: who edits this file while a matrix runs would have the new name for what the old code makes."""
    return cache.digest(Path(__file__), *(ROOT / name for name in INPUTS if name != "README.md"))[:16]


def _tar(work: Path) -> Path:
    wheels = work / "wheels"
    wheels.mkdir()
    _download(wheels)
    with tarfile.open(work / "inputs.tar", "w") as tar:
        for name in (*INPUTS, "nsbuild/__init__.py"):
            tar.add(ROOT / name, f"{CHECKOUT}/{name}")
    packages = [*PACKAGES, *run([ROOT / "scripts/setup", "--print-packages"]).split()]
    # Debug information has the name of the directory that pip compiles in.
    as_builder = (
        "runuser -u builder -- env -i PATH=/usr/bin:/bin HOME=/home/builder LC_ALL=C.UTF-8 "
        f"SOURCE_DATE_EPOCH={EPOCH} PYTHONHASHSEED=0 CFLAGS=-g0 "
        "PIP_NO_INDEX=1 PIP_NO_CACHE_DIR=1 PIP_FIND_LINKS=/wheels"
    )
    hooks = [
        f"copy-in {wheels} /",
        'chroot "$1" useradd --create-home --shell /bin/bash builder',
        f"tar-in {work / 'inputs.tar'} /",
        f'chroot "$1" chown -R builder: /{CHECKOUT}',
        f'chroot "$1" {as_builder} /{CHECKOUT}/scripts/setup',
        'rm -rf "$1/wheels" "$1"/var/log/*',
    ]
    made = work / "rootfs.tar"
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--architectures={ARCHITECTURE}",
        f"--keyring={KEYRING}",
        f"--include={','.join(packages)}",
        # apt gives directories to its user only where that could read them, which is not so below /root.
        '--aptopt=APT::Sandbox::User "root"',
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        *(f"--customize-hook={hook}" for hook in hooks),
        SUITE,
        str(made),
        mirror(),
    ]
    # What it fetches and unpacks is a gigabyte: not in a small /tmp.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "TMPDIR": str(work)}
    done = subprocess.run(bound(command), env=environment, stdout=2, check=False)
    if done.returncode:
        raise Unavailable(f"mmdebstrap failed with {done.returncode}: what it said is above.")
    return made


def _download(to: Path) -> None:
    """Wheels for the image's Python, by this host's pip, which knows how this host reaches an index."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    wanted = _requirements(project, "dev")
    prctl = [line for line in wanted if line.startswith(SDISTS)]
    wanted = [line for line in wanted if line not in prctl]
    pip = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(to)]
    # The image's Python is not ours. Tags say which glibc at least; the image's is 2.41.
    tags = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(5, 42)]
    tags += [f"--platform={name}_x86_64" for name in ("manylinux1", "manylinux2010", "manylinux2014", "linux")]
    foreign = [f"--python-version={PYTHON}", "--implementation=cp", "--only-binary=:all:", *tags]
    for arguments in (
        [*foreign, *wanted, "pip", "setuptools", "wheel"],
        [*foreign, "-r", str(ROOT / "tests/wheelhouse.txt")],
        ["--no-deps", "--no-build-isolation", "--no-binary=:all:", *prctl],
    ):
        _checked([*pip, *arguments])


def _requirements(project: dict[str, Any], extra: str) -> list[str]:
    """What the project asks for with an extra, which may name others as `nsbuild[other]`."""
    found = list(project["dependencies"])
    pending, seen = [extra], set()
    while pending:
        seen.add(name := pending.pop())
        for line in project["optional-dependencies"][name]:
            if own := re.fullmatch(rf"{project['name']}\[(.*)\]", line):
                pending += [each for each in re.split(r",\s*", own[1]) if each not in seen]
            else:
                found.append(line)
    return found


def _checked(command: Sequence[str]) -> None:
    done = subprocess.run(bound(command), stdout=2, check=False)
    if done.returncode:
        raise Unavailable("pip could not download what the image needs: what it said is above.")


def _ext4(tar: Path, work: Path) -> Path:
    """By the image's own mke2fs: older ones do not read a tar, and order directories as the host's disk does."""
    files = work / "tools"
    files.mkdir()
    run(
        ["tar", "-xf", tar, "-C", files, "--no-same-owner", "--wildcards", "--exclude=*/python3*", "./lib*",
         "./usr/lib/x86_64-linux-gnu/*.so*", "./usr/lib64", "./usr/sbin/mke2fs", "./etc/mke2fs.conf"]
    )  # fmt: skip
    made = work / "made"
    features = "^has_journal"
    environment = {
        "E2FSPROGS_FAKE_TIME": EPOCH,
        "SOURCE_DATE_EPOCH": EPOCH,
        "MKE2FS_CONFIG": f"{files}/etc/mke2fs.conf",
    }
    libraries = files / "usr/lib/x86_64-linux-gnu"
    command: list[str | Path] = [
        libraries / "ld-linux-x86-64.so.2",
        "--library-path",
        libraries,
        files / "usr/sbin/mke2fs",
        "-q",
        "-F",
    ]
    command += ["-t", "ext4", "-O", features, "-U", UUID, "-E", f"hash_seed={UUID},lazy_itable_init=1", "-m", "0"]
    done = subprocess.run(
        [*command, "-d", tar, made, SIZE],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Unavailable(f"mke2fs failed with {done.returncode}: {done.stderr.strip()}")
    return made
