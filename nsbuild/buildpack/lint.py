"""Reading a buildpack's scripts, without running them, for what matters when BUILD_DIR is at /app."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nsbuild.buildpack.lint_rules import RULES, UNREAD, VERDICTS, Rule, Verdict
from nsbuild.buildpack.shell import Script, read_script

ENTRIES = ("detect", "compile", "release", "report", "test-compile", "test")
"""What a platform calls. The other scripts are those that these, and they, mention."""

_LARGEST = 1 << 20
_MOST = 5000
_SHELL = re.compile(rb"#!\s*\S*/(?:env\s+(?:-\S+\s+)*)?(?:\S*/)?(?:ba|da|k)?sh\b")
_OTHER = (".rb", ".py", ".js", ".mjs", ".cjs", ".pl", ".php")
_TESTS = ("spec/", "test/", "tests/")
_APPS = ("<BUILD_DIR>", "<CACHE_DIR>", "<ENV_DIR>", "<HOME>", "/app", "<TMP>")


@dataclass(frozen=True, order=True)
class Finding:
    """`code` is the line of the script, `says` what it does and what becomes of it."""

    file: str
    line: int
    name: str
    verdict: Verdict
    code: str
    says: str


@dataclass(frozen=True)
class Lint:
    """What was found, in the order of files and lines, and the scripts that were read."""

    findings: tuple[Finding, ...]
    read: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        return max((found.verdict for found in self.findings), key=VERDICTS.index, default="safe")


def lint(directory: Path) -> Lint:
    """Look at a buildpack. Raises OSError for what cannot be read."""
    files = dict(_files(directory))
    scripts = _reached(files)
    functions = {name for script in scripts.values() if script is not None for name in script.functions}
    found: dict[tuple[str, int, str], Finding] = {}
    for name, script in scripts.items():
        lines = files[name].splitlines()
        for rule, line in _matches(script, functions):
            code = lines[line - 1].decode("utf-8", "replace").strip()[:200] if line <= len(lines) else ""
            found.setdefault((name, line, rule.name), Finding(name, line, rule.name, rule.verdict, code, rule.says))
    return Lint(tuple(sorted(found.values())), tuple(sorted(scripts)))


def _matches(script: Script | None, functions: set[str]) -> Iterator[tuple[Rule, int]]:
    """`functions` are the buildpack's own commands, whatever they are called like."""
    if script is None:
        yield UNREAD, 1
        return
    for line in script.broken:
        yield UNREAD, line
    for command in script.commands:
        if command.kind == "command" and command.text.partition(" ")[0] in functions:
            continue
        for rule in RULES:
            if command.kind not in rule.kinds or not rule.pattern.search(command.text):
                continue
            if rule.alone is not None and any(rule.alone.search(other.text) for other in script.commands):
                continue
            yield rule, command.line


def _files(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Path in the buildpack, and content, of what may be a script."""
    count = 0
    for parent, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if name != ".git")
        for name in sorted(names):
            path = Path(parent, name)
            count += 1
            if count > _MOST:
                return
            if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
                continue
            yield str(path.relative_to(directory)), path.read_bytes()


def _reached(files: Mapping[str, bytes]) -> dict[str, Script | None]:
    """The scripts that a build can run: those called, and what they mention; None for what is not shell."""
    found: dict[str, Script | None] = {}
    variables: dict[str, str] = {}
    pending = [f"bin/{name}" for name in ENTRIES if f"bin/{name}" in files]
    while pending:
        name = pending.pop(0)
        if name in found:
            continue
        text = files[name]
        if not _is_shell(name, text):
            if text.startswith(b"#!") or name.endswith(_OTHER) or name.startswith("bin/"):
                found[name] = None
            continue
        known = {**variables, "BASH_SOURCE": f"<PACK>/{name}"}
        script = found[name] = read_script(text, known, entry=name in {f"bin/{entry}" for entry in ENTRIES})
        variables |= {key: value for key, value in script.variables.items() if key not in variables}
        pending += [other for other in files if other not in found and _mentions(script, other)]
    return found


def _is_shell(name: str, text: bytes) -> bool:
    if text.startswith(b"#!"):
        return bool(_SHELL.match(text))
    return b"\0" not in text[:8192] and PurePosixPath(name).suffix in ("", ".sh", ".bash")


def _mentions(script: Script, file: str) -> bool:
    for word in script.mentions:
        if word.startswith(_APPS):
            continue
        tail = re.sub(r"^(?:.*>)?/*(?:\.{1,2}/)*", "", posixpath.normpath(word))
        if file == tail:
            return True
        if not file.startswith(_TESTS) and re.search(r"\w", tail) and PurePosixPath(file).match(tail):
            return True
    return False
