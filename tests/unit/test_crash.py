"""What the output of a program says of how it ended: of real interpreters, where they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nsbuild.runtime.crash import crashed, telling_line

RUN = {
    "python": (["python3", "-c", "import nowhere"], "ModuleNotFoundError: No module named 'nowhere'"),
    "node": (["node", "-e", "throw new RangeError('x y')"], "RangeError: x y"),
    "node, module": (["node", "-e", "require('nowhere')"], "Error: Cannot find module 'nowhere'"),
    "node, import": (["node", "-e", "import('nowhere')"], "Cannot find package 'nowhere'"),
    "perl": (["perl", "-e", "use Nowhere"], "Can't locate Nowhere.pm in @INC"),
}
PRINTED = {
    "ruby 3.3": (
        "x.rb:1:in `require': cannot load such file -- nowhere (LoadError)\n\tfrom x.rb:1:in `<main>'\n",
        "x.rb:1:in `require': cannot load such file -- nowhere (LoadError)",
    ),
    "ruby 3.4": (
        "x.rb:1:in 'f': of the app (Some::OwnError)\n\tfrom x.rb:1:in '<main>'\n",
        "x.rb:1:in 'f': of the app (Some::OwnError)",
    ),
    "java": ('Exception in thread "main" java.lang.Error: x\n\tat A.main(A.java:1)\n', 'Exception in thread "main"'),
    "php": (
        "PHP Fatal error:  Uncaught Error: x in /app/a.php:1\nStack trace:\n#0 {main}\n",
        "PHP Fatal error:  Uncau",
    ),
    "go": ("panic: x\n\ngoroutine 1 [running]:\nmain.main()\n\t/app/a.go:3\nexit status 2\n", "panic: x"),
    "node 16": (
        "internal/modules/cjs/loader.js:905\n  throw err;\n  ^\n\nError: Cannot find module 'x'\n    at f (a:1:1)\n",
        "Error: Cannot find module 'x'",
    ),
}


@pytest.mark.parametrize("name", RUN)
def test_a_crash(name: str, tmp_path: Path) -> None:
    argv, said = RUN[name]
    done = subprocess.run(argv, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert crashed(done.stderr) and said in telling_line(done.stderr)


@pytest.mark.parametrize("name", PRINTED)
def test_a_crash_of_what_is_not_installed(name: str) -> None:
    printed, said = PRINTED[name]
    assert crashed(printed.encode()) and telling_line(printed.encode()).startswith(said)


@pytest.mark.parametrize(
    "printed",
    [
        "usage: x [-h]\nx: error: unrecognized arguments: --version\n",
        "Error: unknown option '--version'\n",
        "Node.js is what it needs\n",
        "x.rb takes no options (see the manual)\n",
        "a Traceback (most recent call last) is what it prints when it crashes\n",
        "",
    ],
)
def test_a_refusal_is_none(printed: str) -> None:
    assert not crashed(printed.encode())
    assert telling_line(printed.encode()) == printed.rpartition("\n")[0].rpartition("\n")[2]


def test_a_flood_takes_no_time() -> None:
    for flood in (b"x.rb:1:in `" + b"(A::" * 250_000, b"Error: " * 140_000, b"\n" * (1 << 20), b":1" * 500_000):
        assert not crashed(flood)
