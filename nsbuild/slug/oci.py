"""A slug as an OCI image layout, without a daemon: the app's layer, one of a stack if there is one, and a config that
boots as a dyno does.

https://github.com/opencontainers/image-spec: image-layout.md, manifest.md, config.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nsbuild.slug import tar
from nsbuild.slug.archive import TIME, Contents, Sink, Watcher, write_tree
from nsbuild.slug.boot import RUN_PATH, boot
from nsbuild.slug.compress import Packed
from nsbuild.slug.formats import ANNOTATION
from nsbuild.tree import fsync_directory

RUN_PATH_LABEL = "io.nsbuild.run-path"
_LABELS = {"layout": "io.nsbuild.layout", "stack": "io.nsbuild.stack"}
_MEDIA = "application/vnd.oci.image"
_CREATED = "1980-01-01T00:00:01Z"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}


@dataclass(frozen=True)
class Image:
    """What an image says of itself. `config_vars` are bin/release's defaults; `stack_root` is a directory whose
    contents become the layer below the app's, without which the image has neither bash nor anything else to run.
    """

    run_path: str = "/app"
    layout: str = "app"
    stack: str = ""
    process_types: Mapping[str, str] = field(default_factory=dict)
    config_vars: Mapping[str, str] = field(default_factory=dict)
    stack_root: Path | None = None


@dataclass(frozen=True)
class Written:
    """`digest` is the manifest's, in hexadecimal; `bytes` are those of all blobs but the stack's layer. `unread` is
    what of the stack was left out: we may not read it, or it is a mount.
    """

    contents: Contents
    digest: str
    bytes: int
    unread: list[str]


def write_image(app: str, directory: str, image: Image, watcher: Watcher | None) -> Written:
    """Write the image of the tree `app` into the empty `directory`, on disk when this returns. Raises OSError."""
    blobs = _Blobs(directory)
    layers, unread, below = [], list[str](), 0
    if image.stack_root is not None:
        stack, found = blobs.stack(str(image.stack_root))
        layers, unread, below = [stack], found.unread, stack.size
    layer, contents = blobs.app(app, f"{image.run_path.strip('/')}/", watcher)
    layers.append(layer)
    config = blobs.json(_config(image, [layer.plain_digest for layer in layers]))
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA}.manifest.v1+json",
        "config": {"mediaType": f"{_MEDIA}.config.v1+json", **config},
        "layers": [
            {"mediaType": f"{_MEDIA}.layer.v1.tar+gzip", "digest": f"sha256:{layer.digest}", "size": layer.size}
            for layer in layers
        ],
        "annotations": {RUN_PATH_LABEL: image.run_path},
    }
    described = blobs.json(manifest)
    index = {
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA}.index.v1+json",
        "manifests": [
            {
                "mediaType": f"{_MEDIA}.manifest.v1+json",
                **described,
                "annotations": {"org.opencontainers.image.ref.name": "latest"},
            }
        ],
        "annotations": {ANNOTATION: "1"},
    }
    blobs.write("index.json", _encoded(index))
    blobs.write("oci-layout", _encoded({"imageLayoutVersion": "1.0.0"}))
    for path in ("blobs/sha256", "blobs", ""):
        fsync_directory(f"{directory}/{path}")
    return Written(contents, str(described["digest"]).removeprefix("sha256:"), blobs.bytes - below, unread)


def _config(image: Image, diff_ids: list[str]) -> dict[str, object]:
    web = image.process_types.get("web")
    environment = {"PATH": RUN_PATH, "LANG": "C.UTF-8", "PORT": "5000", **image.config_vars, "HOME": image.run_path}
    labels = {RUN_PATH_LABEL: image.run_path, _LABELS["layout"]: image.layout, _LABELS["stack"]: image.stack}
    return {
        "created": _CREATED,
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {
            "Entrypoint": boot([]),
            "Cmd": ["bash", *([] if web is None else ["-c", web])],
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "WorkingDir": image.run_path,
            "Labels": {name: value for name, value in sorted(labels.items()) if value},
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in diff_ids]},
        "history": [{"created": _CREATED, "created_by": "nsbuild"} for _ in diff_ids],
    }


def _encoded(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class _Layer:
    digest: str
    plain_digest: str
    size: int


class _Blobs:
    """The files of a layout under way."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.bytes = 0
        os.makedirs(f"{directory}/blobs/sha256")

    def write(self, name: str, data: bytes) -> None:
        fd = os.open(f"{self._directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as file:  # noqa: PTH123
            file.write(data)
            file.flush()
            os.fsync(fd)

    def json(self, value: object) -> dict[str, object]:
        """A blob's digest and size, as a descriptor tells them."""
        data = _encoded(value)
        digest = hashlib.sha256(data).hexdigest()
        self.write(f"blobs/sha256/{digest}", data)
        self.bytes += len(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def app(self, tree: str, prefix: str, watcher: Watcher | None) -> tuple[_Layer, Contents]:
        """The layer of an app, with the directories that lead to it."""

        def write(sink: Sink) -> Contents:
            parts = prefix.split("/")[:-2]
            for depth in range(len(parts)):
                above = "/".join(parts[: depth + 1])
                sink(tar.member(os.fsencode(f"{above}/"), tar.DIRECTORY, 0o755, TIME))
            return write_tree(tree, sink, prefix=prefix, watcher=watcher)

        return self._layer(write)

    def stack(self, root: str) -> tuple[_Layer, Contents]:
        """The layer of a root file system, of which nothing is changed. What is mounted in it counts as unread."""
        top = os.stat(root)
        mounts: list[str] = []

        def prune(name: str, info: os.stat_result) -> bool:
            if info.st_dev == top.st_dev:
                return False
            mounts.append(name)
            return True

        layer, contents = self._layer(lambda sink: write_tree(root, sink, own=False, prune=prune))
        contents.unread += mounts
        return layer, contents

    def _layer(self, write: Callable[[Sink], Contents]) -> tuple[_Layer, Contents]:
        beside = f"{self._directory}/blobs/new"
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with Packed(fd, "gzip", hash_plain=True) as packed:
                contents = write(packed)
                packed(tar.END)
            os.fsync(fd)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        os.rename(beside, f"{self._directory}/blobs/sha256/{packed.digest}")
        self.bytes += size
        return _Layer(packed.digest, packed.plain_digest, size), contents
