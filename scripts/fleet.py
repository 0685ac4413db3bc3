"""What `scripts/fleet` runs: the real flags, decisions, ledger, guard and report; the builds are simulated."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from support.browsers import screenshot
from support.fleets import Fleet

from nsbuild.rollout import Ledger, choose
from nsbuild.rollout.check import check
from nsbuild.rollout.edit import Change, apply, buckets_of

STAGES = ((0.1, "0", "0"), (0.2, "0", "20"), (0.2, "1", "20"), (0.2, "5", "20"), (0.3, "25", "25"))
"""How much of all the builds, and the percentages of the namespace and of shadows meanwhile."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--builds", type=int, default=20000)
    parser.add_argument("--bad", type=float, default=3, metavar="PERCENT")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--screenshot", type=Path)
    parser.add_argument("--from", dest="start", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = given.start / given.keep if given.keep else Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        os.environ["NSBUILD_ROLLOUT_STATE"] = str(directory)
        flags = str(directory / "flags.json")
        began = time.monotonic()
        fleet = Fleet(apps=given.builds // 4, bad_fails=given.bad / 100, bad_from=given.builds * 6 // 10, refusing=1)
        stopped = fill(fleet, Ledger(directory), flags, given.builds)
        print(f"{fleet.builds:,} builds decided in {time.monotonic() - began:.0f} s; killed ones are not recorded")
        if stopped:
            print(f"stopped by the guard, which looked after every 100, at build {stopped:,}")
        for words in (("status",), ("check", "--dry-run"), ("report", "-o", str(directory / "report.html"))):
            began = time.monotonic()
            command = [str(Path(sys.executable).with_name("nsbuild")), "rollout", *words, "--rollout", flags]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
            print(f"\n$ nsbuild rollout {words[0]}    # {time.monotonic() - began:.2f} s\n{told}", end="")
        if given.screenshot:
            screenshot(directory / "report.html", given.start / given.screenshot)
    return 0


def fill(fleet: Fleet, ledger: Ledger, flags: str, builds: int) -> int | None:
    """The build at which the guard stopped it, if it did; the fleet builds on, direct."""
    stopped = None
    with ledger:
        for part, namespace, shadow in STAGES:
            apply(flags, Change(namespace=buckets_of(namespace), shadow=buckets_of(shadow)), "the next stage")
            for _ in range(int(builds * part)):
                decided, outcomes = fleet.build(partial(choose, flags))
                if stopped is not None:
                    continue  # a killed build is in no ledger
                ledger.record(decided)
                for outcome in outcomes:
                    ledger.record(outcome)
                if stopped is None and fleet.builds % 100 == 0 and check(ledger, flags).halted:
                    stopped = fleet.builds
    return stopped


if __name__ == "__main__":
    sys.exit(main())
