"""Who is at the other end of a connection, as the local tailscaled tells it.

A leaf: made by `tailnet/` out of a WhoIs answer and by nobody else, read by `policy/`. Values are as the daemon gave
them, unchecked: whether a name may be impersonated is the policy's question, not the tailnet's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

# net/tsaddr (CGNATRange, TailscaleULARange): where every tailnet's addresses are.
_TAILNET = (IPv4Network("100.64.0.0/10"), IPv6Network("fd7a:115c:a1e0::/48"))


# Characters: an e-mail address has at most 254, and the URL that an identity provider names somebody by some more.
MAX_NAME = 512
_TAG = re.compile(r"tag:[A-Za-z][A-Za-z0-9-]*\Z")
_GROUPS = ("group:", "autogroup:", "svc:")


def read_name(value: object) -> str:
    """A login name or a tag, as a configuration names whom WhoIs answers with.

    A login name is whatever the control server says: an e-mail address, `alice`, `alice@github`, a URL. What cannot be
    one is refused, because it would be an entry that never matches. Raises ValueError with a message for the reader.
    """
    if not isinstance(value, str):
        raise ValueError("must be text (put it in quotes): a login name or a tag (tag:ops)")
    if not 0 < len(value) <= MAX_NAME or not value.isprintable() or value != value.strip():
        raise ValueError("must be a login name (alice@example.com, alice) or a tag (tag:ops), without spaces around it")
    if value.startswith("tag:") and not _TAG.match(value):
        raise ValueError("must be a tag of letters, digits and dashes, such as tag:ops")
    if value == "*" or value.startswith(_GROUPS):
        raise ValueError("must be a login name or a tag: the local tailscaled does not tell who is a member of a group")
    return value


def is_named(peer: Peer, names: Set[str]) -> bool:
    """Whether these names (see `read_name`) name the peer: a tagged node by one of its tags, a user's node by the
    user's login name. A tag is no login name, whatever a control server may let people call themselves."""
    if peer.is_tagged:
        return any(tag in names for tag in peer.tags if tag.startswith("tag:"))
    return peer.login_name in names and not peer.login_name.startswith("tag:")


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
