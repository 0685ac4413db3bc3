"""Many wrapped compiles, and whether a process, a mount, a descriptor or a directory is left afterwards.

Started by `scripts/bench leaks` in an installed copy, as an ordinary user.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

COMPILE = """#!/bin/bash
echo built >"$1/built"; echo cached >"$2/cached"; (sleep 60 &)
"""


def processes() -> set[str]:
    """Of this user: pid and command line."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and entry.stat().st_uid == os.getuid() and int(entry.name) != os.getpid():
                found.add(f"{entry.name} {(entry / 'cmdline').read_bytes()!r}")
        except OSError:
            continue
    return found


def tree(*tops: str) -> set[str]:
    return {str(path) for top in tops for path in Path(top).rglob("*")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    count = parser.parse_args().count
    nsbuild = os.path.join(os.path.dirname(sys.executable), "nsbuild")
    for name in ("build", "cache", "buildpack/bin"):
        os.makedirs(name)
    script = Path("buildpack/bin/compile")
    script.write_text(COMPILE)
    script.chmod(0o755)
    argv = [nsbuild, "compile", "buildpack", "build", "cache"]
    subprocess.run(argv, check=True)  # makes the workspace that the others use again
    before = processes(), Path("/proc/self/mountinfo").read_text(), tree("."), len(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    for _ in range(count):
        subprocess.run(argv, check=True)
    seconds = time.monotonic() - began
    after = processes(), Path("/proc/self/mountinfo").read_text(), tree("."), len(os.listdir("/proc/self/fd"))
    names = ("processes", "mounts", "files and directories", "descriptors")
    leaked = [name for name, old, new in zip(names, before, after, strict=True) if old != new]
    print(
        f"{count} compiles, each leaving a daemon behind, in {seconds:.1f} s ({seconds / count * 1000:.1f} ms each)"
    )
    for name in names:
        print(f"  {name}: {'LEAKED' if name in leaked else 'as before'}")
    return 1 if leaked else 0


if __name__ == "__main__":
    sys.exit(main())
