"""One session on its way to a recorder: what has been written, taken by the wire, and stored.

`write` only puts bytes in a row. A carrier (`h2wire.Stream`, `h1wire.Submission`) takes them off its front whenever
the connection and the recorder's flow control have room, and reports back: what it took, what the recorder said, how
the response ended. All else about an upload is decided here:

    blocked         from `limit` bytes in the row on, or where it is one of those that have used up what may wait of all
                    sessions, or of its owner's (buffers); `drained` is called when half of what blocked it has gone
    failed          called once, when the recorder can't be believed to have the session any more: see `fail`
    silence         bytes are not stored, and for `ack_timeout` seconds no ack has told of more: that is a failure, be
                    the recorder, the way there or its flow control the reason. Where there are no acks (v1), what the
                    socket takes is the sign of life.
    finish          ends the body, then waits for the ack of the last byte and the clean end of the response

Nothing is called back from within `write`, `finish` or `abort`: failures come out of the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.formats.recorderapi import DEFAULT_EVENT_CODES, AckReader, RecorderError
from k8sproxy.recording.buffers import FLOOR, Buffers
from k8sproxy.recording.health import Health
from k8sproxy.recording.limits import Limits


class UploadError(Exception):
    """A recorder does not have (all of) what it was sent; the message is a sentence that says why."""


class EventsRefused(UploadError):
    """A recorder has answered a request with events by a 4xx that tells of them, and not of the recorder's state.

    taken: how many of the events, from the first one on, it has taken. size: how many there were in that request.
    """

    def __init__(self, message: str, taken: int, size: int) -> None:
        super().__init__(message)
        self.taken = taken
        self.size = size


class NoRecorder(Exception):
    """No recorder accepted the session. attempts: (address, why) in the order in which they were tried. declined:
    whether one of them is well, and its user has too many sessions there."""

    def __init__(self, attempts: tuple[tuple[str, str], ...], *, declined: bool = False) -> None:
        # What a dial says names the address already.
        attempts = tuple((address, why.removeprefix(f"{address}: ")) for address, why in attempts)
        super().__init__("; ".join(f"{address}: {why}" for address, why in attempts) or "no recorder has an address")
        self.attempts = attempts
        self.declined = declined


class Carrier(Protocol):
    """What an upload needs of its connection."""

    def wake(self) -> None:
        """There is something new in the row, or its end."""

    def reset(self) -> None:
        """The recorder is to forget the rest; nothing more is reported."""


def _nothing() -> None:
    pass


def _nobody(why: str) -> None:
    pass


class Upload:
    """One accepted session; made by `Recorders.open`.

    recorder: the address. version: of the wire, 1 or 2. event_codes: the asciicast event codes that it takes. owner:
    whose share of the buffers it takes (peer.Peer.owner). drained: called when no longer blocked. moved: called when
    `acked` has grown. failed: called at most once, with why, also where the failure came before the callback was set.
    Use is `write` any number of times, then `finish` or `abort`.
    """

    __slots__ = (
        "_acks",
        "_buffers",
        "_carrier",
        "_done",
        "_failed",
        "_finishing",
        "_health",
        "_limits",
        "_loop",
        "_mark",
        "_moving",
        "_progress",
        "_row",
        "_timer",
        "_was_blocked",
        "acked",
        "buffered",
        "drained",
        "ending",
        "event_codes",
        "failure",
        "held",
        "limit",
        "moved",
        "owner",
        "recorder",
        "version",
        "written",
    )

    def __init__(
        self,
        recorder: str,
        version: int,
        carrier: Carrier,
        health: Health,
        limits: Limits,
        buffers: Buffers | None = None,
    ) -> None:
        self._buffers = buffers or Buffers()
        self.owner = ""  # set before anything is written, or never
        self.recorder = recorder
        self.version = version
        self.event_codes = DEFAULT_EVENT_CODES
        self.limit = limits.buffer
        self.buffered = 0
        self.held = 0  # bytes of the session that wait elsewhere until the recorder has more
        self.written = 0
        self.acked = 0
        self.ending = False  # the row's end is the body's
        self.failure: str | None = None
        self.drained: Callable[[], None] = _nothing
        self.moved: Callable[[], None] = _nothing
        self._failed: Callable[[str], None] = _nobody
        self._carrier: Carrier | None = carrier
        self._health = health
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._row: deque[bytes | memoryview] = deque()
        self._acks = AckReader()
        self._done: asyncio.Future[None] | None = None
        self._finishing = False
        self._mark: tuple[int, float] | None = None  # (bytes, when written), until it is acked: the acks' latency
        self._progress = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._was_blocked = False
        self._moving = False  # that `moved` is called is on its way

    # -- the owner's side

    @property
    def failed(self) -> Callable[[str], None]:
        return self._failed

    @failed.setter
    def failed(self, callback: Callable[[str], None]) -> None:
        self._failed = callback
        if self.failure is not None:
            self._loop.call_soon(self._report)

    @property
    def blocked(self) -> bool:
        """Whether the row is full: `limit` bytes or more that the wire has not taken, or no room in the buffers."""
        return self.buffered >= self.limit or not self._buffers.room(self.owner, self.buffered)

    @property
    def room(self) -> int:
        """Bytes that may be written before it is blocked."""
        return max(0, min(self.limit - self.buffered, self._buffers.room(self.owner, self.buffered)))

    @property
    def full(self) -> bool:
        """Whether nothing more should be written whatever is in its middle: twice what blocks it is in the row."""
        buffered = self.buffered
        return buffered >= 2 * self.limit or (buffered >= 4 * FLOOR and not self._buffers.room(self.owner, buffered))

    def hold(self, size: int) -> None:
        """So many bytes of the session wait elsewhere until the recorder has more; they count as the row's do."""
        if self._carrier is not None:
            self._buffers.add(self.owner, size - self.held)
            self.held = size

    @property
    def crowded(self) -> bool:
        """Whether no more should wait elsewhere, since the buffers are used up."""
        return self.held >= FLOOR and not self._buffers.room(self.owner, self.held)

    @property
    def unacked(self) -> int:
        """Bytes that the wire has taken and the recorder has not confirmed."""
        return self.written - self.buffered - self.acked

    def write(self, data: bytes) -> None:
        """Puts `data` in the row, whatever there is in it. After a failure, an end or an abort it is dropped."""
        carrier = self._carrier
        if carrier is None or self.ending or not data:
            return
        self._row.append(data)
        size = len(data)
        self.written += size
        self.buffered += size
        self._buffers.add(self.owner, size)
        if not self._was_blocked and self.blocked:
            self._was_blocked = True
            if self.buffered < self.limit:
                self._buffers.count(self.owner)
        if self._timer is None or self._mark is None:
            self._watch()
        carrier.wake()

    async def finish(self) -> None:
        """Ends the body and waits until the recorder has all of it: `finish_timeout` seconds from its last progress.

        Raises UploadError; `failed` is not called from here on.
        """
        if self.failure is not None:
            raise UploadError(self.failure)
        if self._carrier is None:
            return  # it has ended well before
        self._finishing = True
        if not self.ending:
            self.ending = True
            self._carrier.wake()
        if self._done is None:
            self._done = self._loop.create_future()
        try:
            confirmed = await self._confirmed(self._done)
        except BaseException:
            self.abort()
            raise
        if not confirmed:
            self.fail(
                f"the recorder did not confirm the end within {self._limits.finish_timeout:g} s: it has stored "
                f"{self.acked} of {self.written} bytes"
                if self.version == 2
                else f"the recorder did not confirm the end within {self._limits.finish_timeout:g} s"
            )
        if self.failure is not None:
            raise UploadError(self.failure)

    async def _confirmed(self, done: asyncio.Future[None]) -> bool:
        """Whether the end came before finish_timeout had passed without progress, or ack_timeout in all: a recorder
        that is slow has a full buffer to store still."""
        began = self._loop.time()
        last = began + max(self._limits.ack_timeout, self._limits.finish_timeout)
        while not done.done():
            left = min(last, max(began, self._progress) + self._limits.finish_timeout) - self._loop.time()
            if left <= 0:
                return False
            # Not the future itself: whoever else waits for it must not be cancelled with this one.
            await asyncio.wait((done,), timeout=left)
        return True

    def abort(self) -> None:
        """Tells the recorder to give up, and forgets what is not sent. `failed` is not called from here on."""
        self._finishing = True
        if self._carrier is not None:
            self._end("the upload was given up")

    # -- the carrier's side

    def take(self, most: int, pieces: list[bytes | memoryview]) -> int:
        """Moves up to `most` bytes from the row's front to `pieces`; how many."""
        row = self._row
        left = most
        while row and left:
            piece = row[0]
            size = len(piece)
            if size <= left:
                pieces.append(row.popleft())
                left -= size
            else:
                view = memoryview(piece)
                pieces.append(view[:left])
                row[0] = view[left:]
                left = 0
        taken = most - left
        self.buffered -= taken
        self._buffers.add(self.owner, -taken)
        self._health.bytes_sent += taken
        if self._was_blocked and self.buffered <= self.limit // 2 and (self.buffered <= FLOOR // 2 or not self.blocked):
            self._was_blocked = False
            self._loop.call_soon(self._tell_drained)
        if self.version == 1 and taken:
            self.acked += taken
            self._moved()
        return taken

    def receive_data(self, data: bytes) -> None:
        """Part of the response's body (v2)."""
        before = self.acked
        try:
            acked = self._acks.receive_data(data)
        except ProtocolError as error:
            self.fail(error.message)
            return
        except RecorderError as error:
            self.fail(f"the recorder says: {error}", blame=not error.declines)
            return
        if acked == before:
            return
        sent = self.written - self.buffered
        if acked > sent:
            self.fail(f"the recorder confirms {acked} bytes of {sent} sent")
            return
        self.acked = acked
        self._moved()

    def receive_end(self) -> None:
        """The response has ended as it should, if it should."""
        if self._carrier is None:
            return
        if not self.ending or self.buffered:
            self.fail("the recorder ended its answer before the session's end")
        elif not self._acks.at_boundary:
            self.fail("the recorder's answer ends within a message")
        elif self.acked != self.written:
            self.fail(f"the recorder ended its answer having stored {self.acked} of {self.written} bytes")
        else:
            self._end(None)

    def fail(self, why: str, *, blame: bool = True) -> None:
        """The recorder does not have the session, or can't be believed to. blame: it says something on its health."""
        if self._carrier is None:
            return
        if blame:
            self._health.failed(why)
        self._end(why)
        self._loop.call_soon(self._report)

    # Owners' callbacks have a turn of their own: what they raise, or write at once, is not in a carrier's way.

    def _report(self) -> None:
        if self.failure is not None and not self._finishing and self._failed is not _nobody:
            self._finishing = True
            self._failed(self.failure)

    def _tell_moved(self) -> None:
        self._moving = False
        if self._carrier is not None:
            self.moved()

    def _tell_drained(self) -> None:
        if self._carrier is not None:
            self.drained()

    def _end(self, why: str | None) -> None:
        carrier, self._carrier = self._carrier, None
        self.failure = why
        self._health.uploads -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._row.clear()
        self._buffers.add(self.owner, -self.buffered - self.held)
        self.buffered = self.held = 0
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
        if carrier is not None and why is not None:
            carrier.reset()

    # -- silence

    def _watch(self) -> None:
        now = self._loop.time()
        if self._mark is None:
            self._mark = (self.written, now)
        if self._timer is None:
            self._progress = now
            self._timer = self._loop.call_at(now + self._limits.ack_timeout, self._on_timer)

    def _moved(self) -> None:
        """More is stored than before."""
        if self.moved is not _nothing and not self._moving:
            self._moving = True
            self._loop.call_soon(self._tell_moved)
        now = self._loop.time()
        self._progress = now
        if self._mark is not None and self.acked >= self._mark[0]:
            if self.version == 2:
                self._health.acked(now - self._mark[1])
            self._mark = None
        if self.acked == self.written and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        due = self._progress + self._limits.ack_timeout
        if self._loop.time() < due:
            self._timer = self._loop.call_at(due, self._on_timer)
            return
        self._timer = None
        self.fail(
            f"the recorder has confirmed nothing for {self._limits.ack_timeout:g} s, "
            f"and {self.written - self.acked} bytes wait for it"
        )
