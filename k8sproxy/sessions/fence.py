"""How far upstream's bytes may go to the client while a recorder has to have them first.

    Fence       nothing waits: the session is not recorded, or need not be
    Closed      `closed`: the session has to be kept, and its first output waits for the recording's header
    Confirmed   `acknowledged`: each byte waits until the recorder has confirmed what it says

A session has one fence at a time. A fence decides by places in a Passage; the earliest of these counts:

    confirmed   Confirmed: what upstream sent up to there is in bytes that the recorder has confirmed
    first       Closed: the first output, and until then what is no whole message, while the recorder has not confirmed
                the header
    end         the message with the exit status (the first on the error channel), until the recorder has all of it: a
                session that looked well to its user was kept whole
    undecided   a frame of which so little has come that it may yet be that message: servers write the header of a SPDY
                frame apart from its payload
    border      while the recorder is slow: what lies behind the last border between two messages

So a client that waits stands between two messages, unless one is as large as all that may wait (WINDOW), and can be
sent a pong or a farewell there. Upstream's pongs wait behind its output; the proxy answers the client's pings itself
then, and one that comes later is a pong that nobody asked for, which WebSocket (RFC 6455, 5.5.3) and SPDY both pass
over.
"""

from __future__ import annotations

from k8sproxy.recording.recording import KEPT, SLOW, Recording
from k8sproxy.sessions.passage import Passage

# Bytes of upstream's output that may wait for the recorder's confirmation (Confirmed): what a disk that takes 10 ms
# for a commit lets through is 50 MB/s. Less where the owner's share of the buffers is used up (buffers).
WINDOW = 512 * 1024


class Fence:
    """Where nothing waits, and what a session may ask of any fence. blocked: no more of upstream may be read now.
    holds: bytes may have to wait here, so what is undecided matters."""

    __slots__ = ("blocked", "passage")

    holds = False

    def __init__(self, passage: Passage) -> None:
        self.passage = passage
        self.blocked = False

    def go(self, undecided: int) -> int:
        """How many of upstream's bytes go now, and they do. undecided: see above."""
        passage = self.passage
        return passage.go(passage.read)

    def begins(self, place: int) -> None:
        """There is output in a frame that begins at this place."""

    def output(self, stderr: bool, size: int) -> None:
        """So many bytes of output are about to be recorded."""

    def read(self) -> None:
        """What upstream has sent so far was given to the recording."""

    def ends(self, place: int) -> bool:
        """The message with the exit status begins here. Whether it waits for the end of the recording."""
        return False

    def settle(self) -> None:
        """The recording is being brought to its end, and upstream waits for that."""

    @property
    def must_settle(self) -> bool:
        """Whether the recorder has to have all of it before the client may see upstream's end."""
        return False

    def promise(self) -> None:
        """Something was written, or stored: send on what may be, and note what waits for it."""

    @property
    def answers_pings(self) -> bool:
        """Whether the client's pings have to be answered by the proxy, and can be."""
        return False


class Closed(Fence):
    """Where a session must be kept. settling: its end waits for the recorder."""

    __slots__ = ("_recording", "_settling")

    holds = True

    def __init__(self, passage: Passage, recording: Recording) -> None:
        super().__init__(passage)
        self._recording = recording
        self._settling = False

    def go(self, undecided: int) -> int:
        passage = self.passage
        size = passage.go(self._limit(undecided))
        self.blocked = self._waits()
        return size

    def begins(self, place: int) -> None:
        recording, passage = self._recording, self.passage
        if not recording.has_header:
            recording.begin_header()
            if passage.first is None:
                passage.first = place

    def ends(self, place: int) -> bool:
        if self.passage.end is not None:
            return False
        self.passage.end = place
        return True

    def settle(self) -> None:
        self._settling = self.blocked = True

    @property
    def must_settle(self) -> bool:
        return self._recording.state is not KEPT

    @property
    def answers_pings(self) -> bool:
        return self.blocked and self.passage.stands

    def _limit(self, undecided: int) -> int:
        """The place up to which upstream's bytes may go."""
        passage, recording = self.passage, self._recording
        if recording.state is KEPT:
            return passage.read
        limit = self._shown(passage.read - undecided)
        if passage.end is not None:
            limit = min(limit, passage.end)
        if recording.state is SLOW:
            if self.blocked and passage.stands:
                return passage.passed
            if passage.border > passage.passed:
                limit = min(limit, passage.border)
        return limit

    def _shown(self, limit: int) -> int:
        """The same, for what the recorder has: its header."""
        passage = self.passage
        if self._recording.has_header:
            passage.first = None
            return limit
        # Of a message that may turn out to be output not even its frame's header goes.
        return min(limit, passage.border if passage.first is None else passage.first)

    def _waits(self) -> bool:
        """Whether no more of upstream may be read just now."""
        passage, recording = self.passage, self._recording
        if recording.state is KEPT:
            return False
        if self._settling or (passage.first is not None and passage.held > 0):
            return True
        if recording.state is SLOW and (passage.stands or recording.full):
            return True
        return self._is_crowded()

    def _is_crowded(self) -> bool:
        """Whether no more may be held. What is held counts as what waits for the recorder does."""
        self._recording.hold(self.passage.held)
        return False


class Confirmed(Closed):
    """Where nothing is shown that the recorder has not confirmed."""

    __slots__ = ("_fronts",)

    def __init__(self, passage: Passage, recording: Recording) -> None:
        super().__init__(passage, recording)
        self._fronts: dict[bool, int] = {}  # of stdout and stderr: where a character begins whose rest is to come

    def go(self, undecided: int) -> int:
        size = super().go(undecided)
        if self.blocked:
            # What waits now may be one message alone, and all of its output confirmed: no ack would tell of it.
            self.promise()
            size += super().go(undecided)
        return size

    def begins(self, place: int) -> None:
        if not self._recording.has_header:
            self._recording.begin_header()

    def output(self, stderr: bool, size: int) -> None:
        if stderr not in self._fronts or size > 3:
            # The front of a character has three bytes at most.
            self._fronts[stderr] = self.passage.border

    def read(self) -> None:
        self.promise()

    def promise(self) -> None:
        passage, recording = self.passage, self._recording
        if recording.state is KEPT:
            return
        recording.push()
        if recording.pending:
            return
        place = passage.border
        if place <= passage.passed and self._is_crowded():
            place = passage.read  # one message as large as all that may wait
        self._fronts = {stderr: front for stderr, front in self._fronts.items() if recording.torn(stderr)}
        passage.promise(min((place, *self._fronts.values())), recording.written)

    @property
    def answers_pings(self) -> bool:
        passage = self.passage
        return passage.stands and (self.blocked or passage.held > 0)

    def _shown(self, limit: int) -> int:
        passage = self.passage
        passage.confirm(self._recording.stored)
        return min(limit, passage.confirmed)

    def _is_crowded(self) -> bool:
        held = self.passage.held
        return not (self._recording.hold(held) and held < WINDOW)
