"""Where requests go, and whether the connections of a listener may go on.

A Permit stands between a listener and its connections, so that a reload can change the routes of connections that are
open, or take the permit away. A request chooses its route once: everything that is done for it, its log line, its
session and its events name that one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from k8sproxy.access.decision import DEFAULT_SNAPSHOT, Snapshot
from k8sproxy.authenticators.evidence import Evidence
from k8sproxy.common.errors import Refusal
from k8sproxy.common.states import State, table
from k8sproxy.dataplane.upstream import Upstream
from k8sproxy.protocol.http1 import RequestHead
from k8sproxy.request.browsers import NO_ORIGINS


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests go: the cluster, and by what it is decided about them. origins: of the web pages that may act as
    a client, beside those that come from here (request.browsers)."""

    upstream: Upstream
    snapshot: Snapshot = DEFAULT_SNAPSHOT
    origins: frozenset[bytes] = NO_ORIGINS


@dataclass(frozen=True, slots=True)
class Routes:
    """The routes of one listener. There is one, and every request takes it."""

    only: Route

    def choose(self, evidence: Evidence, head: RequestHead) -> Route:
        """The route of a request. evidence: of its connection."""
        return self.only

    def snapshot(self, route: Route) -> Snapshot:
        """What now decides about a request that was sent on `route`. Reloads may have changed it since; only whether
        somebody is impersonated was settled when the request was sent."""
        if route is self.only:
            return route.snapshot
        return replace(self.only.snapshot, impersonate=route.snapshot.impersonate)


class PermitState(State):
    """Whether the connections of a listener go on.

    OPEN        they do, and their next request chooses among these routes      -> RETIRED, REVOKED
    RETIRED     the listener is gone: they end with the next response; what
                runs comes to its own end                                       -> REVOKED
    REVOKED     what their clients were identified by is not valid any more:
                they end now, with whatever runs                                -> (final)
    """

    OPEN = "open"
    RETIRED = "retired"
    REVOKED = "revoked"


# Members of an enum are looked up by its metaclass, and every request asks (Python 3.11: half a microsecond each).
OPEN, RETIRED, REVOKED = PermitState.OPEN, PermitState.RETIRED, PermitState.REVOKED
table({OPEN: (RETIRED, REVOKED), RETIRED: (REVOKED,), REVOKED: ()})


class Permit:
    """What the connections of a listener share: the routes of their next request, and whether there is one."""

    __slots__ = ("routes", "state")

    def __init__(self, routes: Routes) -> None:
        self.routes = routes
        self.state = OPEN

    def move(self, state: PermitState) -> None:
        """Retire or revoke it. Raises ImpossibleMove."""
        self.state = self.state.to(state)

    def check(self) -> None:
        """Raises Refusal (503, listener_changed) where a request must not go on."""
        if self.state is REVOKED:
            raise listener_changed()


def listener_changed() -> Refusal:
    """What is told to a client whose listener identifies its clients in another way from now on."""
    message = "the configuration of this listener has changed; connect again"
    return Refusal(503, "listener_changed", message, retry_after=1, close=True)
