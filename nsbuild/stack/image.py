"""Images as files: OCI layouts, and the archives that `docker save` and `skopeo copy` write."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from nsbuild.stack.layers import Malformed
from nsbuild.tree import open_beneath

_BLOCK = 1 << 20
_DOCUMENT = 8 << 20
"""An index, a manifest or a configuration is smaller, in bytes."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
"""The kernel's names, and those of images (Go's GOARCH)."""
_TAG = "org.opencontainers.image.ref.name"


class Files(Protocol):
    """The files of an image by name, in a directory or an archive."""

    def open(self, name: str) -> BinaryIO:
        """Raises FileNotFoundError, Malformed, OSError."""


@dataclass(frozen=True)
class Image:
    """`digest` is that of the configuration, which names each layer's content: the image id.

    `layers` are (file, digest of what it holds uncompressed), the lowest first.
    """

    digest: str
    layers: tuple[tuple[str, str], ...]


def read_image(files: Files, tag: str = "") -> Image:
    """The image for this machine. Raises Malformed, OSError."""
    try:
        manifests = _document(files, "manifest.json")
    except FileNotFoundError:
        return _read_oci(files, tag)
    return _read_docker(files, manifests)


def _read_docker(files: Files, manifests: Any) -> Image:
    if not isinstance(manifests, list) or not manifests:
        raise Malformed("has a manifest.json without an image")
    if len(manifests) > 1:
        raise Malformed(f"holds {len(manifests)} images, where one is wanted")
    try:
        config, layers = str(manifests[0]["Config"]), [str(layer) for layer in manifests[0]["Layers"]]
    except (KeyError, TypeError) as error:
        raise Malformed("has a malformed manifest.json") from error
    return _image(_read(files, config), layers)


def _read_oci(files: Files, tag: str) -> Image:
    try:
        index = _document(files, "index.json")
    except FileNotFoundError:
        raise Malformed("has neither a manifest.json nor an index.json") from None
    for _ in range(4):
        chosen = _choose(index, tag)
        document = _document(files, _blob(chosen), expected=str(chosen["digest"]))
        if chosen.get("mediaType") not in _INDEXES and "manifests" not in document:
            break
        index, tag = document, ""
    try:
        config, layers = document["config"], document["layers"]
        content = _read(files, _blob(config))
        _check(content, config["digest"])
        return _image(content, [_blob(layer) for layer in layers])
    except (KeyError, TypeError) as error:
        raise Malformed("has a malformed manifest") from error


def _choose(index: Any, tag: str) -> Mapping[str, Any]:
    """The entry of an index that has the tag, or is for this machine, or is the only one."""
    try:
        found = [dict(entry) for entry in index["manifests"]]
        tags = [str((entry.get("annotations") or {}).get(_TAG, "")) for entry in found]
        if tag:
            found = [entry for entry, own in zip(found, tags, strict=True) if own == tag]
            if not found:
                raise Malformed(f"has no tag {tag!r}: it has {', '.join(filter(None, sorted(tags))) or 'none'}")
        if len(found) > 1:
            found = [entry for entry in found if (entry.get("platform") or {}).get("architecture") == _machine()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise error if isinstance(error, Malformed) else Malformed("has a malformed index") from error
    if len(found) != 1:
        named = ", ".join(filter(None, tags))
        raise Malformed(
            f"holds more than one image: name one of the tags {named}"
            if named
            else f"holds {len(found) or 'no'} images for {_machine()}, where one is wanted"
        )
    return found[0]


def _image(content: bytes, layers: list[str]) -> Image:
    try:
        config = json.loads(content)
        architecture, contents = config.get("architecture"), [str(found) for found in config["rootfs"]["diff_ids"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed("has a malformed configuration") from error
    if architecture and architecture != _machine():
        raise Malformed(f"is for {architecture}, and this machine is {_machine()}")
    if len(contents) != len(layers) or not all(_DIGEST.fullmatch(found) for found in contents):
        raise Malformed("has a configuration that does not fit its layers")
    return Image(f"sha256:{hashlib.sha256(content).hexdigest()}", tuple(zip(layers, contents, strict=True)))


def _machine() -> str:
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def _blob(descriptor: Mapping[str, Any]) -> str:
    digest = str(descriptor["digest"])
    if not _DIGEST.fullmatch(digest):
        raise Malformed(f"has a digest {digest!r}")
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _document(files: Files, name: str, expected: str = "") -> Any:
    content = _read(files, name)
    if expected:
        _check(content, expected)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"has a {name} that is no JSON") from error


def _read(files: Files, name: str) -> bytes:
    with files.open(name) as file:
        content = file.read(_DOCUMENT + 1)
    if len(content) > _DOCUMENT:
        raise Malformed(f"has a {name} of more than {_DOCUMENT} bytes")
    return content


def _check(content: bytes, expected: str) -> None:
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != expected:
        raise Malformed(f"is damaged: {expected} is something else")


class Layer(io.RawIOBase):
    """What a layer holds, uncompressed: a stream that knows its digest."""

    def __init__(self, files: Files, name: str) -> None:
        self._file = files.open(name)
        self._content = uncompressed(self._file)
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._content.read(len(buffer))
        self._hash.update(data)
        buffer[: len(data)] = data
        return len(data)

    def check(self, digest: str) -> None:
        """Read the rest. Raises Malformed when it was not what `digest` names."""
        while self.read(_BLOCK):
            continue
        if f"sha256:{self._hash.hexdigest()}" != digest:
            raise Malformed(f"is damaged: a layer is not {digest}")

    def close(self) -> None:
        self._file.close()
        super().close()


def uncompressed(file: BinaryIO) -> BinaryIO:
    """What a file holds; gzip and zstd are known by their first bytes. Raises Malformed."""
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file, mode="rb")  # type: ignore[return-value]
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        stream: BinaryIO = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            file, read_across_frames=True
        )
        return stream
    for start, name in ((b"BZh", "bzip2"), (b"\xfd7zXZ", "xz")):
        if magic.startswith(start):
            raise Malformed(f"is compressed by {name}: gzip and zstd are understood")
    return file


class DirectoryFiles:
    """An OCI layout: `directory` is a descriptor."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._opened: dict[str, int] = {}

    def open_all(self) -> None:
        """Open what may be closed to the user whom this process is about to become; umoci makes layouts of 0700."""
        try:
            blobs = open_beneath(self._directory, "blobs/sha256", os.O_RDONLY | os.O_DIRECTORY)
            names = ["index.json", *(f"blobs/sha256/{name}" for name in os.listdir(blobs))]
            os.close(blobs)
        except OSError:
            return  # said when one is wanted
        for name in names:
            with contextlib.suppress(OSError):
                self._opened[name] = self._open(name)

    def open(self, name: str) -> BinaryIO:
        if self._opened and name not in self._opened:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        fd = os.dup(self._opened[name]) if self._opened else self._open(name)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Malformed(f"has a {name} that is no file")
        os.lseek(fd, 0, os.SEEK_SET)
        return open(fd, "rb")  # noqa: PTH123

    def _open(self, name: str) -> int:
        return open_beneath(self._directory, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)


class ArchiveFiles:
    """A tar of an image, compressed or not; a compressed one is unpacked to a nameless file first."""

    def __init__(self, file: BinaryIO) -> None:
        content = uncompressed(file)
        if content is not file:
            file = tempfile.TemporaryFile(dir=".")
            shutil.copyfileobj(content, file, _BLOCK)
            file.seek(0)
        try:
            self._archive = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")
            self._members = {member.name.removeprefix("./"): member for member in self._list()}
        except tarfile.TarError as error:
            raise Malformed(f"is no archive ({error})") from error

    def _list(self) -> Iterator[tarfile.TarInfo]:
        last = -1
        while (member := self._archive.next()) is not None:
            if member.size < 0 or member.offset <= last:
                raise Malformed("is damaged")  # a tarfile before 3.13.6 would read on in a circle
            last = member.offset
            yield member

    def open(self, name: str) -> BinaryIO:
        # Of two images with one layer `docker save` before 25 made the second a link to the first.
        try:
            found = self._archive.extractfile(self._members[name])
        except (KeyError, RecursionError):
            found = None
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return found  # type: ignore[return-value]
