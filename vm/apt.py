"""Debian packages of any suite, through an apt of our own that shares nothing with the host's but its mirror."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vm.errors import Unavailable

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TRUST = f"signed-by={KEYRING}"
ARCHITECTURE = "amd64"


def mirror() -> str:
    """The Debian mirror that this host is set up for, or VM_MIRROR. Raises Unavailable when there is neither."""
    if chosen := os.environ.get("VM_MIRROR"):
        return chosen
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    if not (uris := run(asked).split()):
        # It shows what was fetched, which on a new machine is nothing.
        run(["apt-get", "update", "-qq"])
        uris = run(asked).split()
    for uri in uris:
        if uri.rstrip("/").endswith("/debian"):
            return uri.rstrip("/")
    raise Unavailable(
        "No source in /etc/apt is a Debian mirror.", "Set VM_MIRROR to one, such as http://HOST/debian."
    )


def run(command: Sequence[str | Path], **options: str | Path) -> str:
    """What `command` prints. Raises Unavailable with what it complained of."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment, cwd=options.get("cwd")
        )
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not installed here.", "vm/setup says what to install.") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split("\n")[-6:]).strip()
        raise Unavailable(f"{command[0]} failed with {error.returncode}: {said}") from None
    return done.stdout


def bound(command: Sequence[str | Path]) -> list[str | Path]:
    """`command`, to end when we do, with all that it has started and mounted where we are root.

    What a killed mmdebstrap leaves mounted in its directory would be removed with that.
    """
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    return ["setpriv", "--pdeathsig", "KILL", "--", *(namespaces if os.geteuid() == 0 else ()), *command]


class Apt:
    """One suite of Debian's, with lists and state in `directory`, which the caller removes."""

    def __init__(self, directory: Path, suite: str) -> None:
        self.directory = directory
        self.suite = suite
        for name in ("state/lists/partial", "cache/archives/partial", "etc"):
            (directory / name).mkdir(parents=True)
        if not os.path.exists(KEYRING):
            raise Unavailable(f"{KEYRING} is not there.", "apt-get install debian-archive-keyring")
        source = f"deb [arch={ARCHITECTURE} {TRUST}] {mirror()} {suite} main\n"
        (directory / "etc/sources.list").write_text(source)
        self._options = [
            f"-oDir::State={directory}/state",
            "-oDir::State::status=/dev/null",
            f"-oDir::Cache={directory}/cache",
            f"-oDir::Etc::sourcelist={directory}/etc/sources.list",
            "-oDir::Etc::sourceparts=-",
            "-oDir::Etc::preferencesparts=-",
            "-oDir::Etc::preferences=-",
            "-oAPT::Sandbox::User=",
            f"-oAPT::Architecture={ARCHITECTURE}",
            "-oAcquire::Languages=none",
            "-oAcquire::Retries=2",
        ]
        run(["apt-get", *self._options, "update", "--error-on=any", "-qq"])

    def show(self, package: str) -> dict[str, str]:
        """The fields of the newest version of a package, or of `name=version`; empty when the suite has none."""
        try:
            text = run(["apt-cache", *self._options, "show", "--no-all-versions", package])
        except Unavailable:
            return {}
        lines = (line.partition(": ") for line in text.splitlines() if line[:1].strip() and ": " in line)
        return {name: value for name, _, value in lines}

    def download(self, package: str, version: str, to: Path) -> Path:
        """Fetch one .deb into `to`, a directory; apt has verified it against the suite's signature."""
        target = to / f"{package}.deb"
        with_version = f"{package}={version}"
        before = set(to.iterdir())
        run(["apt-get", *self._options, "download", "-qq", with_version], cwd=to)
        (fetched,) = set(to.iterdir()) - before
        return Path(shutil.move(fetched, target))
