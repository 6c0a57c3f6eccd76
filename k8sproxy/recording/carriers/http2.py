"""The recorder's wire v2: many sessions on one HTTP/2 connection (RFC 9113), by prior knowledge.

h2 keeps the protocol's state, reads the recorder's frames and writes all of ours but one kind: DATA. A session's output
is megabytes a second in DATA frames, and each one sent by h2 passes its two state machines and is copied three times
(20 us for 16 KiB). Here a DATA frame is its nine bytes of header in front of memoryviews of what the session wrote.
h2's account of flow control stays true because what a frame takes is subtracted from the same two numbers that h2
itself subtracts it from: `H2Connection.outbound_flow_control_window` and `H2Stream.outbound_flow_control_window`;
window updates and changed settings arrive there as ever. The last frame of a body, with END_STREAM and no data, is
h2's again, for the stream's state.

The other way, acks are DATA frames of some twenty bytes, of which 500 busy sessions get thousands a second: those with
neither padding nor END_STREAM go to their upload without h2, at a tenth of its cost (100 us). Their windows are given
back here, in window updates of our own; h2 never sees these bytes and so never gives them back again.

Frames are given to h2 one at a time, since it closes its state machine at a GOAWAY, while RFC 9113, 6.8 lets the
streams up to the last one named go on: a recorder that is being replaced says so and lets its sessions end. So after a
GOAWAY the state is set back, and no new streams are opened.

Flow control is fair: a turn takes from the streams that have something in their order, a limited amount each. A
recorder that gives all streams one connection window (Go's: 1 MiB, given back only as the streams are read) could be
brought to a halt by one session that it does not read. So while there are others, a stream with more bytes unacked
than a sixteenth of that window leaves the window's last quarter to them. Acks are the measure, not the stream's own
window: some recorders give windows back in large steps.
"""

from __future__ import annotations

import asyncio
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
from h2.stream import H2Stream

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
from k8sproxy.recording.carriers.carrier import Piece, Wire
from k8sproxy.recording.refusals import Reason
from k8sproxy.recording.upload import Upload

# Sessions on one connection: what one connection's loss ends, and what shares one TCP congestion window.
MAX_STREAMS = 32
# Streams in a connection's life: h2 remembers every closed one (some 100 bytes, up to 65536 of them).
MAX_LIFE = 1000
# Bytes: one frame of ours, however much the recorder would take. Above this the header's cost is nothing any more.
_MAX_FRAME = 256 * 1024
# Bytes framed a turn, over all streams; and from one stream before the next has its turn. The kernel takes a few
# hundred KiB at a time (its send buffer), and what it does not take is no longer in an upload's own row.
_MAX_TURN = 512 * 1024
_MAX_SHARE = 256 * 1024

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
_MAX_WINDOW = 2**31 - 1  # RFC 9113, 6.9.1
_HEADER_SIZE = 9
# Bytes read before a window is given back: a quarter of it.
_RETURN = 16 * 1024
# Bytes of our answers (to PINGs, to SETTINGS) that may wait for a recorder that asks and does not read: thousands.
_MAX_UNREAD = 64 * 1024
_FATAL = ("the connection to the recorder broke HTTP/2", "the recorder is closing its connections")


class ConnectionLost(Exception):
    """The connection ended, or can take no more streams, before this request was answered."""


class NotHTTP2(ConnectionLost):
    """The other end does not speak HTTP/2: it answered otherwise, or closed the connection before it said a word."""


class Rejected(Exception):
    """The recorder answered, and not with 200. declines: see recorderapi; "" where the recorder may be to blame."""

    def __init__(self, why: str, declines: str = "") -> None:
        super().__init__(why, declines)
        self.declines = declines

    def __str__(self) -> str:
        return str(self.args[0])


class Stream:
    """A request on a connection, later an upload's carrier. answer: once the recorder has accepted it, else Rejected
    with its reason."""

    __slots__ = (
        "_connection",
        "answer",
        "h2",
        "number",
        "question",
        "queued",
        "read",
        "reason",
        "upload",
        "upload_for",
    )

    def __init__(
        self,
        connection: Connection,
        number: int,
        h2_stream: H2Stream,
        upload_for: Callable[[Stream], Upload] | None,
        question: str,
    ) -> None:
        self._connection = connection
        self.question = question  # method and path
        self.reason: Reason | None = None  # it was refused, and why is being read
        self.number = number
        self.h2 = h2_stream
        self.upload_for = upload_for
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queued = False
        self.read = 0  # bytes whose window is not given back yet
        self.upload: Upload | None = None

    def wake(self) -> None:
        self._connection.wake(self)

    def reset(self) -> None:
        self._connection.reset(self)


class Connection:
    """One HTTP/2 connection to a recorder. on_change: called when a stream has ended, or the connection.

    usable: another stream may be opened here.
    """

    def __init__(self, sock: socket.socket, authority: str, on_change: Callable[[Connection], None]) -> None:
        self.lost: str | None = None
        self.suspect = False  # it did not answer in time: nothing new is sent here
        self._authority = authority
        self._on_change = on_change
        self._going = False  # GOAWAY was received
        self._heard = False  # the first frame, or nothing yet
        self._held = b""
        self._streams: dict[int, Stream] = {}
        self._ready: list[Stream] = []
        self._opened = 0
        self._read = 0
        self._unread = 0  # bytes of control frames written since the kernel has not taken all
        self._h2 = H2Connection(_CONFIGURATION)
        self._h2.local_settings = Settings(client=True, initial_values=_SETTINGS_OF_OURS)
        self._h2.initiate_connection()
        self._peak = self._h2.outbound_flow_control_window
        self._wire = Wire(sock, flush=self._flush, received=self._received, lost=self._on_lost)
        self._flush_control()

    # -- the owner's side

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    @property
    def usable(self) -> bool:
        return (
            self.lost is None
            and not self._going
            and not self.suspect
            and self._opened < MAX_LIFE
            and len(self._streams) < min(MAX_STREAMS, self._h2.remote_settings.max_concurrent_streams)
        )

    @property
    def retired(self) -> bool:
        """Whether it will take no stream again: to be closed with its last one."""
        return self.lost is not None or self._going or self.suspect or self._opened >= MAX_LIFE

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
        if not stream.queued:
            stream.queued = True
            self._ready.append(stream)
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
                self._window_changed(0)
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

    def _flush(self) -> None:
        """Frames what the streams have, as far as the windows and the socket go."""
        wire = self._wire
        connection = self._h2
        frame_most = min(connection.remote_settings.max_frame_size, _MAX_FRAME)
        while self._ready and not wire.stalled and self.lost is None:
            pieces: list[Piece] = []
            size = 0
            waiting: list[Stream] = []
            ready, self._ready = self._ready, []
            for at, stream in enumerate(ready):
                if size >= _MAX_TURN:
                    waiting.extend(ready[at:])
                    break
                upload = stream.upload
                if upload is None or stream.number not in self._streams:
                    stream.queued = False
                    continue
                share = min(upload.buffered, _MAX_SHARE, self._allowance(stream))
                while share:
                    most = min(share, frame_most)
                    pieces.append(b"")
                    header_at = len(pieces) - 1
                    taken = upload.take(most, pieces)
                    pieces[header_at] = taken.to_bytes(3, "big") + b"\0\0" + stream.number.to_bytes(4, "big")
                    size += taken + _HEADER_SIZE
                    share -= taken
                    connection.outbound_flow_control_window -= taken
                    stream.h2.outbound_flow_control_window -= taken
                if upload.ending and not upload.buffered:
                    stream.queued = False
                    if self._guard(connection.end_stream, stream.number):
                        end = connection.data_to_send()
                        pieces.append(end)
                        size += len(end)
                elif upload.buffered and self._allowance(stream):
                    waiting.append(stream)
                else:
                    # Nothing left, or no window: then its update wakes it.
                    stream.queued = False
            self._ready = waiting + self._ready
            if not size:
                break
            wire.send(pieces, size)

    def _allowance(self, stream: Stream) -> int:
        """Bytes that this stream may send now."""
        connection = self._h2.outbound_flow_control_window
        own = stream.h2.outbound_flow_control_window
        if connection > self._peak:
            self._peak = connection
        if len(self._streams) > 1 and stream.upload is not None:
            fair = self._peak // 16 - stream.upload.unacked
            connection = max(connection - self._peak // 4, min(connection, fair))
        return max(0, min(connection, own))

    def _guard(self, step: Callable[..., None], *args: object) -> bool:
        """Runs a step of h2's; what it does not like costs the connection."""
        try:
            step(*args)
        except H2Error as error:
            self._on_lost(f"{_FATAL[0]} ({type(error).__name__})")
            return False
        return True

    # -- in

    def _received(self, data: bytes) -> None:
        data = self._held + data if self._held else data
        if not self._heard and not self._first(data):
            return
        at = 0
        while len(data) - at >= _HEADER_SIZE and self.lost is None:
            size = _HEADER_SIZE + int.from_bytes(data[at : at + 3], "big")
            if size - _HEADER_SIZE > self._h2.max_inbound_frame_size:
                self._on_lost(f"{_FATAL[0]} (a frame of {size} bytes)")
                return
            if len(data) - at < size:
                break
            number = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF  # without the reserved bit
            stream = self._streams.get(number)
            if data[at + 3 : at + 5] == b"\0\0" and stream is not None and stream.upload is not None:
                self._ack(stream, data[at + _HEADER_SIZE : at + size])
            elif data[at + 3] == _WINDOW_UPDATE_TYPE and self._enlarge(number, data[at + _HEADER_SIZE : at + size]):
                pass
            else:
                self._frame(data[at : at + size], number)
            at += size
        self._held = data[at:]
        if self.lost is None:
            self._flush_control()
            if self._ready:
                self._wire.wake()

    def _first(self, data: bytes) -> bool:
        """Whether HTTP/2 it is: the first frame of an HTTP/2 server is SETTINGS (RFC 9113, 3.4)."""
        if len(data) < _HEADER_SIZE:
            self._held = data
            return False
        if data[3] != _SETTINGS or data[5:9] != b"\0\0\0\0":
            line = data.split(b"\r\n", 1)[0][:60]
            self._on_lost(
                f"it answered {line.decode('latin-1')!r}"
                if data.startswith(b"HTTP/1.")
                else "it does not speak HTTP/2",
                error=NotHTTP2,
            )
            return False
        self._heard = True
        return True

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
            self._window_changed(stream.number)  # fewer bytes unacked: see _allowance

    def _enlarge(self, number: int, increment: bytes) -> bool:
        """A WINDOW_UPDATE, which comes for every frame or two; whether that was all there is to say of it.

        What is wrong with it, or with its stream, is h2's business."""
        size = int.from_bytes(increment, "big")
        if len(increment) != 4 or not 0 < size <= _MAX_WINDOW:
            return False
        if not number:
            if self._h2.outbound_flow_control_window + size > _MAX_WINDOW:
                return False
            self._h2.outbound_flow_control_window += size
        else:
            stream = self._streams.get(number)
            if stream is None or stream.h2.closed or stream.h2.outbound_flow_control_window + size > _MAX_WINDOW:
                return False
            stream.h2.outbound_flow_control_window += size
        self._window_changed(number)
        return True

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
            self._window_changed(number)

    def _window_changed(self, number: int) -> None:
        streams = tuple(self._streams.values()) if not number else (self._streams.get(number),)
        for stream in streams:
            if stream is not None and not stream.queued and stream.upload is not None and stream.upload.buffered:
                stream.queued = True
                self._ready.append(stream)

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
        self._going = True
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
        self.lost = why
        self._wire.close()
        self._ready.clear()
        if not self._heard and blame:
            error = NotHTTP2
        streams, self._streams = tuple(self._streams.values()), {}
        for stream in streams:
            self._failed(stream, why, error, blame=blame)
        self._on_change(self)


def _code(code: object) -> str:
    return code.name if isinstance(code, ErrorCodes) else f"error {code}"
