"""What all connections of the process share: the parts that they use, counts, and whether the proxy is draining.

Nothing in here acts: connections do. A reload replaces some of the parts, and a request that begins uses the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from k8sproxy.audit.entry import Trail
from k8sproxy.authenticators.evidence import Authenticator
from k8sproxy.authenticators.tailnet import TailnetAuthenticator
from k8sproxy.common.longwork import LongWork
from k8sproxy.common.tailnet.whois import WhoIs
from k8sproxy.dataplane.authorities import Authorities
from k8sproxy.dataplane.limits import Limits
from k8sproxy.dataplane.remarks import Remarks
from k8sproxy.sessions.gates import Gate, gates_of
from k8sproxy.sessions.registry import Sessions
from k8sproxy.telemetry import Telemetry


@dataclass(slots=True)
class Shared:
    """One for the process.

    whois: makes the keys of connections, and is what the authenticator asks. trail: where the accounts of requests go.
    documents: what the proxy itself serves, path below LOCAL_PREFIX -> (content type, body). per_peer: connections by
    owner. gates: what a session has to pass.
    """

    whois: WhoIs
    limits: Limits
    telemetry: Telemetry
    sessions: Sessions
    trail: Trail
    documents: Mapping[str, Callable[[], tuple[bytes, bytes]]] = field(default_factory=dict)
    per_peer: dict[str, int] = field(default_factory=dict)
    remarks: Remarks = field(default_factory=Remarks)
    draining: bool = False
    longwork: LongWork = field(default_factory=LongWork)
    authorities: Authorities = field(default_factory=Authorities)
    authenticator: Authenticator = field(init=False)
    gates: tuple[Gate, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.ask(self.whois)
        self.gates = gates_of(self.sessions)

    def ask(self, whois: WhoIs) -> None:
        """Ask this WhoIs from now on."""
        self.whois = whois
        self.authenticator = TailnetAuthenticator(whois)
