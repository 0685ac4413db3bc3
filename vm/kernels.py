"""Kernels of Debian's suites: pinned in kernels.lock, fetched once, kept by digest."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import click

from vm import cache
from vm.apt import ARCHITECTURE, Apt, run
from vm.errors import Unavailable

HERE = Path(__file__).parent
LOCK = HERE / "kernels.lock"
META = f"linux-image-cloud-{ARCHITECTURE}"


@dataclass(frozen=True)
class Package:
    """One .deb: its name, version, and the sha256 of the file."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Kernel:
    """A kernel in the cache: `image` is what QEMU boots, `modules` the directory of its *.ko or *.ko.xz."""

    name: str
    image: Path
    modules: Path


def suites() -> dict[str, str]:
    """Kernel to suite, as in kernels.toml, oldest first."""
    with (HERE / "kernels.toml").open("rb") as file:
        return {name: entry["suite"] for name, entry in tomllib.load(file)["kernels"].items()}


def locked() -> dict[str, tuple[Package, ...]]:
    """Kernel to its packages, as in kernels.lock."""
    with LOCK.open("rb") as file:
        table = tomllib.load(file)
    return {name: tuple(Package(**package) for package in packages) for name, packages in table.items()}


@functools.cache
def get(name: str) -> Kernel:
    """The kernel, fetched if need be. Raises Unavailable for an unknown name, or when no mirror has it."""
    if name not in suites():
        raise Unavailable(f"There is no kernel {name}.", f"kernels.toml has {', '.join(suites())}.")
    packages = locked().get(name, ())
    directory = _directory(packages)
    if directory.exists():
        return _opened(name, directory)
    with cache.scratch() as work:
        apt = Apt(work, suites()[name])
        gone = [package for package in packages if not apt.show(f"{package.name}={package.version}")]
        if gone or not packages:
            current = resolve(apt)
            why = (
                f"{suites()[name]} no longer has {gone[0].name} {gone[0].version}, which kernels.lock names"
                if gone
                else f"kernels.lock says nothing of {name}"
            )
            found = f"{current[0].name} {current[0].version}"
            click.echo(f"vm: {why}; taking what it has now, {found} (vm/lock writes that down)", err=True)
            packages = current
        directory = cache.made(
            _directory(packages).name, f"kernel {name}", lambda made: _unpacked(apt, packages, made)
        )
    return _opened(name, directory)


def resolve(apt: Apt) -> tuple[Package, ...]:
    """The packages of the suite's current kernel: the image and, where that is empty, its binary and modules."""
    names = _depends(apt, META, r"linux-image-\d")
    names += _depends(apt, names[0], r"linux-(binary|modules)-\d")
    shown = [apt.show(name) for name in names]
    return tuple(Package(each["Package"], each["Version"], each["SHA256"]) for each in shown)


def lock() -> None:
    """Write kernels.lock: what every suite has now."""
    text = "# Written by vm/lock: the packages of each kernel in kernels.toml.\n"
    for name, suite in suites().items():
        with cache.scratch() as work:
            for package in resolve(Apt(work, suite)):
                text += f'\n[["{name}"]]\nname = "{package.name}"\nversion = "{package.version}"\n'
                text += f'sha256 = "{package.sha256}"\n'
    LOCK.write_text(text)


def _depends(apt: Apt, package: str, pattern: str) -> list[str]:
    words = re.split(r"[,|]\s*", apt.show(package).get("Depends", ""))
    names = [word.split()[0] for word in words if re.match(pattern, word)]
    if not names and package == META:
        raise Unavailable(f"{apt.suite} has no {META}.")
    return names


def _directory(packages: tuple[Package, ...]) -> Path:
    return cache.directory() / f"kernel-{cache.digest(*(package.sha256 for package in packages))[:16]}"


def _unpacked(apt: Apt, packages: tuple[Package, ...], work: Path) -> Path:
    tree = work / "tree"
    tree.mkdir()
    debs = work / "debs"
    debs.mkdir()
    for package in packages:
        file = apt.download(package.name, package.version, debs)
        if (found := cache.digest_of(file)) != package.sha256:
            raise Unavailable(f"{package.name} {package.version} has sha256 {found}, not {package.sha256} as locked.")
        run(["dpkg-deb", "--extract", file, tree])
    # Where they are differs: /boot or beside the modules, /lib or /usr/lib.
    kept = work / "kernel"
    kept.mkdir()
    (image,) = tree.rglob("vmlinuz*")
    (modules,) = (path for path in tree.rglob("modules/*/kernel") if path.is_dir())
    image.rename(kept / "vmlinuz")
    modules.rename(kept / "modules")
    return kept


def _opened(name: str, directory: Path) -> Kernel:
    return Kernel(name, directory / "vmlinuz", directory / "modules")
