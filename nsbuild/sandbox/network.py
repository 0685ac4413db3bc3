"""The private network namespace of `--network none`: its loopback, up.

Imported only then: the import of pyroute2 costs many launches.
"""

from __future__ import annotations

from pyroute2 import IPRoute


def bring_loopback_up() -> None:
    """Set `lo` up in the current network namespace; needs CAP_NET_ADMIN over it."""
    with IPRoute() as route:
        (index,) = route.link_lookup(ifname="lo")
        route.link("set", index=index, state="up")
