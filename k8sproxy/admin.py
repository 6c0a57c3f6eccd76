"""The proxy's admin site: what all programs have (k8sproxy.common.adminsite), the generated CA as /ca.pem, and
/sessions, for people: what runs now, and POST /sessions/ID/end.

/sessions names people and what they do, and ends it: it is served on a unix socket, to processes of this machine (or
pod), and to peers that the configuration names; not to the cluster's network, which probes and Prometheus come from.
A body of JSON is asked for where something is changed, which no page of another site can send unasked (CORS).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiohttp import web

from k8sproxy.common import adminsite
from k8sproxy.common.adminsite import address_of
from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.dataplane.shared import Shared

# Characters of a reason. It is a line on somebody's terminal.
REASON = 500


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who asks: None for nobody of the tailnet. Set by the guard, for the handler that it calls."""

    peer: Peer | None


_PEER = web.RequestKey("peer", _Asking)

# Characters of an id that must be given: as many as one may be expected to tell from a list.
_SHORTEST_PREFIX = 4


def _is_near(request: web.Request, peer: Peer | None) -> bool:
    """Whether it is asked from this machine, or by a peer that is known; and not by a web page under a name of its own
    that leads here (DNS rebinding): a page's owner has neither an address, nor localhost, nor a name in the tailnet."""
    address = address_of(request)
    if address is None:
        return True
    host = (request.url.host or "").lower().removesuffix(".")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        tailnet = peer.node_name.rstrip(".").partition(".")[2].lower() if peer is not None else ""
        in_tailnet = peer is not None and ("." not in host or (tailnet != "" and host.endswith(f".{tailnet}")))
        if host != "localhost" and not in_tailnet:
            return False
    if peer is not None or address.is_loopback:
        return True
    # A pod's admin site stands on the pod's address, and whoever asks from that address is in the pod.
    own = request.transport.get_extra_info("sockname") if request.transport else None
    return isinstance(own, tuple) and str(address) == str(own[0])


class AdminSite(adminsite.AdminSite):
    """See k8sproxy.common.adminsite. ca_pem: the generated CA, None without one."""

    def __init__(
        self,
        shared: Shared,
        *,
        checks: adminsite.Checks,
        ca_pem: Callable[[], bytes | None],
        allow: Sequence[str] = (),
        warnings: adminsite.Warnings = dict,
    ) -> None:
        registry = shared.telemetry.registry
        super().__init__(registry, checks=checks, whois=lambda: shared.whois, warnings=warnings, allow=allow)
        self._shared = shared
        self._ca_pem = ca_pem

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """See adminsite.AdminSite."""
        router.add_get("/ca.pem", self._ca)
        router.add_get("/sessions", self._sessions)
        router.add_post("/sessions/{id}/end", self._end_session)

    def admit(self, request: web.Request, peer: Peer | None) -> None:
        """See adminsite.AdminSite."""
        if request.path.startswith("/sessions") and not _is_near(request, peer):
            message = "the admin site serves sessions only to its own machine; run the command there"
            raise Refusal(403, "admin_from_network", message)
        request[_PEER] = _Asking(peer)

    def refuse(self, refusal: Refusal) -> web.Response:
        """See adminsite.AdminSite."""
        self._shared.telemetry.refusal(refusal.cause)
        return web.Response(status=refusal.status, body=refusal.body(), content_type="application/json")

    async def _sessions(self, _: web.Request) -> web.Response:
        return web.json_response({"sessions": self._shared.sessions.listed()})

    async def _end_session(self, request: web.Request) -> web.Response:
        """End the one session whose id is, or begins with, what the path has."""
        if request.content_type != "application/json":
            return self.refuse(Refusal(400, "bad_request", 'the body must be a JSON object: {"reason": "..."}'))
        try:
            body = await request.json()
        except (ValueError, LookupError, RecursionError):
            body = None  # no JSON, in no charset, or too deep
        reason = body.get("reason") if isinstance(body, dict) else None
        if not isinstance(reason, str) or not reason.strip() or len(reason) > REASON or not reason.isprintable():
            message = f"the reason must be one line that the user will read, of at most {REASON} characters"
            return self.refuse(Refusal(400, "bad_request", message))
        sessions = self._shared.sessions
        prefix = request.match_info["id"]
        found = sessions.find(prefix) if len(prefix) >= _SHORTEST_PREFIX else []
        if len(found) != 1:
            what = "more than one session id begins with this" if found else "there is no such session"
            return self.refuse(Refusal(404, "not_found", what))
        peer = request[_PEER].peer
        sessions.end(found[0], reason, peer.display if peer is not None else "this machine")
        return web.json_response({"ended": found[0].facts.id})

    async def _ca(self, _: web.Request) -> web.Response:
        pem = self._ca_pem()
        if pem is None:
            raise web.HTTPNotFound(text="no listener has a generated certificate\n")
        return web.Response(body=pem, content_type="application/x-pem-file")
