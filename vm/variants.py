"""variants.toml as values: conditions, and the answer that is expected under them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vm.errors import Unavailable
from vm.job import Conditions

FILE = Path(__file__).with_name("variants.toml")
OLD = {
    "5.10": (
        ("mount-setattr", "degraded", "Nothing needs fixing"),
        ("overlay-kernel", "degraded", "Nothing needs fixing"),
    )
}
"""What doctor finds on a kernel in whatever variant it gets as far as that."""


@dataclass(frozen=True)
class Finding:
    """What doctor must find: a code, its severity, words of its fix."""

    code: str
    severity: str
    fix: str


@dataclass(frozen=True)
class Variant:
    """Conditions on a kernel, and what must be answered there. The names are those of variants.toml."""

    conditions: Conditions
    kernel: str
    doctor: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    build: str = "succeeds"
    run: str = "succeeds"
    compile: str = "sandbox"
    tests: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As `vm/matrix --only` takes it."""
        return f"{self.conditions.name}@{self.kernel}"

    @property
    def doctor_status(self) -> int:
        """What `nsbuild doctor` must exit with."""
        severities = {finding.severity for finding in self.doctor}
        return 2 if "refused" in severities else 1 if severities else 0


def load(text: str | None = None) -> dict[str, tuple[Variant, ...]]:
    """Every variant by its name, one for each of its kernels. `text` instead of variants.toml.

    Raises Unavailable for a name or value that nothing here means.
    """
    entries = tomllib.loads(FILE.read_text() if text is None else text)["variant"]
    return {entry["name"]: tuple(_variant(entry, kernel) for kernel in entry["kernels"]) for entry in entries}


def _variant(entry: Mapping[str, Any], kernel: str) -> Variant:
    entry = {**entry, **entry.get("on", {}).get(kernel, {})}
    ours = {field.name for field in fields(Variant)} - {"conditions", "kernel"}
    theirs = {field.name for field in fields(Conditions)}
    if unknown := set(entry) - ours - theirs - {"kernels", "on"}:
        raise Unavailable(f"variants.toml: {entry['name']} has {', '.join(sorted(unknown))}, which means nothing.")
    values: dict[str, Any] = {name: _frozen(entry[name]) for name in ours & set(entry)}
    doctor = tuple(Finding(**finding) for finding in entry.get("doctor", ()))
    for name in ("build", "run"):
        if values.get(name, "succeeds") not in ("succeeds", "refused"):
            raise Unavailable(f"variants.toml: {entry['name']}: {name} is {values[name]!r}.")
    if values.get("compile", "direct") not in ("sandbox", "direct", "fails"):
        raise Unavailable(f"variants.toml: {entry['name']}: compile is {values['compile']!r}.")
    refused = values.get("build") == "refused"
    if not refused:
        doctor += tuple(Finding(*known) for known in OLD.get(kernel, ()))
    values["doctor"] = doctor
    values.setdefault("compile", "direct" if refused else "sandbox")
    return Variant(Conditions(**{name: _frozen(entry[name]) for name in theirs & set(entry)}), kernel, **values)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
