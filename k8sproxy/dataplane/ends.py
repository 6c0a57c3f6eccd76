"""How an exchange ends otherwise than by its response's last byte. A Refusal is the fourth way (errors)."""

from __future__ import annotations


class StaleConnection(Exception):
    """A reused upstream connection ended before it gave a byte of an answer."""


class Doubtful(Exception):
    """Upstream answered 401, which may mean the proxy's own account. Nothing of it has been sent to the client."""


class ClientGone(Exception):
    """The client ended its connection within the exchange."""


class Cut(Exception):
    """The exchange ended after its response had begun; the client's connection must end with it, and be seen to.

    cause: a short snake_case word for log and metrics. reset: nothing but a reset tells the client of it, since the
    body had no length. said: the client has been told in the protocol that it speaks, and can be ended cleanly.
    """

    def __init__(self, cause: str, *, reset: bool = False, said: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.reset = reset
        self.said = said
