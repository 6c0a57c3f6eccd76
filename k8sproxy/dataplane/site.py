"""What connections share: the parts of the process, where requests go, and what the proxy itself serves.

Nothing in here acts; the handler does. A Gate stands between a listener and its connections, so that a reload can
change the route of connections that are open. A request reads its gate's route once: all that is done for it, its log,
its session and its events name that one.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from k8sproxy.access.decision import Authority
from k8sproxy.access.grants import DEFAULT_SETTINGS, GrantSettings
from k8sproxy.audit.events import Events
from k8sproxy.common.errors import Refusal
from k8sproxy.common.longwork import LongWork
from k8sproxy.common.tailnet.whois import WhoIs
from k8sproxy.dataplane.limits import Limits
from k8sproxy.dataplane.remarks import Remarks
from k8sproxy.dataplane.upstream import Upstream
from k8sproxy.request.browsers import NO_ORIGINS
from k8sproxy.sessions.registry import Sessions
from k8sproxy.telemetry import RequestLog, Telemetry

# What the proxy itself serves to a peer that it knows, beside the API server's own paths.
LOCAL_PREFIX = "/.well-known/k8sproxy/"


@dataclass(slots=True)
class Site:
    """What the connections of a process share. documents: path below LOCAL_PREFIX -> (content type, body)."""

    whois: WhoIs
    limits: Limits
    telemetry: Telemetry
    sessions: Sessions
    events: Events
    requests: RequestLog
    documents: Mapping[str, Callable[[], tuple[bytes, bytes]]] = field(default_factory=dict)
    per_peer: dict[str, int] = field(default_factory=dict)
    remarks: Remarks = field(default_factory=Remarks)
    draining: bool = False
    longwork: LongWork = field(default_factory=LongWork)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a listener's requests go: the cluster, whether its clients are impersonated or pass through, and how their
    grants are read. origins: of the web pages that may act as a client, beside those that come from here
    (policy.browsers)."""

    upstream: Upstream
    impersonate: bool = True
    grants: GrantSettings = DEFAULT_SETTINGS
    origins: frozenset[bytes] = NO_ORIGINS


class GateState(enum.Enum):
    """Whether the connections of a listener go on.

    OPEN        they do, and their next request takes the gate's route
    RETIRED     the listener is gone: they end with the next response; what runs comes to its own end
    REVOKED     what their clients were identified by does not hold any more: they end now, with whatever runs
    """

    OPEN = "open"
    RETIRED = "retired"
    REVOKED = "revoked"


# Members of an enum are looked up by its metaclass, and every request asks (Python 3.11: half a microsecond each).
OPEN, _REVOKED = GateState.OPEN, GateState.REVOKED


@dataclass(slots=True)
class Gate:
    """What the connections of a listener share: the route of their next request, and whether there is one."""

    route: Route
    state: GateState = OPEN

    def is_revoked(self) -> bool:
        """Whether a request must not go on."""
        return self.state is _REVOKED


def local_document(site: Site, path: str, authority: Authority) -> tuple[bytes, bytes]:
    """(content type, body) of a path below LOCAL_PREFIX: whoami, and what the Site has. Raises Refusal 404."""
    name = path.removeprefix(LOCAL_PREFIX)
    if name == "whoami":
        return b"application/json", _whoami(authority)
    if name in site.documents:
        return site.documents[name]()
    raise Refusal(404, "not_found", "nothing is served at this path")


def _whoami(authority: Authority) -> bytes:
    """Who the peer is to the tailnet, and whom it is impersonated as."""
    peer, identity = authority.peer, authority.impersonation
    return (
        json.dumps(
            {
                "peer": {
                    "node": peer.node_name.removesuffix("."),
                    "address": peer.address,
                    "loginName": peer.login_name if not peer.is_tagged else None,
                    "tags": list(peer.tags),
                },
                "impersonation": {"user": identity.user, "groups": list(identity.groups)} if identity else None,
                "enforceRecorder": authority.grants.enforced,
                "recording": authority.grants.recording.value if authority.grants.recording else None,
            },
            indent=2,
        ).encode()
        + b"\n"
    )
