"""The admin site: /healthz, /readyz and /metrics, for probes and Prometheus; never for the tailnet.

A userspace daemon forwards whatever a peer dials on this node to the same port on loopback, and a wildcard address
takes tailnet connections in any mode. So whoever comes from loopback or from a tailnet address is looked up, and a peer
that WhoIs knows is refused. Where the daemon can't be asked, such a client learns whether the recorder is alive and
ready, and nothing else.

Nobody is asked about a connection that says nothing: it has the time for a head that all servers here give, and where
there are many of them the oldest goes, so that a probe always finds a place.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import is_tailnet
from k8sproxy.common.tailnet.whois import WhoIs
from recorder.heads import Headed, Heads

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Checks = Callable[[], Mapping[str, str | None]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Connections without a head at once: kubelet and Prometheus have one or two.
MAX_SILENT = 64
_PROBES = frozenset({"/healthz", "/readyz"})


class AdminSite:
    """checks: what readiness means: name -> None where it is well, else what is wrong. warnings: the same of what is
    told beside it, and keeps nobody from being ready. whois: asks who comes from loopback. trusted: networks that
    nobody is asked about, as where there is no tailnet at all; may be replaced."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        checks: Checks,
        whois: WhoIs,
        trusted: Sequence[Network] = (),
        warnings: Checks = dict,
    ) -> None:
        self.whois = whois
        self.trusted = tuple(trusted)
        self._registry = registry
        self._checks = checks
        self._warnings = warnings
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._heads = Heads(MAX_SILENT)

    async def start(self, sock: socket.socket) -> None:
        """Serve on a listening socket."""
        app = web.Application(middlewares=[self._guard], client_max_size=1024)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        handler = self._runner.server
        assert handler is not None  # noqa: S101  (for mypy: it is set up)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Headed(handler(), self._heads), sock=sock)

    async def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport is not None:
            self._heads.end(request.transport)
        try:
            if await self._is_peer(request):
                return web.Response(status=403, text="the admin site is not served to the tailnet\n")
        except Refusal as refusal:
            if request.path not in _PROBES:
                return web.Response(status=refusal.status, text=refusal.message + "\n")
        return await handler(request)

    async def _is_peer(self, request: web.Request) -> bool:
        name = request.transport.get_extra_info("peername") if request.transport else None
        if not isinstance(name, tuple):
            return False
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(name[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self.trusted):
            return False
        if not address.is_loopback and not is_tailnet(address):
            return False
        key = self.whois.open(name[0], name[1])
        try:
            await self.whois.ask(key)
        except Refusal as refusal:
            if refusal.cause == "peer_unknown":
                return False
            raise
        finally:
            self.whois.close(key)
        return True

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        checks = dict(self._checks())
        failed = [name for name, fault in checks.items() if fault is not None]
        lines = [f"[{'-' if fault else '+'}]{name} {fault or 'ok'}" for name, fault in checks.items()]
        warnings = [f"[!]{name} {fault}" for name, fault in self._warnings().items() if fault is not None]
        text = "\n".join([*lines, *warnings]) if failed or warnings or "verbose" in request.query else "ok"
        return web.Response(status=503 if failed else 200, text=text + "\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
