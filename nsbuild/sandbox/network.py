"""The private network namespace of `--network none`: its loopback, up.

Imported only then: pyroute2 costs 0.2 s, a hundred launches' worth of everything else.
"""

from __future__ import annotations

from pyroute2 import IPRoute


def bring_loopback_up() -> None:
    """Set `lo` up in the current network namespace; needs CAP_NET_ADMIN over it."""
    with IPRoute() as route:
        (index,) = route.link_lookup(ifname="lo")
        route.link("set", index=index, state="up")
