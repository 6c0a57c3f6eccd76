"""An ingest server on a free port of loopback, with a store in a folder and a stand-in for tailscaled."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from k8sproxy.common.sockets import bind
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.whois import WhoIs
from recorder.ingest.admission import Admission
from recorder.ingest.server import IngestServer
from recorder.ingest.shares import Limit, Shares
from recorder.ingest.site import IngestSite, body_limit, session_limit, user_limit
from recorder.store import Store
from recorder.store.blobs import FolderBlobs
from recorder.store.logs import FolderLog
from standins.tailscaled import Answer, FakeTailscaled
from tests.recorder.store.storing import FaultyLog


@dataclass
class Running:
    port: int
    store: Store
    server: IngestServer
    site: IngestSite
    daemon: FakeTailscaled
    log: FolderLog


@asynccontextmanager
async def ingest(
    folder: Path,
    *,
    allow: tuple[str, ...] = (),
    who: Answer | None = None,
    insecure: bool = True,
    faulty: bool = False,
    places: Limit | None = None,
    sessions: Limit | None = None,
    users: Limit | None = None,
    bodies: Limit | None = None,
) -> AsyncIterator[Running]:
    """who: what WhoIs says of whoever comes from loopback. insecure: nobody is asked."""
    socket = folder / "tailscaled.sock"
    log = FaultyLog(folder / "data") if faulty else FolderLog(folder / "data")
    store = Store(FolderBlobs(folder / "data"), log, min_free=0)
    async with FakeTailscaled(socket) as daemon:
        if who is not None:
            daemon.peers = lambda ip, port: who
        localapi = LocalAPI(str(socket))
        whois = WhoIs(localapi, ttl=0)
        await store.open()
        networks = [ipaddress.ip_network("127.0.0.1")] if insecure else []
        site = IngestSite(
            store,
            Admission(whois, domain="example.com", allow=allow, insecure=networks),
            Shares(sessions or session_limit(100, 100)),
            Shares(users or user_limit(100, 100)),
            Shares(bodies or body_limit()),
        )
        server = IngestServer(site, places)
        sock = bind("127.0.0.1", 0)
        try:
            await server.listen(sock)
            yield Running(sock.getsockname()[1], store, server, site, daemon, log)
        finally:
            await server.aclose()
            await store.aclose()
            await whois.aclose()
            await localapi.aclose()
