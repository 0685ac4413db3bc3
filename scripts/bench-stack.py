"""What it takes to unpack an image: umoci, tar for scale, and ours, of one root that mmdebstrap makes.

Started by `scripts/bench stack` in an installed copy, as an ordinary user. Needs a Debian mirror.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import processor

from nsbuild.stack import open_stack_root

PACKAGES = "bash,coreutils,grep,perl-base,python3,git,ca-certificates"


def measured(action: Callable[[], object]) -> str:
    """Seconds by the clock, and of processors in this process's children."""
    before, began = processor(), time.monotonic()
    action()
    return f"{time.monotonic() - began:6.1f} s {processor() - before:6.1f} s of processors"


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    with tempfile.TemporaryDirectory(dir=".") as work:
        os.chdir(work)
        os.environ["TMPDIR"] = os.getcwd()
        run(
            *("mmdebstrap", "--mode=chrootless", "--variant=extract", f"--include={PACKAGES}"),
            *(options.suite, "root.tar"),
        )
        run("umoci", "init", "--layout", "image")
        run("umoci", "new", "--image", "image:root")
        run("umoci", "raw", "add-layer", "--image", "image:root", "root.tar")
        names = subprocess.run(["tar", "-tf", "root.tar"], check=True, capture_output=True).stdout.count(b"\n")
        print(f"{Path('root.tar').stat().st_size / 1e6:.0f} MB, {names} files, one gzip layer", flush=True)
        for number in range(options.rounds):
            os.environ["XDG_CACHE_HOME"] = f"{os.getcwd()}/cache{number}"
            os.mkdir(f"tar{number}")
            for name, action in (
                (
                    "umoci unpack --rootless",
                    lambda n=number: run("umoci", "unpack", "--rootless", "--image", "image:root", f"bundle{n}"),
                ),
                ("nsbuild", lambda: open_stack_root("image")),
                (
                    "tar -xf",
                    lambda n=number: run(
                        "tar", "-xf", "root.tar", "-C", f"tar{n}", "--exclude=./dev", "--no-same-owner"
                    ),
                ),
            ):
                print(f"{name:25}{measured(action)}", flush=True)
        run("chmod", "-R", "u+rwx", ".")
        os.chdir("..")


if __name__ == "__main__":
    main()
