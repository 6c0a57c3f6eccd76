"""One exchange: a request's body goes up, its response comes down, or both sides switch protocols.

The relay keeps no body in memory. It counts what a wire reads, shows it to the tap and writes it to the other wire, all
in the same call. Where a wire does not take all of it, the other one is not read until it has: that is all of the
backpressure. Of a body in chunks
no more is read than a turn of the loop allows (turns), since small chunks are expensive to read. A `run` is over when
the response is complete, or both directions of an upgraded connection have ended. What of a response does not come with
its head is a Download (response).

What each end means:
- The response's last byte: done; the connection upstream may be reused if the request was complete as well, nothing
  came behind the response, and neither side said close. A response that is complete before the request is (an early
  refusal of an upload) was announced to the client with `Connection: close`.
- Upstream ends too early: before any byte on a connection that was used before, StaleConnection; before the head is
  whole, a Refusal; within the body, Cut: the client's body must be seen to break, so nobody ends it.
- The client ends: ClientGone; upstream is closed with it, which cancels the request there.
- Where the tap bounds an answer (a session that must be recorded, and was not begun), the answer is held until it is
  whole, and refused where it gets longer than that.
- After a switch of protocols the two wires are `switched`'s until both directions have ended.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from k8sproxy.access.rewrite import UpstreamHead
from k8sproxy.common.errors import ProtocolError, Refusal
from k8sproxy.common.states import State, table
from k8sproxy.dataplane.client import Client
from k8sproxy.dataplane.drive import directly
from k8sproxy.dataplane.ends import ClientGone, Cut, Doubtful, StaleConnection
from k8sproxy.dataplane.heldanswer import HeldAnswer, too_long
from k8sproxy.dataplane.response import Download, granted, take
from k8sproxy.dataplane.switched import Switched
from k8sproxy.dataplane.turns import Pace
from k8sproxy.dataplane.upstream import UpstreamConnection
from k8sproxy.dataplane.wire import Wire
from k8sproxy.protocol.body import Body, LengthBody, UntilClose, request_body, response_body
from k8sproxy.protocol.http1 import ResponseHead, head_end, parse_response_head
from k8sproxy.request.foreign import Guard
from k8sproxy.sessions.tap import NO_TAP, Tap

_NO_BODY = LengthBody(0)
# Interim responses to one request. Servers send one or two; Go's client gives up after five.
_MAX_INTERIM = 64


class ExchangeState(State):
    """Where an exchange is.

    PREPARED   upstream has not been sent it, or on a connection that was
               stale; another connection may be had                        -> RUNNING, FAILED
    RUNNING    bytes are passed on, both ways                              -> PREPARED, HELD, FINISHED, FAILED
    HELD       a 401 is held back while the proxy's account is in doubt    -> RUNNING, FAILED
    FINISHED   it ended as it should                                       -> (final)
    FAILED     it ended otherwise                                          -> (final)
    """

    PREPARED = "prepared"
    RUNNING = "running"
    HELD = "held"
    FINISHED = "finished"
    FAILED = "failed"


PREPARED, RUNNING, HELD = ExchangeState.PREPARED, ExchangeState.RUNNING, ExchangeState.HELD
FINISHED, FAILED = ExchangeState.FINISHED, ExchangeState.FAILED
table(
    {
        PREPARED: (RUNNING, FAILED),
        RUNNING: (PREPARED, HELD, FINISHED, FAILED),
        HELD: (RUNNING, FAILED),
        FINISHED: (),
        FAILED: (),
    }
)


class Exchange:
    """One request on one upstream connection.

    head_limit: bytes accepted for a response head. closing: whether the client was told that its connection ends with
    this response. status: of the final response, 0 before it. received, sent: bytes from and to the client, without
    request heads. body_seen: is shown the request's body as it passes. proxy_seconds: time spent between reading and
    writing heads, both ways: the latency added here. doubts: whether a 401 is held back, and Doubtful raised:
    until `pass_on`.
    """

    # Defaults that most exchanges never change stand here; what is set per exchange is set once.
    closing = False
    received = 0
    sent = 0
    status = 0
    reusable = False
    upgraded = False
    body_seen: Callable[[memoryview], None] | None = None
    state: ExchangeState  # set by __init__: mypyc takes literals alone as defaults
    proxy_seconds = 0.0
    doubts = True
    _held: tuple[ResponseHead, bytes] | None = None
    _pending = b""
    _interim = 0
    _interim_size = 0
    _answer: HeldAnswer | None = None
    _end_at_boundary = False
    _switched: Switched | None = None
    _up: Pace | None = None  # of a body in chunks, from the client
    _down: Download | None = None  # the rest of the response's body
    _connection: UpstreamConnection
    _refused: Refusal | None = None
    _error: Exception | None = None  # how it ended, until that has been raised
    _awaited = False  # somebody waits for its end
    watching = False  # the body is that of a watch
    guard: Guard | None = None  # of an answer's fields

    def __init__(self, client: Client, head: UpstreamHead, tap: Tap, head_limit: int, closing: bool) -> None:
        self._client = client
        self._head = head
        self._tap = tap
        self._head_limit = head_limit
        self.state = PREPARED
        self._body_up: Body = (
            request_body(head.content_length, head.chunked) if head.chunked or head.content_length else _NO_BODY
        )
        if closing:
            self.closing = True

    @property
    def uploading(self) -> bool:
        """Whether the client's request body is unfinished and only the client holds it up."""
        waiting = self._up is not None and self._up.waiting
        return not self._body_up.done and not self._connection.wire.blocked and not waiting

    @property
    def body_came(self) -> bool:
        """Whether all of the client's request body has come."""
        return self._body_up.done

    async def run(self, connection: UpstreamConnection, started: float) -> None:
        """Pass on everything, to the end. started: perf_counter() when the request's head was whole.

        Raises StaleConnection (after which it may be run once more), Doubtful (after which `pass_on` goes on),
        ClientGone, Cut, or Refusal while nothing of a final response has been sent. Whoever waited calls `detach`, come
        what may.
        """
        self._start(connection, started)
        await self._end_of_it()

    async def _end_of_it(self) -> None:
        """Wait for the end, where it has not come yet. Raises how it ended."""
        if self.state is RUNNING:
            self._awaited = True
            try:
                await directly()
            finally:
                self._awaited = False
        if self._error is not None:
            self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        try:
            raise error  # type: ignore[misc]  # its caller has looked
        finally:
            # Its traceback holds this frame: a circle, and the memory of two TLS connections in it until some late
            # collection.
            del error

    def _start(self, connection: UpstreamConnection, started: float) -> None:
        self._connection = connection
        sender, up = self._client, None
        client, upstream = sender.wire, connection.wire
        if client.ended:
            raise ClientGone
        if self._refused is not None:
            raise self._refused
        self.state = self.state.to(RUNNING)
        first = b""
        body = self._body_up
        rest = b""
        if not body.done:
            client.receiver = self._body_from_client
            if self._head.chunked:
                self._up = up = self._pace(client, self._read_up, self._upstream_has_room)
                client.receiver = up.receive
            if held := sender.buffer:
                size = self._take_first(held)
                first, sender.buffer = held[:size], held[size:]
                if not body.done:
                    rest, sender.buffer = sender.buffer, b""
        upstream.receiver = self._from_upstream
        upstream.end = self._upstream_end
        upstream.drained = sender.resume if up is None else up.resume
        client.drained = upstream.resume
        client.end = self._client_end
        connection.send(self._head, first)
        self.proxy_seconds += perf_counter() - started
        if upstream.paused:
            upstream.resume()
        if up is not None and rest:
            up.receive(memoryview(rest))
        if upstream.blocked:
            client.pause()
        elif client.paused and (up is None or not up.waiting):
            sender.resume()

    async def pass_on(self) -> None:
        """Pass on the 401 that was held back after all, and what follows, to the end. Raises as `run` does."""
        self._let_pass()
        await self._end_of_it()

    def _let_pass(self) -> None:
        held, self._held = self._held, None
        if self._refused is not None:
            raise self._refused
        if held is None or self._client.wire.ended:
            raise ClientGone
        self.doubts = False
        self.state = self.state.to(RUNNING)
        self._response(held[0], memoryview(held[1]))
        wire = self._connection.wire
        if self.state is RUNNING:
            if wire.ended:
                self._upstream_end(None)
            elif not self._client.wire.blocked:
                (self._down or wire).resume()

    def _pace(
        self, wire: Wire, read: Callable[[memoryview, int], tuple[int, int]], may: Callable[[], bool]
    ) -> Pace:  # fmt: skip
        return Pace(self._client.turns, self._client.owner, wire, read, may=may, failed=self._fail)

    def _take_first(self, held: bytes) -> int:
        """How much of what the client has sent ahead belongs to the body. Raises Refusal where it is malformed."""
        try:
            size = granted(self._client, self._body_up, memoryview(held))
        except ProtocolError as error:
            raise Refusal(error.status, "bad_request", error.message, close=True) from None
        if self._body_up.done:
            self._client.wire.receiver = self._client.keep
        if self.body_seen is not None:
            self.body_seen(memoryview(held)[:size])
        self.received += size
        return size

    def detach(self) -> None:
        """Let go of both wires. What the client sends next is kept for the next request."""
        self._client.hold()
        wire = self._connection.wire
        wire.receiver = wire.end = wire.payer = None
        wire.drained = _nothing
        if self.state is not FINISHED:
            # Left in the middle (cancelled, for one): what upstream sends next still belongs to this exchange.
            self._let_go_of_switched()
            self._drop()
            self.reusable = False
            self._error = None
            if self.state is RUNNING or self.state is HELD:
                self.state = self.state.to(FAILED)

    def cut(self, cause: str, message: str = "") -> None:
        """End the exchange from outside (a withdrawn grant, a recorder that failed, the end of a drain).

        message: what the user of a session is told.
        """
        if self.state is PREPARED or self.state is HELD:
            # Between two connections (the first one was stale, the second is being dialled), or while a 401 is doubted.
            self._refused = Refusal(503, cause, message or "the request was ended by the proxy", close=True)
            return
        if self.state is not RUNNING:
            return
        if self._switched is not None:
            self._switched.cut(cause, message)
        elif self.status:
            self._fail(Cut(cause, reset=self._down is not None and self._down.ends_by_close))
        else:
            self._fail(Refusal(503, cause, message or "the request was ended by the proxy", close=True))

    def look(self) -> None:
        """Find an end of upstream that the loop did not tell of."""
        self._connection.wire.look()

    def break_unheard(self) -> None:
        """Break the wire to upstream if upstream is gone without a word."""
        self._connection.wire.break_unheard()

    def end_at_boundary(self) -> None:
        """End a watch's response cleanly between two of its events, as soon as the client has been sent whole ones."""
        self._end_at_boundary = True
        if self._down is not None and self.state is RUNNING:
            self._down.end_at_boundary()

    # -- up: from the client

    def _body_from_client(self, view: memoryview) -> None:
        self._read_up(view, 0)

    def _read_up(self, view: memoryview, units: int) -> tuple[int, int]:
        """As much of the request's body as the units allow: Pace.read."""
        body, begun = self._body_up, self._body_up.work
        try:
            size = take(body, view, units)
        except ProtocolError as error:
            self._fail_request(error)
            return len(view), body.work - begun
        self.received += size
        if self.body_seen is not None:
            self.body_seen(view[:size])
        upstream = self._connection.wire
        upstream.write(view[:size])
        if body.done:
            self._client.wire.receiver = self._client.keep
            if size < len(view):
                self._client.keep(view[size:])
                size = len(view)
        elif upstream.blocked:
            self._client.wire.pause()
        return size, body.work - begun

    def _upstream_has_room(self) -> bool:
        return not self._connection.wire.blocked and not self._client.full

    def _drop(self) -> None:
        """What waits to be read is nobody's any more."""
        if self._up is not None:
            self._up.drop()
            self._up = None
        if self._down is not None:
            self._down.drop()
            self.sent += self._down.sent
            self._down = None  # it holds this exchange's methods

    def _fail_request(self, error: ProtocolError) -> None:
        if self.status:
            self._fail(Cut("bad_request"))
        else:
            self._fail(Refusal(error.status, "bad_request", error.message, close=True))

    def _client_end(self, error: Exception | None) -> None:
        self._fail(ClientGone())

    # -- down: from upstream

    def _from_upstream(self, view: memoryview) -> None:
        now = perf_counter()
        if self._pending:
            data = self._pending + view
            end = head_end(data, len(self._pending))
        else:
            data = bytes(view)
            end = head_end(data)
        try:
            while end >= 0:
                head = parse_response_head(data[:end])
                if head.status == 101:
                    self._switch(head, memoryview(data)[end:])
                    break
                if head.status >= 200:
                    self._response(head, memoryview(data)[end:])
                    break
                # RFC 9110, 15.2: interim responses are passed on as they come; the final one follows.
                self._interim += 1
                self._interim_size += end
                if self._interim > _MAX_INTERIM:
                    raise ProtocolError("the API server sends interim responses without end", status=502)
                if self._tap is not NO_TAP:
                    most = self._tap.unswitched(head.status)
                    if most is not None and self._interim_size > most:
                        raise too_long(most)
                fields = head.fields if self.guard is None else self.guard.interim(head.fields)
                self._client.wire.write(b"HTTP/1.1" + head.status_line[8:] + fields + b"\r\n")
                data = data[end:]
                end = head_end(data)
            else:
                if len(data) > self._head_limit:
                    raise ProtocolError("the API server's response head is too large", status=502)
                self._pending = data
        except ProtocolError as error:
            self._fail(Refusal(502, "upstream_malformed", error.message, close=True))
        except Refusal as refusal:
            self._fail(refusal)
        self.proxy_seconds += perf_counter() - now

    def _response(self, head: ResponseHead, rest: memoryview) -> None:
        status = head.status
        if status == 401 and self.doubts:
            self._held = (head, bytes(rest))
            self._connection.wire.pause()
            self._fail(Doubtful())
            return
        if self._tap is not NO_TAP and self._answer is None:
            most = self._tap.unswitched(head.status)
            if most is not None:
                self._answer = HeldAnswer(
                    head, response_body(self._head.method, head.status, head.content_length, head.chunked), most
                )
                self._connection.wire.receiver = self._hold_answer
                self._hold_answer(rest)
                return
        size = len(rest)
        if head.content_length == size and self._head.method != "HEAD" and status not in (204, 304):
            down, first = None, rest  # most answers: all of it came in one piece
        else:
            down, size = self._download(head, rest)
            first = rest[:size]
        if not self._body_up.done or self._head.upgrade or (down is not None and down.ends_by_close):
            # An unfinished upload, or bytes sent ahead of a switch that did not come, can't be told from a request.
            self.closing = True
        self.reusable = not head.close
        answer = b"".join(
            (
                b"HTTP/1.1",
                head.status_line[8:],
                head.fields if self.guard is None else self.guard.fields(head.fields),
                b"Connection: close\r\n\r\n" if self.closing else b"\r\n",
                first,
            )
        )
        self.status = status  # only now: what is malformed up to here is refused, and the client has no answer yet
        self._client.wire.write(answer)
        if down is None:
            # Nearly every exchange ends here.
            self.sent += size
            if not self._body_up.done:
                self.reusable = False
            if self.state is RUNNING:
                self._end(FINISHED)
            return
        self._down = down
        if down.body.done:
            self._complete(size < len(rest))
            return
        down.begin(rest[size:])
        if self._end_at_boundary and self.state is RUNNING:
            down.end_at_boundary()

    def _download(self, head: ResponseHead, rest: memoryview) -> tuple[Download, int]:
        """For a body that did not come in one piece with its head; and how much of it did. Raises ProtocolError."""
        body = response_body(self._head.method, head.status, head.content_length, head.chunked)
        down = Download(body, self._client, self._connection.wire, complete=self._complete, failed=self._fail)
        if self.watching:
            down.watch(head.fields)
            if self._end_at_boundary:
                down.let_end()
        return down, down.take_first(rest)

    def _hold_answer(self, view: memoryview) -> None:
        """A part of an answer that the tap bounds."""
        answer = self._answer
        assert answer is not None  # noqa: S101  # set before this receiver is
        try:
            whole = answer.take(view)
        except ProtocolError as error:
            self._fail(Refusal(502, "upstream_malformed", error.message, close=True))
        except Refusal as refusal:
            self._fail(refusal)
        else:
            if whole:
                self._response(answer.head, memoryview(bytes(answer.held)))

    def _complete(self, extra: bool) -> None:
        """The response's body is complete. extra: bytes came behind it."""
        if self._down is not None and self._down.is_cut:
            self._client.wire.write(b"0\r\n\r\n")
            self.closing = True
            extra = True  # what still comes belongs to this response
        self.reusable = self.reusable and self._body_up.done and not extra
        self._finish()

    def _upstream_end(self, error: Exception | None) -> None:
        self.reusable = False
        if self.state is not RUNNING:
            return
        if self._down is not None and self._down.behind(lambda: self._upstream_end(error)):
            return
        if not self.status and error is None and self._answer is not None and isinstance(self._answer.body, UntilClose):
            self._response(self._answer.head, memoryview(bytes(self._answer.held)))
        if not self.status:
            untouched = not self._pending and self._connection.reused and self._head.repeatable
            self._fail(
                StaleConnection()
                if untouched
                else Refusal(
                    502, "upstream_broke", "the API server closed the connection without an answer", close=True
                )
            )
        elif self._down is not None and self._down.ends_by_close:
            if error is None:
                self._finish()
            else:
                self._fail(Cut("upstream_broke", reset=True))
        else:
            self._fail(Cut("upstream_broke"))

    # -- switching protocols (RFC 9110, 7.8)

    def _switch(self, head: ResponseHead, rest: memoryview) -> None:
        if not self._head.upgrade or head.upgrade.lower() != self._head.upgrade.encode("ascii"):
            raise ProtocolError("the API server switched to a protocol that the client did not request", status=502)
        self._tap.switched(self._head.upgrade, head.fields)
        self.status = 101
        self.upgraded = True
        self.closing = True
        client = self._client
        fields = head.fields if self.guard is None else self.guard.interim(head.fields)
        client.wire.write(
            b"".join((head.status_line, fields, b"Connection: Upgrade\r\nUpgrade: ", head.upgrade, b"\r\n\r\n"))
        )
        self._connection.wire.payer = client
        self._switched = switched = Switched(
            client.loop,
            client.wire,
            self._connection.wire,
            self._tap,
            turns=client.turns,
            owner=client.owner,
            finish=self._finish,
            fail=self._fail,
        )
        held, client.buffer = client.buffer, b""
        switched.start(from_client=held, from_upstream=rest)

    # -- the end

    def _finish(self) -> None:
        if self.state is RUNNING:
            self._end(FINISHED)

    def _fail(self, error: Exception) -> None:
        self.reusable = False
        if self.state is not RUNNING:
            return
        self._error = error
        if isinstance(error, StaleConnection):
            self._end(PREPARED)
        elif isinstance(error, Doubtful):
            self._end(HELD)
        else:
            self._end(FAILED)

    def _end(self, state: ExchangeState) -> None:
        """It runs no more."""
        self.state = self.state.to(state)
        if self._up is not None or self._down is not None:
            self._drop()
        if self._switched is not None:
            self._let_go_of_switched()
        if self._awaited:
            self._client.drive.wake()
            if state is FINISHED or state is FAILED:
                self._be_deaf()

    def _be_deaf(self) -> None:
        """Pass on nothing that either side says between the end and `detach`: this turn of the loop may read more."""
        self._connection.wire.receiver = self._late
        if not self._body_up.done:
            self._client.wire.receiver = _unheard

    def _late(self, view: memoryview) -> None:
        self.reusable = False  # it belongs to no request

    def _let_go_of_switched(self) -> None:
        """Count what it moved; it and the exchange hold each other, which would keep both until a late collection."""
        switched, self._switched = self._switched, None
        if switched is not None:
            switched.let_go()
            self.received += switched.received
            self.sent += switched.sent


def _nothing() -> None:
    return None


def _unheard(view: memoryview) -> None:
    return None
