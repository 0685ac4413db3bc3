"""Fixtures about fleets, for `pytest_plugins`."""

from __future__ import annotations

import pytest
from rollout.fleets import Fleet
from support.builders import Builder


@pytest.fixture
def fleet(person: Builder) -> Fleet:
    return Fleet(person)


@pytest.fixture
def everywhere(builder: Builder) -> Fleet:
    return Fleet(builder)
