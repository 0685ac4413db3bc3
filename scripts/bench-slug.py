"""What making and unpacking a slug costs, ours and our peers': alternating, ratios, never an assertion.

Started by `scripts/bench slug` in an installed copy, as an ordinary user.
"""

from __future__ import annotations

import argparse
import contextlib
import marshal
import os
import random
import resource
import shutil
import statistics
import string
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from nsbuild.sandbox import User
from nsbuild.slug import Output
from nsbuild.slug.unpack import unpack
from nsbuild.workspace import workspace

JAVASCRIPT = ("/usr/share/nodejs", "/usr/lib/node_modules", "/usr/local/lib/node_modules")
MOST = 40_000_000
"""Bytes of each kind of content that files are cut from."""


def pools() -> dict[str, bytes]:
    """What the generated files are cut from: a library of Python, its bytecode, compiled modules, JavaScript."""
    library = Path(sysconfig.get_path("stdlib"))
    sources = [path for path in sorted(library.rglob("*.py")) if "lib2to3/tests" not in str(path)]
    found: dict[str, list[bytes]] = {".py": [], ".pyc": [], ".so": [], ".js": []}
    for path in sources:
        text = path.read_bytes()
        found[".py"].append(text)
        with contextlib.suppress(SyntaxError, ValueError):
            found[".pyc"].append(marshal.dumps(compile(text, f"/app/.heroku/python/lib/{path.name}", "exec")))
    for path in sorted([*library.rglob("*.so"), *Path(sys.prefix).rglob("*.so")]):
        found[".so"].append(path.read_bytes())
    for place in (*JAVASCRIPT, str(library)):
        for path in sorted(Path(place).rglob("*.js")):
            with contextlib.suppress(OSError):
                found[".js"].append(path.read_bytes())
    return {kind: b"".join(parts)[:MOST] for kind, parts in found.items()}


def generate(top: Path, megabytes: int, files: int) -> None:
    """A venv and a node_modules: sources, their bytecode, JavaScript, compiled modules."""
    chance = random.Random(4)
    pool = pools()
    pool[".js"] = pool[".js"] or pool[".py"]
    names = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(4, 14))) for _ in range(2000)]
    python, javascript = Path(".heroku/python/lib/python3.12/site-packages"), Path("node_modules")
    made: list[tuple[Path, str]] = []
    while len(made) < files * 0.994:
        package = names[len(made) % 150 if len(made) % 2 else len(made) % 400]
        module = f"{chance.choice(names)}{len(made)}"
        if len(made) % 5 < 3:
            path = javascript / package / chance.choice(("", "lib", "dist", "dist/cjs"))
            made.append((path / f"{module}.js", ".js"))
        else:
            path = python / package / chance.choice(("", "", names[len(package)], names[len(package) + 20]))
            made += [(path / f"{module}.py", ".py"), (path / f"__pycache__/{module}.cpython-312.pyc", ".pyc")]
    made += [(python / f"{names[n]}.cpython-312-x86_64-linux-gnu.so", ".so") for n in range(files - len(made))]
    shares = [chance.lognormvariate(4 if kind == ".so" else 0, 1.1) for _, kind in made]
    scale = megabytes * 1_000_000 / sum(shares)
    for (path, kind), share in zip(made, shares, strict=True):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        size = min(int(share * scale), len(pool[kind]))
        start = chance.randrange(len(pool[kind]) - size + 1)
        (top / path).write_bytes(pool[kind][start : start + size])


def shell(command: str) -> Callable[[], None]:
    def run() -> None:
        subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True)

    return run


def ours(tree: Path, output: Output) -> Callable[[], None]:
    """In a process of its own, as a build is, so that its memory can be told; its start is counted too."""
    code = (
        "import sys; from pathlib import Path; from nsbuild.slug import Output, prepare;"
        "made = prepare(sys.argv[1], Output(Path(sys.argv[2]), sys.argv[3]), None); made.commit(); made.discard()"
    )
    argv = [sys.executable, "-I", "-c", code, str(tree), str(output.path), output.format]
    return lambda: void(subprocess.run(argv, check=True))


def void(_: object) -> None:
    return


def processor() -> float:
    """Seconds of processors that the processes started until now have taken: what a busy machine does not stretch."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def timed(action: Callable[[], None], clean: str | None = None) -> float:
    if clean is not None:
        shutil.rmtree(clean, ignore_errors=True)
        os.mkdir(clean)
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def unpacking(slug: Path) -> float:
    """As `run` does; making and removing the workspace is not counted."""
    with workspace(Path("workspaces").absolute(), User(os.getuid(), os.getgid())) as work:
        began = time.perf_counter()
        unpack(slug, work)
        return time.perf_counter() - began


def peak(action: Callable[[], None]) -> int:
    """MB at most in memory of the processes of one action; what this process has is the least that is told."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        action()
        os.write(writer, str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:  # noqa: PTH123
        kib = int(file.read())
    os.waitpid(pid, 0)
    return kib // 1024


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
            if name == "tar | gzip" and round_:
                continue  # half a minute each
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
        theirs = statistics.median(times["tar | zstd -3 -T0"])
        print(f".tar.zst: takes {zstd / theirs:.2f} x as long as tar | zstd -3 -T0 (target 1.3 at most)")

    print("\nunpacking, median seconds\n")
    for name, file, command in (
        (".tgz", "ours.tgz", "tar -xzf {file} -C unpacked"),
        (".tar.zst", "ours.tar.zst", "zstd -qdc {file} | tar -xf - -C unpacked"),
        (".squashfs", "ours.squashfs", "unsquashfs -quiet -no-progress -f -d unpacked {file} >/dev/null"),
        ("oci", "ours-oci", ""),
    ):
        theirs, own = [], []
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
