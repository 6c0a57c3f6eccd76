"""One session on its way to a recorder: what has been written, taken by the wire, and stored.

`write` only puts bytes in a row (row.Row). A carrier (`http2.Stream`, `http1.Submission`) takes them off its front
whenever the connection and the recorder's flow control have room, and reports back: what it took, what the recorder
said, how the response ended. How much of it is stored, and whether the recorder is silent, is stored.Stored's. All else
about an upload is decided here:

    blocked         from the row's limit on, or where it is one of those that have used up what may wait of all
                    sessions, or of its owner's (buffers); `drained` is called when half of what blocked it has gone
    failed          called once, when the recorder can't be believed to have the session any more: see `fail`
    finish          ends the body, then waits for the ack of the last byte and the clean end of the response

Nothing is called back from within `write`, `finish` or `abort`: failures come out of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.formats.recorderapi import DEFAULT_EVENT_CODES, RecorderError
from k8sproxy.common.states import State as AnyState
from k8sproxy.common.states import table
from k8sproxy.recording.buffers import Buffers
from k8sproxy.recording.health import Health
from k8sproxy.recording.limits import Limits
from k8sproxy.recording.row import Row
from k8sproxy.recording.stored import Stored


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


class State(AnyState):
    """Where an upload is.

    OPEN       a recorder has accepted it, and bytes are written             -> ENDING, FAILED, GIVEN_UP
    ENDING     its end is written, and the recorder has to confirm it        -> KEPT, FAILED, GIVEN_UP
    KEPT       the recorder has all of it                                    -> (final)
    FAILED     the recorder does not have it, or can't be believed to        -> (final)
    GIVEN_UP   its owner wants no more of it                                 -> (final)
    """

    OPEN = "open"
    ENDING = "ending"
    KEPT = "kept"
    FAILED = "failed"
    GIVEN_UP = "given up"


OPEN, ENDING, KEPT, FAILED, GIVEN_UP = State.OPEN, State.ENDING, State.KEPT, State.FAILED, State.GIVEN_UP
table(
    {
        OPEN: (ENDING, FAILED, GIVEN_UP),
        ENDING: (KEPT, FAILED, GIVEN_UP),
        KEPT: (),
        FAILED: (),
        GIVEN_UP: (),
    }
)


def _nothing() -> None:
    pass


def _nobody(why: str) -> None:
    pass


class Upload:
    """One accepted session; made by `Recorders.open`.

    recorder: the address. version: of the wire, 1 or 2. event_codes: the asciicast event codes that it takes. row: what
    waits for the wire. failure: why the recorder does not have it, None where it has, or may still. drained: called
    when no longer blocked. moved: called when `acked` has grown. failed: called at most once, with why, also where the
    failure came before the callback was set. Use is `write` any number of times, then `finish` or `abort`.
    """

    __slots__ = (
        "_carrier",
        "_done",
        "_failed",
        "_health",
        "_limits",
        "_loop",
        "_moving",
        "_stored",
        "drained",
        "event_codes",
        "failure",
        "moved",
        "recorder",
        "row",
        "state",
        "version",
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
        self.state = OPEN
        self.recorder = recorder
        self.version = version
        self.event_codes = DEFAULT_EVENT_CODES
        self.row = Row(limits.buffer, buffers or Buffers())
        self.failure: str | None = None
        self.drained: Callable[[], None] = _nothing
        self.moved: Callable[[], None] = _nothing
        self._failed: Callable[[str], None] = _nobody
        self._carrier: Carrier | None = carrier
        self._health = health
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._stored = Stored(limits, self.fail)
        self._done: asyncio.Future[None] | None = None
        self._moving = False  # that `moved` is called is on its way

    # -- the owner's side

    @property
    def failed(self) -> Callable[[str], None]:
        return self._failed

    @failed.setter
    def failed(self, callback: Callable[[str], None]) -> None:
        self._failed = callback
        if self.state is FAILED:
            self._loop.call_soon(self._report)

    @property
    def blocked(self) -> bool:
        """Whether the row is full."""
        return self.row.blocked

    @property
    def buffered(self) -> int:
        """Bytes that the wire has not taken."""
        return self.row.size

    @property
    def written(self) -> int:
        """Bytes of it so far."""
        return self.row.written

    @property
    def acked(self) -> int:
        """Bytes that the recorder has stored."""
        return self._stored.acked

    @property
    def unacked(self) -> int:
        """Bytes that the wire has taken and the recorder has not confirmed."""
        return self.row.written - self.row.size - self._stored.acked

    def hold(self, size: int) -> None:
        """So many bytes of the session wait elsewhere until the recorder has more; they count as the row's do."""
        if self._carrier is not None:
            self.row.hold(size)

    def write(self, data: bytes) -> None:
        """Puts `data` in the row, whatever there is in it. After a failure, an end or an abort it is dropped."""
        carrier = self._carrier
        if carrier is None or self.state is not OPEN or not data:
            return
        row = self.row
        row.put(data)
        self._stored.wrote(row.written)
        carrier.wake()

    async def finish(self) -> None:
        """Ends the body and waits until the recorder has all of it: `finish_timeout` seconds from its last progress.

        Raises UploadError; `failed` is not called from here on.
        """
        if self.failure is not None:
            raise UploadError(self.failure)
        carrier = self._carrier
        if carrier is None:
            return  # it has ended well before
        if self.state is OPEN:
            self.state = self.state.to(ENDING)
            carrier.wake()
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
            left = min(last, max(began, self._stored.progress) + self._limits.finish_timeout) - self._loop.time()
            if left <= 0:
                return False
            # Not the future itself: whoever else waits for it must not be cancelled with this one.
            await asyncio.wait((done,), timeout=left)
        return True

    def abort(self) -> None:
        """Tells the recorder to give up, and forgets what is not sent. `failed` is not called from here on."""
        self._failed = _nobody
        if self._carrier is not None:
            self._end(GIVEN_UP, "the upload was given up")

    # -- the carrier's side

    @property
    def ending(self) -> bool:
        """Whether the row's end is the body's."""
        return self.state is ENDING

    def take(self, most: int, pieces: list[bytes | memoryview]) -> int:
        """Moves up to `most` bytes from the row's front to `pieces`; how many."""
        row = self.row
        taken = row.take(most, pieces)
        self._health.bytes_sent += taken
        if row.has_drained():
            self._loop.call_soon(self._tell_drained)
        if self.version == 1 and taken:
            self._moved(self._stored.acked + taken)
        return taken

    def receive_data(self, data: bytes) -> None:
        """Part of the response's body (v2)."""
        try:
            acked = self._stored.acks.receive_data(data)
        except ProtocolError as error:
            self.fail(error.message)
            return
        except RecorderError as error:
            self.fail(f"the recorder says: {error}", blame=not error.declines)
            return
        if acked == self._stored.acked:
            return
        sent = self.row.written - self.row.size
        if acked > sent:
            self.fail(f"the recorder confirms {acked} bytes of {sent} sent")
            return
        self._moved(acked)

    def receive_end(self) -> None:
        """The response has ended as it should, if it should."""
        if self._carrier is None:
            return
        if not self.ending or self.row.size:
            self.fail("the recorder ended its answer before the session's end")
        elif not self._stored.acks.at_boundary:
            self.fail("the recorder's answer ends within a message")
        elif self.acked != self.written:
            self.fail(f"the recorder ended its answer having stored {self.acked} of {self.written} bytes")
        else:
            self._end(KEPT, None)

    def fail(self, why: str, *, blame: bool = True) -> None:
        """The recorder does not have the session, or can't be believed to. blame: it says something on its health."""
        if self._carrier is None:
            return
        if blame:
            self._health.failed(why)
        if self.state is OPEN:
            self._loop.call_soon(self._report)
        self._end(FAILED, why)

    # Owners' callbacks have a turn of their own: what they raise, or write at once, is not in a carrier's way.

    def _report(self) -> None:
        if self.state is FAILED and self.failure is not None:
            failed, self._failed = self._failed, _nobody
            failed(self.failure)

    def _tell_moved(self) -> None:
        self._moving = False
        if self._carrier is not None:
            self.moved()

    def _tell_drained(self) -> None:
        if self._carrier is not None:
            self.drained()

    def _moved(self, acked: int) -> None:
        """More is stored than before."""
        if self.moved is not _nothing and not self._moving:
            self._moving = True
            self._loop.call_soon(self._tell_moved)
        seconds = self._stored.moved(acked)
        if seconds is not None and self.version == 2:
            self._health.acked(seconds)

    def _end(self, state: State, why: str | None) -> None:
        self.state = self.state.to(state)
        carrier, self._carrier = self._carrier, None
        self.failure = why
        self._health.uploads -= 1
        self._stored.release()
        self.row.clear()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
        if carrier is not None and why is not None:
            carrier.reset()
