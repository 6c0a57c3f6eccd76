"""What is kept of one session, from the recorder's word that it takes it to the last confirmation.

    Session -> Recording (Outbox -> Capture) -> Upload -> the recorder

What a recorder that is too slow means is the level's: where the session must be recorded its output is taken all the
same, and whoever reads upstream waits (`state`); otherwise output is left out while it is SLOW, and the recording says
how much. Of sizes the last one alone is kept meanwhile: a client can send them without end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.common import states
from k8sproxy.common.formats.asciicast import CastHeader
from k8sproxy.recording.capture import GuardedCapture
from k8sproxy.recording.outbox import BATCH, Outbox
from k8sproxy.recording.upload import Upload, UploadError


class State(states.State):
    """What has become of a recording.

    ACCEPTED   the recorder has said that it takes it                  -> RUNNING, FAILED
    RUNNING    protocols have been switched                            -> SLOW, SETTLING, FAILED
    SLOW       the upload's buffer is full, until half of it is free   -> RUNNING, SETTLING, FAILED
    SETTLING   its end is written                                      -> KEPT, FAILED
    KEPT       the recorder has confirmed all of it                    -> (final)
    FAILED     the recorder has not all of it                          -> (final)
    """

    ACCEPTED = "accepted"
    RUNNING = "running"
    SLOW = "slow"
    SETTLING = "settling"
    KEPT = "kept"
    FAILED = "failed"


ACCEPTED, RUNNING, SLOW = State.ACCEPTED, State.RUNNING, State.SLOW
SETTLING, KEPT, FAILED = State.SETTLING, State.KEPT, State.FAILED
states.table(
    {
        ACCEPTED: (RUNNING, FAILED),
        RUNNING: (SLOW, SETTLING, FAILED),
        SLOW: (RUNNING, SETTLING, FAILED),
        SETTLING: (KEPT, FAILED),
        KEPT: (),
        FAILED: (),
    }
)


class Recording:
    """One session's. level: what is promised. lost: bytes of output that were left out.

    slow: called when output begins to be left out or to wait. moved: called when the recorder has stored more, and when
    a buffer that was full has room again. wrote: called when what is not written yet was given to the upload. faulty:
    called within an except clause, for a fault of ours in making lines of output.
    """

    def __init__(
        self,
        upload: Upload,
        level: RecordingLevel,
        *,
        slow: Callable[[], None],
        moved: Callable[[], None],
        wrote: Callable[[], None],
        faulty: Callable[[], None],
    ) -> None:
        self.state = ACCEPTED
        self.lost = 0
        self.gaps = 0  # how often output was left out
        self._upload = upload
        self._level = level
        self._loop = asyncio.get_running_loop()
        self._slow = slow
        self._moved = moved
        self._wrote = wrote
        self._faulty = faulty
        self._capture: GuardedCapture | None = None  # both from begin on
        self._outbox: Outbox | None = None
        self._timer: asyncio.TimerHandle | None = None  # until the header has to go out
        self._gap = 0  # bytes of output left out since it is SLOW
        self._size: tuple[int, int] | None = None  # the last since then
        upload.drained = self._drained

    def begin(self, header: CastHeader, *, tty: bool) -> None:
        """The streams begin now."""
        self.state = self.state.to(RUNNING)
        now = self._loop.time()
        upload = self._upload
        capture = self._capture = GuardedCapture(
            header, now, tty=tty, event_codes=upload.event_codes, fault=self._faulty
        )
        outbox = self._outbox = Outbox(
            self._loop,
            capture,
            self._write,
            prompt=self._level is RecordingLevel.ACKNOWLEDGED,
            room=lambda: upload.row.room,
        )
        if self._level.enforced:
            upload.moved = self._moved
        outbox.deadline(now)
        self._hurry_header()
        if capture.due is not None:
            self._timer = self._loop.call_at(capture.due, self._header_due)

    # -- what is said

    @property
    def takes(self) -> bool:
        """Whether output is taken."""
        return self.state is RUNNING or self.state is SLOW

    def output(self, stderr: bool, pieces: Sequence[memoryview], size: int) -> None:
        """Bytes of stdout, or of stderr; how many."""
        if self._leaves_out(size):
            return
        if self._outbox is not None and self.takes:
            self._outbox.output(stderr, pieces, self._loop.time())

    def beside(self, data: bytes) -> None:
        """Bytes from upstream that a terminal does not show."""
        if not self._leaves_out(len(data)) and self._outbox is not None and self.takes:
            self._outbox.beside(data, self._loop.time())

    def note(self, text: str) -> None:
        """A sentence of the proxy's."""
        if self._outbox is not None and self.takes:
            self._keep_gap()
            self._outbox.note(text, self._loop.time())

    def resize(self, width: int, height: int) -> None:
        """The terminal has that many columns and rows."""
        if self.state is SLOW:
            self._size = (width, height)
        elif self._outbox is not None and self.takes:
            self._outbox.resize(width, height, self._loop.time())
            self._hurry_header()

    def _leaves_out(self, size: int) -> bool:
        """Whether output of so many bytes is left out; if not, what was left out before is noted."""
        if self.state is SLOW and not self._level.enforced:
            self._gap += size
            return True
        self._keep_gap()
        return False

    def _keep_gap(self) -> None:
        if self._gap and self._outbox is not None:
            lost, self._gap = self._gap, 0
            self.lost += lost
            self._outbox.gap(lost, "the recorder was too slow", self._loop.time())

    # -- what the recorder has

    @property
    def failure(self) -> str | None:
        """Why the recorder can't be believed to have it, where that is known already."""
        return self._upload.failure

    @property
    def has_header(self) -> bool:
        """Whether the recorder has the header."""
        capture = self._capture
        return capture is not None and 0 < capture.header_size <= self._upload.acked

    @property
    def stored(self) -> int:
        """Bytes of the recording that the recorder has confirmed."""
        return self._upload.acked

    @property
    def written(self) -> int:
        """Bytes of the recording that were made."""
        return self._upload.written

    @property
    def full(self) -> bool:
        """Whether so much waits for the recorder that upstream has to wait wherever it stands."""
        return self._upload.row.overfull

    def hold(self, size: int) -> bool:
        """So many bytes of upstream's wait for the recorder. Whether more may."""
        self._upload.hold(size)
        return not self._upload.row.crowded

    @property
    def pending(self) -> bool:
        """Whether something was given that is in no written line yet, parts of characters left aside."""
        return self._outbox is not None and self._outbox.pending > 0

    def torn(self, stderr: bool) -> bool:
        """Whether the front of a character of that stream waits for its rest."""
        return self._capture is not None and self._capture.holds(stderr)

    def begin_header(self) -> None:
        """The header goes out now, with the default size unless the client has said its own."""
        if self._outbox is not None and self.takes:
            self._outbox.begin(self._loop.time())

    def push(self) -> None:
        """Write what is pending. Where something is on its way that is not confirmed, it waits as the next batch."""
        outbox, upload = self._outbox, self._upload
        if outbox is not None and outbox.pending and (upload.acked == upload.written or outbox.pending >= BATCH):
            outbox.flush()

    def _write(self, data: bytes) -> None:
        upload = self._upload
        upload.write(data)
        if upload.blocked and self.state is RUNNING:
            self.state = self.state.to(SLOW)
            self.gaps += 1
            self._slow()
        self._wrote()

    def _drained(self) -> None:
        if self.state is SLOW:
            self.state = self.state.to(RUNNING)
            size, self._size = self._size, None
            if size is not None:
                self.resize(*size)
        self._moved()

    def _hurry_header(self) -> None:
        """Where output waits for the header, the header does not wait for output."""
        capture, outbox = self._capture, self._outbox
        if capture is None or outbox is None or not self._level.enforced:
            return
        if capture.header_size and not self._upload.written:
            outbox.flush()

    def _header_due(self) -> None:
        self._timer = None
        outbox = self._outbox
        if outbox is not None and outbox.due is not None:
            # A loop's timer may come a little early by the loop's own clock, and there is no second one.
            outbox.deadline(max(self._loop.time(), outbox.due))
            self._hurry_header()

    # -- the end

    async def finish(self) -> None:
        """Bring it to its end and wait until the recorder has all of it. Raises UploadError."""
        outbox, capture = self._outbox, self._capture
        if not self.takes or outbox is None or capture is None:
            raise UploadError("it has ended before")
        self._keep_gap()
        outbox.ended(self._loop.time())
        self.state = self.state.to(SETTLING)
        self._let_go()
        if capture.hole:
            raise UploadError("an internal error of k8sproxy; its log has more")
        await self._upload.finish()
        self.state = self.state.to(KEPT)
        self._release()

    def fail(self) -> None:
        """It is given up: the recorder is told so, and forgets nothing of what it has."""
        if self.state not in (KEPT, FAILED):
            self.state = self.state.to(FAILED)
            self._let_go()
            self._upload.abort()
            self._release()

    def _let_go(self) -> None:
        """Of what is needed for output alone. The capture goes on to say what is in the upload."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None

    def _release(self) -> None:
        """Nobody is called any more: what refers to each other in a circle would stay until a late collection."""
        upload = self._upload
        upload.drained = upload.moved = _nothing
        upload.failed = _nobody
        self._slow = self._moved = self._wrote = self._faulty = _nothing
        self._capture = None


def _nothing() -> None:
    return None


def _nobody(why: str) -> None:
    return None
