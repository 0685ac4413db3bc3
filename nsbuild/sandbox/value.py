"""Frozen values without `dataclasses`.

A launch is a few milliseconds; importing dataclasses (inspect, ast, re ...) costs as much again as the bare
interpreter. So the values that the launch path carries derive from `Value`, which type checkers treat as a
frozen dataclass, and which can turn itself into `marshal`able tuples for the trip to a Launcher.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_: object) -> Callable[[type], type]:
        return lambda cls: cls


_classes: dict[str, type[Value]] = {}


@dataclass_transform(frozen_default=True)
class Value:
    """A frozen record: equal by content, printable, positional or keyword construction."""

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = tuple(name for name in cls.__annotations__ if not name.startswith("_"))
        cls._fields = cls._fields + tuple(name for name in own if name not in cls._fields)
        _classes[cls.__name__] = cls

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(self._fields):
            raise TypeError(f"{type(self).__name__} takes {len(self._fields)} values, not {len(args)}")
        values = dict(zip(self._fields, args, strict=False))
        for name, value in kwargs.items():
            if name not in self._fields or name in values:
                raise TypeError(f"{type(self).__name__}: unexpected or repeated value {name!r}")
            values[name] = value
        for name in self._fields:
            if name not in values and not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs a value for {name!r}")
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._astuple() == other._astuple()

    def __hash__(self) -> int:
        return hash((type(self), self._astuple()))

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({inner})"

    def _astuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._fields)

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed."""
        return type(self)(**{**{name: getattr(self, name) for name in self._fields}, **changes})


def pack(value: Any) -> Any:
    """Values, dicts, tuples and lists as what `marshal` takes."""
    if isinstance(value, Value):
        return ("V", type(value).__name__, tuple(pack(item) for item in value._astuple()))
    if isinstance(value, tuple):
        return ("T", *(pack(item) for item in value))
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, dict):
        return {key: pack(item) for key, item in value.items()}
    return value


def unpack(plain: Any) -> Any:
    """The inverse of `pack`. Only for what a process of ours packed: it trusts its input."""
    if isinstance(plain, tuple):
        if plain[0] == "V":
            return _classes[plain[1]](*(unpack(item) for item in plain[2]))
        return tuple(unpack(item) for item in plain[1:])
    if isinstance(plain, list):
        return [unpack(item) for item in plain]
    if isinstance(plain, dict):
        return {key: unpack(item) for key, item in plain.items()}
    return plain
