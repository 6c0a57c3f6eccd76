"""TLS with an API server that is taken up again where an earlier connection left it (RFC 8446, 2.2).

A session of kubectl exec needs a connection to the API server that nobody uses after it, so each one has a handshake of
its own. A full one is the most expensive part of a short session: the server's certificate is checked, and the client's
certificate signs. With the ticket of an earlier connection neither is needed.

A ticket proves what was proved when it was given. It belongs to one context, which has the CA, the client certificate
and the expected name, and it is not used with another one. The ticket of a resumed connection counts as old as the
ticket that it was resumed by, so that the server's certificate is checked again after RECHECK seconds. Where a
handshake has failed, nothing that was proved before it counts any more: a connection of then may still give its ticket.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from math import inf
from time import monotonic

# Seconds for which a certificate that was checked is not checked again. A full handshake in ten minutes costs nothing.
RECHECK = 600.0


class Resumption:
    """The ticket for one server. clock: seconds, monotonic."""

    __slots__ = ("_checked", "_clock", "_context", "_failed", "_ticket")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._context: ssl.SSLContext | None = None
        self._ticket: ssl.SSLSession | None = None
        self._checked = 0.0  # when the server's certificate was checked last, by a full handshake
        self._failed = -inf  # when a handshake failed last

    def ticket(self, context: ssl.SSLContext) -> ssl.SSLSession | None:
        """What a new connection with this context may be resumed by; None: it has a full handshake."""
        if self._context is not context or self._clock() - self._checked > RECHECK:
            return None
        return self._ticket

    @property
    def since(self) -> float:
        """When the certificate was checked that the ticket of this moment stands for."""
        return self._checked

    def checked(self, sock: ssl.SSLSocket, since: float) -> float:
        """When the certificate of this connection's server was checked. Asked right behind its handshake. since: of
        the ticket that it was to be resumed by, as it was before the handshake: another connection may have brought a
        newer one meanwhile."""
        return since if sock.session_reused else self._clock()

    def keep(self, context: ssl.SSLContext, ticket: ssl.SSLSession | None, checked: float) -> None:
        """A connection has its ticket, which comes some time behind the handshake. checked: of that connection."""
        if ticket is None or not ticket.has_ticket:
            return
        self._context, self._ticket, self._checked = context, ticket, checked

    def needs(self, context: ssl.SSLContext, checked: float) -> bool:
        """Whether the ticket of a connection is better than the one that there is."""
        return checked > self._failed and (self._context is not context or checked > self._checked)

    def forget(self) -> None:
        """A handshake has failed: the next one is a full one."""
        self._context = self._ticket = None
        self._failed = self._clock()
