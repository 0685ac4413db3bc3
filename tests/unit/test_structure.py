"""The rooms of the code: who may import whom, and that each says what it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nsbuild

PACKAGE = Path(nsbuild.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
LEVELS = {
    "nsbuild.lazy": -1,
    "nsbuild.tree": 0,
    "nsbuild.errors": 0,
    "nsbuild.interrupts": 0,
    "nsbuild.printable": 0,
    "nsbuild.record": 0,
    "nsbuild.config": 1,
    "nsbuild.sandbox": 1,
    "nsbuild.user": 2,
    "nsbuild.disk": 2,
    "nsbuild.workspace": 2,
    "nsbuild.refusals": 2,
    "nsbuild.stack": 3,
    "nsbuild.slug": 3,
    "nsbuild.buildpack": 3,
    "nsbuild.build": 5,
    "nsbuild.runtime": 5,
    "nsbuild.wrap": 5,
    "nsbuild.audit": 4,
    "nsbuild.rollout": 6,
    "nsbuild": 7,
    "nsbuild.cli": 8,
    "nsbuild.__main__": 9,
}
"""A room imports what is below it, and itself. cli -> build, runtime -> buildpack -> sandbox."""


def room(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2])


def imports(path: Path) -> set[str]:
    """Names of our modules that a file imports, anywhere in it, but for type checkers only."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in node.body
        for inner in ast.walk(child)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if name == "nsbuild" or name.startswith("nsbuild.")}


def test_every_room_has_its_level() -> None:
    assert {room(module) for module in MODULES} <= set(LEVELS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    """`nsbuild` itself is imported by anybody for its version; its functions import the rooms lazily."""
    own = room(module)
    for imported in imports(MODULES[module]) - {"nsbuild"}:
        other = room(imported)
        assert other == own or LEVELS[other] < LEVELS[own], f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    text = ast.get_docstring(ast.parse(MODULES[module].read_text()))
    assert text and len(text.split()) >= 2, module


def test_the_checker_of_imports_sees_an_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("if TYPE_CHECKING:\n    import nsbuild.cli\ndef f():\n    from nsbuild import build\n")
    assert imports(file) == {"nsbuild.build"}
