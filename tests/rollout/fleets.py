"""A builder whose compiles are rolled out, and what its ledger then holds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rollout import files
from support.builders import Builder
from support.processes import eventually
from support.sites import APPS, Result, from_wheels

from nsbuild.rollout import Ledger, Outcome

NODE = {
    "package.json": '{"name": "x", "version": "1.0.0", "dependencies": {"page": "file:vendor/page"}}',
    "vendor/page/package.json": '{"name": "page", "version": "1.0.0"}',
    "vendor/page/index.js": "module.exports = 1;\n",
}
"""An app for the Node.js buildpack that needs no network."""


class Fleet:
    """A builder with a flags file. `share` of 10,000 buckets go to the namespace."""

    def __init__(self, builder: Builder, share: int = 10000) -> None:
        self.builder = builder
        self.flags = builder.path / "flags.json"
        builder.names |= {"flags.json", "flags.json.kill"}
        self.set(share)

    def set(self, share: int, shadow: int = 0) -> None:
        files.write(self.flags, files.document(percentage=files.share(share, shadow)))
        self.flags.chmod(0o644)

    def words(self, *options: str | Path) -> tuple[str | Path, ...]:
        return "--rollout", self.flags, "--app", "app-1", *options

    def compile(self, *options: str | Path, **more: Any) -> Result:
        return self.builder.compile(*self.words(*options), **more)

    @property
    def state(self) -> Path:
        return self.builder.state / "nsbuild/rollout"

    def rows(self) -> list[Outcome]:
        return list(Ledger(self.state).outcomes())

    def decisions(self) -> list[str]:
        return [decided.path for decided in Ledger(self.state).decisions()]

    def only(self) -> Outcome:
        """The one outcome, of the one decision, which is in the record."""
        (row,) = self.rows()
        (decided,) = Ledger(self.state).decisions()
        assert row.decision == decided.id
        return row

    def candidate(self, timeout: float = 300) -> Outcome:
        """The candidate's outcome, once it is there and its workspace is gone."""
        rows = self.rows
        shadows = sum(1 for decided in self.decisions() if decided == "shadow")
        assert eventually(lambda: sum(row.shadow for row in rows()) == shadows, timeout), "the candidate never ended"
        copies = self.builder.state / "nsbuild/.copies"
        assert eventually(lambda: not copies.exists(), timeout), "the candidate's workspace was left"
        return next(row for row in reversed(self.rows()) if row.shadow)


def fresh(builder: Builder, app: str | dict[str, str]) -> None:
    """What a builder has done before each compile: BUILD_DIR is the source again."""
    for path in builder.build.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if isinstance(app, str):
        shutil.copytree(APPS / app, builder.build, symlinks=True, dirs_exist_ok=True)
    else:
        for name, text in app.items():
            path = builder.build / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    builder.own(builder.build)


def offline(builder: Builder) -> tuple[list[str | Path], dict[str, str]]:
    """Options and environment of a builder that builds in place, whose pip and npm need no network."""
    _, wheels = from_wheels(builder.site)
    builder.names |= {"packs", "wheels", ".npm", ".cache"}
    # HOME shows that it builds in place: nobody may write to this host's /app.
    env = {"STACK": "heroku-24", "HOME": str(builder.build), **wheels}
    if not wheels:
        return [], env
    env["PIP_FIND_LINKS"] = str(builder.site.path / "wheels")
    return ["--bind", env["PIP_FIND_LINKS"]], env
