"""What making and unpacking a slug costs, ours and our peers': alternating, ratios, never an assertion.

Started by `scripts/bench slug` in an installed copy, as an ordinary user.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import generate, peak, processor, python, shell

from nsbuild.sandbox import User
from nsbuild.slug import Output
from nsbuild.slug.unpack import unpack
from nsbuild.workspace import workspace

ONCE = ("tar | gzip", "mksquashfs -comp zstd")


def ours(tree: Path, output: Output) -> Callable[[], None]:
    code = (
        "import sys; from pathlib import Path; from nsbuild.slug import Output, prepare;"
        "made = prepare(sys.argv[1], Output(Path(sys.argv[2]), sys.argv[3]), None); made.commit(); made.discard()"
    )
    return python(code, str(tree), str(output.path), output.format)


def timed(action: Callable[[], None], clean: str | None = None) -> float:
    if clean is not None:
        shutil.rmtree(clean, ignore_errors=True)
        os.mkdir(clean)
    os.sync()  # who waits for his own bytes to be on the disk (we do) would wait for those of the one before as well
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def unpacking(slug: Path) -> float:
    """As `run` does; making and removing the workspace is not counted."""
    with workspace(Path("workspaces").absolute(), User(os.getuid(), os.getgid())) as work:
        os.sync()
        began = time.perf_counter()
        unpack(slug, work)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--files", type=int, default=30_000)
    parser.add_argument("--tree", type=Path, help="measure with this tree, not with a generated one")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    tree = options.tree
    if tree is None:
        tree = Path("tree")
        generate(tree, options.megabytes, options.files)
    tree = tree.absolute()
    found = [path.lstat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    print(f"{tree}: {sum(found) / 1e6:.0f} MB in {len(found)} files; {os.cpu_count()} processors")

    makers: dict[str, tuple[Path, Callable[[], None]]] = {}
    for name, tool, file, command in (
        ("tar | gzip", "gzip", "gzip.tgz", "tar -cf - -C '{tree}' . | gzip > {file}"),
        ("tar | pigz -6", "pigz", "pigz.tgz", "tar -cf - -C '{tree}' . | pigz -6 > {file}"),
        ("tar | zstd -3 -T0", "zstd", "zstd.tar.zst", "tar -cf - -C '{tree}' . | zstd -q -3 -T0 > {file}"),
        (
            "mksquashfs -comp zstd",
            "mksquashfs",
            "peer.squashfs",
            "mksquashfs '{tree}' {file} -noappend -quiet -no-progress -comp zstd",
        ),
    ):
        if shutil.which(tool):
            makers[name] = Path(file), shell(command.format(tree=tree, file=file))
        else:
            print(f"{name}: {tool} is not installed, left out")
    for format_, file in (
        ("tgz", "ours.tgz"),
        ("tar.zst", "ours.tar.zst"),
        ("squashfs", "ours.squashfs"),
        ("oci", "ours-oci"),
    ):
        path = Path(file).absolute()
        makers[f"ours, {format_}"] = path, ours(tree, Output(path, format_))
    times: dict[str, list[float]] = {name: [] for name in makers}
    taken: dict[str, list[float]] = {name: [] for name in makers}
    for round_ in range(options.rounds):
        for name, (_, action) in makers.items():
            if name in ONCE and round_:
                continue  # ten seconds and more each; no ratio is to them
            before = processor()
            times[name].append(timed(action))
            taken[name].append(processor() - before)
    size = {
        name: sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")))
        for name, (path, _) in makers.items()
    }
    reference = "tar | pigz -6" if "tar | pigz -6" in makers else "tar | gzip"
    base = statistics.median(times[reference])
    print(f"\nmaking, {options.rounds} rounds, alternating; median seconds; ratios to {reference}\n")
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"{name:24} {median:7.2f} s ({statistics.median(taken[name]):5.2f} s of processors)"
            f"   {base / median:5.2f} x as fast   {size[name] / 1e6:7.1f} MB"
            f"   x {size[name] / size[reference]:.3f}   peak {peak(makers[name][1])} MB"
        )
    gzipped, zstd = statistics.median(times["ours, tgz"]), statistics.median(times["ours, tar.zst"])
    print(
        f"\n.tgz: {base / gzipped:.2f} x as fast as {reference} (target 4),"
        f" {100 * size['ours, tgz'] / size[reference] - 100:+.1f} % in size (target +12 at most)"
        f"\n.tar.zst: {base / zstd:.2f} x as fast as {reference} (target 3.5),"
        f" {100 * size['ours, tar.zst'] / size['ours, tgz'] - 100:+.1f} % against that .tgz (target -15)"
    )
    if "tar | zstd -3 -T0" in times:
        peers = statistics.median(times["tar | zstd -3 -T0"])
        print(f".tar.zst: takes {zstd / peers:.2f} x as long as tar | zstd -3 -T0 (target 1.3 at most)")

    print("\nunpacking, median seconds\n")
    for name, file, command in (
        (".tgz", "ours.tgz", "tar -xzf {file} -C unpacked"),
        (".tar.zst", "ours.tar.zst", "zstd -qdc {file} | tar -xf - -C unpacked"),
        (".squashfs", "ours.squashfs", "unsquashfs -quiet -no-progress -f -d unpacked {file} >/dev/null"),
        ("oci", "ours-oci", ""),
    ):
        theirs: list[float] = []
        own = []
        for _ in range(options.rounds):
            if command:
                theirs.append(timed(shell(command.format(file=file)), "unpacked"))
            own.append(unpacking(Path(file).absolute()))
        median = statistics.median(own)
        line = f"{name:10} ours {median:6.2f} s"
        if theirs:
            peer = statistics.median(theirs)
            line += f"   {command.split()[0]} {peer:6.2f} s   {peer / median:.2f} x as fast"
        print(line)


if __name__ == "__main__":
    main()
