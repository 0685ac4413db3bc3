"""Fixtures about sites, for `pytest_plugins`."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

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
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, App]]:
    """Every app of tests/apps, built once by the first of the workers and shared, as builds with pip and npm take
    their time. The last one that had use of them removes them.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    place = base / "apps"
    with (base / "apps-users").open("ab") as users:
        with _locked(base / "apps-lock"):
            fcntl.flock(users, fcntl.LOCK_SH)
            site, built = pickle.loads(place.read_bytes()) if place.exists() else _build()
            place.write_bytes(pickle.dumps((site, built)))
        yield built
        with _locked(base / "apps-lock"):
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            place.unlink()
            try:
                site.nothing_left()
            finally:
                remove_site(site)


def _build() -> tuple[Site, dict[str, App]]:
    site = new_site("apps")
    try:
        from_wheels(site)
        with ThreadPoolExecutor(2) as pool:
            return site, dict(zip(CHAINS, pool.map(lambda name: build_twice(site, name), CHAINS), strict=True))
    except BaseException:
        remove_site(site)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
