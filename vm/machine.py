"""One virtual machine: boots, runs one command in the image as its user, gives back status, output and files.

Everything it writes to on this host is a file without a name, so a run that is killed leaves nothing.
"""

from __future__ import annotations

import os
import select
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import click

from vm import initramfs, job, kernels, rootfs
from vm.errors import Unavailable
from vm.job import Conditions

QEMU = "qemu-system-x86_64"
COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on tsc=unstable"
"""On a busy host a kernel takes the wrong measure of TCG's time stamp counter: its clock ran at thrice the speed."""
PROCESSOR = "max,cx16=off"
"""For TCG: QEMU 7.2 breaks the flags of cmpxchg16b now and then, and kernels that use it (6.12, to allocate) die."""
MEMORY = 768
"""MiB of the guest."""
TRANSLATED = 128
"""MiB of translated code that TCG keeps: a GiB if not told. With 64 it translates much of it again."""
RESULTS = 256 << 20
STARTED = "vm: started"
"""What guest/start says on the console when it comes to the command."""
ATTEMPTS = 4


@dataclass(frozen=True)
class Ended:
    """How a run ended: the command's status, None when the VM never told; the VM's seconds; its console.

    `how` is what became of a VM that never told, in a sentence. `memory` is the most that QEMU took, in bytes; 0 if
    that was not measured.
    """

    status: int | None
    seconds: float
    console: str
    how: str = ""
    memory: int = 0

    def why(self) -> str:
        """For a person: what became of the VM, and its last words."""
        return f"{self.how}\nThe end of its console:\n{self.console.strip()[-8000:] or '(nothing)'}"


def accelerator() -> str:
    """`kvm` only where the processor has it: a /dev/kvm that opens may hang the guest all the same."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return "kvm" if {"vmx", "svm"} & set(flags) and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


def boot(
    kernel: str,
    command: Sequence[str],
    conditions: Conditions,
    *,
    net: bool = False,
    shell: bool = False,
    timeout: float = 1800,
    results: Path | None = None,
    stdout: BinaryIO | None = None,
    stderr: BinaryIO | None = None,
) -> Ended:
    """Run `command` in a VM. What it leaves in $VM_RESULTS is unpacked into `results`, a directory.

    Its output is written as it comes (default: ours). A VM that dies or takes more than `timeout` seconds in all has
    no status. Raises Unavailable when none can be started.
    """
    if shutil.which(QEMU) is None:
        raise Unavailable(f"{QEMU} is not installed here.", "vm/setup installs it.")
    tar, image = rootfs.get()
    chosen = kernels.get(kernel)
    disks = Disks(chosen.image, initramfs.get(chosen, tar), image)
    began = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        with _unnamed() as disk:
            job.write(disk, kernel, command, conditions, net, shell)
            left = timeout - (time.monotonic() - began)
            ended = _boot(disks, disk, conditions.command_line, net, shell, left, results, stdout, stderr)
        if ended.status is not None or STARTED in ended.console or time.monotonic() - began > timeout:
            break
        # TCG is not perfect: now and then a kernel dies before it comes to process 1.
        click.echo(f"vm: the kernel {kernel} died before the command was started (attempt {attempt})", err=True)
        click.echo(ended.why(), err=True)
    return replace(ended, seconds=time.monotonic() - began)


@dataclass(frozen=True)
class Disks:
    """What QEMU reads: a kernel, its initramfs, the image."""

    kernel: Path
    initramfs: Path
    image: Path


def _boot(
    disks: Disks,
    disk: BinaryIO,
    command_line: str,
    net: bool,
    shell: bool,
    timeout: float,
    results: Path | None,
    stdout: BinaryIO | None,
    stderr: BinaryIO | None,
) -> Ended:
    began = time.monotonic()
    with _unnamed() as answer, _unnamed() as console:
        answer.truncate(RESULTS)
        kinds = accelerator()
        accel = f"tcg,tb-size={TRANSLATED}" if kinds == "tcg" else kinds
        # QEMU takes a descriptor of a set only for what it was opened for, and looks at a disk before it writes.
        readable = [os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY) for file in (disk, answer)]
        written = os.open(f"/proc/self/fd/{console.fileno()}", os.O_WRONLY)
        fds = [*readable, answer.fileno(), written]
        qemu = [
            *("setpriv", "--pdeathsig", "KILL", "--", QEMU),
            *("-accel", accel, "-cpu", PROCESSOR if kinds == "tcg" else "host", "-M", "q35"),
            *("-smp", "2", "-m", str(MEMORY)),
            *("-nodefaults", "-display", "none", "-no-reboot", "-no-user-config"),
            *("-kernel", str(disks.kernel), "-initrd", str(disks.initramfs)),
            *("-append", f"{COMMAND_LINE} {command_line}".strip()),
            *("-drive", f"file={disks.image},if=virtio,format=raw,snapshot=on,cache=unsafe"),
            *("-add-fd", f"fd={readable[0]},set=1", "-drive", "file=/dev/fdset/1,if=virtio,format=raw,readonly=on"),
            *("-add-fd", f"fd={readable[1]},set=2", "-add-fd", f"fd={answer.fileno()},set=2"),
            *("-drive", "file=/dev/fdset/2,if=virtio,format=raw,cache=unsafe"),
            *("-add-fd", f"fd={written},set=3", "-chardev", "file,id=c0,path=/dev/fdset/3,append=on"),
            *("-serial", "chardev:c0"),
        ]
        if net:
            qemu += ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="]
        memory = 0
        try:
            if shell:
                qemu += ["-chardev", "stdio,id=c1,signal=off", "-serial", "chardev:c1", "-serial", "null"]
                code = subprocess.run(qemu, pass_fds=fds, check=False, timeout=timeout).returncode
            else:
                code, memory = _relay(qemu, fds, timeout, stdout or sys.stdout.buffer, stderr or sys.stderr.buffer)
            how = f"QEMU ended with {code} after {time.monotonic() - began:.0f} seconds."
        except subprocess.TimeoutExpired:
            how = f"The VM was ended after {timeout:.0f} seconds, the time that it had."
        finally:
            for descriptor in (*readable, written):
                os.close(descriptor)
        status = job.take(answer, results)
        return Ended(status, time.monotonic() - began, _read(console), how, memory)


def _unnamed() -> BinaryIO:
    return tempfile.TemporaryFile(dir=os.environ.get("TMPDIR") or "/var/tmp")


def _relay(qemu: list[str], fds: list[int], timeout: float, stdout: BinaryIO, stderr: BinaryIO) -> tuple[int, int]:
    """Run QEMU and write what comes from its second and third serial line to `stdout` and `stderr`.

    Returns what it exits with, and the most memory that it took, in bytes. Raises subprocess.TimeoutExpired.
    """
    pipes = [os.pipe(), os.pipe()]
    for number, (_, writing) in enumerate(pipes, 1):
        qemu += ["-add-fd", f"fd={writing},set={10 + number}"]
        qemu += [
            "-chardev",
            f"file,id=c{number},path=/dev/fdset/{10 + number},append=on",
            "-serial",
            f"chardev:c{number}",
        ]
    process = subprocess.Popen(qemu, stdin=subprocess.DEVNULL, pass_fds=[*fds, pipes[0][1], pipes[1][1]])
    for _, writing in pipes:
        os.close(writing)
    deadline = time.monotonic() + timeout
    try:
        with selectors.DefaultSelector() as selector:
            for (reading, _), target in zip(pipes, (stdout, stderr), strict=True):
                selector.register(reading, selectors.EVENT_READ, target)
            while selector.get_map():
                # With nothing to wait for, select looks only.
                if not (ready := selector.select(max(0, deadline - time.monotonic()))):
                    raise subprocess.TimeoutExpired(qemu, timeout)
                for key, _ in ready:
                    if chunk := os.read(key.fd, 1 << 16):
                        key.data.write(chunk)
                        key.data.flush()
                    else:
                        selector.unregister(key.fd)
        return _waited(process, max(0, deadline - time.monotonic()))
    finally:
        process.kill()
        process.wait()
        for reading, _ in pipes:
            os.close(reading)


def _waited(process: subprocess.Popen[bytes], timeout: float) -> tuple[int, int]:
    """As Popen.wait, which keeps to itself what wait4 tells: the status, and the peak of memory in bytes."""
    ended = os.pidfd_open(process.pid)
    try:
        if not select.select([ended], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(process.args, timeout)
    finally:
        os.close(ended)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss << 10


def _read(console: BinaryIO) -> str:
    console.seek(0)
    return console.read().decode(errors="replace")
