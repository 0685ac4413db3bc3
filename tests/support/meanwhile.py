"""A whole other operation before one of the steps of a first: what two processes do, in an order of our choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest


def meanwhile(
    monkeypatch: pytest.MonkeyPatch,
    steps: Sequence[tuple[object, str]],
    number: int,
    other: Callable[[], object],
) -> list[str]:
    """Before the call `number`, from 0, of any of the functions `steps`, do `other`, whose own calls do not count.

    Returns the list of the calls, to which each is added.
    """
    taken: list[str] = []
    busy: list[bool] = []

    def counting(place: object, name: str) -> None:
        real = getattr(place, name)

        def step(*words: object, **more: object) -> object:
            if not busy:
                taken.append(name)
                if len(taken) == number + 1:
                    busy.append(True)
                    other()
                    busy.clear()
            return real(*words, **more)

        monkeypatch.setattr(place, name, step)

    for place, name in steps:
        counting(place, name)
    return taken
