"""What kind of file remembers a path decides what that does at run time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nsbuild.audit.finding import Severity


@dataclass(frozen=True)
class Kind:
    """`effect` says what the path does, for a person."""

    severity: Severity
    effect: str


_B, _S, _C = Severity.BREAKS, Severity.STALE, Severity.COSMETIC

KINDS = {
    "symlink": Kind(_B, "The link leads nowhere at run time."),
    "shebang": Kind(_B, "The script cannot be started: its interpreter is named by that path."),
    "interpreter-missing": Kind(_B, "The script cannot be started: its interpreter is not in the slug."),
    "interpreter-foreign": Kind(_S, "The script can only be started on a stack that has its interpreter."),
    "shebang-too-long": Kind(
        _B, "The kernel cuts the first line off after 127 bytes: another interpreter is started."
    ),
    "rpath": Kind(_B, "The libraries that it needs are looked for in a place that is not there."),
    "elf-interpreter": Kind(_B, "The program cannot be started: its dynamic loader is not there."),
    "pth": Kind(_B, "Python does not find what the file should make importable."),
    "finder": Kind(_B, "The editable package cannot be imported."),
    "pyvenv": Kind(_B, "The virtual environment does not find its Python."),
    "boot": Kind(_B, "It is run at every boot, and the path is not there."),
    "script": Kind(_B, "The script uses a path that is not there when it is run."),
    "direct-url": Kind(_S, "Tools show, and compare, where the package was installed from: a place that is gone."),
    "record": Kind(_S, "Uninstalling or checking the package looks for files that are not there."),
    "sysconfig": Kind(_S, "Extension modules compiled at run time look in a place that is gone."),
    "build-config": Kind(_S, "What is compiled against the library at run time looks in a place that is gone."),
    "bytecode-constant": Kind(_S, "A string in the program: it matters if it is opened or compared."),
    "text": Kind(_S, "The path is wrong wherever the text is read."),
    "bytecode-filename": Kind(_C, "Tracebacks name a file that is not there."),
    "binary": Kind(_C, "Debug information or a message in a program."),
}
"""Every kind of finding."""

_BY_NAME = [
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (r"(.*/)?pyvenv\.cfg", "pyvenv"),
        (r".*\.(pth|egg-link)", "pth"),
        (r"(.*/)?(__editable__[^/]*|_[^/]*_editable(_loader)?)\.py", "finder"),
        (r"(.*/)?[^/]*\.dist-info/direct_url\.json", "direct-url"),
        (r"(.*/)?[^/]*\.(dist|egg)-info/(RECORD|installed-files\.txt|SOURCES\.txt)", "record"),
        (r"(.*/)?_sysconfigdata[^/]*\.(py|json)", "sysconfig"),
        (r"(.*/)?config-[^/]*/Makefile", "sysconfig"),
        (r".*\.(pc|la|cmake|prl)", "build-config"),
        (r"\.profile\.d/[^/]+", "boot"),
        (r"(\.profile|Procfile|export)", "boot"),
        (r"(.*/)?bin/[^/]+", "script"),
        (r".*\.(sh|bash|fish|csh)", "script"),
    )
]


def kind_of_text(path: str, executable: bool) -> str:
    """The kind of a text file, by its path from the slug's top (or inside an archive)."""
    for pattern, kind in _BY_NAME:
        if pattern.fullmatch(path):
            return kind
    return "script" if executable else "text"


_NAMED = {"text", *(kind for _, kind in _BY_NAME)}


def kind_under(kind: str, path: str, executable: bool) -> str:
    """What a finding in a file is under another name of it."""
    return kind_of_text(path, executable) if kind in _NAMED else kind


def looks_like_text(head: bytes) -> bool:
    """As grep and git see it: no NUL near the start."""
    return b"\0" not in head[:8192]
