"""The caller as the tailnet knows it: the local tailscaled is asked who is at the other end (common.tailnet.whois).

An answer holds until the daemon gives another one, so a Caller of the tailnet has no end of its own. WhoIs gives the
same Peer as long as the answers are equal; the Caller made of it is kept by the connection, which hands it in again.
"""

from __future__ import annotations

from k8sproxy.access.caller import Caller, tailnet_caller
from k8sproxy.authenticators.evidence import Evidence
from k8sproxy.common.tailnet.whois import WhoIs


class TailnetAuthenticator:
    """Asks WhoIs: an Authenticator."""

    __slots__ = ("whois",)

    def __init__(self, whois: WhoIs) -> None:
        self.whois = whois

    def current(self, evidence: Evidence, before: Caller | None, ahead: float = 0.0) -> Caller | None:
        """The caller, if WhoIs knows the peer at this moment."""
        peer = self.whois.cached(evidence.key, ahead)
        if peer is None:
            return None
        return before if before is not None and before.peer is peer else tailnet_caller(peer)

    async def ask(self, evidence: Evidence, before: Caller | None, ahead: float = 0.0) -> Caller:
        """The caller, out of memory or from the daemon. Raises Refusal."""
        peer = await self.whois.ask(evidence.key, ahead)
        return before if before is not None and before.peer is peer else tailnet_caller(peer)
