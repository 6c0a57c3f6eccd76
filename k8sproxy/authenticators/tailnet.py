"""The caller as the tailnet knows it: the local tailscaled is asked who is at the other end (common.tailnet.whois).

An answer holds until the daemon gives another one, so a Caller of the tailnet has no end of its own. WhoIs gives the
same Peer as long as the answers are equal, and the Caller made of it is kept, so that the connections of a peer have
the same one.
"""

from __future__ import annotations

from k8sproxy.access.caller import Caller, tailnet_caller
from k8sproxy.authenticators.evidence import Evidence
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.common.tailnet.whois import WhoIs

# Callers that are kept, the oldest goes first: some KiB each, with their peers.
MAX_KEPT = 1024


class TailnetAuthenticator:
    """Asks WhoIs: an Authenticator."""

    __slots__ = ("_callers", "whois")

    def __init__(self, whois: WhoIs) -> None:
        self.whois = whois
        self._callers: dict[int, Caller] = {}  # by the id of their peer, which they hold

    def current(self, evidence: Evidence, before: Caller | None, ahead: float = 0.0) -> Caller | None:
        """The caller, if WhoIs knows the peer at this moment."""
        peer = self.whois.cached(evidence.key, ahead)
        if peer is None:
            return None
        return before if before is not None and before.peer is peer else self._caller(peer)

    async def ask(self, evidence: Evidence, before: Caller | None, ahead: float = 0.0) -> Caller:
        """The caller, out of memory or from the daemon. Raises Refusal."""
        peer = await self.whois.ask(evidence.key, ahead)
        return before if before is not None and before.peer is peer else self._caller(peer)

    def _caller(self, peer: Peer) -> Caller:
        caller = self._callers.get(id(peer))
        if caller is None:
            caller = self._callers[id(peer)] = tailnet_caller(peer)
            if len(self._callers) > MAX_KEPT:
                del self._callers[next(iter(self._callers))]
        return caller
