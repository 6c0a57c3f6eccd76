"""Who is at the other end of a connection: WhoIs answers, asked for once and kept for a while.

A connection's identity is worth what the way from its address to its peer is worth, so what an answer is kept under
decides who may become whom:

    a tailnet address     100.64.0.0/10 or fd7a:115c:a1e0::/48. One node has it, and WireGuard vouches for it: an answer
                          holds for all connections from there, and is kept under the address alone.
    any other address     127.0.0.1 above all, whence a userspace daemon forwards. The daemon knows the peer by the port
                          of that one connection, and the next connection from the port is somebody else's. An answer is
                          kept for one connection and dies with it: every `open` makes a key of its own, by a serial
                          number that nothing else has, so that neither a kept answer nor one that is still on its way
                          can reach a later connection from the same port.

Even so the daemon knows a port, not a connection, and the kernel may give one port to two connections that go to
different places, or to a new one once a daemon that died has lost the old. Asked again, the daemon could then name
somebody else for a connection whose bytes are already here. So the first answer pins the node: once another
one is named for the same connection, it is refused (`peer_changed`) for the rest of its life.

What is kept is used while it is younger than the time to live, counted from when the question was put, and while
nothing has changed on the tailnet (see `bus`). After that the daemon is asked, and where it can't say, the answer is a
Refusal: an old answer is never used instead. Refusals are not kept. An answer equal to the one before is the same
object, so that whatever the caller derived from it holds on.

A question about a port is a slow one where the daemon does not know it: it looks for 180 ms, with the lock held that
every other question needs. So these are put a few at a time, and wait in lanes of their own: SLOW questions whether a
PROXY listener's direct peer is known, which are nearly always slow, and PORTS questions about connections from
loopback. A storm of them makes its own connections wait, and no others. Once a connection's peer is known, what is
asked about it again (after every change on the tailnet, and of all that runs) waits in its owner's row, and the rows
take turns: a user with a thousand watches keeps nobody else waiting.

One question per key is in flight; all who want to know wait for it, and it goes on if they leave. A question from
before a change is no answer to who asks after it: they wait for its end and put their own.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from itertools import count
from typing import NoReturn

import structlog

from k8sproxy.common.errors import Refusal
from k8sproxy.common.sockets import join_address
from k8sproxy.common.tailnet.bus import Bus
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.peer import Peer, is_tailnet
from k8sproxy.common.tasks import Tasks

TTL = 10.0  # seconds; how long a withdrawn grant may go on when the bus says nothing

# Answers. A few KiB each, so 16 MiB or so: a proxy with more clients than this at once asks again for those it has not
# heard of for longest. Only addresses that the daemon knows get in, so nobody can fill it from outside.
MAX_KEPT = 4096

# Questions at once. The daemon answers slow ones one after the other, so more than two would only wait there, in front
# of everybody else's; about ports that it knows it answers at once, out of memory.
SLOW = 2
PORTS = 4

_log = structlog.get_logger(__name__)

# One for the process: after a reload that names another daemon, keys of the old WhoIs and of the new one are about.
_serials = count()


class ClientKey:
    """What one connection's answers are kept under; made by `WhoIs.open`, used up by `WhoIs.close`.

    text: the key itself. shared: whether other connections have it too. address: what the daemon is asked. node: the
    stable id that the first answer pinned, where the key is not shared; empty once another came. owner: of that answer.
    """

    __slots__ = ("address", "closed", "destination", "node", "owner", "service", "shared", "text")

    def __init__(
        self, text: str, address: str, *, shared: bool, service: str | None = None, destination: str | None = None
    ) -> None:
        self.text = text
        self.address = address
        self.shared = shared
        self.service = service
        self.destination = destination
        self.node: str | None = None
        self.owner = ""
        self.closed = False


class _Kept:
    __slots__ = ("expires", "generation", "peer")

    def __init__(self, peer: Peer, expires: float, generation: int) -> None:
        self.peer = peer
        self.expires = expires
        self.generation = generation


class _Question:
    __slots__ = ("generation", "task")

    def __init__(self, generation: int, task: asyncio.Task[Peer | Refusal]) -> None:
        self.generation = generation
        self.task = task


class _Lane:
    """So many places, for which owners wait in rows of their own that take turns."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._rows: dict[str, deque[asyncio.Future[None]]] = {}  # the next one is in front

    def try_acquire(self) -> bool:
        """Take a place if there is one."""
        if self._free:
            self._free -= 1
            return True
        return False

    async def acquire(self, owner: str) -> None:
        """Take a place, in the owner's turn."""
        if self.try_acquire():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rows.setdefault(owner, deque()).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self.release()  # the place had been given already
            raise

    def release(self) -> None:
        """Give a place back: to the first who waits in the row whose turn it is."""
        rows = self._rows
        while rows:
            owner = next(iter(rows))
            row = rows.pop(owner)
            future = row.popleft()
            if row:
                rows[owner] = row  # behind the others
            if not future.done():
                future.set_result(None)
                return
        self._free += 1


class WhoIs:
    """Asks and remembers. One for the process: what it keeps is shared by all listeners.

    ttl: seconds that an answer is kept; 0 asks every time. bus: tells of changes (its own one if none is given).
    clock: seconds, monotonic. hits: answers given out of memory; misses: questions put to the daemon; failures: those
    without an answer, by the Refusal's cause.
    """

    def __init__(
        self,
        localapi: LocalAPI,
        *,
        ttl: float = TTL,
        bus: Bus | None = None,
        max_kept: int = MAX_KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ttl = ttl
        self.bus = bus or Bus(localapi)
        self.hits = 0
        self.misses = 0
        self.failures: dict[str, int] = {}
        self._localapi = localapi
        self._max_kept = max_kept
        self._clock = clock
        self._serials = _serials
        self._kept: dict[str, _Kept] = {}
        self._questions: dict[str, _Question] = {}
        self._tasks = Tasks()
        self._slow = asyncio.Semaphore(SLOW)
        self._ports = _Lane(PORTS)

    def open(self, ip: str, port: int, *, service: str | None = None, destination: str | None = None) -> ClientKey:
        """The key of a new connection from (ip, port), to be given to `close` when the connection is gone.

        service, destination: see `LocalAPI.whois`. Raises Refusal for an address that is none.
        """
        text = _canonical(ip)
        if not _is_tailnet(text):
            address = join_address(text, port)
            serial = next(self._serials)
            return ClientKey(f"{address} {serial}", address, shared=False, service=service, destination=destination)
        # Without its port: the daemon waits for a port it does not know to be registered, with its lock held, and does
        # not where there is none.
        address = join_address(text, 0)
        aspect = f" {service}" if service is not None else f" {destination}" if destination is not None else ""
        return ClientKey(text + aspect, address, shared=True, service=service, destination=destination)

    def close(self, key: ClientKey) -> None:
        """Forgets a connection: its answer, and the question for it if there is one. Once is enough, twice no harm."""
        key.closed = True
        if key.shared:
            return
        self._kept.pop(key.text, None)
        question = self._questions.pop(key.text, None)
        if question is not None:
            question.task.cancel()

    def cached(self, key: ClientKey, ahead: float = 0.0) -> Peer | None:
        """The peer, if it is known at this moment, and will be for `ahead` seconds."""
        kept = self._kept.get(key.text)
        if kept is None or kept.generation != self.bus.generation or kept.expires <= self._clock() + ahead:
            return None
        self.hits += 1
        return kept.peer

    async def ask(self, key: ClientKey, ahead: float = 0.0) -> Peer:
        """The peer, out of memory or from the daemon. ahead: see `cached`. Raises Refusal."""
        if (peer := self.cached(key, ahead)) is not None:
            return peer
        since = self.bus.generation
        while True:
            if key.closed and not key.shared:
                raise _ended()
            question = self._questions.get(key.text)
            if question is None:
                question = self._put(key)
            # Not `await task`, nor a shield: being cancelled here must not cancel the question, and the question's
            # being cancelled (the connection was closed) must not look like ours.
            await asyncio.wait((question.task,))
            if question.generation >= since:
                break
        if question.task.cancelled():
            raise _ended()
        outcome = question.task.result()
        if isinstance(outcome, Refusal):
            # Each of those waiting raises its own: one exception raised in many places collects all their tracebacks.
            raise Refusal(
                outcome.status, outcome.cause, outcome.message, retry_after=outcome.retry_after, close=outcome.close
            )
        return outcome

    async def resolves(self, ip: str, port: int) -> bool:
        """Whether the daemon knows a peer behind the TCP connection from (ip, port); never kept.

        Raises Refusal where it can't say, which has to turn the connection down like a yes. Waits behind others of its
        kind for as long as the caller does.

        This is the defence of a PROXY listener on loopback. What the daemon's serve configuration forwards is not known
        to WhoIs; a connection that a peer has dialled itself is, and the header on it is forged. Ask once the header's
        bytes are here, not at the accept: the daemon dials first and registers the connection afterwards, but passes on
        no byte before it has (wgengine/netstack, forwardTCP), so from then on a "no" is one.
        """
        try:
            async with self._slow:
                self.misses += 1
                await self._localapi.whois(join_address(_canonical(ip), port))
        except Refusal as refusal:
            if refusal.cause == "peer_unknown":
                return False
            self._failed(refusal)
            raise
        return True

    def invalidate(self) -> None:
        """Makes everything that is kept stale, at once."""
        self.bus.bump()

    @property
    def generation(self) -> int:
        """Goes up whenever what is kept becomes stale by a change."""
        return self.bus.generation

    async def wait_changed(self, generation: int) -> int:
        """See `Bus.wait_changed`."""
        return await self.bus.wait_changed(generation)

    async def watch_changes(self) -> NoReturn:
        """See `Bus.follow`: to be run in the background, once, for as long as answers are used."""
        await self.bus.follow()

    async def aclose(self) -> None:
        """Ends the questions in flight; who waits for one is refused."""
        await self._tasks.aclose()

    def _put(self, key: ClientKey) -> _Question:
        """The one place where a question starts."""
        self.misses += 1

        def ended(task: asyncio.Task[Peer | Refusal]) -> None:
            question = self._questions.get(key.text)
            if question is not None and question.task is task:
                del self._questions[key.text]

        task = self._tasks.start(self._answer(key, self.bus.generation), f"whois {key.text}", ended=ended)
        question = self._questions[key.text] = _Question(self.bus.generation, task)
        return question

    async def _answer(self, key: ClientKey, generation: int) -> Peer | Refusal:
        """Puts the question, and keeps its answer as one of the generation in which it was put."""
        asked = self._clock()
        try:
            if key.shared:
                peer = await self._localapi.whois(key.address, service=key.service, destination=key.destination)
            else:
                if not self._ports.try_acquire():
                    await self._wait_for_port(key.owner)
                    asked = self._clock()
                try:
                    peer = await self._localapi.whois(key.address, service=key.service, destination=key.destination)
                finally:
                    self._ports.release()
                _pin(key, peer)
        except Refusal as refusal:
            self._failed(refusal)
            return refusal
        except Exception:
            # A fault of ours, but one that must not leave those waiting without an answer.
            _log.exception("whois_failed", address=key.address)
            fault = Refusal(503, "whois_malformed", "the answer of tailscaled could not be read")
            self._failed(fault)
            return fault
        before = self._kept.get(key.text)
        if before is not None and _same(before.peer, peer):
            peer = before.peer
        if key.shared or not key.closed:
            self._kept.pop(key.text, None)
            self._kept[key.text] = _Kept(peer, asked + self.ttl, generation)
            if len(self._kept) > self._max_kept:
                del self._kept[next(iter(self._kept))]
        return peer

    async def _wait_for_port(self, owner: str) -> None:
        """Take a place among the questions about ports. Raises Refusal where none comes free in the time of an
        answer."""
        try:
            async with asyncio.timeout(self._localapi.timeout):
                await self._ports.acquire(owner)
        except TimeoutError:
            raise Refusal(
                503, "whois_timeout", "too many connections from loopback wait for tailscaled's answer", retry_after=1
            ) from None

    def _failed(self, refusal: Refusal) -> None:
        self.failures[refusal.cause] = self.failures.get(refusal.cause, 0) + 1


def _pin(key: ClientKey, peer: Peer) -> None:
    if key.node is None:
        key.node, key.owner = peer.stable_id, peer.owner
    elif key.node != peer.stable_id:
        key.node = ""  # no node's: from here on nobody is believed to be at the other end
        raise Refusal(403, "peer_changed", "tailscaled now names a different node for this connection", close=True)


def _same(before: Peer, now: Peer) -> bool:
    # To Python 1 == True == 1.0, to a grant they are not the same; their reprs differ.
    return before == now and repr(before.capabilities) == repr(now.capabilities)


# Clients come again, and a userspace daemon's all come from one address. Entries of some 300 bytes.
@lru_cache(4096)
def _canonical(ip: str) -> str:
    """The shortest text form of an address; an IPv4-mapped IPv6 one (a dual-stack listener's) is the IPv4 one."""
    try:
        address = ip_address(ip)
    except ValueError:
        raise Refusal(403, "peer_unknown", "the connection has no IP address") from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


@lru_cache(4096)
def _is_tailnet(text: str) -> bool:
    return is_tailnet(ip_address(text))


def _ended() -> Refusal:
    return Refusal(503, "whois_unavailable", "the connection has ended", close=True)
