"""The client's side of a connection: heads in, answers of the proxy itself out, and an orderly end.

Between exchanges the client's bytes are held in `buffer` until a head is whole. Within an exchange what is sent ahead
(pipelined requests) is held there too, up to one head's size; then reading stops until it is that request's turn.
Reading goes on meanwhile for another reason as well: it is how the end of a client is noticed.

`deadline` is looked at by the listener's clock once a second: a timer a request would cost more than the request's
routing, and no limit here means a second exactly.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from k8sproxy.dataplane.limits import Limits
from k8sproxy.dataplane.wire import Wire
from k8sproxy.errors import ProtocolError, Refusal
from k8sproxy.protocol.http1 import Fields, RequestHead, head_end, origin_form, parse_fields, parse_request_line

# Bytes of an unfinished upload that are read and thrown away after a refusal, so that the client reads the refusal
# and not a reset (RFC 9112, 9.6).
_LINGER_BYTES = 1024 * 1024


class Client:
    """One client connection. `buffer`: bytes received and not yet used. `task`: cancelled when the client ends while
    nobody looks at the wire (a question to the daemon, a dial)."""

    __slots__ = (
        "_block",
        "_fields",
        "_first",
        "_limits",
        "_loop",
        "_scanned",
        "_waiter",
        "buffer",
        "deadline",
        "task",
        "wire",
    )

    def __init__(self, wire: Wire, limits: Limits, task: asyncio.Task[None] | None) -> None:
        self.wire = wire
        self.buffer = b""
        self.deadline: float | None = None
        self.task = task
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._scanned = 0
        self._first = True
        self._block = b""
        self._fields: Fields | None = None
        self.hold()
        wire.resume()

    # -- requests

    async def next_head(self) -> RequestHead | None:
        """The next request's head; None when the client has ended or been idle too long. Raises ProtocolError."""
        limits = self._limits
        self.wire.resume()
        now = self._loop.time()
        # A new connection, or the rest of a head, is given less time than one that may just be idle.
        self.deadline = now + (limits.head_timeout if self._first or self.buffer else limits.idle_timeout)
        self._scanned = 0
        while (end := head_end(self.buffer, self._scanned)) < 0:
            if len(self.buffer) > limits.head_bytes:
                raise ProtocolError(f"the request's head is larger than {limits.head_bytes} bytes", status=431)
            if self.wire.ended:
                return None
            self._scanned = len(self.buffer)
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if end > limits.head_bytes:
            raise ProtocolError(f"the request's head is larger than {limits.head_bytes} bytes", status=431)
        self._first = False
        self.deadline = None
        head, self.buffer = self.buffer[:end], self.buffer[end:]
        return self._parse(head)

    def _parse(self, head: bytes) -> RequestHead:
        method, target, start = parse_request_line(head)
        block = head[start:]
        fields = self._fields
        # Clients repeat their field lines from request to request.
        if fields is None or block != self._block:
            fields = parse_fields(block, max_count=self._limits.header_count)
            self._block = block
            self._fields = fields
        return RequestHead(method, origin_form(target, fields.host), fields)

    def expire(self, now: float) -> None:
        """End the wait for a head if its time is up."""
        waiter = self._waiter
        if self.deadline is None or now < self.deadline or waiter is None or waiter.done():
            return
        if self.buffer:
            waiter.set_exception(ProtocolError("the request's head took too long", status=408))
        else:
            self.end_idle()

    def end_idle(self) -> None:
        """End the connection if it is between two requests."""
        if self._waiter is not None and not self._waiter.done() and not self.buffer:
            self.wire.ended = True
            self._waiter.set_result(None)

    @property
    def idle(self) -> bool:
        """Whether the connection waits for a request of which nothing has come."""
        return self._waiter is not None and not self.buffer

    # -- what arrives while nobody else wants it

    def hold(self) -> None:
        """Keep what arrives, and notice the end."""
        self.wire.receiver = self.keep
        self.wire.end = self._ended
        self.wire.drained = self._drained

    def keep(self, view: memoryview) -> None:
        """Keep bytes for the next request's head."""
        if not self.buffer and self._waiter is not None:
            self.deadline = self._loop.time() + self._limits.head_timeout
        self.buffer += view
        if len(self.buffer) > self._limits.head_bytes:
            self.wire.pause()
        self._wake()

    def _ended(self, error: Exception | None) -> None:
        if self._waiter is not None:
            self._wake()
        elif self.task is not None:
            self.task.cancel()

    def _drained(self) -> None:
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

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
    ) -> None:
        """Write a whole response."""
        lines = [
            b"HTTP/1.1 %d %s\r\n" % (status, _PHRASES.get(status, b"Status")),
            b"Content-Type: " + content_type + b"\r\n",
            b"Content-Length: %d\r\n" % len(body),
            b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n",
        ]
        if retry_after is not None:
            lines.append(b"Retry-After: %d\r\n" % retry_after)
        if close:
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        if not head_only:
            lines.append(body)
        self.wire.write(b"".join(lines))

    def refuse(self, refusal: Refusal, *, close: bool, head_only: bool = False) -> None:
        """Answer with the refusal's Kubernetes Status."""
        self.answer(
            refusal.status,
            refusal.body(),
            content_type=b"application/json",
            close=close,
            head_only=head_only,
            retry_after=refusal.retry_after,
        )

    # -- the end

    async def flush(self) -> None:
        """Wait until what was written has been taken, for at most the write timeout; then, or if the client is gone,
        it is given up."""
        if not self.wire.blocked:
            return
        self.hold()
        loop = self._loop
        end = loop.time() + self._limits.write_timeout
        while self.wire.blocked and not self.wire.ended and loop.time() < end:
            self._waiter = loop.create_future()
            timer = loop.call_at(end, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
                self.buffer = b""

    async def finish(self) -> None:
        """End the connection so that the last answer arrives: write the end, then read and drop what still comes, up
        to a bound in bytes and time, since closing over unread bytes would reset the connection under the answer."""
        await self.flush()
        wire = self.wire
        if wire.blocked or wire.ended or wire.closed:
            wire.close()
            return
        wire.write_end()
        self.hold()
        dropped = 0
        end = self._loop.time() + self._limits.write_timeout
        while not wire.ended and dropped < _LINGER_BYTES and self._loop.time() < end:
            dropped += len(self.buffer)
            self.buffer = b""
            wire.resume()
            self._waiter = self._loop.create_future()
            timer = self._loop.call_at(end, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        wire.close()


_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
