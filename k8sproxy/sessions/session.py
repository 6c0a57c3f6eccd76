"""One session: a tap that reads what both sides say, tells a recorder, and ends it where it must not go on.

    Session(..)  made of a request      open()      a recorder has accepted it, or nothing has been sent upstream
    switched()   the streams begin      from_*()    beside the bytes: frames -> Recording -> Upload
    close()      the last ack

Two sides are read, and apart: upstream's bytes do not depend on the client's. What happens when something goes wrong is
decided in these methods and nowhere else:

                                     CLOSED and ACKNOWLEDGED (enforced)       OPEN
    _not_accepted        before      Refusal 403; upstream hears nothing      goes on unrecorded; said in log and metric
      (the user's share) before      Refusal 429; upstream hears nothing      the same refusal
    _failed              recorder    the session ends, its user reads why     goes on unrecorded; said in log and metric
    _client_unreadable   client      ends; what was shown is kept, and why    goes on recorded; the recording says so
    _upstream_unreadable upstream    ends; that piece is not shown            goes on; the recording ends and says so
    Recording            too slow    output waits, up to the ack time-out     output is left out, a gap notice put in

A fault of ours in reading a side is that side's bytes being unreadable. The recorder's failure alone makes a recording
fail: whatever else ends one, all that was captured is sent, and the last line says why it ends.

How far upstream's bytes may go is `_limit`, in places of a Passage; the earliest of these counts (only where enforced):

    confirmed   ACKNOWLEDGED: what upstream sent up to there is in bytes that the recorder has confirmed
    first       CLOSED: the first output, and until then what is no whole message, while the recorder has not confirmed
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

Every session is read, recorded or not, so that one that is ended from outside can be told why in its own protocol.
"""

from __future__ import annotations

import asyncio
import time
from typing import NoReturn, Protocol

import structlog

from k8sproxy.access.decision import RecordingDemand
from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.access.rewrite import Streaming
from k8sproxy.common.errors import ProtocolError, Refusal
from k8sproxy.recording.recording import Recording, State
from k8sproxy.recording.upload import NoRecorder, Upload, UploadError
from k8sproxy.sessions.facts import Facts
from k8sproxy.sessions.passage import Passage
from k8sproxy.sessions.streams import ForwardedPorts, Streams, negotiated, open_streams, readable
from k8sproxy.sessions.tap import ALL, Tap

_log = structlog.get_logger("k8sproxy")
# Bytes of upstream's output that may wait for the recorder's confirmation (ACKNOWLEDGED): what a disk that takes 10 ms
# for a commit lets through is 50 MB/s. Less where the owner's share of the buffers is used up (buffers).
WINDOW = 512 * 1024
# Bytes of an answer that is no session, head and body: a Status has some hundred, the words of an admission webhook a
# few thousand. Nobody records it.
MAX_ANSWER = 16 * 1024
# What users are told of a fault of ours.
_OURS = "an internal error of k8sproxy; its log has more"


def unavailable(level: RecordingLevel, attempts: tuple[tuple[str, str], ...]) -> Refusal:
    """What the client of a session is told that must be recorded and can't be."""
    return Refusal(
        403,
        "recorder_unavailable",
        f"this session must be recorded (recording: {level.value}), and no recorder took it: {NoRecorder(attempts)}",
    )


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
    """One session. offered: the streaming protocols that the client offers. Raises Refusal 403 (unrecordable_session)
    where it must be recorded and none of those can be read."""

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
        self.started = time.time()
        self.began = False  # whether the streams were there
        self.received = 0
        self.sent = 0
        self.recorder = ""  # the one that has it, or had it until it failed
        self.recorded = False  # whether all of its output so far is on the way to a recorder, or there
        self.cause = ""  # why it was ended, where it did not end by itself
        self._lost_words = ""  # what its user is told where its recording failed and it must not go on
        self._registry = registry
        self._level = demand.level if demand is not None else RecordingLevel.OPEN
        self._enforced = self._level.enforced
        self._acknowledged = self._level is RecordingLevel.ACKNOWLEDGED
        self._loop = asyncio.get_running_loop()
        self._recording: Recording | None = None  # from the recorder's word on; None again once it has failed
        self._lost = 0  # of a recording that failed
        self._read_size = 0  # bytes of output that were given to it
        self._streams: Streams | ForwardedPorts | None = None  # None: upstream's side is not read, or not any more
        self._client_read = True  # whether the client's side is
        self._ports: ForwardedPorts | None = None
        self._passage = Passage()
        self._fronts: dict[bool, int] = {}  # of stdout and stderr: where a character begins whose rest is to come
        self._settling: asyncio.Task[None] | None = None
        known = readable(facts.kind, upgrade)
        # Without an offer the server takes its oldest protocol, which can be read.
        can_be_read = not offered or not known.isdisjoint(offered)
        if self._enforced and not can_be_read:
            raise Refusal(
                403,
                "unrecordable_session",
                "a grant of this peer enforces session recording, and none of the streaming protocols that the client "
                f"offers can be recorded: {', '.join(offered)[:200]}",
            )
        self.streaming = Streaming(facts.id, known if demand is not None and can_be_read else None)

    @property
    def ports(self) -> dict[str, dict[str, int]]:
        """Of a port-forward, by port: connections, bytes received and sent."""
        return self._ports.ports() if self._ports is not None else {}

    @property
    def lost(self) -> int:
        """Bytes of output that are not in the recording."""
        return self._recording.lost if self._recording is not None else self._lost

    def end(self, cause: str, message: str) -> None:
        """End it from outside. message: for its user."""
        self.cause = self.cause or cause
        self.ended(cause, message)

    # -- before upstream is contacted

    async def open(self) -> None:
        """Have a recorder accept it, where it is to be recorded. Raises Refusal 403 (recorder_unavailable), 429."""
        if self.demand is None:
            return
        try:
            upload = await self._registry.accept(
                self.demand.recorders, acks=self._acknowledged, user=self.facts.peer.owner
            )
        except NoRecorder as error:
            self._not_accepted(error)
            return
        self._recording = Recording(
            upload,
            self._level,
            slow=self._too_slow,
            moved=self._moved,
            wrote=self._promise if self._acknowledged else _nothing,
            faulty=self._capture_faulty,
        )
        self.recorder = upload.recorder
        self.recorded = True
        upload.owner = self.facts.peer.owner
        upload.failed = self._failed

    def _not_accepted(self, error: NoRecorder) -> None:
        """No recorder takes it."""
        if error.declined:
            # At every level: who has too many sessions must not get unrecorded ones by it.
            raise Refusal(
                429, "too_many_sessions", f"this session is to be recorded, and no recorder takes it: {error}"
            )
        self._registry.failed("not_accepted", self._level)
        if self._enforced:
            raise unavailable(self._level, error.attempts)
        self._warn("session_unrecorded", why=str(error))

    # -- while it runs

    def switched(self, upgrade: str, fields: bytes) -> None:
        if self._recording is not None and self._recording.failure is not None:
            self._failed(self._recording.failure)
        if self._enforced and not self.recorded:
            # It was accepted, and failed while upstream was asked: there was nobody yet to tell.
            raise Refusal(403, "recorder_failed", self._lost_words, close=True)
        if self._enforced and len(fields) > MAX_ANSWER:
            self._refuse(f"the answer's head has more than {MAX_ANSWER} bytes")
        facts = self.facts
        unread = ""
        try:
            self._streams = open_streams(facts, upgrade, negotiated(upgrade, fields))
        except ProtocolError as error:
            if self._enforced:
                self._refuse(error.message)
            unread = error.message
        if isinstance(self._streams, ForwardedPorts):
            self._ports = self._streams
        self.began = True
        self._registry.begun(self)
        self._say(
            "session_started",
            connection=facts.connection,
            kind=facts.kind,
            peer=facts.peer.display,
            user=facts.impersonation.user if facts.impersonation else None,
            cluster=facts.cluster,
            namespace=facts.namespace,
            pod=facts.pod,
            container=facts.container,
            recorder=self.recorder or None,
            failure_mode=self.demand.level.value if self.demand else None,
        )
        if self._recording is not None:
            self._recording.begin(facts.cast_header(self.started), tty=facts.tty)
        if unread:
            self._upstream_unreadable(unread)

    def unswitched(self, status: int) -> int | None:
        """The API server and the kubelet refuse with a Status, in a body that nobody records. What stands on another
        port of a node, behind a path like the kubelet's exec, may answer what it likes."""
        if not self._enforced:
            return None
        if 200 <= status < 300:
            self._refuse("it was answered without a switch of protocols")
        return MAX_ANSWER

    def _refuse(self, why: str) -> NoReturn:
        """Before upstream's answer has been passed on."""
        raise Refusal(
            403,
            "unrecordable_session",
            f"this session must be recorded (recording: {self._level.value}), and can't be: {why}",
            close=True,
        )

    @property
    def work(self) -> int:
        # A line of a cast costs about 10 ns a byte.
        return self._read_size // 100 + (self._streams.work if self._streams is not None else 0)

    @property
    def client_run(self) -> int:
        return self._streams.client_run if self._streams is not None and self._client_read else ALL

    @property
    def upstream_run(self) -> int:
        return self._streams.upstream_run if self._streams is not None else ALL

    def from_client(self, view: memoryview) -> bytes:
        self.received += len(view)
        streams = self._streams
        if streams is None or not self._client_read:
            return b""
        try:
            said = streams.from_client(view)
        except Exception:
            self._say_fault()
            self._client_unreadable(streams, _OURS)
            return b""
        if said is None:
            return b""
        if self._recording is not None:
            for size in said.sizes:
                self._recording.resize(*size)
        replies = b"".join(said.replies) if self._pongs_wait else b""
        if said.fault:
            self._client_unreadable(streams, said.fault)
        return replies

    def from_upstream(self, view: memoryview) -> int:
        if view:
            self._read(view)
        size = self._passage.go(self._limit())
        self.blocked = self._waits()
        if self.blocked and self._acknowledged:
            # What waits now may be one message alone, and all of its output confirmed: no ack would tell of it.
            self._promise()
            size += self._passage.go(self._limit())
            self.blocked = self._waits()
        self.sent += size
        return size

    def upstream_ended(self) -> bool:
        recording = self._recording
        if self._enforced and recording is not None and recording.state is not State.KEPT:
            self._settle()
            return False
        return not self._passage.held

    def farewell(self, message: str) -> bytes | None:
        passage = self._passage
        held = passage.held > 0
        if self._streams is None or (held and not passage.stands and not passage.rest):
            return None
        status = Refusal(500, "session_ended", message).body().rstrip()
        try:
            return self._streams.farewell(
                status,
                f"k8sproxy: {message}",
                held=held,
                early=held and passage.passed != passage.end,
                rest=passage.rest if held else 0,
            )
        except Exception:
            self._say_fault()
            return None

    # -- what upstream says, and how much of it may go

    def _read(self, view: memoryview) -> None:
        """Keep what upstream has said."""
        streams, passage, size = self._streams, self._passage, len(view)
        if streams is None:
            passage.show(size, 0, 0)
            return
        try:
            streams.from_upstream(view)
        except ProtocolError as error:
            passage.show(size, 0, 0)
            self._upstream_unreadable(error.message)
            return
        except Exception:
            self._say_fault()
            passage.show(size, 0, 0)
            self._upstream_unreadable(_OURS)
            return
        if self._recording is not None:
            if why := self._unkept(streams, self._recording):
                passage.show(size, streams.unfinished, streams.left)
                self._unrecordable(why)
                return
            self._keep(streams, self._recording)
        passage.show(size, streams.unfinished, streams.left)
        if self._acknowledged:
            self._promise()

    def _unkept(self, streams: Streams | ForwardedPorts, recording: Recording) -> str:
        """Why what upstream has said can't be kept, though it must be."""
        if not self._enforced or streams.first_at is None:
            return ""
        if not recording.takes:
            return "there was output behind the end of the session"
        return "there was output on a stream that is not known to carry any" if streams.unknown else ""

    def _keep(self, streams: Streams | ForwardedPorts, recording: Recording) -> None:
        passage = self._passage
        if streams.first_at is not None:
            if self._enforced and not recording.has_header:
                recording.begin_header()
                if passage.first is None and not self._acknowledged:
                    passage.first = passage.read + streams.first_at
            for stderr, pieces in streams.output:
                size = sum(map(len, pieces))
                if self._acknowledged and (stderr not in self._fronts or size > 3):
                    # The front of a character has three bytes at most.
                    self._fronts[stderr] = passage.border
                self._read_size += size
                recording.output(stderr, pieces, size)
            for data in streams.beside:
                recording.beside(data)
        if self._enforced and streams.end_at is not None and passage.end is None:
            passage.end = passage.read + streams.end_at
            self._settle()

    def _limit(self) -> int:
        """The place up to which upstream's bytes may go."""
        passage, recording = self._passage, self._recording
        if not self._enforced or recording is None or recording.state is State.KEPT:
            return passage.read
        limit = passage.read - (self._streams.undecided if self._streams is not None else 0)
        if self._acknowledged:
            passage.confirm(recording.stored)
            limit = min(limit, passage.confirmed)
        elif recording.has_header:
            passage.first = None
        else:
            # Of a message that may turn out to be output not even its frame's header goes.
            limit = min(limit, passage.border if passage.first is None else passage.first)
        if passage.end is not None:
            limit = min(limit, passage.end)
        if recording.state is State.SLOW:
            if self.blocked and passage.stands:
                return passage.passed
            if passage.border > passage.passed:
                limit = min(limit, passage.border)
        return limit

    def _waits(self) -> bool:
        """Whether no more of upstream may be read just now."""
        passage, recording = self._passage, self._recording
        if not self._enforced or recording is None or recording.state is State.KEPT:
            return False
        if self._settling is not None or (passage.first is not None and passage.held > 0):
            return True
        if recording.state is State.SLOW and (passage.stands or recording.full):
            return True
        return not self._has_window(passage, recording) and self._acknowledged

    @staticmethod
    def _has_window(passage: Passage, recording: Recording) -> bool:
        """Whether more of upstream's bytes may wait for the recorder."""
        return recording.hold(passage.held) and passage.held < WINDOW

    @property
    def _pongs_wait(self) -> bool:
        """Whether the client's pings have to be answered here, and can be."""
        passage = self._passage
        return passage.stands and (self.blocked or (self._acknowledged and passage.held > 0))

    def _promise(self) -> None:
        """ACKNOWLEDGED: send on what may be, and note which of the recording's bytes what upstream sent waits for."""
        passage, recording = self._passage, self._recording
        if recording is None or recording.state is State.KEPT:
            return
        recording.push()
        if recording.pending:
            return
        place = passage.border
        if place <= passage.passed and not self._has_window(passage, recording):
            place = passage.read  # one message as large as all that may wait
        self._fronts = {stderr: front for stderr, front in self._fronts.items() if recording.torn(stderr)}
        passage.promise(min((place, *self._fronts.values())), recording.written)

    def _moved(self) -> None:
        """The recorder has more than before: what waited for that goes on."""
        if self._acknowledged:
            self._promise()
        if self.blocked or self._passage.held:
            self.drained()

    def _too_slow(self) -> None:
        """The recorder is slower than the output: that waits from the next border on, or is left out."""
        if not self._enforced and self._recording is not None and self._recording.gaps == 1:
            # Said once; how much is missing in the end is said with the end.
            self._registry.failed("slow", self._level)
            self._warn("recording_gap", recorder=self.recorder)

    def _settle(self) -> None:
        self.blocked = True
        if self._settling is None:
            self._settling = self._registry.run(self)

    async def settle(self) -> None:
        """Bring the recording to its end and see that the recorder has it; then the session's end may go on."""
        if self._recording is None:
            return
        try:
            await self._recording.finish()
        except UploadError as error:
            self._failed(str(error))
        else:
            self._moved()

    # -- what goes wrong

    def _client_unreadable(self, streams: Streams | ForwardedPorts, why: str) -> None:
        """The client's bytes are not what they should be. Upstream's output is recorded without them."""
        self._client_read = False
        streams.give_up_client(why)
        if isinstance(streams, ForwardedPorts):
            self._streams = None
            self._warn("ports_unreadable", why=why)
        elif self._recording is not None and self._unreadable("client", why):
            self._recording.note(
                f"what the client sends can't be read from here on, so the terminal's sizes are missing: {why}"
            )

    def _upstream_unreadable(self, why: str) -> None:
        """Upstream's bytes are not what they should be: nobody can say what is output, or where the client stands."""
        if isinstance(self._streams, ForwardedPorts):
            self._warn("ports_unreadable", why=why)
        elif self._recording is not None and self._unreadable("upstream", why):
            self.recorded = False
            self._recording.note(f"what the API server sends can't be read from here on and is not recorded: {why}")
            if self._settling is None:
                self._settling = self._registry.run(self)
        self._streams = None

    def _unreadable(self, side: str, why: str) -> bool:
        """A side of a recorded session can't be read. Whether it goes on."""
        if self._enforced:
            who = "client" if side == "client" else "API server"
            return self._unrecordable(f"what the {who} sends can't be read: {why}", side)
        self._registry.failed("unreadable", self._level)
        self._warn("session_unreadable", side=side, why=why)
        return True

    def _unrecordable(self, why: str, side: str = "upstream") -> bool:
        """The session must not go on, since what it says can't be recorded. What was recorded so far is brought to its
        end, and says why."""
        self._registry.failed("unreadable", self._level)
        self._warn("session_unreadable", side=side, why=why)
        if self._recording is not None:
            self._recording.note(f"the session was ended: {why}")
        self.end("session_unreadable", f"this session must be recorded, and can't be: {why}")
        self._streams = None
        return False

    def _say_fault(self) -> None:
        """Within an except clause."""
        _log.error("capture_faulty", session=self.facts.id, exc_info=True)

    def _capture_faulty(self) -> None:
        """A fault of ours in what is made of output, in the middle of whatever has asked for it."""
        self._say_fault()
        self._loop.call_soon(self._unreadable, "upstream", _OURS)

    def _failed(self, why: str) -> None:
        """The recorder failed."""
        recording = self._recording
        if recording is None or recording.state is State.KEPT:
            return
        self._lost = recording.lost
        self._recording = None
        self.recorded = False
        recording.fail()
        self._registry.failed("failed", self._level)
        self._warn("recording_failed", recorder=self.recorder, why=why, failure_mode=self._level.value)
        if self._enforced:
            self._lost_words = f"this session must be recorded, and its recording failed: {why}"
            self.end("recorder_failed", self._lost_words)

    # -- the end

    async def close(self) -> None:
        self.drained, self.ended = Tap.drained, Tap.ended
        try:
            recording = self._recording
            if self._settling is None and recording is not None:
                if recording.takes:
                    self._settling = self._registry.run(self)
                elif recording.state is State.ACCEPTED:
                    recording.fail()
            if self._settling is not None:
                # Not cancelled with whoever waits: a recording is brought to its end when its session is cut.
                await asyncio.shield(self._settling)
        finally:
            self._registry.over(self)
            if self._settling is not None and not self._settling.done():
                # Cancelled: its client has gone. Whether it was recorded is known a little later.
                self._settling.add_done_callback(self._say_ended)
            else:
                self._say_ended()

    def _say_ended(self, _: object = None) -> None:
        if self.began:
            self._say(
                "session_ended",
                seconds=round(time.time() - self.started, 3),
                received=self.received,
                sent=self.sent,
                recorded=self.recorded,
                lost=self.lost or None,
                ports=self.ports or None,
                cause=self.cause or None,
            )

    def _warn(self, event: str, **values: object) -> None:
        _log.warning(event, session=self.facts.id, **values)

    def _say(self, event: str, **values: object) -> None:
        _log.info(event, session=self.facts.id, **values)


def _nothing() -> None:
    return None
