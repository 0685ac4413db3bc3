"""Fixtures about builders, for `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support.builders import WAYS, Builder, against
from support.sites import new_site, remove_site


def in_every_way(name: str = "wrap") -> Callable[[pytest.FixtureRequest], Iterator[Builder]]:
    def made(request: pytest.FixtureRequest) -> Iterator[Builder]:
        site = new_site(name)
        try:
            way = getattr(request, "param", "user")
            if reason := against(way, site.path):
                pytest.skip(reason)
            yield Builder(site, way)
            site.nothing_left()
        finally:
            remove_site(site)

    return made


builder = pytest.fixture(params=WAYS, name="builder")(in_every_way())
"""Once for each way."""
person = pytest.fixture(name="person")(in_every_way())
"""For an ordinary user only: where the way makes no difference, and for refusals."""
