"""The client's side of a connection: heads in, answers of the proxy itself out, and an orderly end.

Between exchanges the client's bytes are held in `buffer` until a head is whole. Within an exchange what is sent ahead
(pipelined requests) is held there too; past AHEAD reading stops until it is that request's turn.
Reading goes on meanwhile for another reason as well: it is how the end of a client is noticed.

Who waits for a head is woken by the callback that has read it whole (drive).

`deadline` is looked at by the listener's clock once a second: a timer a request would cost more than the request's
routing, and no limit here means a second exactly.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from http import HTTPStatus

from k8sproxy.common.errors import ProtocolError, Refusal
from k8sproxy.dataplane.drive import Drive, directly, in_task
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


class _Waits(enum.Enum):
    """What the coroutine of the connection waits for here."""

    NOTHING = "nothing"
    HEAD = "head"
    FOUND = "found"  # nothing more: it is known where the head ends, or that none comes
    TURN = "turn"  # of the loop


_NOTHING, _HEAD, _FOUND, _TURN = _Waits.NOTHING, _Waits.HEAD, _Waits.FOUND, _Waits.TURN


class Client:
    """One client connection. `buffer`: bytes received and not yet used. `task`: cancelled when the client ends while
    nobody looks at the wire (a question to the daemon, a dial). `turns`: what reading its bytes may cost; `owner`: in
    whose row they wait: the tailnet address's, where it has one, and its owner's once it is known who it is. `drive`:
    runs what waits for its heads."""

    __slots__ = (
        "_answered",
        "_block",
        "_end",
        "_fault",
        "_fields",
        "_first",
        "_limits",
        "_scanned",
        "_waits",
        "buffer",
        "deadline",
        "drive",
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
        self.drive = Drive(self.loop)
        self._waits = _NOTHING
        self._end = 0  # where the head that was waited for ends; 0 where none comes
        self._fault: ProtocolError | None = None
        self._scanned = 0
        self._first = True
        self._answered = False
        self._block = b""
        self._fields: Fields | None = None
        self.hold()
        wire.payer = self
        wire.resume()

    @property
    def budget(self) -> Turns:
        """What pays for its bulk (wire.Payer)."""
        return self.turns

    # -- requests

    async def next_head(self) -> RequestHead | None:
        """The next request's head; None when the client has ended or been idle too long. Raises ProtocolError."""
        wire = self.wire
        if wire.blocked:
            await in_task()
            if not await self._taken():
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
            self._waits = _HEAD
            try:
                await directly()
            finally:
                self._waits = _NOTHING
                self.deadline = None
            end = self._end
            if not end:
                fault, self._fault = self._fault, None
                if fault is not None:
                    try:
                        raise fault
                    finally:
                        del fault  # whose traceback holds this frame
                return None
        self._first = False
        # Before it is parsed: a thousand connections may each have a large head at the same moment.
        if not self.turns.begin(end // HEAD_BYTES):
            await in_task()
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
        self._waits = _TURN
        self.drive.wake()
        try:
            await directly()
        finally:
            self._waits = _NOTHING

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

    def _wake(self, end: int, fault: ProtocolError | None = None) -> None:
        """Go on with what waits for a head: it ends there, or none comes."""
        self._waits = _FOUND
        self._end, self._fault = end, fault
        self.drive.wake()

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
        if self._waits is not _HEAD or self.deadline is None or now < self.deadline:
            return
        if self.buffer:
            self._wake(0, ProtocolError("the request's head took too long", status=408))
        else:
            self._wake(0)

    def end_idle(self) -> None:
        """End the connection if it is between two requests."""
        if self._waits is _HEAD and not self.buffer:
            self._wake(0)

    # -- what arrives while nobody else wants it

    def hold(self) -> None:
        """Keep what arrives, and notice the end."""
        wire = self.wire
        wire.receiver = self.keep
        wire.end = self._ended
        wire.drained = _nothing

    def keep(self, view: memoryview) -> None:
        """Keep bytes for the next request's head, and go on with what waits for it when it is whole."""
        first = not self.buffer
        self.buffer = buffer = bytes(view) if first else self.buffer + view
        if self._waits is _HEAD:
            if first and buffer.endswith(b"\r\n\r\n") and len(buffer) <= self._limits.head_bytes:
                # Most heads come in one piece.
                self._wake(head_end(buffer))
            else:
                self._look_for_whole(first=first)
        if len(buffer) > AHEAD and self._waits is not _HEAD:
            self.wire.pause()

    def _look_for_whole(self, *, first: bool) -> None:
        """Go on if the head is whole. first: what has come is all that there is."""
        try:
            end = self._look()
        except ProtocolError as error:
            self._wake(0, error)
            return
        if end:
            self._wake(end)
        elif first:
            self.deadline = self.loop.time() + self._limits.head_timeout

    def _ended(self, error: Exception | None) -> None:
        if self._waits is _HEAD:
            self._wake(0)
        elif self._waits is _NOTHING and self.task is not None and self.drive.is_running:
            self.task.cancel()

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
