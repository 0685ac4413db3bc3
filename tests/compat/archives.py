"""Runtime archives, made of what is installed here, in the shape in which buildpacks download them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from compat.errors import CompatError

OLDEST = (3, 10)
"""The oldest minor version that heroku-buildpack-python still supports."""


def installed_pythons(prefixes: Iterable[Path]) -> dict[str, Path]:
    """Version (X.Y.Z) to prefix of the interpreters that can be packed.

    Raises CompatError for a prefix without a bin/python3 that starts.
    """
    found = {}
    for prefix in prefixes:
        code = "import platform; print(platform.python_version())"
        try:
            version = _output([prefix / "bin/python3", "-I", "-c", code])
        except (OSError, subprocess.CalledProcessError):
            raise CompatError(f"{prefix} is no Python: its bin/python3 does not start") from None
        if tuple(map(int, version.split(".")[:2])) >= OLDEST:
            found[version] = prefix
    return found


def usual_prefixes() -> list[Path]:
    """Where pyenv and uv keep the interpreters of this user."""
    home = Path.home()
    patterns = (".pyenv/versions/3.1[0-9].*", ".local/share/uv/python/cpython-3.1[0-9].*")
    found = [path for pattern in patterns for path in home.glob(pattern)]
    return sorted(path for path in found if os.access(path / "bin/python3", os.X_OK))


def packed_pythons(archives: Path) -> dict[str, Path]:
    """Version to archive of those that are in a directory already."""
    pattern = re.compile(rf"python-(\d+\.\d+\.\d+)-{architecture()}\.tar\.zst")
    matches = ((pattern.fullmatch(path.name), path) for path in archives.glob("python-*"))
    return {match[1]: path for match, path in matches if match}


def pack_python(prefix: Path, version: str, archives: Path) -> Path:
    """An archive as `builds/build_python_runtime.sh` of heroku-buildpack-python leaves one.

    bin/, include/, lib/ and share/ at its root; without tests, pip and scripts that name the prefix; bytecode that
    does not look at times; bin/python.
    """
    with _made(archives / f"python-{version}-{architecture()}.tar.zst") as made, _scratch() as scratch:
        top = scratch / "python"
        shutil.copytree(prefix, top, symlinks=True, ignore=_left_out)
        if not (top / "bin/python").exists():
            (top / "bin/python").symlink_to("python3")
        # Else an interpreter that another user cannot read stays one.
        subprocess.run(["chmod", "-R", "u+rwX,go+rX", top], check=True)
        compileall: list[str | Path] = [
            "-m",
            "compileall",
            "-q",
            "-f",
            "--invalidation-mode",
            "unchecked-hash",
            "-s",
            top,
        ]
        python = [top / "bin/python3", "-I", *compileall, "-p", "/tmp/python", top / "lib"]
        subprocess.run(python, check=True, env={"LD_LIBRARY_PATH": str(top / "lib"), "PATH": os.defpath})
        _tar(made, top, "--zstd", ".")
    return archives / f"python-{version}-{architecture()}.tar.zst"


def _left_out(directory: str, names: list[str]) -> set[str]:
    place = os.path.basename(directory)
    left = {name for name in names if name in ("test", "tests", "idle_test", "__pycache__")}
    left |= {name for name in names if name.endswith((".a", ".pyc"))}
    if place == "bin":
        left |= {name for name in names if not name.startswith("python")}
    return left | set(names if place == "site-packages" else ())


def pack_uv(version: str, archives: Path) -> Path:
    """uv's own archive, made of its wheel on the package index. Raises CompatError where pip finds none."""
    name = f"uv-{version}-{architecture()}.tar.gz"
    if not (archives / name).exists():
        with _made(archives / name) as made, _scratch() as scratch:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
            installed = subprocess.run(
                [*pip, "--only-binary", ":all:", "--target", scratch / "uv", f"uv=={version}"],
                capture_output=True,
                text=True,
                check=False,
            )
            if installed.returncode != 0:
                raise CompatError(f"pip has no uv {version}: {installed.stderr.strip().splitlines()[-1]}")
            _tar(made, scratch / "uv", "--gzip", "bin")
    return archives / name


def installed_node() -> tuple[str, Path] | None:
    """Version (vX.Y.Z) and prefix of node; None where it has not its npm beside it, as Debian's own has not."""
    node = shutil.which("node")
    prefix = Path(os.path.realpath(node)).parents[1] if node else None
    if prefix is None or not (prefix / "lib/node_modules/npm/bin/npm-cli.js").is_file():
        return None
    return _output([prefix / "bin/node", "--version"]), prefix


def pack_node(version: str, prefix: Path, archives: Path) -> Path:
    """An archive as nodejs.org has: one directory with bin/ and lib/node_modules/npm."""
    name = f"node-{version}-{architecture()}.tar.gz"
    if not (archives / name).exists():
        with _made(archives / name) as made, _scratch() as scratch:
            top = scratch / f"node-{version}"
            (top / "bin").mkdir(parents=True)
            shutil.copy2(prefix / "bin/node", top / "bin/node")
            shutil.copytree(prefix / "lib/node_modules/npm", top / "lib/node_modules/npm", symlinks=True)
            for tool in ("npm", "npx"):
                (top / "bin" / tool).symlink_to(f"../lib/node_modules/npm/bin/{tool}-cli.js")
            _tar(made, scratch, "--gzip", top.name)
    return archives / name


def architecture() -> str:
    """Debian's name of it: amd64, arm64."""
    return _output(["dpkg", "--print-architecture"])


def _output(argv: list[str | Path]) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def _tar(archive: Path, top: Path, compression: str, *members: str) -> None:
    options = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mode=go+rX"]
    subprocess.run(["tar", "--create", "--file", archive, compression, *options, "-C", top, *members], check=True)


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nsbuild-compat-", dir="/var/tmp") as path:
        yield Path(path)


@contextmanager
def _made(path: Path) -> Iterator[Path]:
    """Where to write what is to be `path`: it is there only when it is whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            beside.chmod(0o644)
            beside.rename(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise CompatError(f"cannot make {path}: {error.strerror or error}") from None
