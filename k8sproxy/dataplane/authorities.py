"""Authorities that have been computed already: the connections of one caller share them.

kubectl makes a connection for each run, and reading the grants of a caller costs as much as answering it. WhoIs gives
the same Peer as long as its answer is the same, so what depends on peer and route alone is kept here, by identity: a
reload makes another route, a changed answer another peer, and neither finds what is kept of the one before.
"""

from __future__ import annotations

from typing import NamedTuple

from k8sproxy.access.caller import Caller
from k8sproxy.access.decision import Authority, authorize
from k8sproxy.dataplane.routes import Route
from k8sproxy.telemetry import encode_fields

# Entries, the oldest goes first. Some KiB each.
MAX_KEPT = 1024


class Known(NamedTuple):
    """What is known of a caller on a route. who: the fields of a log line that name it, as JSON.

    It holds what it is found by, so that no other object can have the same id meanwhile.
    """

    authority: Authority
    route: Route
    who: str


class Authorities:
    """Computes authorities, once for each caller and route."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], Known] = {}

    def of(self, caller: Caller, route: Route) -> Known:
        """What is known of the caller on this route. Raises Refusal as authorize() does."""
        key = (id(caller), id(route))
        known = self._kept.get(key)
        if known is None:
            authority = authorize(caller, route.snapshot)
            known = self._kept[key] = Known(authority, route, _who(authority, route))
            if len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        return known


def _who(authority: Authority, route: Route) -> str:
    caller, identity = authority.caller, authority.impersonation
    return encode_fields(
        {
            "cluster": route.upstream.name,
            "peer": caller.display,
            "node": caller.peer.node_name.removesuffix("."),
            "address": caller.address,
            "user": identity.user if identity else None,
            "groups": list(identity.groups) if identity else None,
        }
    )
