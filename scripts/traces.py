"""The tables of docs/audit.md, for scripts/traces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from support.sites import CHAINS

VENV, WORK = sys.argv[1:]
# pip asks the package index, and takes what it cannot reach there from what scripts/setup has downloaded.
OFFLINE = ["--bind", f"{VENV}/wheelhouse:/wheels", "--pass-env", "PIP_FIND_LINKS", "--pass-env", "PIP_RETRIES"]


def nsbuild(*words: str, codes: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PIP_FIND_LINKS": "/wheels", "PIP_RETRIES": "0"}
    done = subprocess.run([f"{VENV}/bin/nsbuild", *words], env=env, capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        raise SystemExit(f"traces: nsbuild {' '.join(words)} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return done


def build(app: str, name: str, packs: Sequence[str], *words: str) -> str:
    """A slug, built in a workspace and with a cache of its own."""
    chosen = [word for pack in packs for word in ("-b", f"tests/buildpacks/{pack}")]
    own = [
        "--workspace-dir",
        f"{WORK}/work-{name}",
        "--cache",
        f"{WORK}/cache-{name}",
        "--report",
        f"{WORK}/{name}.json",
    ]
    nsbuild("build", f"tests/apps/{app}", *chosen, *OFFLINE, *own, "-o", f"{WORK}/{name}.tgz", *words)
    return f"{WORK}/{name}.tgz"


def diff(a: str, b: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(nsbuild("diff", "--json", a, b, codes=(0, 1)).stdout)
    return found


def kinds(found: dict[str, Any]) -> str:
    counted = Counter(change["kind"] for change in found["changes"] if not change["ignored"])
    return ", ".join(f"{count} {kind}" for kind, count in counted.items()) or "0"


def both_layouts() -> None:
    slugs = {
        layout: build("issue-1006", layout, ["python"], "--layout", layout, "--reproducible")
        for layout in ("app", "classic")
    }
    rows: dict[str, list[str]] = {}
    for layout, slug in slugs.items():
        words = ("audit", slug, "--record", f"{WORK}/{layout}.json", "--prove", "--json")
        done = nsbuild(*words, codes=(0, 14))
        report = json.loads(done.stdout)
        for severity, count in report["counts"].items():
            of = Counter(one["kind"] for one in report["findings"] if one["severity"] == severity)
            named = ", ".join(f"{number} {kind}" for kind, number in sorted(of.items()))
            rows.setdefault(severity, []).append(f"{count} ({named})" if named else str(count))
        verdicts = Counter(one["verdict"] for one in report["proofs"])
        rows.setdefault("run: works, fails, unclear", []).append(
            ", ".join(str(verdicts[verdict]) for verdict in ("works", "fails", "unclear"))
        )
        rows.setdefault("exit code", []).append(str(done.returncode))
    print("| | app | classic |\n|---|---|---|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")
    found = diff(slugs["app"], slugs["classic"])
    print(f"\n`diff`: {kinds(found)}; {found['same']:,} entries are the same.\n")


def reproducible() -> None:
    print("| app | entries | differ without | differ with `--reproducible` |\n|---|---|---|---|")
    for app, packs in CHAINS.items():
        cells = []
        for words in ([], ["--reproducible"]):
            pair = [build(app, f"{app}-{number}{''.join(words)}", packs, *words) for number in "ab"]
            found = diff(*pair)
            total = found["same"] + len(found["changes"])
            cells.append(kinds(found))
        print(f"| {app} ({', '.join(packs)}) | {total:,} | {' | '.join(cells)} |", flush=True)


both_layouts()
reproducible()
