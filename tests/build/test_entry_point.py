"""`nsbuild` starts and hands the environment on, however it was installed, whatever the caller has sourced.

Real installs by pip, uv and pipx, without network: what is installed is the checkout's metadata, wrapper and
`__main__`, without the dependencies and with a command line that only tells what it was given.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
WRAPPER = CHECKOUT / "scripts/nsbuild"

# Runs what it is given, as the real one does in the end; by way of C's environ, like every execv.
STUB = """
import os, sys

def main():
    if sys.argv[1] == "flags":
        print(sys.flags.isolated, sys.flags.ignore_environment, sys.flags.safe_path, sys.executable)
        return 7
    os.execv(sys.argv[1], sys.argv[1:])
"""

# What a caller may export: every name that bash's manual calls a shell variable, and what else is fragile.
SHELL_VARIABLES = re.findall(
    r"\S+",
    """
    _ BASH BASHOPTS BASHPID BASH_ALIASES BASH_ARGC BASH_ARGV BASH_ARGV0 BASH_CMDS BASH_COMMAND BASH_COMPAT
    BASH_ENV BASH_EXECUTION_STRING BASH_LINENO BASH_LOADABLES_PATH BASH_MONOSECONDS BASH_REMATCH BASH_SOURCE
    BASH_SUBSHELL BASH_TRAPSIG BASH_VERSINFO BASH_VERSION BASH_XTRACEFD CDPATH CHILD_MAX COLUMNS
    COMP_CWORD COMP_KEY COMP_LINE COMP_POINT COMP_TYPE COMP_WORDBREAKS COMP_WORDS COMPREPLY COPROC DIRSTACK EMACS ENV
    EPOCHREALTIME EPOCHSECONDS
    EUID EXECIGNORE FCEDIT FIGNORE FUNCNAME FUNCNEST GLOBIGNORE GLOBSORT GROUPS HISTCMD HISTCONTROL HISTFILE
    HISTFILESIZE HISTIGNORE HISTSIZE HISTTIMEFORMAT HOSTFILE HOSTNAME HOSTTYPE IFS IGNOREEOF INPUTRC INSIDE_EMACS
    LINENO LINES MACHTYPE MAIL MAILCHECK MAILPATH MAPFILE OLDPWD OPTARG OPTERR OPTIND OSTYPE PATH PIPESTATUS
    POSIXLY_CORRECT PPID PROMPT_COMMAND PROMPT_DIRTRIM PS0 PS1 PS2 PS3 PS4 PWD RANDOM READLINE_ARGUMENT
    READLINE_LINE READLINE_MARK READLINE_POINT REPLY SECONDS SHELL SHELLOPTS SHLVL SRANDOM TIMEFORMAT TMOUT TMPDIR
    UID auto_resume histchars
    LANG LC_CTYPE LC_COLLATE HOME TZ TERM PYTHONHOME PYTHONPATH PYTHONUTF8 LD_LIBRARY_PATH LD_BIND_NOW
    nsbuild_self nsbuild_bin nsbuild_entry nsbuild_environ
    """,
)
# bash complains about another value.
VALUES = {"BASH_COMPAT": "50", "BASH_XTRACEFD": "2"}

ODD: dict[bytes, bytes] = {
    b"MULTI": b"a\nb\n",
    b"BYTES": b"\xff\xfe\n",
    b"N\xff": b"1",
    b"A-B": b"a name bash cannot assign",
    b"BASH_FUNC_f%%": b"() { echo f\n}",
    b"LD_A-B": b"1",
    b"SP ACE": b" ",
    b"EMPTY": b"",
    b"LONG": b"x" * 130_000,
}

ENVIRONMENTS: dict[str, dict[bytes, bytes]] = {
    "empty": {},
    "this": dict(os.environb),
    "odd": ODD,
    "C locale": {b"LC_ALL": b"C", b"OLDPWD": b"\xff\n\n", b"PWD": b"/nowhere", b"SHLVL": b"not a number"},
    "shell": ODD | {name.encode(): VALUES.get(name, "x").encode() for name in SHELL_VARIABLES},
    **{name: {name.encode(): VALUES.get(name, "x").encode()} for name in SHELL_VARIABLES},
}


def run(*argv: str | Path, env: Mapping[bytes, bytes]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv, env=dict(env), capture_output=True, stdin=subprocess.DEVNULL, check=False)


def install(*argv: str | Path, home: Path, **variables: str) -> None:
    """Run an installer for somebody whose home this is, offline."""
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}
    done = subprocess.run(
        [str(word) for word in argv], env=env | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"


def libraries(program: Path) -> set[str]:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"^\s*(lib\S+)", listed, re.MULTILINE))


@cache
def interpreters() -> dict[str, Path]:
    """The one that runs this, and one whose libpython the dynamic linker has to find."""
    found = {"this": Path(sys.executable).resolve()}
    places = [Path(place) for place in os.environ["PATH"].split(":")]
    places += Path("~/.pyenv/versions").expanduser().glob("*/bin")
    for place in places:
        for candidate in sorted(place.glob("python3.[0-9]*")) if os.access(place, os.X_OK) else []:
            real = candidate.resolve()
            if re.fullmatch(r"python3\.1[1-9]", real.name) and any("libpython" in n for n in libraries(real)):
                found["libpython"] = real
                return found
    return found


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    (root / "scripts").mkdir()
    (root / "nsbuild").mkdir()
    shutil.copy(WRAPPER, root / "scripts")
    for name in ("LICENSE", "README.md"):
        shutil.copy(CHECKOUT / name, root)
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(CHECKOUT / "nsbuild" / name, root / "nsbuild")
    (root / "nsbuild/cli.py").write_text(STUB)
    metadata = (CHECKOUT / "pyproject.toml").read_text()
    metadata, count = re.subn(r"^dependencies = \[.*?^\]", "dependencies = []", metadata, flags=re.M | re.S)
    assert count == 1
    (root / "pyproject.toml").write_text(metadata)
    return root


@pytest.fixture(scope="session")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-I", "-m", "pip"]
    install(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", out, project, home=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hatchling alone: this venv's pip does not run in every interpreter that the tests install to."""
    path = tmp_path_factory.mktemp("backend")
    for name in ("hatchling", "packaging", "pathspec", "pluggy", "trove_classifiers"):
        (path / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    return path


@pytest.fixture(scope="session")
def pip_venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    venv = tmp_path_factory.mktemp("pip-venv")
    install(sys.executable, "-I", "-m", "venv", venv, home=venv)
    install(venv / "bin/python", "-m", "pip", "install", wheel, home=venv)
    return venv


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An app whose libraries and standard library no other interpreter can start with."""
    root = tmp_path_factory.mktemp("app")
    for directory in (root / "lib/encodings", root / "lib/python3.11/encodings"):
        directory.mkdir(parents=True)
        (directory / "__init__.py").write_text("raise SystemExit('the encodings of the app')\n")
    spared = libraries(Path("/bin/bash")) | libraries(Path("/usr/bin/readlink"))
    for interpreter in interpreters().values():
        for library in libraries(interpreter) - spared:
            (root / "lib" / library).write_bytes(b"")
    return root


def sourced(app: Path) -> dict[bytes, bytes]:
    return dict(os.environb) | {
        b"PYTHONHOME": bytes(app),
        b"PYTHONPATH": bytes(app / "lib"),
        b"LD_LIBRARY_PATH": bytes(app / "lib"),
    }


@pytest.mark.parametrize("variable", ["PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH"])
@pytest.mark.parametrize("interpreter", ["this", "libpython"])
def test_the_app_does_break_a_plain_interpreter(app: Path, interpreter: str, variable: str) -> None:
    python = interpreters().get(interpreter)
    if python is None:
        pytest.skip("no Python 3.11 or newer on PATH or in ~/.pyenv links libpython")
    if variable == "LD_LIBRARY_PATH" and not list((app / "lib").glob("lib*.so*")):
        pytest.skip("this interpreter needs no library that bash does not need")
    name = variable.encode()
    assert run(python, "-c", "", env={name: sourced(app)[name]}).returncode != 0


@pytest.mark.parametrize("interpreter", ["this", "libpython"])
@pytest.mark.parametrize("installer", ["pip", "pip -e", "uv pip", "uv pip -e", "uv tool", "pipx"])
def test_starts_for_a_caller_that_has_sourced_an_app(
    installer: str, interpreter: str, project: Path, wheel: Path, backend: Path, app: Path, tmp_path: Path
) -> None:
    python = interpreters().get(interpreter)
    if python is None:
        pytest.skip("no Python 3.11 or newer on PATH or in ~/.pyenv links libpython")
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    command = tmp_path / "venv/bin/nsbuild"
    if installer.startswith("pip ") or installer == "pip":
        install(python, "-I", "-m", "venv", tmp_path / "venv", home=tmp_path)
        pip: list[str | Path] = [tmp_path / "venv/bin/python", "-m", "pip", "install"]
        if installer == "pip":
            install(*pip, wheel, home=tmp_path)
        else:
            install(*pip, "--no-build-isolation", "-e", project, home=tmp_path, PYTHONPATH=str(backend))
    elif installer.startswith("uv pip"):
        install(uv, "venv", "-p", python, tmp_path / "venv", home=tmp_path)
        pip = [uv, "pip", "install", "-p", tmp_path / "venv"]
        if installer == "uv pip":
            install(*pip, wheel, home=tmp_path)
        else:
            install(*pip, "--no-build-isolation", "-e", project, home=tmp_path, PYTHONPATH=str(backend))
    else:
        command = tmp_path / ".local/bin/nsbuild"
        if installer == "uv tool":
            install(uv, "tool", "install", "-p", python, wheel, home=tmp_path)
        else:
            pipx = [sys.executable, "-I", "-m", "pipx"]
            install(*pipx, "install", "--python", python, wheel, home=tmp_path)
        assert command.is_symlink()

    env = sourced(app)
    flags = run(command, "flags", env=env)
    assert (flags.stderr, flags.returncode) == (b"", 7)
    assert flags.stdout.startswith(b"1 1 True " + bytes(tmp_path))
    passed = run(command, "/usr/bin/env", "-0", env=env)
    assert dict(entry.split(b"=", 1) for entry in passed.stdout.split(b"\0")[:-1]) == env


@pytest.mark.parametrize("linked", [False, True], ids=["direct", "linked"])
def test_the_environment_passes_byte_for_byte(pip_venv: Path, tmp_path: Path, linked: bool) -> None:
    command = pip_venv / "bin/nsbuild"
    if linked:
        (tmp_path / "nsbuild").symlink_to(command)
        command = tmp_path / "nsbuild"
    for name, env in ENVIRONMENTS.items():
        passed = run(command, "/usr/bin/env", "-0", env=env)
        # bash's only word on the matter is that it has no such locale.
        said = [line for line in passed.stderr.splitlines() if b"setlocale" not in line]
        assert (name, said, passed.returncode) == (name, [], 0)
        assert dict(entry.split(b"=", 1) for entry in passed.stdout.split(b"\0")[:-1]) == env, name


def test_arguments_and_directory_pass_unchanged(pip_venv: Path, tmp_path: Path) -> None:
    words = ["", " ", "a\nb", "-c", "--", "*", "'\"$x"]
    script = 'pwd -P; printf "[%s]" "$@"'
    said = subprocess.run(
        [pip_venv / "bin/nsbuild", "/bin/sh", "-c", script, "sh", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert said.stdout == f"{tmp_path.resolve()}\n" + "".join(f"[{word}]" for word in words)


def test_user_install_is_found_although_isolation_hides_it(tmp_path: Path, project: Path) -> None:
    python = Path(sys.executable).resolve()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / ".local/lib" / version / "site-packages"
    site.mkdir(parents=True)
    (tmp_path / ".local/bin").mkdir()
    shutil.copytree(project / "nsbuild", site / "nsbuild")
    command = Path(shutil.copy(WRAPPER, tmp_path / ".local/bin"))
    env = {b"HOME": bytes(tmp_path), b"PATH": bytes(python.parent) + b":/usr/bin:/bin"}
    flags = run(command, "flags", env=env)
    assert (flags.stderr, flags.returncode) == (b"", 7)
    assert flags.stdout.startswith(b"0 1 True ")
    passed = run(command, "/usr/bin/env", "-0", env=env)
    assert dict(entry.split(b"=", 1) for entry in passed.stdout.split(b"\0")[:-1]) == env


def test_no_interpreter_is_one_sentence_and_125(tmp_path: Path) -> None:
    command = Path(shutil.copy(WRAPPER, tmp_path))
    refused = run(command, "flags", env={b"HOME": bytes(tmp_path), b"PATH": b"/usr/bin:/bin"})
    if refused.returncode == 7:
        pytest.skip("nsbuild is installed for the system's interpreter")
    assert refused.returncode == 125
    assert re.fullmatch(rb"nsbuild: [^\n]+: install nsbuild again\n", refused.stderr)


def test_the_real_command_starts_too(app: Path) -> None:
    command = Path(sysconfig.get_path("scripts")) / "nsbuild"
    version = run(command, "--version", env=sourced(app))
    assert (version.stderr, version.returncode) == (b"", 0)
    assert b"nsbuild" in version.stdout
