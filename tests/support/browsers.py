"""Chromium, headless: what a page looks like, and what is in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_USER = 60601


def chromium(page: Path, *words: str) -> str:
    """Run it on a copy of the page, as an ordinary user, without a network; its stdout. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as home:
        shutil.copy(page, Path(home, "page.html"))
        if os.geteuid() == 0:
            os.chmod(Path(home, "page.html"), 0o644)
            os.chown(home, _USER, _USER)
            drop = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]
        else:
            drop = []
        command = [*drop, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--no-first-run", "--proxy-server=127.0.0.1:9", f"--user-data-dir={home}/profile", *words]
        environment = {"PATH": "/usr/bin:/bin", "HOME": home, "TMPDIR": home}
        done = subprocess.run(
            [*command, f"file://{home}/page.html"],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        for made in Path(home).glob("*.png"):
            shutil.copy(made, page.parent / made.name)
        done.check_returncode()
        return done.stdout


def screenshot(page: Path, to: Path, *words: str) -> None:
    """A picture of the page, as wide as a laptop's screen."""
    chromium(page, "--screenshot=shot.png", "--window-size=1040,1500", "--hide-scrollbars", *words)
    shutil.move(page.parent / "shot.png", to)
