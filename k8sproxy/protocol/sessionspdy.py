"""A remotecommand session on SPDY/3.1: a stream for each type of channel, opened by the client.

The theory is remotecommand's. A stream keeps its type for the session's life, since one that was reset can still carry
output; so no more than one of each type is held.

The client alone says what a stream is for. Once its bytes can't be read (`client_unreadable`), no stream that it opens
is known any more, and output there is UNKNOWN.
"""

from __future__ import annotations

from collections import deque

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol import spdy
from k8sproxy.protocol.session import (
    ERROR,
    MAX_ERROR,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    UNKNOWN,
    Closing,
    ErrorData,
    Event,
    Hidden,
    Output,
    Ping,
    Resize,
    Stdin,
)
from k8sproxy.protocol.sizes import Sizes

_STREAM_TYPES = {b"stdin": STDIN, b"stdout": STDOUT, b"stderr": STDERR, b"error": ERROR, b"resize": RESIZE}
# draft 3, 2.6.3
_CANCEL = 5
# The statuses of RST_STREAM and of GOAWAY (2.6.3, 2.6.6) that mean something.
_LAST_RESET, _LAST_GOAWAY = 11, 2
# Pings of the client that upstream may still answer.
_MAX_PINGS = 64
# Those that upstream writes to.
_WRITTEN = (ERROR, STDOUT, STDERR)


class SpdySession:
    """The session on SPDY/3.1: the client opens a stream for each of its types, and upstream accepts it."""

    __slots__ = (
        "_accepted",
        "_clean",
        "_client",
        "_client_closed",
        "_closed",
        "_ended",
        "_errors",
        "_ids",
        "_last",
        "_ping",
        "_pings",
        "_sizes",
        "_types",
        "_upstream",
        "_version",
        "client_unreadable",
        "unreadable",
    )

    def __init__(self, subprotocol: str, tty: bool) -> None:
        self._client = spdy.FrameReader(ends=True, only=spdy.CLIENT_FRAMES)
        self._upstream = spdy.FrameReader()
        self._version = int(subprotocol[1]) if subprotocol[:1] == "v" else 1
        self._sizes = Sizes() if tty else None
        self._types: dict[int, int] = {}  # stream id -> STDIN to RESIZE; at most one of each
        self._ids: dict[int, int] = {}  # the other way round
        self._last = 0
        self._accepted: set[int] = set()  # the types whose SYN_REPLY came; spdystream drops DATA before it
        self._ended: set[int] = set()  # the types on which upstream sends no more
        self._client_closed = False
        self._clean = True  # whether those ended by FIN, or were cancelled
        self._closed = False
        self._errors = 0  # bytes on the error stream
        self._pings: deque[int] = deque(maxlen=_MAX_PINGS)  # the client's, that upstream has not answered
        self._ping = 0  # upstream's last: spdystream counts 2, 4, 6
        self.client_unreadable = False
        self.unreadable = False

    @property
    def work(self) -> int:
        sizes = self._sizes
        return self._client.work + self._upstream.work + (sizes.work if sizes is not None else 0)

    @property
    def client_run(self) -> int:
        client = self._client
        return 0 if self._types.get(client.stream) == RESIZE else client.data_left

    @property
    def upstream_run(self) -> int:
        return self._upstream.data_left

    @property
    def at_boundary(self) -> bool:
        return self._upstream.at_boundary

    @property
    def unfinished(self) -> int:
        return self._upstream.unfinished

    @property
    def undecided(self) -> int:
        upstream = self._upstream
        if upstream.data_left and self._types.get(upstream.stream) in (STDOUT, STDERR):
            return 0
        return upstream.unfinished

    def from_client(self, data: memoryview, events: list[Event]) -> None:
        if self._client_closed:
            return
        frames: list[spdy.Frame] = []
        fault: ProtocolError | None = None
        try:
            self._client.receive_data(data, frames)
        except ProtocolError as error:
            fault = error  # which stands behind the frames
        typed = 0
        for frame in frames:
            if isinstance(frame, spdy.Data):
                # What comes on a stream that is not open, or not for input, servers drop.
                kind = self._types.get(frame.stream)
                if kind == STDIN:
                    typed += len(frame.data)
                elif kind == RESIZE and self._sizes is not None:
                    if not self._sizes.stopped:
                        events += [Resize(*size) for size in self._sizes.feed(bytes(frame.data))]
                    if frame.fin:
                        self._sizes.stop()
            elif isinstance(frame, spdy.SynStream):
                self._open(frame)
            elif isinstance(frame, spdy.Ping):
                if frame.id & 1:
                    self._pings.append(frame.id)
                    events.append(Ping(spdy.ping_frame(frame.id)))
            elif isinstance(frame, spdy.Reset):
                # A stream that was reset is not read any more.
                if self._sizes is not None and self._types.get(frame.stream) == RESIZE:
                    self._sizes.stop()
            elif isinstance(
                frame, spdy.GoAway
            ):  # pragma: no branch  (the reader lets no other frame of a client through)
                self._client_closed = True
                events.append(Closing(frame.status == 0, frame.start))
                break
        if typed:
            events.append(Stdin(typed))
        if fault is not None:
            raise fault

    def _open(self, frame: spdy.SynStream) -> None:
        kind = _STREAM_TYPES.get(frame.headers.get(b"streamtype", b""))
        if kind is None or (kind == RESIZE and self._version < 3):
            raise ProtocolError("a stream of a type that the session's protocol does not know")
        if kind in self._ids:
            raise ProtocolError("a second stream of one type")
        if not frame.stream & 1 or frame.stream <= self._last:
            raise ProtocolError("a stream whose id is not the client's to give")
        self._last = frame.stream
        self._ids[kind] = frame.stream
        self._types[frame.stream] = kind
        if frame.fin and kind == RESIZE and self._sizes is not None:
            self._sizes.stop()

    def from_upstream(self, data: memoryview) -> list[Event]:
        events: list[Event] = []
        types = self._types
        for frame in self._upstream.receive_data(data):
            if isinstance(frame, spdy.Data):
                stream, view, fin, start = frame
                kind = types.get(stream)
                if view:
                    if kind in (STDOUT, STDERR):
                        events.append(Output(kind, view, start))
                    elif kind == ERROR and self._errors + len(view) <= MAX_ERROR:
                        self._errors += len(view)
                        events.append(ErrorData(view, start))
                    else:
                        events.append(Output(UNKNOWN, view, start))
                elif kind is None:
                    self._unexpected(stream.to_bytes(4, "big"), start, events)
                if fin:
                    self._end(kind, True, start, events)
            else:
                self._control(frame, events)
        return events

    def _control(self, frame: spdy.ControlFrame, events: list[Event]) -> None:
        """A frame without output. What Kubernetes' servers would not put there is told."""
        if isinstance(frame, spdy.Reply):
            kind = self._types.get(frame.stream)
            if frame.headers:
                events.append(Hidden(_text(frame.headers), frame.start))
            if kind is None:
                self._unexpected(frame.stream.to_bytes(4, "big"), frame.start, events)
            elif frame.opening:
                self._accepted.add(kind)
            if frame.fin:
                self._end(kind, True, frame.start, events)
        elif isinstance(frame, spdy.Reset):
            if frame.status > _LAST_RESET:
                events.append(Hidden(frame.status.to_bytes(4, "big"), frame.start))
            if frame.stream not in self._types:
                self._unexpected(frame.stream.to_bytes(4, "big"), frame.start, events)
            # connection.Close() in k8s.io/streaming cancels the streams that it has not closed.
            self._end(self._types.get(frame.stream), frame.status == _CANCEL, frame.start, events)
        elif isinstance(frame, spdy.GoAway):
            if frame.status > _LAST_GOAWAY:
                events.append(Hidden(frame.status.to_bytes(4, "big"), frame.start))
            if frame.last > self._last:
                self._unexpected(frame.last.to_bytes(4, "big"), frame.start, events)
            self._close(self._clean and frame.status == 0, frame.start, events)
        elif isinstance(frame, spdy.Ping):
            if not frame.id & 1 and frame.id == self._ping + 2:
                self._ping += 2
            elif frame.id in self._pings:
                self._pings.remove(frame.id)
            else:
                self._unexpected(frame.id.to_bytes(4, "big"), frame.start, events)
        elif isinstance(frame, spdy.SynStream):
            events.append(Hidden(_text(frame.headers), frame.start))
        else:
            events.append(Hidden(frame.kind.to_bytes(2, "big") + frame.payload, frame.start))

    def _unexpected(self, number: bytes, start: int, events: list[Event]) -> None:
        """A number that answers to none of the client's, as far as the client's are known."""
        if not self.client_unreadable:
            events.append(Hidden(number, start))

    def _end(self, kind: int | None, clean: bool, start: int, events: list[Event]) -> None:
        """Upstream sends no more on a stream; the session is over with the last of those that it writes to."""
        if kind not in _WRITTEN:
            return
        if kind == ERROR and kind not in self._ended and not self._errors:
            # Before v4 no word is what success says, and kubectl takes it so of v4 too.
            events.append(ErrorData(memoryview(b""), start))
        self._ended.add(kind)
        self._clean = self._clean and clean
        if ERROR in self._ended and all(kind in self._ended for kind in _WRITTEN if kind in self._ids):
            self._close(self._clean, start, events)

    def _close(self, clean: bool, start: int, events: list[Event]) -> None:
        if not self._closed:
            self._closed = True
            events.append(Closing(clean, start))

    def farewell(self, text: bytes, held: bool, early: bool, rest: int) -> bytes | None:
        error = self._ids.get(ERROR)
        if error is None or ERROR not in self._accepted:
            return None
        if not held and (self._closed or ERROR in self._ended or self._upstream.ending == error):
            return None
        streams = [self._ids[kind] for kind in (STDOUT, STDERR, ERROR) if kind in self._ids]
        accepted = [self._ids[kind] for kind in (STDOUT, STDERR, ERROR) if kind in self._accepted]
        completion = bytes(rest) if held else self._upstream.completion(accepted)
        if completion is None:
            return None
        # Until a stream is accepted, a client waits for that (30 s) before it reads the error.
        waiting = [stream for kind, stream in self._ids.items() if kind not in self._accepted]
        frames = [completion, *map(spdy.reply_frame, waiting), spdy.data_frame(error, text, fin=True)]
        # The first version's client ends with the output, whether or not it has read the error: leave that open.
        if self._version > 1:
            frames += [spdy.data_frame(stream, b"", fin=True) for stream in streams if stream != error]
            frames.append(spdy.goaway_frame(self._last))
        return b"".join(frames)


def _text(headers: dict[bytes, bytes]) -> bytes:
    return b"; ".join(name + b": " + value for name, value in headers.items())
