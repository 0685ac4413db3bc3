"""What the programs of scripts/bench share: a tree like a slug's, commands as actions, what their processes take."""

from __future__ import annotations

import contextlib
import marshal
import os
import random
import resource
import string
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

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


def python(code: str, *words: str) -> Callable[[], None]:
    """A program in a process of its own, as a build is, so that its memory can be told; its start is counted too."""

    def run() -> None:
        subprocess.run([sys.executable, "-I", "-c", code, *words], check=True)

    return run


def processor() -> float:
    """Seconds of processors that the processes started until now have taken: what a busy machine does not stretch."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


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
