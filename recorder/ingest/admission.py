"""Who may send: asked of the tailnet for every request, since a connection lives for hours.

A peer may send if the configuration names its login name or one of its tags, or if it holds a grant rule with
"send": true under DOMAIN/cap/recorder. A peer with a rule that does not parse (recorder/access.py says which do) may
not send at all: what it was meant to say is not known. Whoever WhoIs does not know may not send either.

`insecure` addresses are let in without a question, for development without a tailnet. Whoever can connect from there,
and that is everybody on the tailnet where a userspace daemon forwards to loopback, may then send what they like.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Sequence

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer, is_named
from k8sproxy.common.tailnet.whois import ClientKey, WhoIs
from recorder import access
from recorder.model import Source

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Admission:
    """The rule. All of it may be replaced at any time. domain: of the capability, without a slash."""

    def __init__(
        self, whois: WhoIs, *, domain: str, allow: Sequence[str] = (), insecure: Sequence[Network] = ()
    ) -> None:
        self.whois = whois
        self.domain = domain
        self.allow = frozenset(allow)
        self.insecure = tuple(insecure)

    def take_over(self, other: Admission) -> None:
        """Be like another one from now on: a reload."""
        self.whois, self.domain = other.whois, other.domain
        self.allow, self.insecure = other.allow, other.insecure

    def door(self, peername: object) -> Door:
        """For a new connection. peername: as the transport gives it."""
        if isinstance(peername, tuple) and len(peername) >= 2:
            return Door(self, str(peername[0]), int(peername[1]))
        return Door(self, "", 0)

    def missing(self, source: Source) -> str:
        """What a peer that may not send is told: who it is, and what would admit it."""
        name = f"{source.node} ({', '.join(source.tags) or source.user or 'no user'})"
        grant = f'{{"send": true}} under {access.capability(self.domain)}'
        return f"this recorder accepts no recordings from {name}: it needs a grant {grant}, or a place in ingest.allow"

    def may_send(self, peer: Peer) -> bool:
        """Whether this peer may send recordings and events. Raises Refusal for a rule of its that can't be read."""
        granted = access.rules(peer, self.domain).sends
        return granted or is_named(peer, self.allow)


class Door:
    """One connection's.

    holder: who it is, for shares: the node's stable id, "" until that is known; an insecure address is its own. source:
    what is known of it. transport: once there is one. requests: how many are being answered; turned: told when that
    becomes one, and when it becomes none.
    """

    def __init__(self, admission: Admission, ip: str, port: int) -> None:
        self.ip = ip
        self.holder = ""
        self.source = Source(node="", address=ip)
        self.transport: asyncio.Transport | None = None
        self.requests = 0
        self.turned: Callable[[Door], None] | None = None
        self._admission = admission
        self._port = port
        self._key: ClientKey | None = None
        self._whois: WhoIs | None = None
        self._ended = False

    async def ask(self) -> Peer | None:
        """Who it is; None for an insecure address, which nobody is asked about. Raises Refusal."""
        if self._is_insecure():
            self.holder = self.ip
            return None
        if self._ended:
            raise Refusal(503, "whois_unavailable", "the connection has ended")
        if self._key is None or self._whois is None:
            self._whois = self._admission.whois
            self._key = self._whois.open(self.ip, self._port)
        peer = await self._whois.ask(self._key)
        self.holder = peer.stable_id
        self.source = Source(
            node=peer.node_name.removesuffix("."),
            address=peer.address,
            user="" if peer.is_tagged else peer.login_name,
            tags=peer.tags,
        )
        return peer

    async def admit(self) -> Source:
        """Who it is. Raises Refusal for whoever may not send."""
        peer = await self.ask()
        if peer is not None and not self._admission.may_send(peer):
            raise Refusal(403, "not_a_sender", self._admission.missing(self.source))
        return self.source

    def begin(self) -> None:
        """A request is being answered."""
        self.requests += 1
        if self.requests == 1 and self.turned is not None:
            self.turned(self)

    def end(self) -> None:
        """One is not any more."""
        self.requests -= 1
        if not self.requests and self.turned is not None:
            self.turned(self)

    def _is_insecure(self) -> bool:
        if not self._admission.insecure:
            return False
        try:
            address = ipaddress.ip_address(self.ip)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._admission.insecure)

    def close(self) -> None:
        """The connection is gone."""
        self._ended = True
        if self._key is not None and self._whois is not None:
            self._whois.close(self._key)
        self._whois = None
