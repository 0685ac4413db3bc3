"""What `scripts/record` runs: real commands on a terminal of pyte's, whose screen is printed as Markdown."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from support.sites import APPS, BUILDPACKS
from support.terminals import Screen

COLUMNS = 100

INTRO = """# A build, its summary and its run

Made by `scripts/record`: what is on a terminal of {columns} columns while `nsbuild build` builds
tests/apps/issue-1006 with two of tests/buildpacks, when it has ended, and what the slug then answers. This is
`~/.config/nsbuild/nsbuild.toml`:

```toml
{config}```
"""


class Recorder:
    """A home with an app and buildpacks in it, and a terminal a command."""

    def __init__(self, venv: Path, home: Path) -> None:
        self.nsbuild = venv / "bin/nsbuild"
        self.home = home
        self.environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "TERM": "xterm-256color"}
        shutil.copytree(APPS / "issue-1006", home / "issue-1006")
        for name in ("python", "node"):
            shutil.copytree(BUILDPACKS / name, home / "buildpacks" / name)
        self.config = (
            f'bind = ["{venv}/wheelhouse:/wheels"]\npass-env = ["PIP_FIND_LINKS", "PIP_NO_INDEX"]\ntimeout = "10m"\n'
        )
        self.environment |= {"PIP_FIND_LINKS": "/wheels", "PIP_NO_INDEX": "1"}
        config = home / ".config/nsbuild/nsbuild.toml"
        config.parent.mkdir(parents=True)
        config.write_text(self.config)

    def record(self, command: str, while_it_runs: str = "") -> None:
        """Run a command line; print the screen once it has this text, and at the end."""
        screen = Screen(rows=500, columns=COLUMNS)
        process = subprocess.Popen(
            [self.nsbuild, *shlex.split(command)[1:]],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=screen.slave,
            stderr=screen.slave,
        )
        screen.started()
        if while_it_runs:
            self.show(command, ["[...]", *screen.shows(while_it_runs, 300)[-8:]])
        lines = screen.ends(600)
        if process.wait() != 0:
            sys.exit("\n".join([*lines, f"record: {command} ended with {process.returncode}"]))
        self.show(command, lines)

    def show(self, command: str, lines: list[str]) -> None:
        text = "\n".join([f"$ {command}", *lines])
        print(f"\n```console\n{self.plain(text)}\n```")

    def plain(self, text: str) -> str:
        """Without what is this machine's."""
        return text.replace(str(self.home), "~")


def main() -> None:
    venv, home = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    recorder = Recorder(venv, home)
    print(INTRO.format(columns=COLUMNS, config=recorder.config.replace(str(venv), "~/nsbuild/.venv")), end="")
    build = "nsbuild build issue-1006 -b buildpacks/python -b buildpacks/node -o answer.tgz"
    print("\nWhile it runs, the last line tells for how long:")
    recorder.record(build, while_it_runs="0:02  compile ")
    print("\nThe slug, run:")
    recorder.record("nsbuild run answer.tgz --list")
    recorder.record("nsbuild run answer.tgz answer")


main()
