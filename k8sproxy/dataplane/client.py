"""The client's side of a connection: heads in, answers of the proxy itself out, and an orderly end.

Between exchanges the client's bytes are held in `buffer` until a head is whole. Within an exchange what is sent ahead
(pipelined requests) is held there too; past AHEAD reading stops until it is that request's turn.
Reading goes on meanwhile for another reason as well: it is how the end of a client is noticed.

`deadline` is looked at by the listener's clock once a second: a timer a request would cost more than the request's
routing, and no limit here means a second exactly.
"""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus

from k8sproxy.common.errors import ProtocolError, Refusal
from k8sproxy.dataplane.limits import Limits
from k8sproxy.dataplane.turns import HEAD_BYTES, Turns
from k8sproxy.dataplane.wire import Wire
from k8sproxy.protocol.http1 import Fields, RequestHead, head_end, origin_form, parse_fields, parse_request_line
from k8sproxy.request.foreign import GUARD_FIELDS

# Bytes that are sent ahead after which no more is read: a head or two. What one read brings comes on top, 64 KiB at the
# most, of each connection of a client that sends and never takes its answers.
AHEAD = 4 * 1024
# Bytes of an unfinished upload that are read and thrown away after a refusal, so that the client reads the refusal
# and not a reset (RFC 9112, 9.6).
_LINGER_BYTES = 1024 * 1024
# Seconds for the same. What was written is in the kernel's hands by then, which goes on without us.
_LINGER_SECONDS = 5.0


class Client:
    """One client connection. `buffer`: bytes received and not yet used. `task`: cancelled when the client ends while
    nobody looks at the wire (a question to the daemon, a dial). `turns`: what reading its bytes may cost; `owner`: in
    whose row they wait: the tailnet address's, where it has one, and its owner's once it is known who it is."""

    __slots__ = (
        "_answered",
        "_block",
        "_fields",
        "_first",
        "_limits",
        "_scanned",
        "_waiter",
        "buffer",
        "deadline",
        "loop",
        "owner",
        "task",
        "turns",
        "wire",
    )

    def __init__(
        self, wire: Wire, limits: Limits, task: asyncio.Task[None] | None, turns: Turns, owner: str = ""
    ) -> None:
        self.wire = wire
        self.turns = turns
        self.owner = owner
        self.buffer = b""
        self.deadline: float | None = None
        self.task = task
        self._limits = limits
        self.loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[int] | None = None
        self._scanned = 0
        self._first = True
        self._answered = False
        self._block = b""
        self._fields: Fields | None = None
        self.hold()
        wire.resume()

    # -- requests

    async def next_head(self) -> RequestHead | None:
        """The next request's head; None when the client has ended or been idle too long. Raises ProtocolError."""
        wire = self.wire
        if wire.blocked and not await self._taken():
            return None
        if self._answered:
            await self._let_others()
        self._scanned = 0
        end = self._look() if self.buffer else 0
        if not end:
            if wire.ended:
                return None
            if wire.paused:
                wire.resume()
            limits = self._limits
            # A new connection, or the rest of a head, is given less time than one that may just be idle.
            patience = limits.head_timeout if self._first or self.buffer else limits.idle_timeout
            self.deadline = self.loop.time() + patience
            waiter = self._waiter = self.loop.create_future()
            try:
                end = await waiter
            finally:
                self._waiter = None
                self.deadline = None
            if not end:
                return None
        self._first = False
        # Before it is parsed: a thousand connections may each have a large head at the same moment.
        if not self.turns.begin(end // HEAD_BYTES):
            await self.turns.turn(self.owner, end // HEAD_BYTES)
        buffer = self.buffer
        self.buffer = buffer[end:]
        if wire.paused:
            self.resume()
        return self._parse(buffer[:end])

    async def _let_others(self) -> None:
        """Let the loop turn once. Answers of the proxy itself wait for nothing, and a buffer holds a thousand requests:
        for as long as those take, nobody else would be served."""
        self._answered = False
        waiter = self._waiter = self.loop.create_future()
        self.loop.call_soon(self._turned)
        try:
            await waiter
        finally:
            self._waiter = None

    async def _taken(self) -> bool:
        """Whether the client has taken its answers in time: one that sends requests and reads nothing gets no more."""
        over = asyncio.Event()
        self.wire.drained = over.set
        self.wire.end = lambda error: over.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.idle_timeout):
                await over.wait()
        self.hold()
        return not self.wire.blocked

    def _turned(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(0)

    def resume(self) -> None:
        """Read on, unless enough has been sent ahead already."""
        if not self.full:
            self.wire.resume()

    @property
    def full(self) -> bool:
        """Whether enough has been sent ahead."""
        return len(self.buffer) > AHEAD

    def _look(self) -> int:
        """Where the head at the front of the buffer ends, 0 while it is not whole. Raises ProtocolError."""
        end = head_end(self.buffer, self._scanned)
        self._scanned = len(self.buffer)
        if (end if end > 0 else self._scanned) > self._limits.head_bytes:
            raise ProtocolError(f"the request's head is larger than {self._limits.head_bytes} bytes", status=431)
        return max(end, 0)

    def _parse(self, head: bytes) -> RequestHead:
        method, target, start = parse_request_line(head)
        block = head[start:]
        fields = self._fields
        # Clients repeat their field lines from request to request.
        if fields is None or block != self._block:
            fields = parse_fields(block, max_count=self._limits.header_count)
            self._block = block
            self._fields = fields
        if target[0] != "/":
            target = origin_form(target, fields.host)
        return RequestHead(method, target, fields)

    def expire(self, now: float) -> None:
        """End the wait for a head if its time is up."""
        waiter = self._waiter
        if self.deadline is None or now < self.deadline or waiter is None or waiter.done():
            return
        if self.buffer:
            waiter.set_exception(ProtocolError("the request's head took too long", status=408))
        else:
            waiter.set_result(0)

    def end_idle(self) -> None:
        """End the connection if it is between two requests."""
        if self._waiter is not None and not self._waiter.done() and not self.buffer:
            self._waiter.set_result(0)

    # -- what arrives while nobody else wants it

    def hold(self) -> None:
        """Keep what arrives, and notice the end."""
        wire = self.wire
        wire.receiver = self.keep
        wire.end = self._ended
        wire.drained = _nothing

    def keep(self, view: memoryview) -> None:
        """Keep bytes for the next request's head, and say so when it is whole."""
        waiter = self._waiter
        first = not self.buffer
        self.buffer = bytes(view) if first else self.buffer + view
        if waiter is not None and not waiter.done():
            self._tell_whole(waiter, first=first)
        if (waiter is None or waiter.done()) and self.full:
            self.wire.pause()

    def _tell_whole(self, waiter: asyncio.Future[int], *, first: bool) -> None:
        """Say where the head ends, if it is whole. first: what has come is all that there is."""
        if first and self.buffer.endswith(b"\r\n\r\n") and len(self.buffer) <= self._limits.head_bytes:
            # A head in one piece, or several: where the first one ends is next_head's to find.
            waiter.set_result(head_end(self.buffer))
            return
        try:
            end = self._look()
        except ProtocolError as error:
            waiter.set_exception(error)
            return
        if end:
            waiter.set_result(end)
        elif first:
            self.deadline = self.loop.time() + self._limits.head_timeout

    def _ended(self, error: Exception | None) -> None:
        if self._waiter is None:
            if self.task is not None:
                self.task.cancel()
        elif not self._waiter.done():
            self._waiter.set_result(0)

    # -- answers of the proxy itself

    def answer(
        self,
        status: int,
        body: bytes,
        *,
        content_type: bytes,
        close: bool,
        head_only: bool = False,
        retry_after: int | None = None,
        warning: bytes | None = None,
    ) -> None:
        """Write a whole response."""
        lines = [
            b"HTTP/1.1 %d %s\r\n" % (status, _PHRASES.get(status, b"Status")),
            b"Content-Type: " + content_type + b"\r\n",
            b"Content-Length: %d\r\n" % len(body),
            b"Cache-Control: no-store\r\n",
            GUARD_FIELDS,
        ]
        if retry_after is not None:
            lines.append(b"Retry-After: %d\r\n" % retry_after)
        if warning is not None:
            lines.append(b"Warning: " + warning + b"\r\n")
        if close:
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        if not head_only:
            lines.append(body)
        self.wire.write(b"".join(lines))
        self._answered = True

    def refuse(self, refusal: Refusal, *, close: bool, head_only: bool = False, warn: bool = False) -> None:
        """Answer with the refusal's Kubernetes Status. warn: say its message in a Warning field as well."""
        self.answer(
            refusal.status,
            refusal.body(),
            content_type=b"application/json",
            close=close,
            head_only=head_only,
            retry_after=refusal.retry_after,
            warning=refusal.warning() if warn else None,
        )

    # -- the end

    async def flush(self) -> None:
        """Wait until what was written has been taken, or the client is gone, for at most the write timeout.

        A client that has ended its own side may still read: only a broken wire ends the wait.
        """
        wire = self.wire
        if not wire.blocked:
            return
        over = asyncio.Event()
        wire.receiver = _drop
        wire.drained = over.set
        wire.end = lambda error: over.set() if error is not None else None
        wire.resume()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.write_timeout):
                await over.wait()

    async def finish(self) -> None:
        """End the connection so that the last answer arrives: write the end, then read and drop what still comes, up
        to a bound in bytes and time, since closing over unread bytes would reset the connection under the answer."""
        await self.flush()
        wire = self.wire
        if wire.blocked or wire.ended or wire.closed:
            wire.close()
            return
        self.buffer = b""
        over = asyncio.Event()
        dropped = 0

        def drop(view: memoryview) -> None:
            nonlocal dropped
            dropped += len(view)
            if dropped > _LINGER_BYTES:
                over.set()

        wire.write_end()
        wire.receiver = drop
        wire.end = lambda error: over.set()
        wire.resume()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                await over.wait()
        wire.close()


def _nothing() -> None:
    return None


def _drop(view: memoryview) -> None:
    return None


_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
