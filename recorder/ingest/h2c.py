"""The wire's version 2: HTTP/2 by prior knowledge (RFC 9113, 3.3), many sessions on one connection.

    HEAD /v2/record   200, as a probe               POST /v2/record   200 at once, then a stream of JSON objects:
                                                    {"ack": N} as bytes get safe, {"error": ".."} and the end if not

Acks go out together (see `acks`). Flow control is the backpressure: what the store takes is
given back to the sender at once, and while the store is blocked nothing is. A store that has too much of all sessions
together is not even read for: windows are a promise to each connection, and hundreds of those together are more than
memory should be.

A body that ends with END_STREAM is a clean recording; a reset or a lost connection cuts it. After an error the stream
is ended and reset with NO_ERROR (8.1), which tells the sender to stop without making the answer void.

h2 keeps the protocol's state, and all frames pass through it but two kinds, which are nearly all of the bytes and of
the frames: DATA of a running session with neither padding nor END_STREAM, and the acks. `frames` tells
them from the others and bounds all of them. Such a frame costs a tenth of what h2's way through two state machines and
three copies does. h2's account of flow control stays true: what such a frame takes is booked in h2's own windows. A
frame that is not as it should be is left to h2, which has the right answers to what must not be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable
from typing import cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h2.stream
import structlog

from k8sproxy.common.errors import Refusal
from k8sproxy.common.formats.recorderapi import DECLINES_FIELD, ERROR_FIELD, USER_FIELD
from k8sproxy.common.heads import HEAD_TIMEOUT
from k8sproxy.common.tasks import Tasks
from recorder.ingest.acks import Acks
from recorder.ingest.admission import Door
from recorder.ingest.frames import MAX_FRAME, Frames, FramesError
from recorder.ingest.intake import Intake
from recorder.ingest.site import EVENT_CODES, IDLE_TIMEOUT, MAX_HEAD, IngestSite, declines
from recorder.ingest.turnaway import field_value

_log = structlog.get_logger(__name__)

# Bytes that a sender may send ahead on one stream: at 100 MB/s, what arrives in two commits.
STREAM_WINDOW = 1 << 20
# Bytes that a sender may send ahead on one connection, all streams together: 100 MB/s over 20 ms. More would only lie
# in the kernel's buffers when the disk is slower than that, and be acknowledged later.
CONNECTION_WINDOW = 2 << 20
# Streams of one connection.
MAX_STREAMS = 1000
# Bytes that a sender may leave unread: acks wait while it does not read, so these are answers to a flood of frames.
MAX_UNREAD = 1 << 20


class _Connection(h2.connection.H2Connection):
    # Streams that h2 remembers after their end (100 bytes each), of 65,536 by default.
    MAX_CLOSED_STREAMS = 1000


class _Stream:
    __slots__ = ("credit", "h2", "intake", "open", "plain", "said")

    def __init__(self, intake: Intake | None, h2_stream: h2.stream.H2Stream, *, plain: bool) -> None:
        self.intake = intake
        self.h2 = h2_stream
        self.plain = plain  # nobody but the session counts its bytes
        self.said = 0
        self.credit = 0
        self.open = True  # the sender's half


class H2Protocol(asyncio.Protocol):
    """One connection. closed: called when it is gone."""

    def __init__(self, site: IngestSite, door: Door, closed: Callable[[H2Protocol], None]) -> None:
        self._site = site
        self._door = door
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, _Stream] = {}
        self._acks = Acks(self._tell, lambda: len(self._streams))
        self._idle: asyncio.TimerHandle | None = None
        self._unread = False  # reading is paused, for the store
        self._blocked: dict[int, None] = {}
        self._unblock: asyncio.Task[None] | None = None
        self._tasks = Tasks()
        self._next: asyncio.Handle | None = None  # the next turn, while there are bytes for it
        self._going_away = False
        self._frames = Frames(self, site.budgets.of(door.holder, self._loop.time()))
        self._late: asyncio.TimerHandle | None = None  # when the end of a head has to be there
        self._asked = False  # there has been a request
        self._written: list[bytes] = []  # acks, as frames
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self._h2 = _Connection(config)
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                h2.settings.SettingCodes.MAX_FRAME_SIZE: MAX_FRAME,
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD,
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
            },
        )
        self._h2.max_inbound_frame_size = MAX_FRAME

    # -- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by their class
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - 65535)
        self._flush()
        self._watch_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol. Every session on it is cut."""
        self._transport = None
        for number in list(self._streams):
            self._drop(number)
        self._acks.close()
        for timer in (self._idle, self._next, self._late):
            if timer is not None:
                timer.cancel()
        self._tasks.cancel()
        self._door.close()
        self._closed(self)

    def pause_writing(self) -> None:
        """See asyncio.Protocol: acks wait, and become fewer."""
        self._acks.hold()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._acks.go_on()

    def eof_received(self) -> bool:
        """See asyncio.Protocol."""
        return False

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._next is not None:
            self._frames.hold(data)
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        """A turn."""
        if self._transport is None:
            return
        try:
            if self._frames.receive(data):
                self._transport.pause_reading()
                self._next = self._loop.call_soon(self._take_more)
        except (FramesError, h2.exceptions.ProtocolError) as error:
            self._refuse(str(error) if isinstance(error, FramesError) else type(error).__name__)
            self._close()
            return
        except Exception:
            _log.exception("h2_failed", peer=self._door.ip)
            self._close()
            return
        self._flush()
        if self._acks.held and self._transport.get_write_buffer_size() > MAX_UNREAD:
            self._refuse("too many answers that the sender does not read")
            self.abort()

    def _refuse(self, why: str) -> None:
        self._site.refused(Refusal(400, "http2", f"the connection was ended: {why}"), self._door)

    def _take_more(self) -> None:
        """The next turn."""
        self._next = None
        self._read_on()
        self._take(b"")

    # -- frames (see frames.Receiver)

    def books(self, number: int, size: int) -> bool:
        """Whether so much DATA without flags is some of a running session's body, and fits its windows."""
        stream = self._streams.get(number)
        if stream is None or not stream.plain or not stream.open:
            return False
        own, all_of_it = stream.h2._inbound_window_manager, self._h2._inbound_flow_control_window_manager
        if size > min(own.current_window_size, all_of_it.current_window_size):
            return False
        own.window_consumed(size)
        all_of_it.window_consumed(size)
        return True

    def body(self, number: int, data: bytes) -> None:
        """Some of what was booked."""
        self._data(number, data, len(data))

    def frame(self, data: bytes) -> None:
        """Any other frame, or the preface."""
        for event in self._h2.receive_data(data):
            self._event(event)

    def block_turned(self, begun: bool) -> None:
        """A head has begun, whose end must come in time; or has ended."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if begun:
            self._late = self._loop.call_later(HEAD_TIMEOUT, self._head_is_late)

    def _head_is_late(self) -> None:
        self._refuse(f"a head that did not end within {HEAD_TIMEOUT:g} s")
        self._close()

    def _event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                self._data(event.stream_id or 0, event.data or b"", event.flow_controlled_length or 0)
            case h2.events.RequestReceived():
                self._request(event)
            case h2.events.StreamEnded():
                stream = self._streams.get(event.stream_id or 0)
                if stream is not None:
                    stream.open = False
                    if stream.intake is not None:
                        stream.intake.end()
            case h2.events.StreamReset():
                self._drop(event.stream_id or 0)
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._acks.look()
            case _:
                pass

    # -- requests

    def _request(self, event: h2.events.RequestReceived) -> None:
        number = event.stream_id or 0
        fields = {bytes(name): bytes(value) for name, value in event.headers or ()}
        method, path = fields.get(b":method", b""), fields.get(b":path", b"").partition(b"?")[0]
        if path != b"/v2/record" or method not in (b"HEAD", b"POST"):
            self._respond(number, 404)
            return
        intake = None
        if method == b"POST":
            user = fields.get(USER_FIELD.encode(), b"").decode("ascii", "replace")
            intake = Intake(self._site, self._door, "v2", lambda: self._changed(number), user)
        stream = self._streams[number] = _Stream(
            intake, self._h2.streams[number], plain=intake is not None and b"content-length" not in fields
        )
        self._asked = True
        self._door.begin()
        self._watch_idle()
        self._tasks.start(self._admit(number, stream), f"admit stream {number}", failed=self._failed)

    def _failed(self, _: object, error: BaseException) -> None:
        _log.error("h2_failed", peer=self._door.ip, exc_info=error)
        self._close()

    async def _admit(self, number: int, stream: _Stream) -> None:
        try:
            source = await self._door.admit()
            if self._streams.get(number) is not stream or self._ending:
                return
            if stream.intake is None:
                self._site.check_willing()
            else:
                stream.intake.admit(source)
        except Refusal as refusal:
            self._site.refused(refusal, self._door)
            if self._streams.get(number) is stream and not self._ending:
                # The answer to HEAD has no body (RFC 9110, 9.3.2).
                self._respond(
                    number, refusal.status, refusal.message, declines(refusal), body=stream.intake is not None
                )
                self._flush()
            return
        head = [(b":status", b"200"), (b"asciicast-event-codes", EVENT_CODES.encode())]
        if stream.intake is None:
            self._h2.send_headers(number, head, end_stream=True)
            self._drop(number)
        else:
            self._h2.send_headers(number, [*head, (b"content-type", b"application/json")])
            credit, stream.credit = stream.credit, 0
            self._give_back(number, credit)
        self._flush()

    def _respond(self, number: int, status: int, message: str = "", declined: str = "", *, body: bool = False) -> None:
        fields = [(b":status", str(status).encode())]
        if message:
            fields.append((ERROR_FIELD.encode(), field_value(message).encode()))
        if declined:
            fields.append((DECLINES_FIELD.encode(), declined.encode()))
        said = json.dumps({"error": message}).encode() + b"\n" if body else b""
        try:
            self._h2.send_headers(number, fields, end_stream=not said)
            if said:
                self._h2.send_data(number, said[: self._h2.local_flow_control_window(number)], end_stream=True)
        except h2.exceptions.ProtocolError:
            pass  # it is closed already
        self._stop(number)

    def _stop(self, number: int) -> None:
        """Our half is ended: tell a sender that goes on to stop, and forget the stream."""
        with contextlib.suppress(h2.exceptions.ProtocolError):  # both halves have ended
            self._h2.reset_stream(number, h2.errors.ErrorCodes.NO_ERROR)
        self._drop(number)

    def _drop(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        self._acks.forget(number)
        self._blocked.pop(number, None)
        if stream is None:
            return
        if stream.intake is not None:
            stream.intake.close()
        self._give_back(0, stream.credit)
        stream.credit = 0
        self._door.end()
        self._watch_idle()

    # -- bodies

    def _data(self, number: int, data: bytes, length: int) -> None:
        stream = self._streams.get(number)
        if stream is None or stream.intake is None:
            self._give_back(number, length)
            return
        stream.intake.feed(data)
        if stream.intake.waits:  # `_admit` gives it back
            stream.credit += length
            return
        self._frames.earn(len(data))
        if stream.intake.blocked:
            stream.credit += length
            self._blocked[number] = None
            if stream.intake.crowded and not self._unread and self._transport is not None:
                self._unread = True
                self._transport.pause_reading()
            if self._unblock is None:
                self._unblock = self._tasks.start(self._wait_unblocked(), "wait for the store", failed=self._failed)
        else:
            self._give_back(number, length)

    async def _wait_unblocked(self) -> None:
        try:
            while self._blocked:
                number = next(iter(self._blocked))
                intake = self._streams[number].intake
                if intake is not None and intake.blocked:
                    await self._site.store.relieved()
                    if self._site.store.crowded:
                        continue  # nobody goes on, and this is asked after each commit
                    # Others may be let go while this one still waits.
                for other in list(self._blocked):
                    waiting = self._streams[other]
                    if waiting.intake is None or not waiting.intake.blocked:
                        del self._blocked[other]
                        credit, waiting.credit = waiting.credit, 0
                        self._give_back(other, credit)
                self._read_on()
                self._flush()
        finally:
            self._unblock = None
            self._read_on()

    def _crowded(self, number: int) -> bool:
        intake = self._streams[number].intake
        return intake is not None and intake.crowded

    def _read_on(self) -> None:
        if self._unread and not any(self._crowded(number) for number in self._blocked):
            self._unread = False
        if self._unread or self._next is not None or self._transport is None or self._transport.is_closing():
            return
        if not self._transport.is_reading():
            self._transport.resume_reading()

    def _give_back(self, number: int, length: int) -> None:
        if not length:
            return
        try:
            if number:
                self._h2.acknowledge_received_data(length, number)
            else:
                self._h2.increment_flow_control_window(length)
        except h2.exceptions.ProtocolError:
            pass  # the stream or the connection is closed

    # -- acks

    def _changed(self, number: int) -> None:
        if number in self._streams:
            self._acks.add(number)

    def _tell(self, numbers: Iterable[int]) -> None:
        if self._transport is None:
            return
        try:
            for number in numbers:
                stream = self._streams.get(number)
                if stream is not None and stream.intake is not None:
                    self._tell_of(number, stream, stream.intake)
            self._flush()
        except Exception:
            _log.exception("h2_failed", peer=self._door.ip)
            self._close()

    def _tell_of(self, number: int, stream: _Stream, intake: Intake) -> None:
        acked = intake.acked
        message, end = b"", False
        if acked > stream.said:
            message = b'{"ack":%d}\n' % acked
        if intake.error is not None:
            said = {"error": intake.error}
            if intake.declines:
                said["declines"] = intake.declines
            message += json.dumps(said).encode() + b"\n"
            end = True
        elif intake.over:
            end = True
        if not message and not end:
            return
        size = len(message)
        if min(stream.h2.outbound_flow_control_window, self._h2.outbound_flow_control_window) < size:
            self._acks.put_off(number)
            return
        stream.said = acked
        if not end:
            stream.h2.outbound_flow_control_window -= size
            self._h2.outbound_flow_control_window -= size
            self._written += (size.to_bytes(3, "big"), b"\0\0", number.to_bytes(4, "big"), message)
            return
        self._h2.send_data(number, message, end_stream=True)
        if stream.open:
            self._stop(number)
        else:
            self._drop(number)

    # -- the end

    @property
    def busy(self) -> bool:
        """Whether it has streams."""
        return bool(self._streams)

    @property
    def _ending(self) -> bool:
        """Whether nothing more can be said on it."""
        return self._transport is None or self._transport.is_closing()

    def drain(self) -> None:
        """Close once there are no streams; new ones are answered with 503 meanwhile. GOAWAY comes with the close only:
        more than one library takes it for the end of the streams that it spares (RFC 9113, 6.8)."""
        self._going_away = True
        if not self._streams:
            self._close()

    def cut(self, why: str) -> None:
        """End every session on it, with this error."""
        for number, stream in list(self._streams.items()):
            if stream.intake is not None:
                stream.intake.cut(why)
                self._acks.put_off(number)
        self._acks.now()
        self._close()

    def _flush(self) -> None:
        if self._transport is None:
            return
        data = self._h2.data_to_send()
        if self._written:  # behind the head of their answer
            data = b"".join((data, *self._written))
            self._written.clear()
        if data:
            self._transport.write(data)
        if self._going_away and not self._streams:
            self._close()

    def _close(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        try:
            self._h2.close_connection()
            data = self._h2.data_to_send()
            if data:
                self._transport.write(data)
        except h2.exceptions.ProtocolError:
            pass
        self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is not written yet."""
        if self._transport is not None:
            self._transport.abort()

    def _watch_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if not self._streams and self._transport is not None:
            self._idle = self._loop.call_later(IDLE_TIMEOUT if self._asked else HEAD_TIMEOUT, self._close)
