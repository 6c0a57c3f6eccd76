"""What is wrong with a peer's grants and refuses nothing: said once, and not at each request.

A grant is read again for every connection and every new answer of WhoIs. So what was said of which peer is remembered,
and said again only when it is something else.
"""

from __future__ import annotations

import structlog

from k8sproxy.access.grants import UnknownField
from k8sproxy.common.tailnet.peer import Peer

_log = structlog.get_logger("k8sproxy")

# Peers that are remembered, a few hundred bytes each; a tailnet whose policy has a misspelt field for more of them says
# it again now and then.
_REMEMBERED = 4096
# Fields in one line of the log. One is enough to send somebody to the policy.
_SHOWN = 8


class Remarks:
    """One for the process."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[UnknownField, ...]] = {}

    def tell(self, peer: Peer, unknown: tuple[UnknownField, ...]) -> None:
        """Log the unknown fields of a peer's grants, if that has not been done."""
        if self._said.get(peer.stable_id) == unknown:
            return
        self._said.pop(peer.stable_id, None)
        if len(self._said) >= _REMEMBERED:
            del self._said[next(iter(self._said))]
        self._said[peer.stable_id] = unknown
        _log.warning(
            "grant_unknown_field",
            peer=peer.display,
            node=peer.node_name.removesuffix("."),
            fields=[str(field) for field in unknown[:_SHOWN]],
            more=max(0, len(unknown) - _SHOWN) or None,
        )
