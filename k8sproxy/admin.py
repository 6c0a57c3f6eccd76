"""The admin site: /healthz, /readyz and /metrics (and the generated CA as /ca.pem), for probes and Prometheus; and
/sessions, for people: what runs now, and POST /sessions/ID/end.

It is not for the tailnet. A userspace daemon forwards whatever a peer dials on this node to the same port on loopback,
and a wildcard address takes tailnet connections in any mode; so whoever comes from loopback or from a tailnet address
is looked up, and a peer that WhoIs knows is refused unless the configuration names it. Probes from the cluster's own
network have neither kind of address. Where the daemon can't be asked, such a client learns whether the proxy is alive
and ready and nothing else. On a unix socket the file's permissions decide.

/sessions names people and what they do, and ends it: it is served on a unix socket, to processes of this machine (or
pod), and to peers that the configuration names; not to the cluster's network, which probes and Prometheus come from.
A body of JSON is asked for where something is changed, which no page of another site can send unasked (CORS).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from k8sproxy.common.errors import Refusal
from k8sproxy.common.sockets import bind, join_address
from k8sproxy.common.tailnet.peer import Peer, is_named, is_tailnet
from k8sproxy.dataplane.shared import Shared

Checks = Callable[[], Awaitable[Mapping[str, str | None]]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PROBES = frozenset({"/healthz", "/readyz"})
# Bytes of a request's body: a reason of REASON characters, escaped, and its braces.
_MAX_BODY = 8192
# Characters of a reason. It is a line on somebody's terminal.
REASON = 500


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who asks: None for nobody of the tailnet. Set by the guard, for the handler that it calls."""

    peer: Peer | None


_PEER = web.RequestKey("peer", _Asking)

# Characters of an id that must be given: as many as one may be expected to tell from a list.
_SHORTEST_PREFIX = 4


def _address(request: web.Request) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Where a request comes from; None on a unix socket."""
    name = request.transport.get_extra_info("peername") if request.transport else None
    if not isinstance(name, tuple):
        return None
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(name[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_near(request: web.Request, peer: Peer | None) -> bool:
    """Whether it is asked from this machine, or by a peer that is known; and not by a web page under a name of its own
    that leads here (DNS rebinding): a page's owner has neither an address, nor localhost, nor a name in the tailnet."""
    address = _address(request)
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


class AdminSite:
    """Serves one socket until closed.

    checks: what readiness means: name -> None where it is well, else what is wrong. allow: login names and tags of
    peers that may see the site. ca_pem: the generated CA, None without one.
    """

    def __init__(
        self,
        shared: Shared,
        *,
        checks: Checks,
        ca_pem: Callable[[], bytes | None],
        allow: Sequence[str] = (),
        warnings: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.allow = frozenset(allow)
        self.address: str = ""
        self._shared = shared
        self._checks = checks
        self._warnings = warnings
        self._ca_pem = ca_pem
        self._runner: web.AppRunner | None = None
        self._path: Path | None = None

    async def start_tcp(self, host: str, port: int) -> None:
        """Listen on an address. Raises OSError."""
        sock = bind(host, port)
        self.address = join_address(host, sock.getsockname()[1])
        await self._start(sock)

    async def start_unix(self, path: Path) -> None:
        """Listen on a unix socket, readable and writable by this user and group. Raises OSError."""
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o117)
        try:
            sock.bind(str(path))
        except BaseException:
            sock.close()
            raise
        finally:
            os.umask(before)
        self.address = f"unix:{path}"
        self._path = path
        await self._start(sock)

    async def _start(self, sock: socket.socket) -> None:
        app = web.Application(middlewares=[self._guard], client_max_size=_MAX_BODY)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/ca.pem", self._ca)
        app.router.add_get("/sessions", self._sessions)
        app.router.add_post("/sessions/{id}/end", self._end_session)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.SockSite(self._runner, sock).start()

    async def close(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport is None:
            # Gone already, and so is where it came from: that must not be taken for a unix socket.
            return web.Response(status=400)
        try:
            peer = await self._peer(request)
        except Refusal as refusal:
            if request.path not in _PROBES:
                return self._refuse(refusal)
        else:
            if peer is not None and not self._allowed(peer):
                return self._refuse(Refusal(403, "admin_from_tailnet", "the admin site is not served to the tailnet"))
            if request.path.startswith("/sessions") and (request.transport is None or not _is_near(request, peer)):
                return self._refuse(
                    Refusal(
                        403, "admin_from_network", "sessions are served only to the admin site's own machine; ask there"
                    )
                )
            request[_PEER] = _Asking(peer)
        return await handler(request)

    async def _peer(self, request: web.Request) -> Peer | None:
        """The peer that asks, None where it is none. Raises Refusal where that can't be told."""
        address = _address(request)
        if address is None or not (address.is_loopback or is_tailnet(address)):
            return None
        name = request.transport.get_extra_info("peername") if request.transport else None
        whois = self._shared.whois
        if name is None:
            return None
        key = whois.open(name[0], name[1])
        try:
            return await whois.ask(key)
        except Refusal as refusal:
            if refusal.cause == "peer_unknown":
                return None
            raise
        finally:
            whois.close(key)

    def _allowed(self, peer: Peer) -> bool:
        return is_named(peer, self.allow)

    def _refuse(self, refusal: Refusal) -> web.Response:
        self._shared.telemetry.refusal(refusal.cause)
        return web.Response(status=refusal.status, body=refusal.body(), content_type="application/json")

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        checks = dict(await self._checks())
        failed = [name for name, fault in checks.items() if fault is not None]
        warnings = self._warnings()
        lines = [
            f"[{'-' if fault else '+'}]{name} {fault or 'ok'}"
            + (f" (warning: {warnings[name]})" if name in warnings else "")
            for name, fault in checks.items()
        ]
        text = "\n".join(lines) if failed or "verbose" in request.query else "ok"
        return web.Response(status=503 if failed else 200, text=text + "\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._shared.telemetry.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _sessions(self, _: web.Request) -> web.Response:
        return web.json_response({"sessions": self._shared.sessions.listed()})

    async def _end_session(self, request: web.Request) -> web.Response:
        """End the one session whose id is, or begins with, what the path has."""
        if request.content_type != "application/json":
            return self._refuse(Refusal(400, "bad_request", 'the body must be a JSON object: {"reason": "..."}'))
        try:
            body = await request.json()
        except (ValueError, LookupError, RecursionError):
            body = None  # no JSON, in no charset, or too deep
        reason = body.get("reason") if isinstance(body, dict) else None
        if not isinstance(reason, str) or not reason.strip() or len(reason) > REASON or not reason.isprintable():
            message = f"the reason must be one line that the user will read, of at most {REASON} characters"
            return self._refuse(Refusal(400, "bad_request", message))
        sessions = self._shared.sessions
        prefix = request.match_info["id"]
        found = sessions.find(prefix) if len(prefix) >= _SHORTEST_PREFIX else []
        if len(found) != 1:
            what = "more than one session id begins with this" if found else "there is no such session"
            return self._refuse(Refusal(404, "not_found", what))
        peer = request[_PEER].peer
        sessions.end(found[0], reason, peer.display if peer is not None else "this machine")
        return web.json_response({"ended": found[0].facts.id})

    async def _ca(self, _: web.Request) -> web.Response:
        pem = self._ca_pem()
        if pem is None:
            raise web.HTTPNotFound(text="no listener has a generated certificate\n")
        return web.Response(body=pem, content_type="application/x-pem-file")
