"""Who is at the other end of a connection, as the local tailscaled tells it.

A leaf: made by `tailnet/` out of a WhoIs answer and by nobody else, read by `policy/`. Values are as the daemon gave
them, unchecked: whether a name may be impersonated is the policy's question, not the tailnet's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

# net/tsaddr (CGNATRange, TailscaleULARange): where every tailnet's addresses are.
_TAILNET = (IPv4Network("100.64.0.0/10"), IPv6Network("fd7a:115c:a1e0::/48"))


def is_tailnet(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is an address that a tailnet gives out."""
    return any(address in network for network in _TAILNET)


@dataclass(frozen=True, slots=True)
class Repeated:
    """What stands in a capability's values for a JSON object that names a member twice.

    Readers differ on which one counts: Go keeps the first of {"x": true, "x": null}, Python the last.
    """


@dataclass(frozen=True, slots=True)
class Peer:
    """One WhoIs answer (tailcfg.Node, UserProfile and CapMap; only what is used here).

    address: the client's tailnet address, as text, without a port. node_name: the node's full name, the final dot
    included, as WhoIs has it. tags: empty for a user's node. capabilities: capability name -> its JSON values, in
    the order of the control plane (a null there is the empty tuple), objects with a member twice as Repeated.
    """

    address: str
    stable_id: str
    node_name: str
    tags: tuple[str, ...] = ()
    user_id: int = 0
    login_name: str = ""
    display_name: str = ""
    capabilities: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    @property
    def is_tagged(self) -> bool:
        """Whether the node belongs to its tags and not to a user."""
        return bool(self.tags)

    @property
    def owner(self) -> str:
        """Whose share of connections, sessions and memory this peer's are: all nodes of a user have one together."""
        return self.stable_id if self.tags or not self.login_name else self.login_name

    @property
    def display(self) -> str:
        """What a log line or a message calls this peer: a user's login name, or a tagged node's name."""
        return self.node_name.removesuffix(".") if self.tags else self.login_name
