"""Who is calling: what an authenticator has proved of the client of a connection.

Everything that follows asks a Caller and not the tailnet, so that a client can be proved in other ways too. Values are
as the proof has them, unchecked: whether a name may be impersonated is a question of grants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from k8sproxy.common.tailnet.peer import Peer


@dataclass(frozen=True, slots=True)
class Caller:
    """A client that is known. The same object for as long as nothing about it has changed, so that whatever was
    derived from it can be kept beside it and compared by `is`.

    user, groups, uid, extra: the user as Kubernetes has it (authentication.k8s.io/v1, UserInfo); groups are those that
    the proof itself gives, grants may replace them; uid and extra are not sent upstream. proof: the authenticator that
    knows it. until: unix seconds at which the proof ends by itself; infinity where it is asked for again and again.
    address: where the requests come from, without a port. peer: its node of the tailnet.
    """

    user: str
    groups: tuple[str, ...]
    address: str
    peer: Peer
    proof: str = "tailnet"
    until: float = inf
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """Whose share of connections, sessions and memory it takes: all nodes of a user have one together."""
        return self.peer.owner

    @property
    def display(self) -> str:
        """What a log line or a message calls it."""
        return self.peer.display


def tailnet_caller(peer: Peer) -> Caller:
    """The caller that a peer of the tailnet is: a user's node by the user's login name, a tagged node by its own name
    and its tags as groups."""
    if peer.is_tagged:
        return Caller(peer.node_name.removesuffix("."), tuple(dict.fromkeys(peer.tags)), peer.address, peer)
    return Caller(peer.login_name, (), peer.address, peer)
