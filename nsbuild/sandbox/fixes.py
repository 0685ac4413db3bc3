"""How to lift a restriction on this host, as narrowly as it can be done: sysctl lines, profiles, pod settings."""

from __future__ import annotations

import os
from collections.abc import Callable

from nsbuild.sandbox import seccomp
from nsbuild.sandbox.evidence import Evidence

CONTAINER_PROFILE = os.path.join(os.path.dirname(seccomp.__file__), "container.json")
"""Docker's default seccomp profile, with the calls of a launch allowed."""


def say(text: str) -> Callable[[Evidence], str]:
    return lambda evidence: text


def on_host(evidence: Evidence) -> str:
    return f" on the host of this {evidence.container} container" if evidence.container else ""


def sysctl(name: str, value: int) -> Callable[[Evidence], str]:
    def fix(evidence: Evidence) -> str:
        file = "/etc/sysctl.d/90-nsbuild.conf"
        return f"As root{on_host(evidence)}: echo '{name} = {value}' >> {file} && sysctl -p {file}"

    return fix


def seccomp_fix(evidence: Evidence) -> str:
    if evidence.container == "kubernetes":
        return (
            f"Copy {CONTAINER_PROFILE} to /var/lib/kubelet/seccomp/nsbuild.json on every node and give the pod a "
            "user namespace and this profile."
        )
    if evidence.container in ("docker", "podman"):
        host = f"copied to where {evidence.container} runs"
        return f"Start the container with --security-opt seccomp={CONTAINER_PROFILE} ({host})."
    return (
        "Allow clone, unshare, mount, umount2, pivot_root, open_tree, move_mount, mount_setattr, fsopen, fsconfig "
        "and fsmount in the filter this process was started under (systemd: RestrictNamespaces=no and "
        f"SystemCallFilter=@mount; a container: {CONTAINER_PROFILE})."
    )


def seccomp_snippet(evidence: Evidence) -> str:
    return POD.format(apparmor="") if evidence.container == "kubernetes" else ""


POD = """\
spec:
  hostUsers: false
  containers:
  - name: build
    securityContext:
      seccompProfile:
        type: Localhost
        localhostProfile: nsbuild.json
{apparmor}"""
POD_APPARMOR = """\
      appArmorProfile:
        type: Localhost
        localhostProfile: nsbuild-container
"""


def apparmor_profile(path: str) -> str:
    """A profile that lets the file at `path`, and what it starts, make user namespaces, and restricts nothing.

    What it execs keeps the label (an `unconfined` profile passes on where no other attaches), so a script's covers
    its interpreter.
    """
    escaped = "".join(f"\\{character}" if character in '\\"*?[]{}^' else character for character in path)
    return f"""\
abi <abi/4.0>,
include <tunables/global>

profile nsbuild "{escaped}" flags=(unconfined) {{
  userns,

  include if exists <local/nsbuild>
}}
"""


def profile_target(evidence: Evidence) -> str:
    """The file a profile should attach to: what was really exec'd, unless others run it too; else empty."""
    if evidence.script:
        return evidence.script
    shared = os.path.basename(evidence.executable).startswith("python") and evidence.executable.startswith("/usr/")
    return "" if shared else evidence.executable


def apparmor_fix(evidence: Evidence) -> str:
    if evidence.container:
        return container_apparmor_fix(evidence)
    target = profile_target(evidence)
    if not target:
        return (
            f"What was exec'd is {evidence.executable}, which every Python program shares: start nsbuild by its "
            "`nsbuild` script instead, and run doctor that way for the AppArmor profile of that file."
        )
    file = "/etc/apparmor.d/nsbuild"
    fix = f"As root: save this profile of {target} as {file}, then apparmor_parser -r {file}"
    if evidence.ci:
        fix += f" (on {evidence.ci}: in a step before the build, with sudo)"
    return f"{fix}."


def apparmor_snippet(evidence: Evidence) -> str:
    if evidence.container:
        return container_apparmor_snippet(evidence)
    target = profile_target(evidence)
    return apparmor_profile(target) if target else ""


def container_apparmor_fix(evidence: Evidence) -> str:
    load = "As root on the host: save this profile as /etc/apparmor.d/nsbuild-container, apparmor_parser -r it, and"
    if evidence.container == "kubernetes":
        return f"{load} name it in the pod's appArmorProfile (type Localhost)."
    # Not apparmor=unconfined: on Ubuntu 24.04 that is what the restriction of user namespaces is about.
    return f"{load} start the container with --security-opt apparmor=nsbuild-container."


CONTAINER_APPARMOR = """\
abi <abi/4.0>,
include <tunables/global>

profile nsbuild-container flags=(unconfined) {
  userns,
}
"""


def container_apparmor_snippet(evidence: Evidence) -> str:
    pod = POD.format(apparmor=POD_APPARMOR) if evidence.container == "kubernetes" else ""
    return CONTAINER_APPARMOR + pod


def selinux_snippet(evidence: Evidence) -> str:
    fields = (evidence.selinux or "").split(":")
    domain = fields[2] if len(fields) > 2 else "unconfined_t"
    return f"(allow {domain} self (user_namespace (create)))\n"
