"""The gate of a port: nobody's bytes are read before it is known who sends them.

A connection that has been accepted is a socket and a task, and nothing else. Its bytes stay in the kernel, which bounds
them, until the tailnet has said who is at the other end and whether it may come in; only then is there a transport, and
a parser that could be kept busy. `Step` says how far it is.

Outside, an address of the tailnet is a peer, and has its share of the places. A userspace daemon's connections all come
from loopback, so a connection from there that stays silent is asked about as well, once the daemon must have registered
it, and counts against the share of the peer that it belongs to.

Inside, a connection without a request is idle. A peer may have a few such connections; one more ends its oldest one,
and so does one more of anybody's where all places are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

import structlog

from k8sproxy.common.errors import Refusal
from k8sproxy.common.heads import Watched
from k8sproxy.common.states import State, table
from k8sproxy.common.tailnet.peer import is_tailnet
from k8sproxy.common.tasks import Tasks
from recorder.ingest.admission import Door
from recorder.ingest.shares import Limit, Shares, part_of

_log = structlog.get_logger(__name__)

# Seconds for the first byte of a connection: a sender's is there within a round trip.
FIRST_BYTE = 5.0
# Seconds of silence after which a connection from loopback is asked about: a daemon registers what it has dialled at
# once, and an honest sender has spoken by then.
SILENCE = 0.5
# Connections that are not admitted yet, of all peers and of one: each is a file and 4 KiB here (measured: 4.7 with the
# client's half in the same process), besides what it has in the kernel. A sender that opens a
# connection for each session has some dozen on their way at once.
MAX_OUTSIDE = 1024
MAX_OUTSIDE_OF_ONE = 64
# Connections at once that are told why they are turned away; others are closed without a word.
MAX_TURNED = 128
# Idle connections of one peer: a proxy keeps one for all of its sessions and a few for events.
MAX_IDLE_OF_ONE = 64
# Connections accepted in one turn of the loop, so that those inside have their turn as well.
_ACCEPTS = 32
# Seconds without accepting after the system has no more files or memory for it.
_PAUSE = 1.0
_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Seconds: a peer that is gone without a word is noticed after KEEPALIVE + 4 * KEEPALIVE_INTERVAL.
KEEPALIVE = 60
KEEPALIVE_INTERVAL = 15
# Connections at once, by default: a proxy keeps one for all of its sessions, other senders one a session.
MAX_CONNECTIONS = 4096


def connections(most: int = MAX_CONNECTIONS, each: int | None = None, *, section: str = "ingest") -> Limit:
    """The limit on connections inside."""
    holder = "sender" if section == "ingest" else "peer"
    name = f"{section}.connectionsPer{holder.capitalize()}"
    each = part_of(most) if each is None else each
    return Limit(most, each, f"{section}.connections", name, "connections", holder, f"{holder}_connections")


class Step(State):
    """How far a connection is.

    SILENT     nothing has come. Whoever has something to say says it at once, so where places become scarce those go
               first that have been silent for longest, and after FIRST_BYTE seconds they go in any case -> ASKED, ENDED
    ASKED      a byte is there: WhoIs is asked. Not sooner, since a userspace daemon registers a connection after it has
               dialled it, but passes no byte on before (see WhoIs.resolves)        -> IN, TURNED, ENDED
    IN         a protocol has it; it counts against its peer's share of the places inside until it ends -> (final)
    TURNED     it is told why not, by a protocol that reads nothing and lasts for a second -> (final)
    ENDED      it is closed without a word: silent for too long, one of too many, or gone -> (final)
    """

    SILENT = "silent"
    ASKED = "asked"
    IN = "in"
    TURNED = "turned"
    ENDED = "ended"


table(
    {
        Step.SILENT: (Step.ASKED, Step.ENDED),
        Step.ASKED: (Step.IN, Step.TURNED, Step.ENDED),
        Step.IN: (),
        Step.TURNED: (),
        Step.ENDED: (),
    }
)


class _Caller:
    """A connection outside. sock: something else's once it is IN or TURNED. share: whose places it takes, "" while that
    is not known."""

    __slots__ = ("door", "share", "sock", "spoke", "step", "task")

    def __init__(self, sock: socket.socket, door: Door) -> None:
        self.sock = sock
        self.door = door
        self.step = Step.SILENT
        self.share = ""
        self.spoke = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def move(self, step: Step) -> None:
        """It gets further, or ends."""
        self.step = self.step.to(step)


class Inside:
    """The connections that were let in. shares.limit: may be replaced at any time."""

    def __init__(self, limit: Limit) -> None:
        self.shares = Shares(limit)
        self._doors: set[Door] = set()
        self._idle: dict[str, dict[Door, None]] = {}  # by holder, oldest first

    def take(self, door: Door) -> None:
        """A place for this connection: at the cost of an idle one, where there has to be. Raises Refusal."""
        shares = self.shares
        if shares.by_holder[door.holder] >= shares.limit.each:
            self._end_idle(door.holder)
        if shares.taken >= shares.limit.most and self._idle:
            self._end_idle(max(self._idle, key=lambda holder: len(self._idle[holder])))
        shares.take(door.holder)
        self._doors.add(door)
        door.turned = self._turned

    def seat(self, door: Door, transport: asyncio.Transport) -> None:
        """It has a transport, and no request yet."""
        door.transport = transport
        self._turned(door)

    def leave(self, door: Door) -> None:
        """It has ended, or is about to. Once is enough, twice no harm."""
        if door not in self._doors:
            return
        self._doors.remove(door)
        door.turned = None
        self._not_idle(door)
        self.shares.give_back(door.holder)

    def _turned(self, door: Door) -> None:
        if door.requests:
            self._not_idle(door)
            return
        idle = self._idle.setdefault(door.holder, {})
        idle[door] = None
        if len(idle) > MAX_IDLE_OF_ONE:
            self._end_idle(door.holder)

    def _not_idle(self, door: Door) -> None:
        idle = self._idle.get(door.holder)
        if idle is not None:
            idle.pop(door, None)
            if not idle:
                del self._idle[door.holder]

    def _end_idle(self, holder: str) -> None:
        door = next(iter(self._idle.get(holder, ())), None)
        if door is not None:
            self.leave(door)
            if door.transport is not None:
                door.transport.abort()


class Gate:
    """Takes the connections of listening sockets. Made inside the loop.

    door: made for each, out of its address. admit: raises Refusal for whoever may not come in; sets the door's holder.
    enter: the protocol of one that may. turn_away: that of one that may not.
    """

    def __init__(
        self,
        *,
        inside: Inside,
        door: Callable[[object], Door],
        admit: Callable[[Door], Awaitable[object]],
        enter: Callable[[Door], asyncio.Protocol],
        turn_away: Callable[[Door, Refusal], asyncio.Protocol],
    ) -> None:
        self.inside = inside
        self.ended = 0  # connections that were ended outside: silent for too long, or too many
        self._door = door
        self._admit = admit
        self._enter = enter
        self._turn_away = turn_away
        self._loop = asyncio.get_running_loop()
        self._listening: dict[socket.socket, asyncio.TimerHandle | None] = {}
        self._callers: dict[_Caller, None] = {}  # oldest first
        self._shares: Counter[str] = Counter()
        self._turned = 0
        self._tasks = Tasks()

    @property
    def outside(self) -> int:
        """Connections that are not admitted yet."""
        return len(self._callers)

    def listen(self, sock: socket.socket) -> None:
        """Take connections from a listening socket, which belongs to the gate now."""
        sock.setblocking(False)
        self._listening[sock] = None
        self._loop.add_reader(sock, self._accept, sock)

    def stop(self) -> None:
        """Take no more connections, and end those outside."""
        for sock, timer in self._listening.items():
            self._loop.remove_reader(sock)
            if timer is not None:
                timer.cancel()
            sock.close()
        self._listening.clear()
        for caller in tuple(self._callers):
            self._end(caller)

    async def aclose(self) -> None:
        """Stop, and wait until nothing is left outside."""
        self.stop()
        await self._tasks.finished()

    # -- outside

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _SCARCE:
                    raise
                _log.error("accept_failed", why=error.strerror)
                self._loop.remove_reader(listener)
                self._listening[listener] = self._loop.call_later(_PAUSE, self._accept_again, listener)
                return
            sock.setblocking(False)
            _keep_alive(sock)
            self._arrived(sock, address)

    def _accept_again(self, listener: socket.socket) -> None:
        self._listening[listener] = None
        self._loop.add_reader(listener, self._accept, listener)

    def _arrived(self, sock: socket.socket, address: object) -> None:
        caller = _Caller(sock, self._door(address))
        if _is_a_peers(caller.door.ip):
            self._count(caller, caller.door.ip)
        if len(self._callers) >= MAX_OUTSIDE:
            self._end(self._most_silent())
        self._callers[caller] = None
        caller.task = self._tasks.start(
            self._attend(caller),
            f"connection from {caller.door.ip}",
            ended=lambda _: self._attended(caller),
            failed=lambda _, error: _log.error("gate_failed", peer=caller.door.ip, exc_info=error),
        )
        self._loop.add_reader(sock, self._spoke, caller)

    def _count(self, caller: _Caller, share: str) -> None:
        """It is one of this peer's; the oldest of too many goes."""
        caller.share = share
        self._shares[share] += 1
        if self._shares[share] > MAX_OUTSIDE_OF_ONE:
            self._end(next(one for one in self._callers if one.share == share))

    def _most_silent(self) -> _Caller:
        silent = (one for one in self._callers if one.step is Step.SILENT)
        return next(silent, next(iter(self._callers)))

    def _spoke(self, caller: _Caller) -> None:
        if not caller.step.is_final:
            self._loop.remove_reader(caller.sock)
        caller.spoke.set()

    async def _attend(self, caller: _Caller) -> None:
        """From the accept to where a protocol has it. Whatever happens, the socket is closed or given away."""
        door = caller.door
        try:
            await self._first_byte(caller)
            caller.move(Step.ASKED)
            if not caller.sock.recv(1, socket.MSG_PEEK):
                return
            try:
                await self._admit(door)
                self.inside.take(door)
            except Refusal as refusal:
                await self._tell(caller, refusal)
            else:
                await self._let_in(caller)
        except TimeoutError:
            self.ended += 1
        except OSError as error:
            _log.debug("connection_lost", peer=door.ip, why=error.strerror)

    async def _first_byte(self, caller: _Caller) -> None:
        """Raises TimeoutError."""
        until = self._loop.time() + FIRST_BYTE
        if not caller.share:
            try:
                async with asyncio.timeout(SILENCE):
                    await caller.spoke.wait()
                    return
            except TimeoutError:
                pass
        async with asyncio.timeout_at(until):
            if not caller.share:
                with contextlib.suppress(Refusal):
                    await caller.door.ask()
                    self._count(caller, caller.door.holder)
            await caller.spoke.wait()

    async def _let_in(self, caller: _Caller) -> None:
        door = caller.door
        self._forget(caller)
        caller.move(Step.IN)
        try:
            await self._loop.connect_accepted_socket(lambda: self._enter(door), caller.sock)
        except BaseException:
            self.inside.leave(door)
            door.close()
            raise

    async def _tell(self, caller: _Caller, refusal: Refusal) -> None:
        if self._turned >= MAX_TURNED:
            return
        protocol = self._turn_away(caller.door, refusal)
        self._forget(caller)
        caller.move(Step.TURNED)
        caller.door.close()
        self._turned += 1
        gone = asyncio.Event()
        try:
            await self._loop.connect_accepted_socket(lambda: Watched(protocol, gone.set), caller.sock)
            await gone.wait()
        finally:
            self._turned -= 1

    def _end(self, caller: _Caller) -> None:
        self.ended += 1
        self._forget(caller)
        if caller.task is not None:
            caller.task.cancel()

    def _forget(self, caller: _Caller) -> None:
        """It is not outside any more."""
        if caller in self._callers:
            del self._callers[caller]
            if caller.share:
                self._shares[caller.share] -= 1
                if not self._shares[caller.share]:
                    del self._shares[caller.share]

    def _attended(self, caller: _Caller) -> None:
        self._forget(caller)
        if not caller.step.is_final:
            caller.move(Step.ENDED)
            if not caller.spoke.is_set():
                self._loop.remove_reader(caller.sock)
            caller.sock.close()
            caller.door.close()


def _is_a_peers(ip: str) -> bool:
    """Whether an address is one peer's alone."""
    try:
        return is_tailnet(ipaddress.ip_address(ip))
    except ValueError:
        return False


def _keep_alive(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    except OSError as error:
        _log.debug("no_keepalive", why=str(error))
