"""What a decision costs a build: cold, in an interpreter of its own, and warm; killed; with long lists; the records.

At the end a simulated fleet of 20,000 builds of 5,000 apps, decided as real ones are, and what `status` says of it.

Started by `scripts/bench rollout` in an installed copy, as an ordinary user. Processor time, which a busy machine
stretches least; medians, never an assertion.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from nsbuild.cli.rollout_text import standing
from nsbuild.rollout import Ledger, choose, killed
from nsbuild.rollout.decide import decide
from nsbuild.rollout.decision import Decision
from nsbuild.rollout.edit import Change, apply
from nsbuild.rollout.source import source_of
from nsbuild.rollout.status import read_status

COLD = """
import sys, time
began = time.process_time()
from nsbuild.rollout import {name}
{call}
print((time.process_time() - began) * 1000)
"""
CHOOSE = "from pathlib import Path; choose(sys.argv[1], 'app-1', {'team': 'red'}, state=Path(sys.argv[2]))"
RECORD = (
    "from nsbuild.rollout.decision import Decision; from pathlib import Path\n"
    "Ledger(Path(sys.argv[2])).decided(Decision('app-1', 'direct', 'off'))"
)


def cold(flags: Path, state: Path, name: str, call: str, rounds: int) -> list[float]:
    """Milliseconds from the first import to the answer, in fresh interpreters."""
    code = COLD.format(name=name, call=call)
    command = [sys.executable, "-I", "-c", code, str(flags), str(state)]
    return [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(rounds)]


def warm(work: Callable[[], object], rounds: int) -> list[float]:
    """Milliseconds of each call, after one that is not counted."""
    work()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append((time.process_time() - began) * 1000)
    return times


def show(what: str, times: list[float]) -> None:
    print(f"{what:58} {statistics.median(times):8.3f} ms   (best {min(times):8.3f})", flush=True)


def measure(flags: Path, state: Path, name: str, rounds: int) -> None:
    source = source_of(str(flags), state)
    show(f"decide, warm: {name}", warm(lambda: decide("app-1", {"team": "red"}, source), 500))
    show(f"read and decide, warm: {name}", warm(lambda: choose(str(flags), "app-1", {}, state=state), 200))
    show(f"read and decide, cold: {name}", cold(flags, state, "choose", CHOOSE, rounds))


def simulate(flags: Path, state: Path, builds: int, apps: int) -> None:
    """3 % of builds fail; the namespace is refused to 1 in 200, and a shadow differs in 1 of 50. Seeded."""
    chance = random.Random(7)
    source = source_of(str(flags), state)
    began = time.process_time()
    with Ledger(state) as ledger:
        for number in range(builds):
            app = f"app-{chance.randrange(apps)}"
            decided = ledger.decided(decide(app, {"stack": "heroku-24"}, source))
            failed = chance.random() < 0.03
            result, arm = (
                "failed" if failed else "succeeded",
                "namespace" if decided.path == "namespace" else "direct",
            )
            fallback = ""
            if arm == "namespace" and chance.random() < 0.005:
                result, arm, fallback = "fallback", "direct", "user namespaces are switched off"
            done = decided.outcome(
                arm,
                result,
                started=1_790_000_000.0 + number * 30,
                seconds=chance.lognormvariate(3.5, 0.6),
                exit_code=int(failed),
                fallback=fallback,
                slug_bytes=None if failed else int(chance.lognormvariate(17.5, 0.5)),
            )
            ledger.record(done)
            if decided.path == "shadow" and not failed:
                what = "different" if chance.random() < 0.02 else "same"
                ledger.record(decided.outcome("namespace", what, shadow=True, started=done.started, seconds=90.0))
    print(f"\n{builds:,} builds simulated in {time.process_time() - began:.1f} s\n", flush=True)


def compiles(flags: Path, rounds: int) -> None:
    """A whole `nsbuild compile` of a buildpack that does nothing, one after the other in turns: wall and CPU time."""
    pack = Path("pack/bin")
    pack.mkdir(parents=True)
    pack.joinpath("compile").write_text("#!/bin/sh\n")
    pack.joinpath("compile").chmod(0o755)
    for name in ("build", "cache", "cache-direct"):
        Path(name).mkdir()
    killed_flags = Path("killed.json")
    killed_flags.write_bytes(flags.read_bytes())
    Path("killed.json.kill").touch()
    script = Path(sys.prefix, "bin/nsbuild")

    def words(*options: str | Path, cache: str = "cache") -> list[str | Path]:
        return [script, "compile", *options, "pack", "build", cache]

    ways: dict[str, list[str | Path]] = {
        "compile": words(),
        "compile --rollout, namespace": words("--rollout", flags, "--app", "big"),
        "compile --rollout, direct": words("--rollout", flags, "--app", "bad", cache="cache-direct"),
        "compile --rollout, killed": words("--rollout", killed_flags, "--app", "app-1", cache="cache-direct"),
        "bin/compile itself": ["pack/bin/compile", "build", "cache", ""],
    }
    wall: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, command in ways.items():
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if number > 1:
                wall[name].append((time.perf_counter() - began) * 1000)
                processor[name].append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)
    for name in ways:
        show(f"{name}, whole process: CPU", processor[name])
        show(f"{name}, whole process: wall", wall[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="fresh interpreters for each line")
    rounds = parser.parse_args().rounds
    state = Path("state")
    state.mkdir()
    small, large = Path("small.json"), Path("large.json")
    apply(str(small), Change(namespace=500, shadow=2500, deny=["bad"], allow={"big": "namespace"}), "bench")
    apply(
        str(large), Change(namespace=500, deny=[f"some-customers-app-{number}" for number in range(4_900)]), "bench"
    )

    measure(small, state, "a flags file as `set` writes it", rounds)
    measure(large, state, "a list of 4,900 apps, the longest", rounds)
    Path("small.json.kill").touch()
    show("killed, warm", warm(lambda: killed("small.json"), 2000))
    show("killed, cold", cold(small, state, "killed", "killed(sys.argv[1])", rounds))
    ledger = Ledger(state)
    made = Decision("app-1", "direct", "off")
    show("a record, warm: opened and closed for each", warm(lambda: ledger.decided(made), 200))
    with ledger:
        show("a record, warm: kept open", warm(lambda: ledger.decided(made), 500))
    show("a record, cold", cold(small, state, "Ledger", RECORD, rounds))
    Path("small.json.kill").unlink()
    compiles(small, rounds)
    fleet = Path("fleet")
    fleet.mkdir()
    simulate(small, fleet, 20_000, 5_000)
    began = time.process_time()
    print(standing(read_status("small.json", fleet, Ledger(fleet), datetime.now(UTC))))
    print(f"\nstatus took {time.process_time() - began:.2f} s")


if __name__ == "__main__":
    main()
