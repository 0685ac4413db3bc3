"""A shell script as the commands in it, with what is known of the paths: for `lint`, which runs nothing.

A word is what it expands to, as far as that can be told without running anything: `<BUILD_DIR>/.cache`, `<HOME>`,
`/app`, `<TMP>`, `<PACK>` (the buildpack's own directory), `<PWD>`, `<REALPATH>` (of realpath or `pwd -P`); `<?>` is
the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

UNKNOWN = "<?>"
Kind = Literal["command", "test", "redirect", "background"]

_DEPTH = 60
_SUBSTITUTED = 20
"""How much of the depth a command substitution costs: what is nested deeper than three says nothing about a path."""
_LONGEST = 500
_POSITIONAL = {"1": "<BUILD_DIR>", "2": "<CACHE_DIR>", "3": "<ENV_DIR>"}
_BY_NAME = (
    (re.compile(r"(?i)(?:bp_)?build(?:_?dir|_?path)?"), "<BUILD_DIR>"),
    (re.compile(r"(?i)cache_?(?:dir|path)"), "<CACHE_DIR>"),
    (re.compile(r"(?i)env_?(?:dir|path)"), "<ENV_DIR>"),
    (re.compile(r"HOME"), "<HOME>"),
    (re.compile(r"PWD"), "<PWD>"),
    (re.compile(r"TMPDIR"), "<TMP>"),
    (re.compile(r"0"), "<PACK>/bin/script"),
)
_WRAPPERS = frozenset(
    {"env", "exec", "command", "builtin", "time", "nice", "ionice", "timeout", "xargs", "nohup", "setsid"}
)
_WRITES = (">", ">>", ">|", "&>", "&>>")


@dataclass(frozen=True)
class Command:
    """One command: its words joined by single spaces, the first without its directory.

    A comparison is `LEFT = RIGHT`, a redirection `> FILE`; of what runs in the background it is the first command.
    """

    kind: Kind
    line: int
    text: str


@dataclass
class Script:
    """`commands` in the order of the file; `mentions` are words that may be paths of scripts.

    `variables` is what assignments say, `functions` are names that are defined. `broken` are lines that could not be
    read as shell.
    """

    commands: list[Command] = field(default_factory=list)
    mentions: set[str] = field(default_factory=set)
    variables: dict[str, str] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)
    broken: list[int] = field(default_factory=list)


@cache
def _parser() -> Parser:
    import tree_sitter
    import tree_sitter_bash

    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))


def read_script(text: bytes, variables: dict[str, str] | None = None, *, entry: bool = False) -> Script:
    """What is in a script. `variables` are those of the scripts that source it; in an `entry`, $1 is BUILD_DIR."""
    script = Script(variables=dict(variables or {}))
    tree = _parser().parse(text)
    for _ in range(2):  # a variable may be set below the function that uses it
        for node in _walk(tree.root_node):
            if node.type == "variable_assignment":
                _assign(script, node, entry)
    for node in _walk(tree.root_node):
        _read(script, node, entry)
    return script


def _walk(top: Node) -> Iterator[Node]:
    pending = [top]
    while pending:
        node = pending.pop()
        yield node
        pending += reversed(node.children)


def _read(script: Script, node: Node, entry: bool) -> None:
    line = node.start_point[0] + 1
    if node.type in ("ERROR", "MISSING") or node.is_missing:
        script.broken.append(line)
    elif node.type == "function_definition":
        name = node.child_by_field_name("name")
        script.functions.add(_text(name) if name is not None else "")
    elif node.type == "command":
        _command(script, node, line, entry)
    elif node.type == "for_statement":
        script.mentions |= {word for part in node.named_children if "/" in (word := _value(script, part, entry))}
    elif node.type == "test_command":
        for inner in _walk(node):
            if inner.type == "binary_expression":
                _compare(script, inner, line, entry)
    elif node.type == "file_redirect":
        operator = next((_text(child) for child in node.children if not child.is_named), "")
        if operator in _WRITES and node.named_children:
            target = _value(script, node.named_children[-1], entry)
            script.commands.append(Command("redirect", line, f"> {target}"))
    elif node.type == "&" and (before := node.prev_sibling) is not None:
        first = next((found for found in _walk(before) if found.type == "command"), None)
        if first is not None:
            text = " ".join(_words(script, first, entry))
            script.commands.append(Command("background", first.start_point[0] + 1, text))


def _command(script: Script, node: Node, line: int, entry: bool) -> None:
    words = _words(script, node, entry)
    if not words:
        return
    script.mentions |= {word for word in words if "/" in word}
    if words[0] in ("source", ".") and len(words) > 1:
        script.mentions.add(f"./{words[1]}")
    while words and (words[0].rpartition("/")[2] in _WRAPPERS):
        wrapper, *words = words
        if wrapper in ("nohup", "setsid"):
            script.commands.append(Command("command", line, " ".join([wrapper, *words])))
        if wrapper == "command" and words and words[0] in ("-v", "-V"):
            return
        while words and (words[0].startswith("-") or "=" in words[0] or re.fullmatch(r"[\d.]+[smhd]?", words[0])):
            words = words[1:]
    if not words:
        return
    name = words[0].rpartition("/")[2]
    if name in ("test", "["):
        operators = [number for number, word in enumerate(words) if word in ("=", "==", "!=")]
        for at in operators:
            if 0 < at < len(words) - 1:
                script.commands.append(Command("test", line, f"{words[at - 1]} = {words[at + 1]}"))
        return
    script.commands.append(Command("command", line, " ".join([name, *words[1:]])))


def _compare(script: Script, node: Node, line: int, entry: bool) -> None:
    operator = node.child_by_field_name("operator")
    left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
    if operator is not None and left is not None and right is not None and _text(operator) in ("=", "==", "!="):
        line = node.start_point[0] + 1
        text = f"{_value(script, left, entry)} = {_value(script, right, entry)}"
        script.commands.append(Command("test", line, text))


def _assign(script: Script, node: Node, entry: bool) -> None:
    name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
    if name is None or value is None:
        return
    meant = _value(script, value, entry)
    if not meant.startswith(UNKNOWN) and ("/" in meant or meant.startswith("<")):
        script.variables.setdefault(_text(name), meant)


def _words(script: Script, node: Node, entry: bool) -> list[str]:
    parts = [child for child in node.named_children if child.type not in ("variable_assignment", "comment")]
    parts = [child for child in parts if not child.type.endswith("redirect")]
    return [re.sub(r"\s", "_", _value(script, part, entry)) for part in parts]


def _value(script: Script, node: Node, entry: bool, depth: int = 0) -> str:
    """What a word expands to, as far as that is known."""
    if depth > _DEPTH:
        return UNKNOWN
    kind = node.type
    if kind in ("expansion", "command_substitution") and node.end_byte - node.start_byte > _LONGEST:
        return UNKNOWN
    if kind in ("word", "string_content", "extglob_pattern", "regex", "test_operator"):
        text = _text(node)
        if kind == "word":
            text = re.sub(r"\\(.)", r"\1", re.sub(r"^~(?=/|$)", "<HOME>", text))
        return text
    if kind == "raw_string":
        return _text(node)[1:-1]
    if kind in ("string", "concatenation", "command_name"):
        parts = [_value(script, child, entry, depth + 1) for child in node.named_children]
        return re.sub(r"^~(?=/|$)", "<HOME>", "".join(parts)) if kind == "concatenation" else "".join(parts)
    if kind in ("simple_expansion", "expansion"):
        return _expanded(script, node, entry, depth)
    if kind == "command_substitution":
        return _printed(script, node, entry, depth)
    return _text(node) if kind in ("number", "variable_name") else UNKNOWN


def _expanded(script: Script, node: Node, entry: bool, depth: int) -> str:
    names = [found for found in _walk(node) if found.type in ("variable_name", "special_variable_name")]
    if not names:
        return UNKNOWN
    name = _text(names[0])
    rest = _text(node).removeprefix("${").removesuffix("}").removeprefix("$").removeprefix(name)
    if rest and not re.match(r"\[\d+\]$|:?[-?=]", rest):
        return UNKNOWN  # a part of it, or something else in its place
    if name in _POSITIONAL:
        return _POSITIONAL[name] if entry and not _in_function(node) else UNKNOWN
    if name in script.variables:
        return script.variables[name]
    for pattern, meaning in _BY_NAME:
        if pattern.fullmatch(name):
            return meaning
    default = [child for child in node.named_children if child != names[0] and child.type != "subscript"]
    if re.match(r":?[-=]", rest) and default:
        return _value(script, default[-1], entry, depth + 1)
    return UNKNOWN


def _printed(script: Script, node: Node, entry: bool, depth: int) -> str:
    """What a command substitution prints."""
    commands = [found for found in _walk(node) if found.type == "command"]
    if not commands:
        return UNKNOWN
    calls = [
        [
            _value(script, part, entry, depth + _SUBSTITUTED)
            for part in command.named_children
            if "redirect" not in part.type
        ]
        for command in commands[:8]
    ]
    names = [call[0] for call in calls if call]
    if "realpath" in names or ("readlink" in names and any("f" in word for word in calls[0][1:2])):
        return "<REALPATH>"
    if "pwd" in names:
        if any(call[:2] in (["pwd", "-P"], ["cd", "-P"]) for call in calls):
            return "<REALPATH>"
        moved = [call[-1] for call in calls if call and call[0] == "cd" and len(call) > 1]
        return moved[-1] if moved else "<PWD>"
    if names[:1] == ["mktemp"]:
        return "<TMP>"
    if names[:1] == ["dirname"] and len(calls[0]) > 1:
        return calls[0][-1].rpartition("/")[0] or UNKNOWN
    return UNKNOWN


def _in_function(node: Node) -> bool:
    above = node.parent
    while above is not None:
        if above.type == "function_definition":
            return True
        above = above.parent
    return False


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "surrogateescape")
