"""A builder that has put `nsbuild compile` in front of its buildpacks: its directories, and who works there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.processes import ROOT
from support.rooms import unmappable
from support.sites import PERSON, Result, Site

WAYS = ("user", "root", "root-owned")
"""Who runs nsbuild, an ordinary user or root, and whose the directories are on disk: that user's, or root's."""

TELL = """#!/usr/bin/python3 -I
import json, os, sys
environ = [entry.split(b"=", 1) for entry in open("/proc/self/environ", "rb").read().split(b"\\0")[:-1]]
decoded = {os.fsdecode(name): os.fsdecode(value) for name, value in environ}
print(json.dumps([sys.argv, decoded, os.getcwd()]))
"""
"""A bin/compile that tells what it was given, before any shell or locale adds to it."""


class Builder:
    """`build` is BUILD_DIR, with a file; `cache` is CACHE_DIR, empty; `env` is ENV_DIR, with a config var."""

    def __init__(self, site: Site, way: str = "user") -> None:
        self.site = site
        self.path = site.path
        self.as_root = way.startswith("root")
        self.owner = 0 if way == "root-owned" else PERSON
        self.state = site.path / ("state-of-root" if self.as_root else "state")
        self.build = site.write("build/source", "precious").parent
        self.cache = site.mkdir("cache")
        self.env = site.write("env/SECRET", "value\n\0").parent
        self.own(self.build, self.cache, self.env)
        self.inode = self.build.stat().st_ino
        self.names = {*os.listdir(self.path), "pack", "record.json", self.state.name}
        """What may be there afterwards."""

    def own(self, *tops: Path) -> None:
        """Give trees to whom the builder's directories belong."""
        for top in tops if ROOT else ():
            for path in (top, *top.rglob("*")):
                os.chown(path, self.owner, self.owner, follow_symlinks=False)

    def pack(self, script: str, name: str = "pack") -> Path:
        """A buildpack of the builder's, with this bin/compile."""
        self.names.add(name.split("/")[0])
        made = self.site.buildpack(script, name, detect=None)
        self.own(made)
        return made

    def words(self, *options: str | Path, pack: Path | None = None, env_dir: bool = True) -> list[str | Path]:
        directories = [pack or self.path / "pack", self.build, self.cache, *([self.env] if env_dir else [])]
        return ["compile", *options, *directories]

    def compile(self, *options: str | Path, pack: Path | None = None, env_dir: bool = True, **more: Any) -> Result:
        """`nsbuild compile` of the three directories, with a record."""
        report = self.path / "record.json"
        report.unlink(missing_ok=True)
        result = self.nsbuild(*self.words("--report", report, *options, pack=pack, env_dir=env_dir), **more)
        if report.exists():
            result.record = json.loads(report.read_text())
        return result

    def exec(self, *words: str | Path, options: tuple[str | Path, ...] = (), **more: Any) -> Result:
        return self.nsbuild("exec", "--build-dir", self.build, *options, "--", *words, **more)

    def nsbuild(self, *words: str | Path, env: Mapping[str, str] | None = None, **more: Any) -> Result:
        return self.site.nsbuild(*words, env=self.environment(env), root=self.as_root, **more)

    def start(self, *words: str | Path, env: Mapping[str, str] | None = None, **more: Any) -> subprocess.Popen[bytes]:
        return self.site.start(*words, env=self.environment(env), root=self.as_root, **more)

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        return {"XDG_STATE_HOME": str(self.state), **(env or {})}

    def attached(self, result: Result) -> list[str]:
        """How BUILD_DIR and CACHE_DIR were, as the record says."""
        found = result.record["attached"]
        return [found[os.path.realpath(path)].partition(":")[0] for path in (self.build, self.cache)]

    # -- what is left

    def workspaces(self) -> list[Path]:
        """Those of the pool."""
        return sorted(self.state.glob("nsbuild/workspaces/*/*"))

    def left(self) -> list[str]:
        """What nsbuild has left that it should not have."""
        beside = [name for name in os.listdir(self.path) if name not in self.names]
        journals = self.state.glob("nsbuild/journals/*")
        inside = [str(path) for place in self.workspaces() for path in place.iterdir() if path.name != "root"]
        return [*beside, *map(str, journals), *inside]

    def intact(self) -> None:
        """BUILD_DIR is where it was, the same directory, with what was in it, and nothing was left behind."""
        assert self.build.stat().st_ino == self.inode
        assert (self.build / "source").read_text() == "precious"
        assert self.left() == []


def against(way: str, path: Path) -> str:
    """Why this way cannot be gone here; empty when it can."""
    if way.startswith("root") and not ROOT:
        return "needs root"
    if way == "user" and PERSON == 0:
        return "an ordinary user cannot read our interpreter"
    return unmappable(str(path)) if way == "root-owned" else ""


def install(site: Site) -> Path:
    """`scripts/nsbuild` in the bin/ of a virtual environment of its own, as pip puts it there."""
    venv = site.path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", venv], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    packages.joinpath("ours.pth").write_text(
        "\n".join([str(Path(__file__).parents[2]), *(path for path in sys.path if path.endswith("-packages"))])
    )
    script = venv / "bin/nsbuild"
    shutil.copy(Path(__file__).parents[2] / "scripts/nsbuild", script)
    return script
