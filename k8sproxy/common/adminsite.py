"""The admin site of both programs: /healthz, /readyz and /metrics, for probes and Prometheus; never for the tailnet.

A userspace daemon forwards whatever a peer dials on this node to the same port on loopback, and a wildcard address
takes tailnet connections in any mode. So a client that comes from loopback or from a tailnet address is looked up, and
a peer that WhoIs knows is refused unless the configuration names it. Probes from the cluster's own network have neither
kind of address. Where the daemon can't be asked, such a client learns whether the program is alive and ready, and
nothing else. On a unix socket the file's permissions decide.

Nobody is asked about a connection that says nothing: it has HEAD_TIMEOUT seconds for its first head, and where there
are many of them the oldest goes, so that a probe always finds a place.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from k8sproxy.common.errors import Refusal
from k8sproxy.common.heads import Headed, Heads
from k8sproxy.common.sockets import bind, join_address
from k8sproxy.common.tailnet.peer import Peer, is_named, is_tailnet
from k8sproxy.common.tailnet.whois import WhoIs

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# By the name of each check: None where it is well, else what is wrong.
Checks = Callable[[], Awaitable[Mapping[str, str | None]]]
Warnings = Callable[[], Mapping[str, str | None]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Connections without a head at once: kubelet and Prometheus have one or two.
MAX_SILENT = 64
# Bytes of a request's body: the longest reason that the proxy takes, escaped, and its braces.
MAX_BODY = 8192
_PROBES = frozenset({"/healthz", "/readyz"})


class AdminSite:
    """Serves one socket until closed. A program with more to show derives its own.

    checks: what readiness means. warnings: what is told beside it and keeps nobody from being ready; one that has the
    name of a check stands in that check's line. whois: what is asked who comes from loopback or the tailnet. allow:
    login names and tags of peers that may see the site. trusted: networks that nobody is asked about, as where there is
    no tailnet at all. allow and trusted may be replaced at any time.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        checks: Checks,
        whois: Callable[[], WhoIs],
        warnings: Warnings = dict,
        allow: Sequence[str] = (),
        trusted: Sequence[Network] = (),
    ) -> None:
        self.allow = frozenset(allow)
        self.trusted = tuple(trusted)
        self.address = ""
        self._registry = registry
        self._checks = checks
        self._warnings = warnings
        self._whois = whois
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._heads = Heads(MAX_SILENT)

    # -- what a program adds

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """More paths than those that all programs have."""

    def admit(self, request: web.Request, peer: Peer | None) -> None:
        """Look at a request of a client that may see the site; peer is None if the tailnet does not know it. Raises
        Refusal."""

    def refuse(self, refusal: Refusal) -> web.Response:
        """The answer to a request that is refused."""
        return web.Response(status=refusal.status, text=refusal.message + "\n")

    # -- the socket

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
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self.add_routes(app.router)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        handler = self._runner.server
        assert handler is not None  # noqa: S101  (for mypy: it is set up)
        loop = asyncio.get_running_loop()
        create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        self._server = await create(lambda: Headed(handler(), self._heads), sock=sock)

    async def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    # -- who may ask

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport is None:
            # The connection has ended, and where it came from is not known: it must not be taken for a unix socket.
            return web.Response(status=400)
        self._heads.end(request.transport)
        try:
            peer = await self._peer(request)
            if peer is not None and not is_named(peer, self.allow):
                raise Refusal(403, "admin_from_tailnet", "the admin site is not served to the tailnet")
        except Refusal as refusal:
            # Whether the program is alive may be known where nobody can say who asks.
            if request.path in _PROBES and refusal.cause != "admin_from_tailnet":
                return await handler(request)
            return self.refuse(refusal)
        try:
            self.admit(request, peer)
        except Refusal as refusal:
            return self.refuse(refusal)
        return await handler(request)

    async def _peer(self, request: web.Request) -> Peer | None:
        """The peer that asks, None where it is none. Raises Refusal where that can't be told."""
        address = address_of(request)
        if address is None or any(address in network for network in self.trusted):
            return None
        if not (address.is_loopback or is_tailnet(address)):
            return None
        host, port = request.transport.get_extra_info("peername")[:2] if request.transport else ("", 0)
        whois = self._whois()
        key = whois.open(host, port)
        try:
            return await whois.ask(key)
        except Refusal as refusal:
            if refusal.cause == "peer_unknown":
                return None
            raise
        finally:
            whois.close(key)

    # -- what is served

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        checks = dict(await self._checks())
        warnings = {name: fault for name, fault in self._warnings().items() if fault}
        failed = [name for name, fault in checks.items() if fault is not None]
        lines = [
            f"[{'-' if fault else '+'}]{name} {fault or 'ok'}"
            + (f" (warning: {warnings[name]})" if name in warnings else "")
            for name, fault in checks.items()
        ]
        others = [f"[!]{name} {fault}" for name, fault in warnings.items() if name not in checks]
        text = "\n".join([*lines, *others]) if failed or others or "verbose" in request.query else "ok"
        return web.Response(status=503 if failed else 200, text=text + "\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def address_of(request: web.Request) -> IP | None:
    """Where a request comes from; None on a unix socket."""
    name = request.transport.get_extra_info("peername") if request.transport else None
    if not isinstance(name, tuple):
        return None
    address: IP = ipaddress.ip_address(name[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
