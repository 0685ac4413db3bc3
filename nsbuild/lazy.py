"""Packages whose names are imported when they are first used: a launch has no time for the rest of the room."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def names_of(package: str, names: Sequence[str], modules: Sequence[str]) -> Callable[[str], object]:
    """A module's `__getattr__` (PEP 562) that finds `names` in the package's `modules`."""

    def getattribute(name: str) -> object:
        from importlib import import_module

        if name in names:
            for module in modules:
                found = getattr(import_module(f"{package}.{module}"), name, None)
                if found is not None:
                    return found
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return getattribute
