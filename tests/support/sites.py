"""An ordinary user's home with apps and buildpacks in it, and `nsbuild` run there."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import prctl
import pytest

import nsbuild
from support.processes import ROOT, SOMEBODY, become, eventually
from support.rooms import _readable_by_all as readable_by_all

TESTS = Path(__file__).resolve().parents[1]
APPS = TESTS / "apps"
BUILDPACKS = TESTS / "buildpacks"

HIDDEN = (
    next(
        (
            path
            for path in (sys.executable, os.__file__, prctl.__file__, nsbuild.__file__)
            if not readable_by_all(str(path))
        ),
        None,
    )
    if ROOT
    else None
)
"""What of our interpreter an ordinary user cannot read; the suite's own user does everything then."""
PERSON = SOMEBODY if ROOT and HIDDEN is None else os.getuid()
"""Who runs nsbuild in these tests."""

ordinary = pytest.mark.skipif(PERSON == 0, reason=f"an ordinary user cannot read {HIDDEN}")
"""For refusals, which root passes trivially."""
as_root = pytest.mark.skipif(not ROOT, reason="needs root")

NETWORK = (
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS"),
)
NSBUILD = (sys.executable, "-I", "-m", "nsbuild")


@dataclass
class Result:
    """How one run of nsbuild ended."""

    code: int
    out: bytes
    err: str
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """stdout as text."""
        return self.out.decode("utf-8", "surrogateescape")

    @property
    def last(self) -> str:
        """The last line of stderr."""
        return self.err.splitlines()[-1] if self.err else ""

    def ok(self) -> Result:
        assert self.code == 0, f"exit {self.code}\n{self.text[-2000:]}\n{self.err[-2000:]}"
        return self

    def refused(self, code: int, *words: str) -> Result:
        """It failed with this code and one sentence that has these words, and without a traceback."""
        assert self.code == code, f"exit {self.code}, not {code}\n{self.text[-2000:]}\n{self.err[-2000:]}"
        assert "Traceback" not in self.err
        assert self.last.startswith("nsbuild: "), self.err
        for word in words:
            assert word in self.last, f"{word!r} is not in {self.last!r}"
        return self


class Site:
    """`home` and whatever a test puts beside it, all of which belong to PERSON."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home = path / "home"
        self.out = path / "out"
        self.leaves = False
        """The test leaves a workspace behind on purpose (it kills nsbuild)."""
        self.own(path)
        self.mkdir("home")

    # -- files

    def own(self, *paths: Path) -> None:
        for path in paths if ROOT else ():
            os.chown(path, PERSON, PERSON, follow_symlinks=False)

    def mkdir(self, name: str) -> Path:
        path = self.path / name
        for parent in [*reversed(path.relative_to(self.path).parents), path.relative_to(self.path)]:
            made = self.path / parent
            if not made.is_dir():
                made.mkdir()
                self.own(made)
        return path

    def write(self, name: str, content: str | bytes = "", mode: int = 0o644) -> Path:
        path = self.path / name
        self.mkdir(str(Path(name).parent))
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
        path.chmod(mode)
        self.own(path)
        return path

    def symlink(self, name: str, target: str) -> Path:
        path = self.path / name
        self.mkdir(str(Path(name).parent))
        path.symlink_to(target)
        self.own(path)
        return path

    def app(self, name: str = "app", **files: str | bytes) -> Path:
        """An app of these files; of a Procfile when there are none."""
        for file, content in (files or {"Procfile": "web: sleep 60\nhello: echo hello\n"}).items():
            self.write(f"{name}/{file}", content)
        return self.path / name

    def copy(self, source: Path, name: str) -> Path:
        path = self.path / name
        shutil.copytree(source, path, symlinks=True)
        for found in [path, *path.rglob("*")]:
            self.own(found)
        return path

    def buildpack(
        self, compile_: str = "", name: str = "pack", *, detect: str | None = "echo Test", **scripts: str
    ) -> Path:
        """A buildpack; what is not a script with #! of its own is bash."""
        for script, text in {"compile": compile_, "detect": detect, **scripts}.items():
            if text is not None:
                self.write(f"{name}/bin/{script}", text if text.startswith("#!") else f"#!/bin/bash\n{text}\n", 0o755)
        return self.path / name

    # -- nsbuild

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        network = {name: os.environ[name] for name in NETWORK if name in os.environ}
        own = {"HOME": str(self.home), "XDG_STATE_HOME": f"{self.home}/.local/state"}
        return {"PATH": "/usr/local/bin:/usr/bin:/bin", **own, **network, **(env or {})}

    def start(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        root: bool = False,
        cwd: Path | None = None,
        prepare: Callable[[], None] | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """Start nsbuild. `prepare` runs before, in the new process, as the suite's own user."""

        def enter() -> None:
            if prepare is not None:
                prepare()
            if switch and os.geteuid() == 0:
                become(PERSON, PERSON)

        switch = ROOT and PERSON != 0 and not root
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if prepare is not None:
            given["preexec_fn"] = enter
        elif switch:
            given |= {"user": PERSON, "group": PERSON, "extra_groups": []}
        return subprocess.Popen(
            [*NSBUILD, *args],
            cwd=cwd or self.path,
            env=self.environment(env),
            start_new_session=True,
            **{**given, **options},
        )

    def nsbuild(self, *args: str | Path, timeout: float = 120, **options: Any) -> Result:
        process = self.start(*args, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return Result(process.returncode, out or b"", (err or b"").decode("utf-8", "surrogateescape"))

    def build(
        self, source: str | Path, *args: str | Path, output: str | Path | None = None, **options: Any
    ) -> Result:
        """`nsbuild build` with a record. Directories among `args` are buildpacks."""
        report = self.path / "record.json"
        report.unlink(missing_ok=True)
        result = self.nsbuild(*self.words(source, *args, output=output), "--report", report, **options)
        if report.exists():
            result.record = json.loads(report.read_text())
        return result

    def words(self, source: str | Path, *args: str | Path, output: str | Path | None = None) -> list[str | Path]:
        packs = [word for path in args if isinstance(path, Path) for word in ("-b", path)]
        rest = [arg for arg in args if not isinstance(arg, Path)]
        return ["build", source, *packs, "-o", output or self.out, *rest]

    def run(self, slug: str | Path, *args: str | Path, **options: Any) -> Result:
        return self.nsbuild("run", slug, *args, **options)

    # -- what is where

    @property
    def apps(self) -> Path:
        """Where the caches are, in directories called after the app."""
        return self.home / ".cache/nsbuild/apps"

    def caches(self) -> list[Path]:
        return sorted(path for path in self.apps.glob("*/content"))

    def inside(self, name: str) -> list[str]:
        """Where a file that a running build has made (`tmp/x`) is on the host."""
        places = (self.apps / ".workspaces", self.path / "*", self.path / "*/.nsbuild")
        return [path for place in places for path in glob.glob(f"{place}/build-*/root/{name}")]

    def appears(self, name: str, timeout: float = 50) -> None:
        assert eventually(lambda: bool(self.inside(name)), timeout), f"the build never made {name}"

    def litter(self) -> list[str]:
        """Workspaces, and what is made beside its place."""
        places = (self.path, self.path / "*", self.apps, self.apps / "*")
        patterns = ("build-2*", ".*.nsbuild-*", ".nsbuild", ".nsbuild-????????????*", "new-*", ".workspaces")
        found = [glob.glob(f"{place}/{name}") for place in places for name in patterns]
        return sorted(path for paths in found for path in paths)

    def processes(self) -> list[str]:
        """Processes that run in something of this site, by their mounts or their words."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                mounts = Path(f"/proc/{pid}/mountinfo").read_text(errors="replace")
            except OSError:
                continue
            if int(pid) != os.getpid() and (os.fsencode(self.path) in words or str(self.path) in mounts):
                found.append(f"{pid}: {words!r}")
        return found

    def nothing_left(self) -> None:
        assert eventually(lambda: not self.processes()), f"processes left behind: {self.processes()}"
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
        assert not [line for line in mounts if str(self.path) in line], "a mount was left on the host"
        assert self.leaves or not self.litter(), f"left behind: {self.litter()}"


def snapshot(top: Path, *, times: bool = True) -> dict[str, tuple[object, ...]]:
    """Everything about a tree that somebody could have changed, access times aside."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([top, *top.rglob("*")]):
        info = path.lstat()
        content: object = None
        if stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(info.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest() if os.access(path, os.R_OK) else "unreadable"
        kept = (info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_nlink) if times else ()
        found[str(path.relative_to(top))] = (info.st_mode, info.st_uid, info.st_gid, content, *kept)
    return found


def holding(top: Path, needle: bytes) -> list[str]:
    """Files below a directory that hold these bytes, links that lead there and names that have them."""
    found = []
    for path in top.rglob("*"):
        content = os.fsencode(path.name)
        if path.is_symlink():
            content += os.fsencode(os.readlink(path))
        elif path.is_file():
            content += path.read_bytes()
        if needle in content:
            found.append(str(path.relative_to(top)))
    return found


_held: list[socket.socket] = []


def free_port(count: int = 1) -> int:
    """The first of so many ports in a row that nobody else gets while this process lives. They are bound, and who
    sets SO_REUSEADDR, as servers do, can listen on them all the same.
    """
    while True:
        first = 0
        for number in range(count):
            held = socket.socket()
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _held.append(held)
            try:
                held.bind(("127.0.0.1", first and first + number))
            except (OSError, OverflowError):
                break
            first = first or held.getsockname()[1]
        else:
            return first


def new_site(name: str) -> Site:
    path = Path(tempfile.mkdtemp(prefix=f"site-{name}-", dir="/var/tmp"))
    path.chmod(0o755)
    return Site(path)


def remove_site(site: Site) -> None:
    remove = ["rm", "-rf", str(site.path)]
    if subprocess.run(remove, stderr=subprocess.DEVNULL, check=False).returncode != 0:
        subprocess.run(["chmod", "-R", "u+rwx", site.path], check=True)
        subprocess.run(remove, check=True)


@dataclass
class App:
    """A real app, built twice: with --reproducible to a directory, then from the cache that this has left, in another
    workspace, to an archive.
    """

    name: str
    site: Site
    source: Path
    first: Result
    second: Result
    directory: Path
    archive: Path


CHAINS = {
    "issue-1006": ("python", "node"),
    "flask-web": ("python",),
    "editable-root": ("python",),
    "plain": ("inline", "procfile"),
}


def from_wheels(site: Site) -> tuple[list[str | Path], dict[str, str]]:
    """Options and environment with which pip needs no network: it takes what scripts/setup has downloaded.

    With a network it asks the package index all the same.
    """
    wheels = site.path / "wheels"
    if not wheels.is_dir():
        downloaded = Path(sys.prefix) / "wheelhouse"
        if not downloaded.is_dir():
            return [], {}
        # A copy: the user of the test may be unable to read the venv.
        site.copy(downloaded, "wheels")
    words: list[str | Path] = [
        "--bind",
        f"{wheels}:/wheels",
        "--pass-env",
        "PIP_FIND_LINKS",
        "--pass-env",
        "PIP_RETRIES",
    ]
    return words, {"PIP_FIND_LINKS": "/wheels", "PIP_RETRIES": "1"}


def build_twice(site: Site, name: str) -> App:
    source = site.copy(APPS / name, f"source-{name}")
    packs = [BUILDPACKS / pack for pack in CHAINS[name]]
    directory, archive = site.path / name, site.path / f"{name}.tgz"
    results = []
    for number, output in enumerate((directory, archive)):
        report = site.path / f"{name}-{number}.json"
        words = [*site.words(source, *packs, output=output), "--report", report]
        words += ["--workspace-dir", site.path / f"workspaces-{name}-{number}"]
        words += [] if number else ["--reproducible"]
        offline, env = from_wheels(site)
        result = site.nsbuild(*words, *offline, env=env, timeout=300)
        result.record = json.loads(report.read_text()) if report.exists() else {}
        results.append(result)
    return App(name, site, source, results[0], results[1], directory, archive)
