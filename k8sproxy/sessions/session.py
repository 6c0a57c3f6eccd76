"""One session: a tap that reads what both sides say, tells a recorder, and ends it where it must not go on.

    Session(..)  made of a request      open()      a recorder has accepted it, or nothing has been sent upstream
    switched()   the streams begin      from_*()    beside the bytes: Reading -> Recording -> Upload
    close()      the last ack

What the session knows is kept by three objects, and this one decides: Reading (what both sides say), Keeping (what has
become of its recording) and Fence (how far upstream's bytes may go). What happens when something goes wrong is decided
in these methods and nowhere else:

                                     CLOSED and ACKNOWLEDGED (enforced)       OPEN
    _not_accepted        before      Refusal 403; upstream hears nothing      goes on unrecorded; said in log and metric
      (the user's share) before      Refusal 429; upstream hears nothing      the same refusal
    _failed              recorder    the session ends, its user reads why     goes on unrecorded; said in log and metric
    _client_unreadable   client      ends; what was shown is kept, and why    goes on recorded; the recording says so
    _upstream_unreadable upstream    ends; that piece is not shown            goes on; the recording ends and says so
    Recording            too slow    output waits, up to the ack time-out     output is left out, a gap notice put in

A fault of ours in reading a side is that side's bytes being unreadable. The recorder's failure alone makes a recording
fail: whatever else ends one, all that was captured is sent, and the last line says why it ends.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import structlog

from k8sproxy.access.decision import RecordingDemand
from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.access.rewrite import Streaming
from k8sproxy.common.errors import Refusal
from k8sproxy.common.states import State, table
from k8sproxy.recording.recording import ACCEPTED, KEPT, Recording
from k8sproxy.recording.upload import NoRecorder, Upload, UploadError
from k8sproxy.sessions import words
from k8sproxy.sessions.facts import Facts
from k8sproxy.sessions.fence import Closed, Confirmed, Fence
from k8sproxy.sessions.keeping import ALL, Keeping
from k8sproxy.sessions.passage import Passage
from k8sproxy.sessions.reading import OURS, Reading
from k8sproxy.sessions.streams import ForwardedPorts, Streams, readable
from k8sproxy.sessions.tap import Tap

_log = structlog.get_logger("k8sproxy")
# Bytes of an answer that is no session, head and body: a Status has some hundred, the words of an admission webhook a
# few thousand. Nobody records it.
MAX_ANSWER = 16 * 1024


class Life(State):
    """Where a session is.

    ASKED     it is to be recorded, and no recorder has been asked               -> READY, OVER
    READY     a recorder has accepted it, or it goes unrecorded                  -> RUNNING, OVER
    RUNNING   both sides have switched protocols                                 -> OVER
    OVER      both sides have ended; its recording may still be settling         -> (final)
    """

    ASKED = "asked"
    READY = "ready"
    RUNNING = "running"
    OVER = "over"


ASKED, READY, RUNNING, OVER = Life.ASKED, Life.READY, Life.RUNNING, Life.OVER
table({ASKED: (READY, OVER), READY: (RUNNING, OVER), RUNNING: (OVER,), OVER: ()})


class Registry(Protocol):
    """What a session needs of those around it (sessions.Sessions)."""

    async def accept(self, recorders: tuple[str, ...], *, acks: bool, user: str) -> Upload:
        """An accepted upload. acks: one that is confirmed while it goes on. user: whose share of the recorder's places
        it takes. Raises NoRecorder."""

    def begun(self, session: Session) -> None:
        """The streams begin."""

    def over(self, session: Session) -> None:
        """The session has ended; also for one that never began."""

    def failed(self, stage: str, mode: RecordingLevel) -> None:
        """Count a recording that failed. stage: not_accepted, failed, unreadable or slow."""

    def run(self, session: Session) -> asyncio.Task[None]:
        """Run session.settle()."""


class Session(Tap):
    """One session. offered: the streaming protocols that the client offers. cause: why it was ended, where it did not
    end by itself. Raises Refusal 403 (unrecordable_session) where it must be recorded and none of those can be read."""

    def __init__(
        self,
        registry: Registry,
        facts: Facts,
        demand: RecordingDemand | None,
        *,
        upgrade: str,
        offered: tuple[str, ...],
    ) -> None:
        self.facts = facts
        self.demand = demand
        self.life = ASKED if demand is not None else ASKED.to(READY)
        self.started = time.time()
        self.received = 0
        self.sent = 0
        self.cause = ""
        self._registry = registry
        self._level = demand.level if demand is not None else RecordingLevel.OPEN
        self._read_size = 0  # bytes of output that were given to the recording
        self._reading = Reading(facts)
        self._keeping = Keeping()
        self._fence = Fence(Passage())
        known = readable(facts.kind, upgrade)
        # Without an offer the server takes its oldest protocol, which can be read.
        can_be_read = not offered or not known.isdisjoint(offered)
        if self._level.enforced and not can_be_read:
            raise words.not_offered(offered)
        self.streaming = Streaming(facts.id, known if demand is not None and can_be_read else None)

    # -- what others ask

    @property
    def began(self) -> bool:
        """Whether its streams are there."""
        return self.life is RUNNING

    @property
    def recorder(self) -> str:
        """The one that has it, or had it until it failed; "" where none has."""
        return self._keeping.recorder

    @property
    def recorded(self) -> bool:
        """Whether all of its output so far is on the way to a recorder, or there."""
        return self._keeping.kept is ALL

    @property
    def lost(self) -> int:
        """Bytes of output that are not in the recording."""
        return self._keeping.missing

    @property
    def ports(self) -> dict[str, dict[str, int]]:
        """Of a port-forward, by port: connections, bytes received and sent."""
        ports = self._reading.ports
        return ports.ports() if ports is not None else {}

    def end(self, cause: str, message: str) -> None:
        """End it from outside. message: for its user."""
        self.cause = self.cause or cause
        self.ended(cause, message)

    # -- before upstream is contacted

    async def open(self) -> None:
        """Have a recorder accept it, where it is to be recorded. Raises Refusal 403 (recorder_unavailable), 429."""
        if self.demand is None:
            return
        acks = self._level is RecordingLevel.ACKNOWLEDGED
        try:
            upload = await self._registry.accept(self.demand.recorders, acks=acks, user=self.facts.peer.owner)
        except NoRecorder as error:
            self._not_accepted(error)
        else:
            self._accepted(upload)
        self.life = self.life.to(READY)

    def _accepted(self, upload: Upload) -> None:
        acknowledged = self._level is RecordingLevel.ACKNOWLEDGED
        recording = Recording(
            upload,
            self._level,
            slow=self._too_slow,
            moved=self._moved,
            wrote=self._wrote if acknowledged else _nothing,
            faulty=self._capture_faulty,
        )
        if self._level.enforced:
            self._fence = (Confirmed if acknowledged else Closed)(self._fence.passage, recording)
        self._keeping.begin(recording, upload.recorder)
        upload.row.owner = self.facts.peer.owner
        upload.failed = self._failed

    def _not_accepted(self, error: NoRecorder) -> None:
        """No recorder takes it."""
        if error.declined:
            # At every level: who has too many sessions must not get unrecorded ones by it.
            raise words.declined(error)
        self._registry.failed("not_accepted", self._level)
        if self._level.enforced:
            raise words.unavailable(self._level, error.attempts)
        self._warn("session_unrecorded", why=str(error))

    # -- while it runs

    def switched(self, upgrade: str, fields: bytes) -> None:
        keeping, enforced = self._keeping, self._level.enforced
        if keeping.recording is not None and keeping.recording.failure is not None:
            self._failed(keeping.recording.failure)
        if enforced and not self.recorded:
            # It was accepted, and failed while upstream was asked: there was nobody yet to tell.
            raise Refusal(403, "recorder_failed", keeping.lost_because, close=True)
        if enforced and len(fields) > MAX_ANSWER:
            words.refuse(self._level, f"the answer's head has more than {MAX_ANSWER} bytes")
        unread = self._reading.open(upgrade, fields)
        if unread and enforced:
            words.refuse(self._level, unread)
        self.life = self.life.to(RUNNING)
        self._registry.begun(self)
        words.say_started(self)
        if keeping.recording is not None:
            keeping.recording.begin(self.facts.cast_header(self.started), tty=self.facts.tty)
        if unread:
            self._upstream_unreadable(unread)

    def unswitched(self, status: int) -> int | None:
        """The API server and the kubelet refuse with a Status, in a body that nobody records. What stands on another
        port of a node, behind a path like the kubelet's exec, may answer what it likes."""
        if not self._level.enforced:
            return None
        if 200 <= status < 300:
            words.refuse(self._level, "the API server answered without a switch of protocols")
        return MAX_ANSWER

    @property
    def work(self) -> int:
        # A line of a cast costs about 10 ns a byte.
        return self._read_size // 100 + self._reading.work

    @property
    def client_run(self) -> int:
        return self._reading.client_run

    @property
    def upstream_run(self) -> int:
        return self._reading.upstream_run

    def from_client(self, view: memoryview) -> bytes:
        self.received += len(view)
        said = self._reading.from_client(view)
        if said is None:
            return b""
        recording = self._keeping.recording
        if recording is not None:
            for size in said.sizes:
                recording.resize(*size)
        replies = b"".join(said.replies) if said.replies and self._fence.answers_pings else b""
        if said.fault:
            self._client_unreadable(said.fault)
        return replies

    def from_upstream(self, view: memoryview) -> int:
        if view:
            self._read(view)
        fence = self._fence
        size = fence.go(self._reading.undecided if fence.holds else 0)
        self.blocked = fence.blocked
        self.sent += size
        return size

    def upstream_ended(self) -> bool:
        if self._fence.must_settle:
            self._settle()
            return False
        return not self._fence.passage.held

    def farewell(self, message: str) -> bytes | None:
        passage = self._fence.passage
        held = passage.held > 0
        if held and not passage.stands and not passage.rest:
            return None
        return self._reading.farewell(
            Refusal(500, "session_ended", message).body().rstrip(),
            f"k8sproxy: {message}",
            held=held,
            early=held and passage.passed != passage.end,
            rest=passage.rest if held else 0,
        )

    # -- what upstream says

    def _read(self, view: memoryview) -> None:
        """Keep what upstream has said."""
        streams, fence, size = self._reading.streams, self._fence, len(view)
        passage = fence.passage
        if streams is None:
            passage.show(size, 0, 0)
            return
        if why := self._reading.from_upstream(streams, view):
            passage.show(size, 0, 0)
            self._upstream_unreadable(why)
            return
        recording = self._keeping.recording
        if recording is not None:
            if fence.holds and streams.first_at is not None and (why := self._unkept(streams, recording)):
                passage.show(size, streams.unfinished, streams.left)
                self._unrecordable(why)
                return
            self._keep(streams, recording)
        passage.show(size, streams.unfinished, streams.left)
        if fence.holds:
            fence.read()

    def _unkept(self, streams: Streams | ForwardedPorts, recording: Recording) -> str:
        """Why what upstream has said can't be kept, though it must be."""
        if not recording.takes:
            return "there was output after the end of the session"
        return "there was output on a stream of an unknown kind" if streams.unknown else ""

    def _keep(self, streams: Streams | ForwardedPorts, recording: Recording) -> None:
        fence = self._fence
        holds = fence.holds
        if streams.first_at is not None:
            if holds:
                fence.begins(fence.passage.read + streams.first_at)
            for stderr, pieces in streams.output:
                size = sum(map(len, pieces))
                if holds:
                    fence.output(stderr, size)
                self._read_size += size
                recording.output(stderr, pieces, size)
            for data in streams.beside:
                recording.beside(data)
        if streams.end_at is not None and fence.ends(fence.passage.read + streams.end_at):
            self._settle()

    def _moved(self) -> None:
        """The recorder has more than before: what waited for that goes on."""
        fence = self._fence
        fence.promise()
        if fence.blocked or fence.passage.held:
            self.drained()

    def _wrote(self) -> None:
        self._fence.promise()

    def _too_slow(self) -> None:
        """The recorder is slower than the output: that waits from the next border on, or is left out."""
        recording = self._keeping.recording
        if not self._level.enforced and recording is not None and recording.gaps == 1:
            # Said once; how much is missing in the end is said with the end.
            self._registry.failed("slow", self._level)
            self._warn("recording_gap", recorder=self.recorder)

    # -- the recording's end

    def _settle(self) -> None:
        """Upstream's end waits until the recorder has all of it."""
        self._fence.settle()
        self.blocked = self._fence.blocked
        self._finish()

    def _finish(self) -> None:
        if self._keeping.settling is None:
            self._keeping.settling = self._registry.run(self)

    async def settle(self) -> None:
        """Bring the recording to its end and see that the recorder has it; then the session's end may go on."""
        recording = self._keeping.recording
        if recording is None:
            return
        try:
            await recording.finish()
        except UploadError as error:
            self._failed(str(error))
        else:
            self._moved()

    # -- what goes wrong

    def _client_unreadable(self, why: str) -> None:
        """The client's bytes are not what they should be. Upstream's output is recorded without them."""
        recording = self._keeping.recording
        if isinstance(self._reading.streams, ForwardedPorts):
            self._reading.give_up()
            self._warn("ports_unreadable", why=why)
        elif recording is not None and self._unreadable("client", why):
            recording.note(
                f"what the client sends can't be read from here on, so the terminal's sizes are missing: {why}"
            )

    def _upstream_unreadable(self, why: str) -> None:
        """Upstream's bytes are not what they should be: nobody can say what is output, or where the client stands."""
        recording = self._keeping.recording
        if isinstance(self._reading.streams, ForwardedPorts):
            self._warn("ports_unreadable", why=why)
        elif recording is not None and self._unreadable("upstream", why):
            self._keeping.cut()
            recording.note(f"what the API server sends can't be read from here on and is not recorded: {why}")
            self._finish()
        self._reading.give_up()

    def _unreadable(self, side: str, why: str) -> bool:
        """A side of a recorded session can't be read. Whether it goes on."""
        if self._level.enforced:
            who = "client" if side == "client" else "API server"
            self._unrecordable(f"what the {who} sends can't be read: {why}", side)
            return False
        self._registry.failed("unreadable", self._level)
        self._warn("session_unreadable", side=side, why=why)
        return True

    def _unrecordable(self, why: str, side: str = "upstream") -> None:
        """The session must not go on, since what it says can't be recorded. What was recorded so far is brought to its
        end, and says why."""
        self._registry.failed("unreadable", self._level)
        self._warn("session_unreadable", side=side, why=why)
        if self._keeping.recording is not None:
            self._keeping.recording.note(f"the session was ended: {why}")
        self.end("session_unreadable", f"this session must be recorded, but it cannot be: {why}")
        self._reading.give_up()

    def _capture_faulty(self) -> None:
        """A fault of ours in what is made of output, in the middle of whatever has asked for it."""
        words.say_fault(self.facts)
        asyncio.get_running_loop().call_soon(self._unreadable, "upstream", OURS)

    def _failed(self, why: str) -> None:
        """The recorder failed."""
        keeping = self._keeping
        if keeping.recording is None or keeping.recording.state is KEPT:
            return
        keeping.lose()
        self._fence = Fence(self._fence.passage)
        self._registry.failed("failed", self._level)
        self._warn("recording_failed", recorder=self.recorder, why=why, failure_mode=self._level.value)
        if self._level.enforced:
            keeping.lost_because = f"this session must be recorded, and its recording failed: {why}"
            self.end("recorder_failed", keeping.lost_because)

    # -- the end

    async def close(self) -> None:
        self.drained, self.ended = Tap.drained, Tap.ended
        keeping, began = self._keeping, self.began
        try:
            recording = keeping.recording
            if keeping.settling is None and recording is not None:
                if recording.takes:
                    self._finish()
                elif recording.state is ACCEPTED:
                    recording.fail()
            if keeping.settling is not None:
                # Not cancelled with whoever waits: a recording is brought to its end when its session is cut.
                await asyncio.shield(keeping.settling)
        finally:
            self.life = self.life.to(OVER)
            self._registry.over(self)
            if not began:
                pass
            elif keeping.settling is not None and not keeping.settling.done():
                # Cancelled: its client has gone. Whether it was recorded is known a little later.
                keeping.settling.add_done_callback(lambda _: words.say_ended(self))
            else:
                words.say_ended(self)

    def _warn(self, event: str, **values: object) -> None:
        _log.warning(event, session=self.facts.id, **values)


def _nothing() -> None:
    return None
