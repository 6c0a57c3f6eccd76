"""The parts of a recorder that look at what the store keeps: the index and the web site. Each may be absent.

index    an observer of the store; it may lag or fail, and nothing that comes in waits for it
web      reads the store and asks the index; without an index there is no site
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

import structlog
from aiohttp import web

from k8sproxy.common.states import State, table
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.common.tailnet.whois import WhoIs
from recorder.book import Book
from recorder.config import Config, Network
from recorder.index import Index, IndexFailure
from recorder.ingest.admission import Admission
from recorder.ingest.gate import connections
from recorder.listening import SiteListener
from recorder.store import Store, StoreError
from recorder.web.app import make_app
from recorder.web.guard import whois_finder
from recorder.web.kept import Keeps
from recorder.web.site import Find, WebConfig

_log = structlog.get_logger(__name__)

# Seconds between attempts to open an index that is away at the start.
_RETRY = 5.0
# Seconds between attempts to catch up, doubled each time: each may read all of the store.
_MOST_RETRY = 300.0


def index_url(config: Config) -> str | None:
    """Where the index is: as configured, else in the store's folder, else nowhere."""
    if not config.index.enabled:
        return None
    if config.index.url is not None:
        return config.index.url
    return f"sqlite:{config.store.folder / 'index.db'}" if config.store.folder is not None else None


class Life(State):
    """Where an index is.

    OPENING     its database is opened, again and again while it is away   -> COMPARING, REFUSED
    REFUSED     its database will not do, which only a restart can mend    -> (final)
    COMPARING   what of the store it does not have is written              -> CURRENT
    CURRENT     it is told of everything as it comes                       -> (final)
    """

    OPENING = "opening"
    REFUSED = "refused"
    COMPARING = "comparing"
    CURRENT = "current"


table(
    {
        Life.OPENING: (Life.COMPARING, Life.REFUSED),
        Life.REFUSED: (),
        Life.COMPARING: (Life.CURRENT,),
        Life.CURRENT: (),
    }
)


class Finding:
    """The index, opened in the background: a database that is away must not keep sessions from being taken."""

    def __init__(self, url: str) -> None:
        self.index = Index(url)
        self.life = Life.OPENING
        self._errors = 0
        self._fault: str | None = "the index is not open yet"  # why it is in this state for so long

    def _move(self, following: Life) -> None:
        self.life = self.life.to(following)
        if following is not Life.REFUSED:
            self._fault = None

    @property
    def fault(self) -> str | None:
        """What is wrong with it, or late."""
        opened = self.life in (Life.COMPARING, Life.CURRENT)
        return (self.index.healthy if opened else None) or self._fault or self._late

    @property
    def _late(self) -> str | None:
        standing = self.index.standing
        if standing.compared:
            return None
        return (
            f"the index has been compared with {standing.seen} of {standing.stored} sessions of the store so far:"
            " searches and lists may be incomplete"
        )

    @property
    def errors(self) -> int:
        """How often it has failed, rows that it would not take included."""
        return self._errors + self.index.errors + self.index.dropped

    async def run(self, store: Store) -> None:
        """Open it, then write what was missed. What is told meanwhile waits, within bounds."""
        while self.life is Life.OPENING:
            try:
                await self.index.open()
            except IndexFailure as error:
                self._errors += 1
                if str(error) != self._fault:
                    _log.error("index_fault", fault=str(error))
                self._fault = str(error)
                if not error.passing:
                    self._move(Life.REFUSED)
                    return
                await asyncio.sleep(_RETRY)
            else:
                self._move(Life.COMPARING)
        self.index.watch(store)
        await self._restore_looks(store)
        wait = _RETRY
        while self.life is Life.COMPARING:
            try:
                await self.index.catch_up(store)
            except (IndexFailure, StoreError) as error:
                self._errors += 1
                self._fault = f"the index does not have all of the store yet: {error}"
                _log.error("index_fault", fault=self._fault)
                await asyncio.sleep(wait)
                wait = min(wait * 2, _MOST_RETRY)
            else:
                self._move(Life.CURRENT)

    async def _restore_looks(self, store: Store) -> None:
        """Into an index that is new: the store has the book of looks, too."""
        try:
            if not await self.index.has_looks() and (count := await self.index.restore_looks(Book(store).looks())):
                _log.info("looks_restored", looks=count)
        except (IndexFailure, StoreError) as error:
            self._errors += 1
            _log.error("looks_not_restored", why=str(error))

    async def aclose(self) -> None:
        """Let go of it."""
        await self.index.aclose()


class WebServer:
    """The site, on its own sockets."""

    def __init__(
        self,
        config: Config,
        store: Store,
        index: Index,
        whois: WhoIs,
        names: Sequence[str],
        keeps: Keeps | None = None,
    ) -> None:
        """names: of this node, where no hosts are configured. keeps: the holds and acts."""
        domain = config.tailnet.capability_domain
        site = WebConfig(domain=domain, hosts=config.web.hosts or tuple(names), title=config.web.title)
        find = _finder(whois, config.web.insecure_allow, domain)
        each = config.web.connections_per_peer or max(1, config.web.connections // 8)
        self.listener = SiteListener(
            make_app(store, index, find, site, keeps=keeps),
            Admission(whois, domain=domain, insecure=config.web.insecure_allow),
            connections(config.web.connections, each, section="web"),
        )

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Serve on listening sockets."""
        await self.listener.start(list(sockets))

    async def close(self) -> None:
        """Stop serving."""
        await self.listener.close()


def _finder(whois: WhoIs, insecure: Sequence[Network], domain: str) -> Find:
    """Who asks, by WhoIs; whoever comes from an `insecure` address may see everything: development only."""
    find = whois_finder(whois)
    if not insecure:
        return find
    rule = {"users": ["*"], "view": True, "live": True, "export": True, "audit": True}
    anyone = Peer(
        address="",
        stable_id="insecure",
        node_name="insecure.",
        login_name="insecure@localhost",
        capabilities={f"{domain}/cap/recorder": (rule,)},
    )

    async def find_or_believe(request: web.Request) -> Peer:
        name = request.transport.get_extra_info("peername") if request.transport is not None else None
        if isinstance(name, tuple) and any(ipaddress.ip_address(name[0]) in network for network in insecure):
            return anyone
        return await find(request)

    return find_or_believe
