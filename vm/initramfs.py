"""The initramfs: busybox, the few modules that a VM needs, and guest/init. The same bytes for the same inputs."""

from __future__ import annotations

import lzma
import os
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

from vm import cache
from vm.kernels import Kernel

GUEST = Path(__file__).parent / "guest"
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "overlay", "squashfs", "loop", "quota_v2", "fuse", "veth")
"""What is loaded when it is a module, and skipped when the kernel has it built in."""
BUSYBOX = "./usr/bin/busybox"


def get(kernel: Kernel, rootfs: Path) -> Path:
    """The initramfs for a kernel, with the static busybox of `rootfs`, a tar."""
    name = f"initramfs-{cache.digest(Path(__file__), GUEST / 'init', kernel.image.parent.name, rootfs.name)[:16]}"

    def make(work: Path) -> Path:
        with tarfile.open(rootfs) as tar:
            busybox = tar.extractfile(BUSYBOX)
            assert busybox is not None, "the image's list of packages has busybox-static"
            content = archive(busybox.read(), (GUEST / "init").read_bytes(), _modules(kernel.modules))
        (work / "made").write_bytes(content)
        return work / "made"

    return cache.made(name, f"the initramfs of {kernel.name}", make)


def archive(busybox: bytes, init: bytes, modules: Mapping[str, bytes]) -> bytes:
    """A cpio (newc) archive; `modules` in the order in which they are to be loaded."""
    entries = [
        *((name, 0o040755, b"") for name in ("bin", "dev", "modules", "proc", "run", "sys")),
        ("bin/busybox", 0o100755, busybox),
        ("bin/sh", 0o120777, b"busybox"),
        ("init", 0o100755, init),
        *((f"modules/{number:02}-{name}.ko", 0o100644, data) for number, (name, data) in enumerate(modules.items())),
        ("TRAILER!!!", 0, b""),
    ]
    return b"".join(_entry(number, *entry) for number, entry in enumerate(entries, 1))


def _entry(inode: int, name: str, mode: int, data: bytes) -> bytes:
    # newc: inode, mode, uid, gid, links, mtime, size, four device numbers, length of the name, checksum
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(header) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _modules(directory: Path) -> dict[str, bytes]:
    """MODULES and what they depend on, each after that."""
    files = {
        re.sub(r"\.ko(\.xz)?$", "", name).replace("-", "_"): Path(top) / name
        for top, _, names in os.walk(directory)
        for name in names
    }
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in loaded or name not in files:
            return
        data = files[name].read_bytes()
        data = lzma.decompress(data) if files[name].suffix == ".xz" else data
        # depmod reads the same line of .modinfo
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in depends[1].decode().split(",") if depends else ():
            load(needed.replace("-", "_"))
        loaded[name] = data

    for name in MODULES:
        load(name)
    return loaded
