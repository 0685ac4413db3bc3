"""Fixtures of tests about stacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sites import Site
from support.stacks import little_root


@pytest.fixture
def little(site: Site) -> Path:
    """A root file system with next to nothing in it, of the person who builds."""
    top = little_root(site.path / "little")
    for found in [top, *top.rglob("*")]:
        site.own(found)
    return top
