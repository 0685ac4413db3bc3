"""How vm/ gets its kernels: a real apt, a mirror on loopback, packages that are kernels by their names only."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.servers import Server, serving

from vm import apt, cache, kernels
from vm.errors import Unavailable
from vm.kernels import META, Package

NAME = "linux-image-6.12.0-cloud-amd64"
SUITE = "trixie"


class Mirror:
    """A suite that has one version of a kernel."""

    def __init__(self, server: Server, packages: Path) -> None:
        self.server = server
        self.packages = packages

    def has(self, version: str) -> Package:
        """From now on, and no other; what a lock says of it."""
        content = package(self.packages, version)
        found = Package(NAME, version, hashlib.sha256(content).hexdigest())
        self.server.put(f"/pool/{NAME}_{version}.deb", content)
        listed = "main/binary-amd64/Packages"
        packages = (
            f"Package: {NAME}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{NAME}_{version}.deb\n"
            f"Size: {len(content)}\nSHA256: {found.sha256}\n\n"
            f"Package: {META}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/none.deb\n"
            f"Size: 1\nSHA256: {'0' * 64}\nDepends: {NAME} (= {version})\n"
        ).encode()
        release = (
            f"Suite: {SUITE}\nCodename: {SUITE}\nArchitectures: amd64\nComponents: main\nSHA256:\n"
            f" {hashlib.sha256(packages).hexdigest()} {len(packages)} {listed}\n"
        )
        self.server.put(f"/dists/{SUITE}/{listed}", packages)
        self.server.put(f"/dists/{SUITE}/Release", release.encode())
        return found


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """In the place of Debian's; it signs nothing. The cache is empty."""
    monkeypatch.setattr(apt, "TRUST", "trusted=yes")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    kernels.get.cache_clear()
    with serving() as server:
        monkeypatch.setenv("VM_MIRROR", server.url)
        yield Mirror(server, tmp_path)
    kernels.get.cache_clear()


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What kernels.lock says of 6.12."""
    return lambda *packages: monkeypatch.setattr(kernels, "locked", lambda: {"6.12": packages})


def package(where: Path, version: str) -> bytes:
    tree = where / version
    for name, text in (
        (
            "DEBIAN/control",
            f"Package: {NAME}\nVersion: {version}\nArchitecture: amd64\nMaintainer: x\nDescription: x\n",
        ),
        ("boot/vmlinuz-6.12.0", f"kernel {version}"),
        ("usr/lib/modules/6.12.0/kernel/fs/overlay.ko", "module"),
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", tree, f"{tree}.deb"], check=True, capture_output=True
    )
    return Path(f"{tree}.deb").read_bytes()


def test_a_locked_kernel_is_fetched_once(
    mirror: Mirror, lock: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    lock(mirror.has("1.0"))
    kernel = kernels.get("6.12")
    assert kernel.image.read_text() == "kernel 1.0"
    assert (kernel.modules / "fs/overlay.ko").read_text() == "module"
    assert capfd.readouterr().err == "vm: making kernel 6.12\n"
    asked = len(mirror.server.asked)
    kernels.get.cache_clear()
    assert kernels.get("6.12") == kernel
    assert len(mirror.server.asked) == asked


def test_one_that_the_mirror_no_longer_has_is_said_and_the_current_one_taken(
    mirror: Mirror, lock: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    lock(mirror.has("1.0"))
    mirror.has("2.0")
    assert kernels.get("6.12").image.read_text() == "kernel 2.0"
    assert (
        f"vm: {SUITE} no longer has {NAME} 1.0, which kernels.lock names; taking what it has now, {NAME} 2.0"
        " (vm/lock writes that down)\n" in capfd.readouterr().err
    )


def test_one_that_is_not_what_was_locked_is_refused(mirror: Mirror, lock: Callable[..., None]) -> None:
    mirror.has("1.0")
    lock(Package(NAME, "1.0", "0" * 64))
    with pytest.raises(Unavailable, match=rf"{NAME} 1\.0 has sha256 [0-9a-f]+, not 0+ as locked"):
        kernels.get("6.12")
    assert not list(cache.directory().glob("kernel-*/*"))


def test_one_that_the_mirror_lists_and_does_not_have(mirror: Mirror, lock: Callable[..., None]) -> None:
    lock(mirror.has("1.0"))
    del mirror.server.pages[f"/pool/{NAME}_1.0.deb"]
    with pytest.raises(Unavailable, match=r"apt-get failed with 100: .*404"):
        kernels.get("6.12")


def test_a_mirror_without_the_suite(mirror: Mirror, lock: Callable[..., None]) -> None:
    lock(Package(NAME, "1.0", "0" * 64))
    with pytest.raises(Unavailable, match=rf"apt-get failed with 100: .*{SUITE}"):
        kernels.get("6.12")


def test_the_mirror_is_that_of_a_machine_that_has_fetched_no_lists_yet(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.has("1.0")
    mirror.server.pages |= {f"/debian{path}": page for path, page in mirror.server.pages.items()}
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes arch=amd64] {mirror.server.url}/debian {SUITE} main\n")
    for name in ("state/lists/partial", "cache/archives/partial", "nothing"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "{tmp_path}/nothing";\n'
        f'Dir::State "{tmp_path}/state";\nDir::Cache "{tmp_path}/cache";\nAPT::Sandbox::User "";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.delenv("VM_MIRROR")
    assert apt.mirror() == f"{mirror.server.url}/debian"
    assert f"/debian/dists/{SUITE}/Release" in {path for path, _ in mirror.server.asked}
