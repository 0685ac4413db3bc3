"""Stack roots to build on: a few programs of this host, a Debian made by mmdebstrap, and images written by hand."""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.processes import ROOT
from support.sites import PERSON, Site, new_site, remove_site

PROGRAMS = ("bash", "cat", "env", "id", "ls", "touch")
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_NO_NETWORK = re.compile(r"Could not resolve|Could not connect|Unable to connect|Connection refused|timed out")


def little_root(path: Path, programs: Sequence[str] = PROGRAMS) -> Path:
    """A root file system of a few of the host's programs and their libraries, in a `/bin` that is no link."""
    for name in ("bin", "etc", "usr"):
        (path / name).mkdir(parents=True)
    (path / "etc/os-release").write_text('PRETTY_NAME="Little 1"\n')
    for name in programs:
        program = shutil.which(name)
        assert program is not None
        shutil.copy(program, path / "bin" / name)
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            target = path / library[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    return path


# -- images


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mtime = 1_000_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def directory(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def layer_of(top: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(top, ".")
    return packed.getvalue()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Layout:
    """An OCI layout."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.entries: list[dict[str, Any]] = []

    def blob(self, content: bytes) -> dict[str, Any]:
        name = digest(content)
        self.path_of(name).write_bytes(content)
        return {"digest": name, "size": len(content)}

    def path_of(self, name: str) -> Path:
        return self.path / "blobs/sha256" / name.removeprefix("sha256:")

    def image(self, *layers: bytes, packed: Sequence[bytes] | None = None, **config: Any) -> dict[str, Any]:
        """The descriptor of a manifest; `id` becomes the image id. `packed` are the layers as they are stored."""
        ids = [digest(content) for content in layers]
        document = {"architecture": ARCHITECTURE, "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}}
        blobs = [self.blob(content) for content in packed or [gzip.compress(found, 1) for found in layers]]
        found = self.blob(json.dumps(document | config).encode())
        self.id = found["digest"]
        return self.blob(json.dumps({"schemaVersion": 2, "config": found, "layers": blobs}).encode())

    def index(self, *entries: dict[str, Any]) -> Layout:
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(entries)}))
        return self


def tagged(entry: Mapping[str, Any], tag: str) -> dict[str, Any]:
    return {**entry, "annotations": {"org.opencontainers.image.ref.name": tag}}


def image(path: Path, *layers: bytes, **options: Any) -> Layout:
    made = Layout(path)
    return made.index(made.image(*layers, **options))


def archive(path: Path, top: Path) -> Path:
    """A layout as one file."""
    with tarfile.open(path, "w") as packed:
        packed.add(top, ".")
    return path


# -- Debian


@dataclass(frozen=True)
class Debian:
    """`image` is an OCI layout (tag `stack`) of two layers, `archive` the same image as `docker save` writes it, and
    `directory` its first layer.
    """

    site: Site
    image: Path
    archive: Path
    directory: Path
    id: str


def make_debian() -> Iterator[Debian]:
    """As an ordinary user, from the host's mirror; packages are unpacked, none is configured.

    Skips, and says so, where the mirror cannot be reached.
    """
    site = new_site("debian")
    try:
        tar = site.path / "first.tar"
        wanted = "bash,coreutils,grep,python3-minimal,base-files,ca-certificates"
        made = tool(
            site,
            *("mmdebstrap", "--mode=chrootless", "--variant=extract", f"--include={wanted}"),
            *('--aptopt=Acquire::Retries "5"', _codename(), str(tar)),
            *glob.glob("/etc/apt/sources.list"),
            *sorted(glob.glob("/etc/apt/sources.list.d/*")),
            check=False,
        )
        if made.returncode != 0:
            if found := _NO_NETWORK.search(made.stderr):
                pytest.skip(f"mmdebstrap cannot reach the mirror: {found[0]}")
            raise AssertionError(made.stderr)
        second = layer(
            symlink("bin/sh", "bash"),
            directory("etc"),
            member("etc/second", b"from the second layer\n"),
            member("etc/.wh.debian_version"),
            member("usr/share/doc/.wh..wh..opq"),
            member("usr/share/doc/kept", b"kept\n"),
            member("root/secret", b"s", mode=0o600),
        )
        site.write("second.tar", second)
        tool(site, "umoci", "init", "--layout", "image")
        tool(site, "umoci", "new", "--image", "image:stack")
        tool(site, "umoci", "raw", "add-layer", "--image", "image:stack", "first.tar")
        tool(site, "umoci", "raw", "add-layer", "--image", "image:stack", "second.tar")
        tool(site, "skopeo", "--insecure-policy", "copy", "oci:image:stack", "docker-archive:saved.tar:debian:stack")
        manifest = tool(site, "skopeo", "inspect", "--raw", "oci:image:stack").stdout
        site.mkdir("directory")
        tool(site, "tar", "-xf", str(tar), "-C", "directory", "--exclude=./dev", "--no-same-owner")
        yield Debian(
            site,
            site.path / "image",
            site.path / "saved.tar",
            site.path / "directory",
            json.loads(manifest)["config"]["digest"],
        )
    finally:
        remove_site(site)


def _codename() -> str:
    release = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=(\w+)", release, re.MULTILINE)
    assert found is not None, release
    return found[1]


def tool(site: Site, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A tool of others, run by whoever runs nsbuild."""
    person: dict[str, Any] = {"user": PERSON, "group": PERSON, "extra_groups": []} if ROOT else {}
    done = subprocess.run(
        words,
        cwd=site.path,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(site.home), "TMPDIR": str(site.path)},
        capture_output=True,
        text=True,
        **person,
    )
    assert not check or done.returncode == 0, done.stderr
    return done
