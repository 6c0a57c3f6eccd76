"""What the sessions of one HTTP/2 connection have to send, framed as DATA in their turns.

A session's output is megabytes a second in DATA frames, and each one sent by h2 passes its two state machines and is
copied three times (20 us for 16 KiB). Here a DATA frame is its nine bytes of header in front of memoryviews of what the
session wrote. h2's account of flow control stays true because what a frame takes is subtracted from the same two
numbers that h2 itself subtracts it from: `H2Connection.outbound_flow_control_window` and
`H2Stream.outbound_flow_control_window`; window updates and changed settings arrive there as ever. The last frame of a
body, with END_STREAM and no data, is h2's again, for the stream's state.

Flow control is fair: a turn takes from the streams that have something in their order, a limited amount each. A
recorder that gives all streams one connection window (Go's: 1 MiB, given back only as the streams are read) could be
brought to a halt by one session that it does not read. So while there are others, a stream with more bytes unacked
than a sixteenth of that window leaves the window's last quarter to them. Acks are the measure, not the stream's own
window: some recorders give windows back in large steps.
"""

from __future__ import annotations

from collections.abc import Callable

from h2.connection import H2Connection

from k8sproxy.recording.carriers.carrier import Piece, Wire
from k8sproxy.recording.carriers.stream import Stream
from k8sproxy.recording.upload import Upload

FRAME_HEADER = 9  # bytes (RFC 9113, 4.1)
MAX_WINDOW = 2**31 - 1  # RFC 9113, 6.9.1

# Bytes: one frame of ours, however much the recorder would take. Above this the header's cost is nothing any more.
_MAX_FRAME = 256 * 1024
# Bytes framed a turn, over all streams; and from one stream before the next has its turn. The kernel takes a few
# hundred KiB at a time (its send buffer), and what it does not take is no longer in an upload's own row.
_MAX_TURN = 512 * 1024
_MAX_SHARE = 256 * 1024


class Framing:
    """One connection's. streams: those that are open, by number. end: ends a stream's body by way of h2, and says
    whether h2 took that."""

    __slots__ = ("_end", "_h2", "_peak", "_ready", "_streams")

    def __init__(self, h2: H2Connection, streams: dict[int, Stream], end: Callable[[int], bool]) -> None:
        self._h2 = h2
        self._streams = streams
        self._end = end
        self._ready: list[Stream] = []
        self._peak = h2.outbound_flow_control_window

    @property
    def waits(self) -> bool:
        """Whether a stream waits for its turn."""
        return bool(self._ready)

    def clear(self) -> None:
        """Nothing is sent any more."""
        self._ready.clear()

    def put(self, stream: Stream) -> None:
        """A stream has something new in its row, or its end."""
        if not stream.queued:
            stream.queued = True
            self._ready.append(stream)

    def window_changed(self, number: int) -> None:
        """A stream may send more than before; 0: all may."""
        streams = tuple(self._streams.values()) if not number else (self._streams.get(number),)
        for stream in streams:
            if stream is not None and not stream.queued and stream.upload is not None and stream.upload.buffered:
                self.put(stream)

    def enlarge(self, number: int, increment: bytes) -> bool:
        """A WINDOW_UPDATE, which comes for every frame or two; whether that was all there is to say of it.

        What is wrong with it, or with its stream, is h2's business."""
        size = int.from_bytes(increment, "big")
        if len(increment) != 4 or not 0 < size <= MAX_WINDOW:
            return False
        if not number:
            if self._h2.outbound_flow_control_window + size > MAX_WINDOW:
                return False
            self._h2.outbound_flow_control_window += size
        else:
            stream = self._streams.get(number)
            if stream is None or stream.h2.closed or stream.h2.outbound_flow_control_window + size > MAX_WINDOW:
                return False
            stream.h2.outbound_flow_control_window += size
        self.window_changed(number)
        return True

    def flush(self, wire: Wire) -> None:
        """Frame and send what the streams have, as far as the windows and the socket go."""
        frame_most = min(self._h2.remote_settings.max_frame_size, _MAX_FRAME)
        while self._ready and not wire.stalled and not wire.closed:
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
                size += self._share(stream, upload, frame_most, pieces)
                if upload.ending and not upload.buffered:
                    stream.queued = False
                    if self._end(stream.number):
                        end = self._h2.data_to_send()
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

    def _share(self, stream: Stream, upload: Upload, frame_most: int, pieces: list[Piece]) -> int:
        """One stream's turn, as frames behind the pieces; how many bytes."""
        share = min(upload.buffered, _MAX_SHARE, self._allowance(stream))
        size = 0
        while share:
            pieces.append(b"")
            header_at = len(pieces) - 1
            taken = upload.take(min(share, frame_most), pieces)
            pieces[header_at] = taken.to_bytes(3, "big") + b"\0\0" + stream.number.to_bytes(4, "big")
            size += taken + FRAME_HEADER
            share -= taken
            self._h2.outbound_flow_control_window -= taken
            stream.h2.outbound_flow_control_window -= taken
        return size

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
