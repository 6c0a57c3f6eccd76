"""The recorder's wire v2: many sessions on one HTTP/2 connection (RFC 9113), by prior knowledge.

h2 keeps the protocol's state, reads the recorder's frames and writes all of ours but one kind: DATA (framing).

The other way, acks are DATA frames of some twenty bytes, of which 500 busy sessions get thousands a second: those with
neither padding nor END_STREAM go to their upload without h2, at a tenth of its cost (100 us). Their windows are given
back here, in window updates of our own; h2 never sees these bytes and so never gives them back again.

Frames are given to h2 one at a time, since it closes its state machine at a GOAWAY, while RFC 9113, 6.8 lets the
streams up to the last one named go on: a recorder that is being replaced says so and lets its sessions end. So after a
GOAWAY the state is set back, and no new streams are opened.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from k8sproxy.common.formats.recorderapi import (
    DECLINES_FIELD,
    ERROR_FIELD,
    EVENT_CODES_FIELD,
    MAX_REFUSAL,
    USER_FIELD,
    V2_PATH,
    printable,
    read_declines,
    read_event_codes,
    read_refusal,
    user_value,
)
from k8sproxy.common.states import State as AnyState
from k8sproxy.common.states import table
from k8sproxy.recording.carriers.carrier import Wire
from k8sproxy.recording.carriers.errors import ConnectionLost, NotHTTP2, Rejected
from k8sproxy.recording.carriers.frames import Frames, Malformed
from k8sproxy.recording.carriers.framing import FRAME_HEADER, Framing
from k8sproxy.recording.carriers.stream import Stream
from k8sproxy.recording.refusals import Reason
from k8sproxy.recording.upload import Upload

# Sessions on one connection: what one connection's loss ends, and what shares one TCP congestion window.
MAX_STREAMS = 32
# Streams in a connection's life: h2 remembers every closed one (some 100 bytes, up to 65536 of them).
MAX_LIFE = 1000

# No pushes. The default windows (64 KiB) are more than enough for acks, which are all that the recorder sends.
_SETTINGS_OF_OURS: dict[SettingCodes, int] = {
    SettingCodes.ENABLE_PUSH: 0,
    SettingCodes.MAX_CONCURRENT_STREAMS: 0,  # of the recorder's own
    SettingCodes.INITIAL_WINDOW_SIZE: 65535,
    SettingCodes.MAX_FRAME_SIZE: 16384,
    SettingCodes.MAX_HEADER_LIST_SIZE: 16384,
}

# Our own fields are five constants and a percent-encoded name, in order and lower case: nothing to check. The
# recorder's are checked.
_CONFIGURATION = H2Configuration(
    client_side=True, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
)

_GOAWAY = 0x7
_SETTINGS = 0x4
_WINDOW_UPDATE = b"\0\0\x04\x08\0"  # the head's front: length, type, flags
_WINDOW_UPDATE_TYPE = 0x8
# Bytes read before a window is given back: a quarter of it.
_RETURN = 16 * 1024
# Bytes of our answers (to PINGs, to SETTINGS) that may wait for a recorder that asks and does not read: thousands.
_MAX_UNREAD = 64 * 1024
_FATAL = ("the connection to the recorder broke HTTP/2", "the recorder is closing its connections")


class State(AnyState):
    """Where a connection is.

    OPEN      sessions are opened on it                                          -> SUSPECT, GOING, LOST
    SUSPECT   it did not answer in time: those that it has go on, no others      -> GOING, LOST
    GOING     the recorder has said that it closes it (GOAWAY): the same         -> LOST
    LOST      it has ended                                                       -> (final)
    """

    OPEN = "open"
    SUSPECT = "suspect"
    GOING = "going"
    LOST = "lost"


OPEN, SUSPECT, GOING, LOST = State.OPEN, State.SUSPECT, State.GOING, State.LOST
table({OPEN: (SUSPECT, GOING, LOST), SUSPECT: (GOING, LOST), GOING: (LOST,), LOST: ()})


class Connection:
    """One HTTP/2 connection to a recorder. on_change: called when a stream has ended, or the connection.

    lost: why it has ended, None while it has not. usable: another stream may be opened here.
    """

    def __init__(self, sock: socket.socket, authority: str, on_change: Callable[[Connection], None]) -> None:
        self.state = OPEN
        self.lost: str | None = None
        self._authority = authority
        self._on_change = on_change
        self._frames = Frames()
        self._streams: dict[int, Stream] = {}
        self._opened = 0
        self._read = 0
        self._unread = 0  # bytes of control frames written since the kernel has not taken all
        self._h2 = H2Connection(_CONFIGURATION)
        self._h2.local_settings = Settings(client=True, initial_values=_SETTINGS_OF_OURS)
        self._h2.initiate_connection()
        self._framing = Framing(self._h2, self._streams, lambda number: self._guard(self._h2.end_stream, number))
        self._wire = Wire(sock, flush=self._flush, received=self._received, lost=self._on_lost)
        self._flush_control()

    # -- the owner's side

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    @property
    def usable(self) -> bool:
        return (
            self.state is OPEN
            and self._opened < MAX_LIFE
            and len(self._streams) < min(MAX_STREAMS, self._h2.remote_settings.max_concurrent_streams)
        )

    @property
    def retired(self) -> bool:
        """Whether it will take no stream again: to be closed with its last one."""
        return self.state is not OPEN or self._opened >= MAX_LIFE

    def suspect(self) -> None:
        """It did not answer in time: nothing new is sent here."""
        if self.state is OPEN:
            self.state = self.state.to(SUSPECT)

    async def probe(self) -> None:
        """HEAD /v2/record. Raises Rejected, NotHTTP2, ConnectionLost."""
        stream = self._request("HEAD", None)
        try:
            await stream.answer
        finally:
            self.reset(stream)

    async def submit(self, upload_for: Callable[[Stream], Upload], user: str = "") -> Upload:
        """POST /v2/record, and the upload once the response head says 200. user: whose share of the recorder's places
        it takes. Raises Rejected, ConnectionLost."""
        stream = self._request("POST", upload_for, user)
        try:
            await stream.answer
        except BaseException:
            if stream.upload is not None:
                stream.upload.abort()
            self.reset(stream)
            raise
        # Made when the head was read, since acks or an error may have come in the same breath.
        upload = stream.upload
        assert upload is not None  # noqa: S101  (for mypy: it was accepted)
        if upload.failure is not None:
            raise Rejected(upload.failure)
        return upload

    def close(self, why: str = "the connection was closed") -> None:
        """Ends the connection; uploads on it fail."""
        if self.lost is None:
            if not self._wire.closed and self._h2.state_machine.state is ConnectionState.CLIENT_OPEN:
                self._h2.close_connection()
                self._flush_control()
            self._on_lost(why, blame=False)

    # -- the streams' side

    def wake(self, stream: Stream) -> None:
        self._framing.put(stream)
        self._wire.wake()

    def reset(self, stream: Stream) -> None:
        """Forgets a stream, telling the recorder unless both ends have ended it."""
        if stream.reason is not None:
            stream.reason.cancel()
        if self._streams.pop(stream.number, None) is None:
            return
        if self.lost is None:
            if not stream.h2.closed:
                self._guard(self._h2.reset_stream, stream.number, ErrorCodes.CANCEL)
                self._flush_control()
            if len(self._streams) == 1:  # which need not leave anything to others any more
                self._framing.window_changed(0)
                self._wire.wake()
            self._on_change(self)

    # -- out

    def _request(self, method: str, upload_for: Callable[[Stream], Upload] | None, user: str = "") -> Stream:
        if self.lost is not None:
            raise ConnectionLost(self.lost)
        number = self._h2.get_next_available_stream_id()
        fields = [
            (":method", method),
            (":scheme", "http"),
            (":authority", self._authority),
            (":path", V2_PATH),
            ("user-agent", "k8sproxy"),
        ]
        if value := user_value(user):
            fields.append((USER_FIELD, value))
        try:
            self._h2.send_headers(number, fields, end_stream=upload_for is None)
        except H2Error as error:
            raise ConnectionLost(f"no stream can be opened ({type(error).__name__})") from None
        self._opened += 1
        stream = self._streams[number] = Stream(
            self, number, self._h2.streams[number], upload_for, f"{method} {V2_PATH}"
        )
        self._flush_control()
        return stream

    def _flush_control(self) -> None:
        """Sends what h2 has written."""
        data = self._h2.data_to_send()
        if data:
            self._send_control(data)

    def _send_control(self, data: bytes) -> None:
        self._unread = self._unread + len(data) if self._wire.stalled else 0
        self._wire.send((data,), len(data))
        if self._unread > _MAX_UNREAD:
            self._on_lost("the recorder asks for answers and does not read them")

    def _guard(self, step: Callable[..., None], *args: object) -> bool:
        """Runs a step of h2's; what it does not like costs the connection."""
        try:
            step(*args)
        except H2Error as error:
            self._on_lost(f"{_FATAL[0]} ({type(error).__name__})")
            return False
        return True

    # -- in

    def _flush(self) -> None:
        self._framing.flush(self._wire)

    def _received(self, data: bytes) -> None:
        try:
            data = self._frames.put(data)
        except Malformed as error:
            self._on_lost(str(error), error=NotHTTP2)
            return
        at = 0
        while len(data) - at >= FRAME_HEADER and self.lost is None:
            size = FRAME_HEADER + int.from_bytes(data[at : at + 3], "big")
            if size - FRAME_HEADER > self._h2.max_inbound_frame_size:
                self._on_lost(f"{_FATAL[0]} (a frame of {size} bytes)")
                return
            if len(data) - at < size:
                break
            number = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF  # without the reserved bit
            stream = self._streams.get(number)
            payload = at + FRAME_HEADER
            if data[at + 3 : at + 5] == b"\0\0" and stream is not None and stream.upload is not None:
                self._ack(stream, data[payload : at + size])
            elif not (data[at + 3] == _WINDOW_UPDATE_TYPE and self._framing.enlarge(number, data[payload : at + size])):
                self._frame(data[at : at + size], number)
            at += size
        self._frames.keep(data[at:])
        if self.lost is None:
            self._flush_control()
            if self._framing.waits:
                self._wire.wake()

    def _ack(self, stream: Stream, data: bytes) -> None:
        """A plain DATA frame of a session's response."""
        updates = b""
        self._read += len(data)
        stream.read += len(data)
        if self._read >= _RETURN:
            updates += _WINDOW_UPDATE + b"\0\0\0\0" + self._read.to_bytes(4, "big")
            self._read = 0
        if stream.read >= _RETURN:
            updates += _WINDOW_UPDATE + stream.number.to_bytes(4, "big") + stream.read.to_bytes(4, "big")
            stream.read = 0
        if updates:
            self._send_control(updates)
        if stream.upload is not None:
            stream.upload.receive_data(data)
            self._framing.window_changed(stream.number)  # fewer bytes unacked: see Framing._allowance

    def _frame(self, frame: bytes, number: int) -> None:
        try:
            events = self._h2.receive_data(frame)
        except H2Error as error:
            self._flush_control()  # h2's GOAWAY that says so
            self._on_lost(f"{_FATAL[0]} ({type(error).__name__})")
            return
        if frame[3] == _GOAWAY:
            self._h2.state_machine.state = ConnectionState.CLIENT_OPEN
        for event in events:
            self._event(event)
        if frame[3] in (0x8, _SETTINGS):  # WINDOW_UPDATE, SETTINGS: those who waited for a window have their turn
            self._framing.window_changed(number)

    def _event(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self._goaway(event.last_stream_id, read_refusal((event.additional_data or b"")[:MAX_REFUSAL]))
            return
        if not isinstance(event, DataReceived | ResponseReceived | StreamEnded | StreamReset):
            return
        number = event.stream_id
        if isinstance(event, DataReceived):
            # Given back at once: what is read is counted, not kept.
            length = event.flow_controlled_length
            if length:
                self._guard(self._h2.acknowledge_received_data, length, number or 0)
        stream = self._streams.get(number or 0)
        if stream is None:
            return
        if isinstance(event, ResponseReceived):
            fields = {str(name): str(value) for name, value in event.headers or ()}
            if stream.answer.done():
                return
            status = fields.get(":status", "")
            if status != "200":
                declines = read_declines(fields.get(DECLINES_FIELD), 429 if status == "429" else 0)
                self._refused(stream, status, fields.get(ERROR_FIELD), declines)
                return
            if stream.upload_for is not None:
                stream.upload = stream.upload_for(stream)
                stream.upload.event_codes = read_event_codes(fields.get(EVENT_CODES_FIELD))
            stream.answer.set_result(None)
        elif isinstance(event, DataReceived):
            if stream.reason is not None:
                stream.reason.take(event.data or b"")
            elif stream.upload is not None:
                stream.upload.receive_data(event.data or b"")  # padded, or the last
        elif isinstance(event, StreamEnded):
            if stream.reason is not None:
                stream.reason.done()
            elif stream.upload is not None:
                stream.upload.receive_end()
                self.reset(stream)
        else:
            self._streams.pop(stream.number, None)
            self._failed(stream, f"the recorder gave up the session ({_code(event.error_code)})", Rejected)
            self._on_change(self)

    def _refused(self, stream: Stream, status: str, field: str | None, declines: str) -> None:
        """A request was answered otherwise than by 200: what follows says why, where it does."""

        def given(words: str) -> None:
            if not stream.answer.done():
                stream.answer.set_exception(Rejected(words, declines))
                stream.answer.exception()  # nobody may be left to look at it

        stream.reason = Reason(printable(status), stream.question, field, given)

    def _goaway(self, last: int | None, why: str) -> None:
        if self.state is OPEN or self.state is SUSPECT:
            self.state = self.state.to(GOING)
        for stream in tuple(self._streams.values()):
            if stream.number > (last or 0):
                self._streams.pop(stream.number, None)
                self._failed(stream, f"{_FATAL[1]}: {why}" if why else _FATAL[1], ConnectionLost)
        self._on_change(self)

    def _failed(self, stream: Stream, why: str, error: type[Exception], *, blame: bool = True) -> None:
        if stream.reason is not None:
            stream.reason.done()
        if not stream.answer.done():
            stream.answer.set_exception(error(why))
            stream.answer.exception()  # nobody may be left to look at it
        if stream.upload is not None:
            stream.upload.fail(why, blame=blame)

    def _on_lost(self, why: str, *, error: type[Exception] = ConnectionLost, blame: bool = True) -> None:
        if self.lost is not None:
            return
        self.state = self.state.to(LOST)
        self.lost = why
        self._wire.close()
        self._framing.clear()
        if not self._frames.heard and blame:
            error = NotHTTP2
        streams = tuple(self._streams.values())
        self._streams.clear()
        for stream in streams:
            self._failed(stream, why, error, blame=blame)
        self._on_change(self)


def _code(code: object) -> str:
    return code.name if isinstance(code, ErrorCodes) else f"error {code}"
