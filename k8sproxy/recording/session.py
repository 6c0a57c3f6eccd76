"""One session: a tap that reads what both sides say, tells a recorder, and ends it where it must not go on.

    Session(..)  made of a request      open()      a recorder has accepted it, or nothing has been sent upstream
    switched()   the streams begin      from_*()    beside the bytes: frames -> Capture -> Upload
    close()      the last ack

What happens when a recorder can't be had, or fails, is decided in three methods and nowhere else:

                                CLOSED and ACKNOWLEDGED (enforced)            OPEN
    _not_accepted   before      Refusal 403; upstream hears nothing           goes on unrecorded; said in log and metric
    _failed         within      the session ends, its user reads why          goes on unrecorded; said in log and metric
    _full           too slow    output waits, up to the ack time-out          output is left out, a gap notice put in

Bytes that can't be read are a recorder that failed: what can't be read can't be recorded. So is a fault of ours in
reading them, or in what is made of them.

CLOSED holds the end of a session back: the frame with its exit status (the first on the error channel) waits until the
recorder has confirmed the last byte, so that a session that looked well to its user was kept whole. While output waits
for a slow recorder, the proxy answers the client's pings itself, between two frames, since the pongs of upstream wait
behind the output; one that comes later is a pong that nobody asked for, which WebSocket (RFC 6455, 5.5.3) and SPDY
both pass over.

Reading may be ahead of what has been passed on: a piece is read whole, and where output has to wait, what lies behind
the first border between two frames is left with the relay. So a client that waits stands between two frames, and can be
sent a pong or a farewell there. For the same reason CLOSED leaves a frame with the relay of which so little has come
that it may yet be the one with the exit status: servers write the header of a SPDY frame apart from its payload.

Every session is read, recorded or not, so that one that is ended from outside can be told why in its own protocol.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import structlog

from k8sproxy.errors import ProtocolError, Refusal
from k8sproxy.policy.decision import RecordingDemand
from k8sproxy.policy.ownrules import RecordingLevel
from k8sproxy.policy.rewrite import Streaming
from k8sproxy.recording.capture import GuardedCapture
from k8sproxy.recording.facts import Facts
from k8sproxy.recording.outbox import Outbox
from k8sproxy.recording.streams import ForwardedPorts, Streams, negotiated, open_streams, readable
from k8sproxy.recording.tap import ALL, Tap
from k8sproxy.recording.upload import NoRecorder, Upload, UploadError

_log = structlog.get_logger("k8sproxy")
# What users are told of a fault of ours.
_OURS = "an internal error of k8sproxy; its log has more"


def unavailable(attempts: tuple[tuple[str, str], ...]) -> Refusal:
    """What the client of a session is told that must be recorded and can't be."""
    return Refusal(
        403,
        "recorder_unavailable",
        f"this session must be recorded (enforceRecorder) and no recorder took it: {NoRecorder(attempts)}",
    )


class Registry(Protocol):
    """What a session needs of those around it (sessions.Sessions)."""

    async def accept(self, recorders: tuple[str, ...]) -> Upload:
        """An accepted upload. Raises NoRecorder."""

    def begun(self, session: Session) -> None:
        """The streams begin."""

    def over(self, session: Session) -> None:
        """The session has ended; also for one that never began."""

    def failed(self, stage: str, mode: RecordingLevel) -> None:
        """Count a recording that failed. stage: not_accepted, failed or slow."""

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
        self.lost = 0  # bytes of output that are not in the recording
        self.cause = ""  # why it was ended, where it did not end by itself
        self._lost_words = ""  # what its user is told where its recording failed and it must not go on
        self._registry = registry
        self._closed_mode = demand is not None and demand.level.enforced
        self._loop = asyncio.get_running_loop()
        self._upload: Upload | None = None
        self._outbox: Outbox | None = None  # from the switch to the recording's end
        self._streams: Streams | ForwardedPorts | None = None
        self._ports: ForwardedPorts | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._settling: asyncio.Task[None] | None = None
        self._holds_end = self._closed_mode  # whether the end has to wait for the last ack
        self._slow = False  # the recorder's buffer is full
        self._encoded = 0  # bytes of output that were made into lines
        self._gap = 0  # bytes of output left out since it is
        self._gaps = 0  # how often it was
        self._size: tuple[int, int] | None = None  # the terminal's, which is not in the recording since it is
        self._ahead = 0  # bytes that have been read, and not been passed on
        self._hole = False  # what has been made of the output is not all of it
        self._torn = False  # the client waits within a frame, of which nobody knows how it goes on
        known = readable(facts.kind, upgrade)
        # Without an offer the server takes its oldest protocol, which can be read.
        can_be_read = not offered or not known.isdisjoint(offered)
        if self._closed_mode and not can_be_read:
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

    def end(self, cause: str, message: str) -> None:
        """End it from outside. message: for its user."""
        self.cause = self.cause or cause
        self.ended(cause, message)

    # -- before upstream is contacted

    async def open(self) -> None:
        """Have a recorder accept it, where it is to be recorded. Raises Refusal 403 (recorder_unavailable)."""
        if self.demand is None:
            return
        try:
            upload = await self._registry.accept(self.demand.recorders)
        except NoRecorder as error:
            self._not_accepted(error)
            return
        self._upload = upload
        self.recorder = upload.recorder
        self.recorded = True
        upload.drained = self._upload_drained
        upload.failed = self._failed

    def _not_accepted(self, error: NoRecorder) -> None:
        """No recorder takes it."""
        self._registry.failed("not_accepted", self._mode)
        if self._closed_mode:
            raise unavailable(error.attempts)
        self._warn("session_unrecorded", why=str(error))

    # -- while it runs

    def switched(self, upgrade: str, fields: bytes) -> None:
        if self._upload is not None and self._upload.failure is not None:
            self._failed(self._upload.failure)
        if self._closed_mode and not self.recorded:
            # It was accepted, and failed while upstream was asked: there was nobody yet to tell.
            raise Refusal(403, "recorder_failed", self._lost_words, close=True)
        try:
            self._streams = open_streams(self.facts, upgrade, negotiated(upgrade, fields))
        except ProtocolError as error:
            if self._closed_mode:
                raise Refusal(
                    403,
                    "unrecordable_session",
                    f"this session must be recorded (enforceRecorder), and can't be: {error.message}",
                    close=True,
                ) from None
            self._unreadable(error)
        if isinstance(self._streams, ForwardedPorts):
            self._ports = self._streams
        self.began = True
        self._registry.begun(self)
        upload, facts = self._upload, self.facts
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
        if upload is None:
            return
        now = self._loop.time()
        header = facts.cast_header(self.started)
        capture = GuardedCapture(header, now, tty=facts.tty, event_codes=upload.event_codes, fault=self._capture_faulty)
        self._outbox = Outbox(self._loop, capture, self._write)
        self._outbox.deadline(now)
        if capture.due is not None:
            self._timer = self._loop.call_at(capture.due, self._header_due)

    def unswitched(self) -> None:
        """Neither the API server nor a kubelet answers so; what stands on another port of a node, behind a path like
        the kubelet's exec, may. What it says is a body, which nobody records."""
        if self._closed_mode:
            raise Refusal(
                403,
                "unrecordable_session",
                "this session must be recorded (enforceRecorder), and can't be: it was answered without a switch of "
                "protocols",
                close=True,
            )

    @property
    def work(self) -> int:
        # A line of a cast costs about 10 ns a byte.
        return self._encoded // 100 + (self._streams.work if self._streams is not None else 0)

    @property
    def client_run(self) -> int:
        return self._streams.client_run if self._streams is not None else ALL

    @property
    def upstream_run(self) -> int:
        return self._streams.upstream_run if self._streams is not None else ALL

    def from_client(self, view: memoryview) -> bytes:
        self.received += len(view)
        streams = self._streams
        if streams is None:
            return b""
        try:
            said = streams.from_client(view)
        except ProtocolError as error:
            self._unreadable(error)
            return b""
        except Exception:
            self._say_fault()
            self._unreadable(ProtocolError(_OURS))
            return b""
        if said is None:
            return b""
        if said.sizes and self._outbox is not None:
            if self._slow:
                # While no output is kept a later size replaces an earlier one: a client can send them without end.
                self._size = said.sizes[-1]
            else:
                now = self._loop.time()
                for width, height in said.sizes:
                    self._outbox.resize(width, height, now)
        return b"".join(said.replies) if self.blocked and not self._torn else b""

    def from_upstream(self, view: memoryview) -> int:
        if self.blocked:
            return 0
        streams = self._streams
        size = len(view)
        if streams is not None:
            between = self._ahead > 0 or streams.at_boundary
            try:
                streams.from_upstream(view[self._ahead :] if self._ahead else view)
            except ProtocolError as error:
                self._unreadable(error)
            except Exception:
                self._say_fault()
                self._streams = None  # where the client stands is not known: it can't be told anything
                self._unreadable(ProtocolError(_OURS))
            else:
                size = self._look(streams, size, between)
        self._ahead = len(view) - size
        self.sent += size
        return size

    def _look(self, streams: Streams | ForwardedPorts, size: int, between: bool) -> int:
        """Keep what upstream has said; how many of the `size` bytes that the relay has may go on. between: whether the
        client, which has none of them, stands between two frames."""
        if self.demand is None:
            return size
        if streams.output:
            if self._outbox is None and self._closed_mode:
                self._ahead, self._torn = size, not between
                self._failed("there was output behind the end of the session")
                return 0
            self._keep_output(streams)
        if self._upload is None:
            return size
        if self._holds_end and streams.end_at is not None:
            self._settle()
            border = self._ahead + streams.end_at
            # Output that ends its stream may end the session too, and its first bytes have gone.
            self._torn = border < 0
            return max(border, 0)
        undecided = streams.undecided if self._holds_end else 0
        if self._slow and self._closed_mode:
            if streams.border is not None:
                self.blocked = True
                return self._ahead + streams.border
            self.blocked = streams.at_boundary or undecided > 0
        return size - undecided

    def _keep_output(self, streams: Streams | ForwardedPorts) -> None:
        outbox = self._outbox
        if outbox is None:
            return
        now = self._loop.time()
        for stderr, pieces in streams.output:
            if self._slow and not self._closed_mode:
                self._gap += sum(map(len, pieces))
            else:
                self._keep_gap(outbox, now)
                self._encoded += sum(map(len, pieces))
                outbox.output(stderr, pieces, now)

    def upstream_ended(self) -> bool:
        if not self._holds_end or self._upload is None:
            return True
        self._settle()
        return False

    def farewell(self, message: str) -> bytes | None:
        if self._streams is None or self._torn:
            return None
        status = Refusal(500, "session_ended", message).body().rstrip()
        return self._streams.farewell(status, f"k8sproxy: {message}", held=self._ahead > 0)

    # -- to the recorder

    def _write(self, data: bytes) -> None:
        upload = self._upload
        if upload is None:
            return
        upload.write(data)
        if upload.blocked and not self._slow:
            self._full()

    def _full(self) -> None:
        """The recorder is slower than the output: that waits from the next border on, or is left out."""
        self._slow = True
        if not self._closed_mode and not self._gaps:
            # Said once; how much is missing in the end is said with the end.
            self._registry.failed("slow", self._mode)
            self._warn("recording_gap", recorder=self.recorder)
        self._gaps += 1

    def _upload_drained(self) -> None:
        self._slow = False
        size, self._size = self._size, None
        if size is not None and self._outbox is not None:
            self._outbox.resize(*size, self._loop.time())
        if self._settling is None:
            self._go_on()

    def _go_on(self) -> None:
        if self.blocked:
            self.blocked = False
            self.drained()

    def _keep_gap(self, outbox: Outbox, now: float) -> None:
        if self._gap:
            lost, self._gap = self._gap, 0
            self.lost += lost
            outbox.gap(lost, "the recorder was too slow", now)

    def _header_due(self) -> None:
        self._timer = None
        outbox = self._outbox
        if outbox is not None and outbox.due is not None:
            # A loop's timer may come a little early by the loop's own clock, and there is no second one.
            outbox.deadline(max(self._loop.time(), outbox.due))

    def _settle(self) -> None:
        self.blocked = True
        if self._settling is None:
            self._settling = self._registry.run(self)

    async def settle(self) -> None:
        """Bring the recording to its end and see that the recorder has it; then the session's end may go on."""
        upload, outbox = self._upload, self._outbox
        if upload is None or outbox is None:
            return
        now = self._loop.time()
        self._keep_gap(outbox, now)
        outbox.ended(now)
        self._outbox = None
        if self._hole:
            self._failed(_OURS)
            return
        try:
            await upload.finish()
        except UploadError as error:
            self._failed(str(error))
        else:
            self._upload = None
            self._holds_end = False
            self._go_on()

    # -- what goes wrong

    @property
    def _mode(self) -> RecordingLevel:
        return self.demand.level if self.demand is not None else RecordingLevel.OPEN

    def _unreadable(self, error: ProtocolError) -> None:
        """Bytes that are not what they should be. Of a session that is not recorded nothing depends on them."""
        if self.demand is not None and self.recorded:
            self._failed(f"the session's bytes can't be read: {error.message}")
        elif self.facts.kind == "portforward":
            self._warn("ports_unreadable", why=error.message)
        self._streams = None

    def _say_fault(self) -> None:
        """Within an except clause."""
        _log.error("capture_faulty", session=self.facts.id, exc_info=True)

    def _capture_faulty(self) -> None:
        """A fault of ours in what is made of output, in the middle of whatever has asked for it."""
        self._say_fault()
        self._hole = True
        self._loop.call_soon(self._failed, _OURS)

    def _failed(self, why: str) -> None:
        """The recorder failed, or what is said can't be recorded."""
        if not self.recorded:
            return
        self.recorded = False
        upload, self._upload = self._upload, None
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None
        if upload is not None:
            upload.abort()
        self._registry.failed("failed", self._mode)
        self._warn("recording_failed", recorder=self.recorder, why=why, failure_mode=self._mode.value)
        self._slow = False
        if self._closed_mode:
            self._lost_words = f"this session must be recorded, and its recording failed: {why}"
            self.end("recorder_failed", self._lost_words)
        else:
            self._go_on()

    # -- the end

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.drained, self.ended = Tap.drained, Tap.ended
        try:
            if self._settling is None and self._upload is not None:
                if self.began:
                    self._settling = self._registry.run(self)
                else:
                    upload, self._upload = self._upload, None
                    upload.abort()
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
