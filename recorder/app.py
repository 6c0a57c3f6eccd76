"""The process: start, reload, drain. The only place that knows all the parts, and it does nothing else.

    tailnet (LocalAPI, WhoIs) -> store -> index (an observer of it) -> ingest, web, admin

SIGTERM and SIGINT drain: take nothing new, let sessions go on for the grace time, cut those that are left with a word,
put what is held into chunks, stop; a second signal cuts at once. SIGHUP reads the file again and puts into force what
can change without a new port or a new store: the log, who may send, how many sessions, the grace time. A bad file is
said in the log and changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import structlog
from prometheus_client.metrics_core import Metric

from k8sproxy.common.errors import Refusal
from k8sproxy.common.logs import LOG, configure_logging
from k8sproxy.common.sockets import bind, join_address, raise_file_limit
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.whois import WhoIs
from k8sproxy.common.tasks import Tasks, beside
from recorder import __version__
from recorder.admin import AdminSite
from recorder.assembly import Finding, WebServer, index_url
from recorder.book import Book
from recorder.config import Config, ConfigError, ListenAddress, load
from recorder.crypt import EncryptedBlobs, EncryptedLog
from recorder.index import IndexFailure
from recorder.ingest.admission import Admission
from recorder.ingest.gate import connections
from recorder.ingest.server import IngestServer
from recorder.ingest.shares import Limit, Shares
from recorder.ingest.site import Counts, IngestSite, body_limit, session_limit, user_limit
from recorder.memory import give_back
from recorder.retention.service import Keeping, KeepingError, first_key, keyring
from recorder.store import Store, StoreError
from recorder.store.blobs import Blobs, FolderBlobs, make_folder
from recorder.store.logs import FolderLog, Log, ObjectLog
from recorder.telemetry import Histogram, Metrics, build_info, counter, counters, gauge, gauges

_log = structlog.get_logger("recorder")

# Seconds after which a thread lets another one run: threads that sync and pack need the interpreter for some
# microseconds between two long calls, and should not wait 5 ms for it each time.
_SWITCH = 0.001


# Seconds between attempts to start with what was missing: tailscaled comes up seconds after its unit does.
_AGAIN = 1.0

_T = TypeVar("_T")


class StartError(Exception):
    """The recorder cannot start; the message says why."""


class _NotYetError(Exception):
    """Something that is needed is not there yet, as tailscaled after a boot; the message says what."""


class _StoppedError(Exception):
    """Told to stop before it had started."""


def run(path: Path, config: Config) -> int:
    """Serve until told to stop. Returns the exit code: 0 after a drain, 1 where the start failed."""
    configure_logging(config.log.level, config.log.format)
    LOG.start()
    raise_file_limit()
    sys.setswitchinterval(_SWITCH)
    give_back()
    gc.collect()
    gc.freeze()
    try:
        try:
            import uvloop
        except ImportError:
            return asyncio.run(App(path, config).run())
        return uvloop.run(App(path, config).run())
    except KeyboardInterrupt:
        return 130
    finally:
        LOG.stop()


def open_store(config: Config, *, read_only: bool = False, commits: Histogram | None = None) -> Store:
    """The configured store, not opened yet. Raises StartError."""
    settings = config.store
    observe = (commits or Histogram()).observe
    blobs: Blobs
    log: Log | None
    try:
        if settings.folder is not None:
            if not read_only:
                make_folder(settings.folder)
            blobs = FolderBlobs(settings.folder)
            log = None if read_only else FolderLog(settings.folder)
            return Store(*_encrypted(config, blobs, log), min_free=settings.min_free, commit_seconds=observe)
        from recorder.store.objects import open_objects

        options = dict(settings.options)
        for name, file in settings.option_files.items():
            options[name] = file.read_text().strip()
        blobs = open_objects(settings.url or "", options)
        log = None if read_only else ObjectLog(blobs, settings.instance)
        return Store(*_encrypted(config, blobs, log), min_free=0, commit_seconds=observe, instance=settings.instance)
    except ImportError:
        raise StartError("store.url needs the package obstore: pip install 'k8sproxy[recorder]'") from None
    except StoreError as error:
        raise StartError(f"store: {error}") from error
    except OSError as error:
        raise StartError(f"store: {error.strerror}: {error.filename}") from None


def _encrypted(config: Config, blobs: Blobs, log: Log | None) -> tuple[Blobs, Log | None]:
    """The same in envelopes, where there is a key. The journal has its own, around its place in the store."""
    try:
        keys = keyring(config)
    except KeepingError as error:
        raise StartError(str(error)) from None
    return blobs if keys is None else EncryptedBlobs(blobs, keys), None if log is None else EncryptedLog(log, keys)


class App:
    """One running recorder. addresses, web_addresses, admin_address: where it listens, once it does."""

    def __init__(self, path: Path, config: Config) -> None:
        self.addresses: list[str] = []
        self.web_addresses: list[str] = []
        self.admin_address = ""
        self.started = asyncio.Event()
        self._path = path
        self._config = config
        self._localapi = LocalAPI(str(config.tailnet.socket))
        self._whois = WhoIs(self._localapi, ttl=config.tailnet.whois_ttl)
        self._commits = Histogram()
        self._acks = Histogram()
        self._store: Store | None = None
        self._server: IngestServer | None = None
        self._finding: Finding | None = None
        self._keeping: Keeping | None = None
        self._web: WebServer | None = None
        self._admin: AdminSite | None = None
        self._site: IngestSite | None = None
        self._metrics = Metrics(self._read_metrics)
        self._tasks = Tasks()
        self._waiting: str | None = None  # what the start waits for
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._signals = 0
        self._reloads = {"ok": 0, "refused": 0}

    async def run(self) -> int:
        """Start, serve, drain. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.terminate)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        try:
            await self._start()
        except _StoppedError:
            await self._drain()
            return 0
        except StartError as error:
            _log.error("start_failed", error=str(error))
            await self._close()
            return 1
        except BaseException:
            await self._close()
            raise
        _log.info(
            "started",
            version=__version__,
            config=str(self._path),
            ingest=self.addresses,
            web=self.web_addresses,
            admin=self.admin_address,
        )
        self.started.set()
        await self._stop.wait()
        await self._drain()
        return 0

    def terminate(self) -> None:
        """As SIGTERM does."""
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            self._stop_now.set()

    # -- start

    async def _start(self) -> None:
        config = self._config
        if config.ingest.insecure_allow:
            _log.warning(
                "insecure_senders",
                addresses=[str(network) for network in config.ingest.insecure_allow],
                meaning="whoever connects from there may send recordings, and nobody is asked who they are",
            )
        self._admin = AdminSite(
            self._metrics.registry,
            checks=self._checks,
            whois=self._whois,
            trusted=config.ingest.insecure_allow,
            warnings=self._warnings,
        )
        admin = self._bind(config.admin.address)
        self.admin_address = _name(admin)
        await self._admin.start(admin)
        self._store = open_store(config, commits=self._commits)
        if (url := index_url(config)) is not None:
            try:
                self._finding = Finding(url)
            except IndexFailure as error:
                raise StartError(f"index: {error}") from None
            self._store.observers.append(self._finding.index)
            self._finding.index.book = Book(self._store).add
        try:
            self._keeping = Keeping(config, self._store, await first_key(config, self._store.blobs))
        except KeepingError as error:
            raise StartError(str(error)) from None
        except StoreError as error:
            raise StartError(f"store: {error}") from error
        self._keeping.open()
        try:
            await self._store.open()
        except StoreError as error:
            raise StartError(f"store: {error}") from error
        self._keeping.start()
        if self._finding is not None:
            self._tasks.start(self._finding.run(self._store), "index")
        self._tasks.start(self._whois.watch_changes(), "bus")
        counts = Counts(ack_seconds=self._acks.observe)
        sessions, users, bodies, places = _limits(config)
        self._site = IngestSite(
            self._store, self._admission(config), Shares(sessions), Shares(users), Shares(bodies), counts=counts
        )
        self._server = IngestServer(self._site, places)
        for sock in await self._until_there(lambda: self._sockets(config.ingest.listen)):
            self.addresses.append(_name(sock))
            await self._server.listen(sock)
        await self._start_web(config, self._store)

    async def _start_web(self, config: Config, store: Store) -> None:
        if not config.web.listen:
            return
        if self._finding is None:
            raise StartError("web needs an index: configure index.url")
        if config.web.insecure_allow:
            _log.warning(
                "insecure_viewers",
                addresses=[str(network) for network in config.web.insecure_allow],
                meaning="whoever connects from there sees everything, and nobody is asked who they are",
            )
        names: list[str] = []
        if config.web.hosts:
            pass
        elif config.web.insecure_allow:  # there may be no tailnet at all
            try:
                names = await self._names()
            except _NotYetError as error:
                _log.warning("web_without_names", why=str(error))
        else:
            names = await self._until_there(self._names)
        self._web = WebServer(config, store, self._finding.index, self._whois, list(filter(None, names)), self._keeping)
        sockets = await self._until_there(lambda: self._sockets(config.web.listen))
        self.web_addresses = [_name(sock) for sock in sockets]
        await self._web.start(sockets)

    def _admission(self, config: Config) -> Admission:
        return Admission(
            self._whois,
            domain=config.tailnet.capability_domain,
            allow=config.ingest.allow,
            insecure=config.ingest.insecure_allow,
        )

    async def _until_there(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Its result, once nothing that it needs is missing. Raises StartError, and _StoppedError."""
        while True:
            try:
                result = await attempt()
            except _NotYetError as error:
                if str(error) != self._waiting:
                    _log.warning("start_waits", why=str(error))
                self._waiting = str(error)
            else:
                self._waiting = None
                return result
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN):
                    await self._stop.wait()
                    raise _StoppedError

    async def _names(self) -> list[str]:
        """Of this node. MagicDNS takes the first label for the whole; that is what people type."""
        try:
            name = (await self._localapi.status()).name.removesuffix(".").lower()
        except Refusal as refusal:
            raise _NotYetError(f"the names of the web site are not known: {refusal.message}") from None
        if not name:
            raise _NotYetError("the names of the web site are not known: tailscaled gives this node no name")
        return [name, name.partition(".")[0]]

    def _bind(self, address: ListenAddress) -> socket.socket:
        try:
            return bind(address.host, address.port)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and address.is_tailnet:
                raise _NotYetError(
                    f"cannot listen on {address}: it is not an address of this machine; does tailscaled run in "
                    "userspace mode? then listen on 127.0.0.1"
                ) from None
            raise StartError(f"cannot listen on {address}: {error.strerror}") from None

    async def _sockets(self, addresses: Sequence[ListenAddress]) -> list[socket.socket]:
        sockets: list[socket.socket] = []
        try:
            for address in addresses:
                for one in await self._resolve(address):
                    sockets.append(self._bind(one))
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        return sockets

    async def _resolve(self, address: ListenAddress) -> list[ListenAddress]:
        if address.host != "tailnet":
            return [address]
        try:
            status = await self._localapi.status()
        except Refusal as refusal:
            raise _NotYetError(f"cannot listen on {address}: {refusal.message}") from None
        if status.backend_state != "Running" or not status.addresses:
            raise _NotYetError(f"cannot listen on {address}: tailscaled is {status.backend_state}")
        # A userspace daemon has no addresses in the kernel; it forwards to loopback.
        hosts = status.addresses if status.tun else ("127.0.0.1",)
        return [ListenAddress(host, address.port) for host in hosts]

    # -- what runs

    def _checks(self) -> dict[str, str | None]:
        return {
            "starting": None if self.started.is_set() else self._waiting or "the recorder does not listen yet",
            "draining": "the recorder is stopping" if self._stop.is_set() else None,
            "store": self._store.healthy if self._store is not None else "the store is not open",
            "removal": self._store.removal_fault if self._store is not None else None,
        }

    def _warnings(self) -> dict[str, str | None]:
        """What is wrong or late and keeps nobody from sending."""
        kept = dict(self._keeping.warnings()) if self._keeping is not None else {}
        return kept | ({"index": self._finding.fault} if self._finding is not None else {})

    def reload(self) -> None:
        """As SIGHUP does."""
        self._tasks.start(self._reload(), "reload")

    async def _reload(self) -> None:
        try:
            config = await asyncio.to_thread(load, self._path)
        except ConfigError as error:
            self._reloads["refused"] += 1
            _log.error("reload_refused", faults=[str(fault) for fault in error.faults])
            return
        before, self._config = self._config, config
        configure_logging(config.log.level, config.log.format)
        self._whois.ttl = config.tailnet.whois_ttl
        if self._site is not None:
            self._site.admission.take_over(self._admission(config))
            sessions, users, bodies, places = _limits(config)
            self._site.sessions.limit, self._site.users.limit, self._site.bodies.limit = sessions, users, bodies
            if self._server is not None:
                self._server.inside.shares.limit = places
        if self._admin is not None:
            self._admin.trusted = config.ingest.insecure_allow
        self._reloads["ok"] += 1
        if self._keeping is not None:
            self._keeping.reload(config)
        same = {"store", "web", "admin", "index", "proof", "encryption"}
        unchanged = [name for name in same if getattr(before, name) != getattr(config, name)]
        if before.ingest.listen != config.ingest.listen:
            unchanged.append("ingest.listen")
        if before.tailnet.socket != config.tailnet.socket:
            unchanged.append("tailnet.socket")
        if config.web.listen and before.tailnet.capability_domain != config.tailnet.capability_domain:
            unchanged.append("tailnet.capabilityDomain")  # who may look goes by the old one
        _log.info("reloaded", needs_restart=sorted(unchanged))

    def _read_metrics(self) -> Iterator[Metric]:
        yield build_info()
        yield counters("recorder_reloads", "Reloads, by result.", "result", self._reloads.items())
        yield self._commits.family("recorder_commit_seconds", "Seconds that a commit of the journal took.")
        yield self._acks.family("recorder_ack_seconds", "Seconds from a byte of a session to its being safe.")
        yield counter("recorder_log_lines_dropped", "Lines of the log that nobody took.", LOG.dropped)
        store, site = self._store, self._site
        if store is not None:
            yield gauge("recorder_store_healthy", "1 while the store can keep things.", store.healthy is None)
            removing = store.removal_fault is None
            yield gauge("recorder_removal_healthy", "1 while what is not needed any more can be removed.", removing)
            yield counters("recorder_store_errors", "Writes that failed, by part.", "part", store.errors.items())
            yield gauge("recorder_store_held_bytes", "Bytes in memory that are in no chunk yet.", store.held)
            yield gauge("recorder_store_unfinished", "Recordings that are not wholly in the store.", len(store.lives))
            if store.free is not None:
                yield gauge("recorder_store_free_bytes", "Bytes left on the store's disk.", store.free)
            if (journal := store.journal) is not None:
                yield counter("recorder_commits", "Commits of the journal.", journal.commits)
                yield counter("recorder_committed_bytes", "Bytes made safe by the journal.", journal.synced)
                yield gauge("recorder_journal_segments", "Segments of the journal.", len(journal.segments))
        if self._keeping is not None:
            yield from self._keeping.metrics()
        if self._finding is not None:
            index = self._finding.index
            yield gauge(
                "recorder_index_healthy", "1 while the index takes what it is told.", self._finding.fault is None
            )
            yield counter("recorder_index_errors", "Attempts of the index that failed.", self._finding.errors)
            yield gauge("recorder_index_waiting", "Rows and texts that wait for the index.", index.waiting)
            yield counter("recorder_index_dropped", "Rows and texts that the index did not take.", index.dropped)
        if site is not None:
            counts = site.counts
            yield counter("recorder_ingest_bytes", "Bytes of cast text that have come in.", counts.bytes)
            yield counter("recorder_events", "API events kept.", counts.events)
            yield gauge("recorder_sessions_open", "Sessions that are coming in.", counts.open)
            yield gauge("recorder_connections", "Connections of senders.", counts.connections)
            yield counters("recorder_sessions", "Sessions begun, by wire.", "wire", counts.sessions.items())
            yield counters("recorder_sessions_ended", "Sessions that have ended, by end.", "end", counts.ends.items())
            yield from self._read_shares(site)
            yield counters("recorder_refusals", "Requests refused, by cause.", "cause", counts.refused.items())

    def _read_shares(self, site: IngestSite) -> Iterator[Metric]:
        shares = {"sessions": site.sessions, "user_sessions": site.users, "event_bytes": site.bodies}
        if self._server is not None:
            shares["connections"] = self._server.inside.shares
            gate = self._server.gate
            yield gauge("recorder_connections_waiting", "Connections that are not admitted yet.", gate.outside)
            yield counter("recorder_connections_ended", "Connections ended before they were admitted.", gate.ended)
        if self._web is not None:
            shares["web_connections"] = self._web.listener.inside.shares
        rows = [(name, one.taken, one.largest, one.limit.each) for name, one in shares.items()]
        for column, name, text in (
            (1, "taken", "What all senders together have taken, by limit."),
            (2, "largest", "What the sender (or user) with the most has."),
            (3, "limit", "What one sender (or user) may have."),
        ):
            yield gauges(f"recorder_share_{name}", text, "limit", [(str(row[0]), float(row[column])) for row in rows])

    # -- the end

    async def _drain(self) -> None:
        grace = self._config.shutdown.grace
        _log.info("draining", grace=grace)
        cut = 0
        if self._server is not None:
            server = self._server
            async with beside(server.drain(grace), "drain") as drain, beside(self._stop_now.wait(), "hurry") as hurry:
                await asyncio.wait((drain, hurry), return_when=asyncio.FIRST_COMPLETED)
            cut = await server.drain(0.0) if drain.cancelled() else drain.result()
        await self._close()
        _log.info("stopped", cut=cut)

    async def _close(self) -> None:
        if self._server is not None:
            await self._server.aclose()
        if self._web is not None:
            await self._web.close()
        if self._store is not None:
            if self._keeping is not None:
                await self._keeping.aclose()
            await self._store.aclose()
        if self._admin is not None:
            await self._admin.close()
        await self._tasks.aclose()
        if self._finding is not None:
            await self._finding.aclose()
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
