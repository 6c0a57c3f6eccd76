"""The recorder's process: the parts of a program (k8sproxy.common.program) and how they are made, changed and closed.

    tailnet (LocalAPI, WhoIs) -> store -> index (an observer of it) -> ingest, web, admin

The start waits for what is missing only for now, as tailscaled after a boot; the admin site says what that is.
A drain lets sessions go on for the grace time, cuts those that are left with a message, and puts what is held into
chunks. A reload uses what can change without a new socket or a new store: the log, who may send, how many sessions,
what is kept for how long, the grace time. The log says at each reload what waits for a restart.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import structlog

from k8sproxy.common import program
from k8sproxy.common.adminsite import AdminSite
from k8sproxy.common.errors import StartError
from k8sproxy.common.logs import configure_logging
from k8sproxy.common.program import Life, Program
from k8sproxy.common.sockets import join_address, raise_file_limit
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.whois import WhoIs
from recorder import __version__
from recorder.addresses import Addresses, NotYetError
from recorder.assembly import Finding, WebServer, index_url
from recorder.book import Book
from recorder.config import Config, load
from recorder.config.restarts import needs_restart
from recorder.index import IndexFailure
from recorder.ingest.admission import Admission
from recorder.ingest.gate import connections
from recorder.ingest.server import IngestServer
from recorder.ingest.shares import Limit, Shares
from recorder.ingest.site import Counts, IngestSite, body_limit, session_limit, user_limit
from recorder.memory import give_back
from recorder.opening import open_store
from recorder.report import Parts, checks, metrics, warnings
from recorder.retention.service import Keeping, KeepingError, first_key
from recorder.store import Store, StoreError
from recorder.telemetry import Metrics

_log = structlog.get_logger("recorder")

# Seconds after which a thread lets another one run: threads that sync and pack need the interpreter for some
# microseconds between two long calls, and should not wait 5 ms for it each time.
_SWITCH = 0.001

_NOT_LISTENING = "the recorder does not listen yet"

# Seconds between attempts to start with what was missing: tailscaled comes up seconds after its unit does.
_AGAIN = 1.0

_T = TypeVar("_T")


def run(path: Path, config: Config) -> int:
    """Serve until told to stop. Returns the exit code: 0 after a drain, 1 where the start failed."""
    raise_file_limit()
    sys.setswitchinterval(_SWITCH)
    give_back()
    return program.run(lambda: App(path, config), level=config.log.level, style=config.log.format)


class App(Program[Config]):
    """One running recorder."""

    def __init__(self, path: Path, config: Config) -> None:
        super().__init__(path, config, load)
        self._started_with = config
        self._localapi = LocalAPI(str(config.tailnet.socket))
        self._whois = WhoIs(self._localapi, ttl=config.tailnet.whois_ttl)
        self._addresses = Addresses(self._localapi)
        self._parts = Parts()
        self._metrics = Metrics(lambda: metrics(self._parts, self.reloads))
        self._admin: AdminSite | None = None
        self._waits_for = _NOT_LISTENING

    # -- start

    async def start(self) -> Mapping[str, object]:
        """See Program."""
        config, parts = self.config, self._parts
        if config.ingest.insecure_allow:
            _log.warning(
                "insecure_senders",
                addresses=[str(network) for network in config.ingest.insecure_allow],
                meaning="any client from there may send recordings without saying who it is",
            )
        self._admin = AdminSite(
            self._metrics.registry,
            checks=self._checks,
            whois=lambda: self._whois,
            trusted=config.ingest.insecure_allow,
            warnings=lambda: warnings(self._parts),
        )
        admin = config.admin.address
        try:
            await self._admin.start_tcp(admin.host, admin.port)
        except OSError as error:
            raise StartError(f"admin: cannot listen on {admin}: {error.strerror}") from error
        store = parts.store = open_store(config, commits=parts.commits)
        await self._open_store(config, store)
        if parts.finding is not None:
            self.tasks.start(parts.finding.run(store), "index")
        self.tasks.start(self._whois.watch_changes(), "bus")
        sessions, users, bodies, places = _limits(config)
        counts = Counts(ack_seconds=parts.acks.observe)
        parts.site = IngestSite(
            store, self._admission(config), Shares(sessions), Shares(users), Shares(bodies), counts=counts
        )
        parts.server = IngestServer(parts.site, places)
        sockets = await self._until_there(lambda: self._addresses.sockets(config.ingest.listen))
        for sock in sockets:
            await parts.server.listen(sock)
        return {
            "version": __version__,
            "config": str(self.path),
            "ingest": [_name(sock) for sock in sockets],
            "web": await self._start_web(config, store),
            "admin": self._admin.address,
        }

    async def _open_store(self, config: Config, store: Store) -> None:
        """With what looks at it: the index, and what signs and removes."""
        parts = self._parts
        if (url := index_url(config)) is not None:
            try:
                parts.finding = Finding(url)
            except IndexFailure as error:
                raise StartError(f"index: {error}") from None
            store.observers.append(parts.finding.index)
            parts.finding.index.book = Book(store).add
        try:
            keeping = parts.keeping = Keeping(config, store, await first_key(config, store.blobs))
            keeping.open()
            await store.open()
        except KeepingError as error:
            raise StartError(str(error)) from None
        except StoreError as error:
            raise StartError(f"store: {error}") from error
        keeping.start()

    async def _start_web(self, config: Config, store: Store) -> list[str]:
        """The addresses of the site; none where it is not configured."""
        if not config.web.listen:
            return []
        if self._parts.finding is None:
            raise StartError("web needs an index: configure index.url")
        if config.web.insecure_allow:
            _log.warning(
                "insecure_viewers",
                addresses=[str(network) for network in config.web.insecure_allow],
                meaning="any client from there sees everything without saying who it is",
            )
        names: list[str] = []
        if config.web.hosts:
            pass
        elif config.web.insecure_allow:  # there may be no tailnet at all
            try:
                names = await self._addresses.names()
            except NotYetError as error:
                _log.warning("web_without_names", why=str(error))
        else:
            names = await self._until_there(self._addresses.names)
        index, keeping = self._parts.finding.index, self._parts.keeping
        self._parts.web = WebServer(config, store, index, self._whois, list(filter(None, names)), keeping)
        sockets = await self._until_there(lambda: self._addresses.sockets(config.web.listen))
        addresses = [_name(sock) for sock in sockets]
        await self._parts.web.start(sockets)
        return addresses

    def _admission(self, config: Config) -> Admission:
        return Admission(
            self._whois,
            domain=config.tailnet.capability_domain,
            allow=config.ingest.allow,
            insecure=config.ingest.insecure_allow,
        )

    async def _until_there(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Its result, once nothing that it needs is missing. Raises StartError."""
        while True:
            try:
                result = await attempt()
            except NotYetError as error:
                if str(error) != self._waits_for:
                    _log.warning("start_waits", why=str(error))
                self._waits_for = str(error)
                await asyncio.sleep(_AGAIN)
            else:
                self._waits_for = _NOT_LISTENING
                return result

    # -- what runs

    async def _checks(self) -> dict[str, str | None]:
        starting = self._waits_for if self.life is Life.STARTING else None
        return checks(self._parts, starting=starting, draining=self.life in (Life.DRAINING, Life.CUTTING))

    async def replace(self, config: Config) -> Mapping[str, object]:
        """See Program."""
        configure_logging(config.log.level, config.log.format)
        self._whois.ttl = config.tailnet.whois_ttl
        site, server = self._parts.site, self._parts.server
        sessions, users, bodies, places = _limits(config)
        if site is not None:
            site.admission.take_over(self._admission(config))
            site.sessions.limit, site.users.limit, site.bodies.limit = sessions, users, bodies
        if server is not None:
            server.inside.shares.limit = places
        if self._admin is not None:
            self._admin.trusted = config.ingest.insecure_allow
        if self._parts.keeping is not None:
            self._parts.keeping.reload(config)
        return {"needs_restart": needs_restart(self._started_with, config)}

    # -- the end

    @property
    def grace(self) -> float:
        """See Program."""
        return self.config.shutdown.grace

    async def drain(self, grace: float) -> int:
        """See Program."""
        return await self._parts.server.drain(grace) if self._parts.server is not None else 0

    async def close(self) -> None:
        """See Program."""
        parts = self._parts
        if parts.server is not None:
            await parts.server.aclose()
        if parts.web is not None:
            await parts.web.close()
        if parts.keeping is not None:
            await parts.keeping.aclose()
        if parts.store is not None:
            await parts.store.aclose()
        if self._admin is not None:
            await self._admin.close()
        await self.tasks.aclose()
        if parts.finding is not None:
            await parts.finding.aclose()
        await self._whois.aclose()
        await self._localapi.aclose()


def _limits(config: Config) -> tuple[Limit, Limit, Limit, Limit]:
    """What senders may take: sessions, sessions of a user, bytes of events, connections."""
    ingest = config.ingest
    return (
        session_limit(ingest.sessions, ingest.sessions_per_sender),
        user_limit(ingest.sessions, ingest.sessions_per_user),
        body_limit(ingest.event_bytes, ingest.event_bytes_per_sender),
        connections(ingest.connections, ingest.connections_per_sender),
    )


def _name(sock: socket.socket) -> str:
    return join_address(*sock.getsockname()[:2])
