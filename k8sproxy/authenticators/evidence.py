"""What a connection shows of its client, and what an authenticator has to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from k8sproxy.access.caller import Caller
from k8sproxy.common.tailnet.whois import ClientKey


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one connection shows. key: what the answers of WhoIs are kept under. (The name that TLS asked for, a client
    certificate, and a request's Authorization come here with the authenticators that read them.)"""

    key: ClientKey

    @property
    def address(self) -> str:
        """What tailscaled is asked about: IP:PORT."""
        return self.key.address


class Authenticator(Protocol):
    """Knows callers by the evidence of their connections.

    before: the caller that the connection had, None at first. Where nothing has changed since, it is given again, the
    same object. ahead: seconds for which the answer has to hold.
    """

    def current(self, evidence: Evidence, before: Caller | None, ahead: float = 0.0) -> Caller | None:
        """The caller, if it is known at this moment; None where `ask` has to be waited for."""

    async def ask(self, evidence: Evidence, before: Caller | None, ahead: float = 0.0) -> Caller:
        """The caller. Raises Refusal where there is none, or nobody can say at this moment (503)."""
