"""A container of crun's as Docker makes one: its mounts, masks, capabilities and seccomp filter. Writes config.json.

    container.py BUNDLE SECCOMP LABEL COMMAND...

SECCOMP: `nsbuild`, the profile that we ship; `docker`, Docker's own; `none`. The root is the VM's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# github.com/moby/moby, oci/defaults.go and oci/caps/defaults.go
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
    "/sys/firmware",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
    "CAP_AUDIT_WRITE",
)  # fmt: skip
USER = 1000
OURS = "/home/builder/checkout/nsbuild/sandbox/seccomp/container.json"
# github.com/moby/profiles, seccomp/default.json: what ours has replaced by its last rule (container.json.license).
WITHOUT_NAMESPACES: list[dict[str, Any]] = [
    {
        "names": ["clone"],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
    },
    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
]


def config(seccomp: dict[str, Any] | None, label: str, command: list[str]) -> dict[str, Any]:
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")],
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
    }
    if seccomp is not None:
        linux["seccomp"] = for_a_runtime(seccomp)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": USER, "gid": USER},
            "args": command,
            "cwd": "/home/builder/checkout",
            "capabilities": {"bounding": CAPABILITIES},
            **({"apparmorProfile": label} if label else {}),
        },
        "root": {"path": "/run/container-root"},
        "mounts": [
            mount("/proc", "proc", "proc", "nosuid noexec nodev"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid strictatime mode=755 size=65536k"),
            mount("/dev/pts", "devpts", "devpts", "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"),
            mount("/dev/shm", "tmpfs", "shm", "nosuid noexec nodev mode=1777 size=65536k"),
            mount("/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"),
            mount("/sys", "sysfs", "sysfs", "nosuid noexec nodev ro"),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid noexec nodev relatime ro"),
            mount("/tmp", "tmpfs", "tmpfs", "nosuid nodev mode=1777"),
            mount("/run/results/files", "none", "/run/results/files", "rbind rw"),
            mount("/run/job", "none", "/run/job", "rbind ro"),
        ],
        "linux": linux,
    }


def mount(where: str, kind: str, source: str, options: str) -> dict[str, Any]:
    return {"destination": where, "type": kind, "source": source, "options": options.split()}


def for_a_runtime(profile: dict[str, Any]) -> dict[str, Any]:
    """What dockerd makes of its profile for this container: its rules depend on capabilities and architecture."""
    rules = []
    for rule in profile["syscalls"]:
        wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
        if not set(wanted.get("caps", ())) <= set(CAPABILITIES) or set(unwanted.get("caps", ())) & set(CAPABILITIES):
            continue
        if "amd64" not in wanted.get("arches", ["amd64"]) or "amd64" in unwanted.get("arches", []):
            continue
        kept = {name: rule[name] for name in ("names", "action", "errnoRet") if rule.get(name) is not None}
        if rule.get("args"):
            kept["args"] = rule["args"]
        rules.append(kept)
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": rules,
    }


def main(bundle: str, seccomp: str, label: str, *command: str) -> None:
    profile = json.loads(Path(OURS).read_text())
    if seccomp == "docker":
        assert profile["syscalls"][-1]["comment"].startswith("nsbuild:")
        profile["syscalls"][-1:] = WITHOUT_NAMESPACES
    chosen = None if seccomp == "none" else profile
    Path(bundle, "config.json").write_text(json.dumps(config(chosen, label, list(command))))


if __name__ == "__main__":
    main(*sys.argv[1:])
