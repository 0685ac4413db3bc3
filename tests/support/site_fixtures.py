"""Fixtures about sites, for `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.sites import CHAINS, App, Site, build_twice, from_wheels, new_site, remove_site


@pytest.fixture
def site() -> Iterator[Site]:
    """A home for one test, in which nothing may be left behind."""
    made = new_site("one")
    try:
        yield made
        made.nothing_left()
    finally:
        remove_site(made)


@pytest.fixture(scope="session")
def apps() -> Iterator[dict[str, App]]:
    """Every app of tests/apps, built once a session and shared, as builds with pip and npm take their time."""
    site = new_site("apps")
    try:
        from_wheels(site)
        with ThreadPoolExecutor(2) as pool:
            built = dict(zip(CHAINS, pool.map(lambda name: build_twice(site, name), CHAINS), strict=True))
        yield built
        site.nothing_left()
    finally:
        remove_site(site)
