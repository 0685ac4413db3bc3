"""What the audit costs: in the pass that archives a slug, alone beside grep, and from few files to many.

Started by `scripts/bench audit` in an installed copy, as an ordinary user.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import generate, peak, processor, python, shell

PLACES = ("/tmp/cache", "/tmp/env", "/tmp/buildpacks", "/var/tmp/apps/.workspaces/build-20260102-030405-0a1b2c3d")
ARCHIVE = """
import sys
from pathlib import Path
from nsbuild.build.audited import SlugAudit
from nsbuild.record import Record
from nsbuild.sandbox import User, app_layout
from nsbuild.slug import Output, prepare
from nsbuild.stack import HOST
from nsbuild.workspace import Workspace
tree, output, format_, place, audited = sys.argv[1:]
record = Record(id="x", source="x", layout="app", run_path="/app", stack="x")
audit = SlugAudit(app_layout("/app"), Workspace(place, User(1, 1)), HOST, record) if audited else None
made = prepare(tree, Output(Path(output), format_), None, watcher=audit.watch if audit else None)
if audit:
    audit.finish()
made.discard()
"""
ALONE = """
import sys
from nsbuild.audit.audit import AuditOptions, audit
audit(sys.argv[1], AuditOptions(sys.argv[2:]))
"""


def seconds(actions: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """Medians of time and of processors' time, the actions alternating."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            began, before = time.perf_counter(), processor()
            action()
            taken[name].append((time.perf_counter() - began, processor() - before))
    return {
        name: (statistics.median(wall for wall, _ in pairs), statistics.median(cpu for _, cpu in pairs))
        for name, pairs in taken.items()
    }


def fused(tree: Path, rounds: int) -> None:
    print("\nin the pass that archives; seconds, and seconds of processors\n")
    for format_ in ("tgz", "tar.zst"):
        words = (str(tree), str(Path(f"slug.{format_}").absolute()), format_, PLACES[-1])
        actions = {"without": python(ARCHIVE, *words, ""), "with the audit": python(ARCHIVE, *words, "yes")}
        found = seconds(actions, rounds)
        for name, (wall, cpu) in found.items():
            print(f"{format_:8} {name:15} {wall:6.2f} {cpu:6.2f}   peak {peak(actions[name])} MB")
        wall, cpu = (100 * found["with the audit"][n] / found["without"][n] - 100 for n in (0, 1))
        print(
            f"{format_:8} the audit adds {wall:+.0f} % of time, {cpu:+.0f} % of processors' time (target +10 at most)"
        )


def alone(tree: Path, rounds: int) -> tuple[float, float]:
    """(ours, grep's) seconds."""
    patterns = " ".join(f"-e {place}" for place in PLACES)
    found = seconds(
        {
            "ours": python(ALONE, str(tree), *PLACES),
            "start": python("import nsbuild.audit.audit"),
            "grep": shell(f"grep -rF {patterns} {tree} >/dev/null || true"),
        },
        rounds,
    )
    return found["ours"][0] - found["start"][0], found["grep"][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, nargs="*", default=[1_000, 3_000, 10_000, 30_000, 100_000, 300_000])
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    tree = Path("tree").absolute()
    generate(tree, 300, 30_000)
    print("300 MB in 30,000 files")
    fused(tree, options.rounds)
    ours, grep = alone(tree, options.rounds)
    print(f"\nalone: {ours:.2f} s, Python started; grep -rF {grep:.2f} s: {grep / ours:.2f} x as fast as grep")
    print("\nalone, files of 1 kB\n\n    files   ours    a file   grep -rF")
    for count in options.files:
        tree = Path(f"tree-{count}").absolute()
        generate(tree, max(1, count // 1000), count)
        ours, grep = alone(tree, options.rounds)
        print(f"{count:9} {ours:6.3f} {1e6 * ours / count:6.1f} µs {grep:9.3f}   {'#' * round(1e6 * ours / count)}")


if __name__ == "__main__":
    main()
