"""Questions and answers over kept connections to one unix socket: HTTP/1.1, GET alone.

Every new client costs a question to the daemon, so one is made of little: a connection is one protocol object of the
event loop, llhttp reads the answers, and nothing else stands between. What the questions mean is `localapi`'s business.

    Transport   the connections: at most `most` at once, those that are idle kept for `keep` seconds
    _Link       one of them, which has one question at a time

A question holds its connection until its answer is whole; then the connection is kept for the next one. A caller that
is cancelled or times out closes its connection, because the answer is still on its way. Where a kept connection ends
before a byte of the answer has come, the daemon has closed it meanwhile, and the question is sent once more, on a new
connection. Bytes that nobody asked for end a connection, also where the loop has not read them yet: they would be taken
for the answer to the next question, which is about another peer.

llhttp is used in its strict mode. Two things are limited here: the body, and what comes beside it (heads, chunk sizes),
which may be as much as the body and MAX_BESIDE bytes more.
"""

from __future__ import annotations

import asyncio
import fcntl
import termios
from collections import deque
from time import monotonic
from typing import NamedTuple, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from k8sproxy.common.states import State, table
from k8sproxy.common.tailnet.answers import Malformed

# Bytes of heads, chunk sizes and trailers of one answer, beside as many as its body has. The daemon's heads have a few
# hundred.
MAX_BESIDE = 64 * 1024
# Bytes of the body that are read of an answer with another status than 200. The daemon's errors are one short line.
MAX_WORDS = 300

_NO_BYTES = b"\0\0\0\0"  # FIONREAD's int: zero


class Answer(NamedTuple):
    """What came back. body: empty for a stream that has begun; at most the first MAX_WORDS bytes where the status is
    not 200."""

    status: int
    body: bytes


class LinkState(State):
    """Where a connection to the daemon is.

    IDLE        nobody asks                                                  -> ASKED, CLOSED
    ASKED       a question was sent, and its answer is not whole             -> IDLE, STREAMING, CLOSED
    STREAMING   an answer without a foreseeable end is coming                -> CLOSED
    CLOSED      the connection has ended, or will as soon as the loop turns  -> (final)
    """

    IDLE = "idle"
    ASKED = "asked"
    STREAMING = "streaming"
    CLOSED = "closed"


_IDLE, _ASKED, _STREAMING, _CLOSED = LinkState.IDLE, LinkState.ASKED, LinkState.STREAMING, LinkState.CLOSED
table({_IDLE: (_ASKED, _CLOSED), _ASKED: (_IDLE, _STREAMING, _CLOSED), _STREAMING: (_CLOSED,), _CLOSED: ()})


class _Link(asyncio.Protocol):
    """One connection. state: see LinkState. idle_since: of the monotonic clock. touched: a byte of the answer has come.

    The parser holds this object's methods and this object holds the parser, so the parser goes with its answer.
    """

    __slots__ = (
        "_endless",
        "_fault",
        "_heard",
        "_most",
        "_owner",
        "_parser",
        "_pieces",
        "_received",
        "_size",
        "_socket",
        "_waiter",
        "idle_since",
        "state",
        "touched",
    )

    def __init__(self, transport: Transport) -> None:
        self.state = _IDLE
        self.idle_since = 0.0
        self.touched = False
        self._owner = transport
        self._socket: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = None
        self._waiter: asyncio.Future[Answer | None] | None = None  # None: something of a stream has come
        self._fault: Exception | None = None  # why the answer can't be used
        self._pieces: list[bytes] = []
        self._size = 0  # bytes of the body so far
        self._most = 0
        self._received = 0
        self._heard = False  # of a stream, since somebody listened
        self._endless = False

    # -- what a question does

    def ask(self, request: bytes, most: int, *, endless: bool) -> asyncio.Future[Answer | None]:
        """Send a question; what is waited for. most: bytes of its answer's body. endless: the answer is a stream.

        The future raises Malformed for an answer that is none, ConnectionError where the connection ends first.
        """
        self._move(_ASKED)
        self.touched = False
        self._fault = None
        self._pieces = []
        self._size = self._received = 0
        self._most = most
        self._endless = endless
        self._parser = HttpResponseParser(self)
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        assert self._socket is not None  # noqa: S101  # a link is handed out once it is connected
        self._socket.write(request)
        return waiter

    async def listen(self) -> bool:
        """Wait until something more of a stream has come; False at its end. Raises as `ask` does."""
        while not self._heard:
            if self.state is _CLOSED:
                if self._fault is not None:
                    raise self._fault
                return False
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._heard = False
        return True

    def close(self, fault: Exception | None = None) -> None:
        """End the connection where it is; whoever waits for an answer gets the fault."""
        if self.state is _CLOSED:
            return
        self._move(_CLOSED)
        self._parser = None
        self._fault = fault
        if self._socket is not None:
            self._socket.abort()
        if self._waiter is not None and not self._waiter.done():
            if fault is not None:
                self._waiter.set_exception(fault)
            else:
                self._waiter.set_result(None)

    def let_go(self) -> None:
        """Close it for somebody who has left: what waits for them is seen by nobody."""
        self.close()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and waiter.done() and not waiter.cancelled():
            waiter.exception()

    @property
    def is_quiet(self) -> bool:
        """Whether the next byte to come can only be of an answer to the next question: one system call."""
        if self.state is not _IDLE or self._socket is None:
            return False
        try:
            return fcntl.ioctl(self._socket.get_extra_info("socket").fileno(), termios.FIONREAD, _NO_BYTES) == _NO_BYTES
        except (OSError, ValueError):
            return False

    def _move(self, following: LinkState) -> None:
        self.state = self.state.to(following)

    # -- what the event loop tells (asyncio.Protocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def connection_lost(self, error: Exception | None) -> None:
        self.close(error if isinstance(error, OSError) else ConnectionError("the connection ended"))
        self._owner.forget(self)

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            self.close()  # an answer to no question
            return
        self.touched = True
        self._received += len(data)
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self.close(Malformed(type(error).__name__))
            return
        if self._received - self._size > MAX_BESIDE + self._size:
            self._fault = Malformed("more beside the body than in it")
        if self._fault is not None and self.state is not _CLOSED:
            self.close(self._fault)

    # -- what the parser tells

    def on_message_begin(self) -> None:
        if self._parser is None:
            self._fault = Malformed("more than one answer")

    def on_headers_complete(self) -> None:
        if self._parser is None:
            return
        if self._endless and self._parser.get_status_code() == 200:
            self._move(_STREAMING)
            self._answered(Answer(200, b""))

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self.state is _STREAMING:
            self._heard = True
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        elif self._parser is None or self._fault is not None:
            pass
        elif self._parser.get_status_code() != 200:
            self._pieces.append(body)
            if self._size >= MAX_WORDS:
                self._whole(keep=False)
        elif self._size > self._most:
            self._fault = Malformed(f"an answer of more than {self._most} bytes")
        else:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        parser = self._parser
        if parser is None or self._fault is not None:
            return
        if self.state is _STREAMING:
            self.close()
        elif parser.get_status_code() >= 200:  # else the answer is still to come (RFC 9110, 15.2)
            self._whole(keep=parser.should_keep_alive())

    def _whole(self, *, keep: bool) -> None:
        """The answer is here, as far as it is wanted."""
        assert self._parser is not None  # noqa: S101  # its callers have looked
        answer = Answer(self._parser.get_status_code(), b"".join(self._pieces))
        self._pieces = []
        self._parser = None
        self._answered(answer)
        if keep:
            self._move(_IDLE)
        else:
            self.close()

    def _answered(self, answer: Answer) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answer)


class Stream:
    """An answer that goes on. To be closed."""

    def __init__(self, transport: Transport, link: _Link) -> None:
        self._transport = transport
        self._link = link

    async def listen(self) -> bool:
        """Wait until something has come, which is dropped; False at the end. Raises ConnectionError and Malformed."""
        return await self._link.listen()

    def close(self) -> None:
        """End it, and give its place back; once."""
        self._transport.give_back(self._link)


class Transport:
    """All connections to the socket at `path`. most: at once; further questions wait. keep: seconds for idle ones.

    Connections are made at the first question, in the loop that runs then. `aclose` ends them, and whatever is asked
    from then on raises ConnectionError.
    """

    def __init__(self, path: str, *, most: int, keep: float) -> None:
        self.path = path
        self._keep = keep
        self._places = asyncio.Semaphore(most)
        self._idle: deque[_Link] = deque()  # the latest on the right
        self._links: set[_Link] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False
        self._gone: asyncio.Future[None] | None = None

    async def get(self, request: bytes, most: int) -> Answer:
        """Put a question. most: bytes of the answer's body. Raises OSError (ConnectionError) and Malformed."""
        link, answer = await self._put(request, most, endless=False)
        self.give_back(link)
        return answer

    async def stream(self, request: bytes) -> Stream | Answer:
        """Put a question whose answer goes on; the Answer where its status is not 200. Raises as `get` does."""
        link, answer = await self._put(request, 0, endless=True)
        if answer.status == 200:
            return Stream(self, link)
        self.give_back(link)
        return answer

    async def _put(self, request: bytes, most: int, *, endless: bool) -> tuple[_Link, Answer]:
        """Put a question; the link has to be given back."""
        await self._places.acquire()
        link: _Link | None = None
        try:
            link = self._take_idle()
            if link is not None:
                try:
                    return link, await self._answer(link, request, most, endless=endless)
                except ConnectionError:
                    if link.touched or self._closed:
                        raise
            link = await self._connect()
            return link, await self._answer(link, request, most, endless=endless)
        except BaseException:
            if link is not None:
                link.let_go()
            self._places.release()
            raise

    async def _answer(self, link: _Link, request: bytes, most: int, *, endless: bool) -> Answer:
        answer = await link.ask(request, most, endless=endless)
        if answer is None:
            raise ConnectionError("the connection ended")
        return answer

    def _take_idle(self) -> _Link | None:
        while self._idle:
            link = self._idle.pop()
            if link.is_quiet:
                return link
            link.close()
        return None

    async def _connect(self) -> _Link:
        if self._closed:
            raise ConnectionError("this process is closing its connections")
        _, link = await asyncio.get_running_loop().create_unix_connection(lambda: _Link(self), self.path)
        self._links.add(link)
        if self._closed:
            link.close()
            raise ConnectionError("this process is closing its connections")
        return link

    def give_back(self, link: _Link) -> None:
        """The question has its answer, or nobody wants it any more."""
        if link.state is _IDLE and not self._closed:
            link.idle_since = monotonic()
            self._idle.append(link)
            if self._sweeping is None:
                self._sweeping = asyncio.get_running_loop().call_later(self._keep, self._sweep)
        else:
            link.close()
        self._places.release()

    def forget(self, link: _Link) -> None:
        """The connection is gone."""
        self._links.discard(link)
        if self._gone is not None and not self._links and not self._gone.done():
            self._gone.set_result(None)

    def _sweep(self) -> None:
        """Close what has been idle for too long."""
        self._sweeping = None
        oldest = monotonic() - self._keep
        while self._idle and (self._idle[0].state is _CLOSED or self._idle[0].idle_since <= oldest):
            self._idle.popleft().close()
        if self._idle:
            wait = self._idle[0].idle_since - oldest
            self._sweeping = asyncio.get_running_loop().call_later(wait, self._sweep)

    async def aclose(self) -> None:
        """End all connections. Every question that waits raises ConnectionError."""
        self._closed = True
        self._idle.clear()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for link in tuple(self._links):
            link.close(ConnectionError("this process is closing its connections"))
        if self._links:
            self._gone = asyncio.get_running_loop().create_future()
            await self._gone
