"""WebSocket frames (RFC 6455, 5), read beside the bytes that pass.

A `FrameReader` is given one direction's bytes as they come and tells what they hold: a `Piece` for every stretch of a
data frame's payload, as a slice of what it was given (nothing is copied, and what a client masked stays masked: the
piece carries the mask, `unmask` is for the few bytes that are looked at), and a `Control` for a whole ping, pong or
close, unmasked. It holds an unfinished header or control frame, at most 139 bytes, and no payload.

`work` counts what the reading has cost, in microseconds or thereabouts: two for a frame, or a piece of one.

Where readers differ a smuggler can hide, so whatever RFC 6455 forbids and somebody accepts is a ProtocolError: reserved
bits (no extension is ever negotiated: the proxy strips the field that would), reserved opcodes (golang.org/x/net takes
them for data), a mask on the wrong side, control frames that are long or in fragments, a continuation of nothing. A
length that is not in its shortest form is taken: it says the same to all.
"""

from __future__ import annotations

from typing import NamedTuple

from k8sproxy.common.errors import ProtocolError

CONTINUATION = 0
TEXT = 1
BINARY = 2
CLOSE = 8
PING = 9
PONG = 10

# The one close code that kubectl takes for a clean end (RFC 6455, 7.4.1; client-go's remotecommand/websocket.go).
NORMAL_CLOSURE = 1000

# RFC 6455, 5.5: a control frame's payload, bytes.
MAX_CONTROL = 125

_FIN = 0x80
_RESERVED = 0x70
_OPCODES = frozenset((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))
# First bytes of a message in one frame.
_WHOLE = frozenset((_FIN | TEXT, _FIN | BINARY))
# First bytes that a frame may begin with: control frames are whole (RFC 6455, 5.5).
_FIRST = frozenset((CONTINUATION, TEXT, BINARY, *(_FIN | opcode for opcode in _OPCODES)))


class Piece(NamedTuple):
    """A stretch of a data frame's payload; empty for a frame without any.

    data: a slice of what was given, good as long as that is; as it came, so masked where mask is four bytes. offset:
    where it begins in the frame's payload. opcode: TEXT, BINARY or CONTINUATION. fin: the frame ends its message. last:
    the piece ends its frame. start: where the frame's header began, an index in what was given; negative where that
    was in an earlier call.
    """

    data: "memoryview"  # noqa: UP037  (mypyc looks for a bare builtin among the names of this module)
    mask: bytes
    offset: int
    opcode: int
    fin: bool
    last: bool
    start: int


class Control(NamedTuple):
    """A whole control frame. opcode: CLOSE, PING or PONG. payload: unmasked, at most MAX_CONTROL bytes. start: as in
    Piece."""

    opcode: int
    payload: bytes
    start: int


class FrameReader:
    """Reads the frames of one direction. masked: whether they must be (a client's), or must not be (a server's).

    Behind a client's close frame nothing is read, as servers do.

    message_open: a message has begun and its last frame has not. message_size: bytes of payload of the last message
    begun, so far. work: see above; it only grows.
    """

    __slots__ = (
        "_control",
        "_ended",
        "_failure",
        "_head",
        "_left",
        "_length",
        "_mask",
        "_mask_bit",
        "_start",
        "fin",
        "message_open",
        "message_size",
        "opcode",
        "work",
    )

    def __init__(self, *, masked: bool) -> None:
        self.work = 0
        self._mask_bit = 0x80 if masked else 0
        self._failure: str | None = None
        self._ended = False
        self._head = b""  # an unfinished header
        self._control: bytearray | None = None  # a control frame's payload, while it comes in
        self._left = 0  # bytes of the frame's payload still to come
        self._length = 0  # the frame's payload, bytes
        self._mask = b""
        self._start = 0  # where the frame's header began, from the front of the present call's bytes
        self.opcode = CONTINUATION
        self.fin = True
        self.message_open = False
        self.message_size = 0

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end between two frames (which may be two fragments of one message)."""
        return not self._left and not self._head and self._control is None

    @property
    def unfinished(self) -> int:
        """Bytes so far of the frame that is not whole yet; 0 between two frames."""
        return 0 if self.at_boundary else -self._start

    @property
    def payload_left(self) -> int:
        """Bytes of an open data frame's payload still to come."""
        return self._left if self._control is None else 0

    @property
    def payload_begun(self) -> bool:
        """Whether part of a data frame's payload has come, and not all of it."""
        return 0 < self._left < self._length and self._control is None

    def receive_data(self, data: memoryview, into: list[Piece | Control] | None = None) -> list[Piece | Control]:
        """What the next bytes hold, in order. Raises ProtocolError, and again on every later call.

        into: a list that the frames are put into, so that those before a fault in the same bytes are known too.
        """
        if self._failure is not None:
            raise ProtocolError(self._failure)
        frames: list[Piece | Control] = [] if into is None else into
        try:
            self._read(data, frames)
        except ProtocolError as error:
            self._failure = error.message
            raise
        return frames

    def _read(self, data: memoryview, frames: list[Piece | Control]) -> None:
        if self._ended:
            return
        mask_bit = self._mask_bit
        size = len(data)
        position = 0
        while position < size:
            self.work += 2
            if not self._left and self._control is None:
                if size - position >= 8 and data[position] in _WHOLE and not self._head and not self.message_open:
                    # A message in one frame, as nearly all are, whose header is here: read at half the cost.
                    length = data[position + 1] ^ mask_bit
                    if length <= 126:
                        at = position + 2
                        if length == 126:
                            length = data[at] << 8 | data[at + 1]
                            at += 2
                        mask = b""
                        if mask_bit:
                            mask = bytes(data[at : at + 4])
                            at += 4
                        opcode = data[position] & 0x0F
                        self._start = position
                        self._mask = mask
                        self._length = length
                        self.opcode = opcode
                        self.fin = True
                        position = at + length
                        if position <= size:
                            frames.append(Piece(data[at:position], mask, 0, opcode, True, True, self._start))
                            self.message_size = length
                            continue
                        taken = size - at
                        self._left = length - taken
                        self.message_open = True
                        self.message_size = taken
                        if taken:
                            frames.append(Piece(data[at:], mask, 0, opcode, True, False, self._start))
                        break
                position = self._read_header(data, position)
                if self._head:
                    break
                if self._left and position == size:
                    break
            control = self._control
            end = position + self._left
            if end > size:
                end = size
            taken = end - position
            self._left -= taken
            if control is not None:
                control += data[position:end]
                if not self._left:
                    self._control = None
                    frames.append(Control(self.opcode, unmask(control, self._mask), self._start))
                    if mask_bit and self.opcode == CLOSE:
                        self._ended = True
                        break
            else:
                last = not self._left
                frames.append(
                    Piece(
                        data[position:end],
                        self._mask,
                        self._length - self._left - taken,
                        self.opcode,
                        self.fin,
                        last,
                        self._start,
                    )
                )
                self.message_size += taken
                if last and self.fin:
                    self.message_open = False
            position = end
        self._start -= size

    def _read_header(self, data: memoryview, position: int) -> int:
        """Take a frame's header, or keep what there is of it in _head; returns where its payload begins."""
        held = len(self._head)
        if not held:
            self._start = position
        # 14 bytes is the longest header: two, eight of length, four of mask.
        head = self._head + bytes(data[position : position + 14 - held])
        first = head[0]
        if first not in _FIRST:
            raise ProtocolError("a WebSocket frame with reserved bits, a reserved opcode, or a control frame in parts")
        if not first & 0x08 and (first & 0x0F == CONTINUATION) != self.message_open:
            raise ProtocolError("a WebSocket continuation of nothing, or a message inside a message")
        if len(head) < 2:
            self._head = head
            return len(data)
        second = head[1]
        if second & 0x80 != self._mask_bit:
            raise ProtocolError("a WebSocket frame that is masked on the wrong side, or not on the right one")
        length = second & 0x7F
        need = 2
        if length > MAX_CONTROL:
            if first & 0x08:
                raise ProtocolError("a WebSocket control frame that is too long")
            need = 4 if length == 126 else 10
        mask_at = need
        if self._mask_bit:
            need += 4
        if len(head) < need:
            self._head = head
            return len(data)
        if mask_at > 2:
            length = int.from_bytes(head[2:mask_at], "big")
            if length >> 63:
                raise ProtocolError("a WebSocket frame whose length has its highest bit set")
        self._head = b""
        self._mask = head[mask_at:need]
        self._begin(first & 0x0F, first & _FIN != 0, length)
        return position + need - held

    def _begin(self, opcode: int, fin: bool, length: int) -> None:
        self._left = length
        self._length = length
        if opcode & 0x08:
            # A message may be open; its `fin` stays as it is.
            self.opcode = opcode
            self._control = bytearray()
            return
        if opcode != CONTINUATION:
            self.message_open = True
            self.message_size = 0
        self.opcode = opcode
        self.fin = fin

    def completion(self, opening: bytes, fill: bytes, *, limit: int, quantum: int = 1) -> bytes | None:
        """The bytes that bring an unmasked direction to the end of its message. None where they can't be told.

        opening: one byte, what the message's payload begins with if none of it came yet; fill: one byte, the rest.
        limit: of what is missing of an unfinished frame, bytes. quantum: the payload behind the opening is brought to
        a multiple of this many bytes where a fragment has to be added. None too for an unfinished close frame.
        """
        opcode, fin, left = self.opcode, self.fin, self._left
        is_open, size = self.message_open, self.message_size
        out = bytearray()
        if self._head:
            opcode, fin = self._head[0] & 0x0F, self._head[0] & _FIN != 0
            if opcode in (TEXT, BINARY):
                is_open, size = True, 0
            # What is missing of the header is set to zero: the shortest frame that it can still be.
            head = bytearray(self._head)
            head += bytes(max(0, 2 - len(head)))
            head += bytes({126: 4, 127: 10}.get(head[1], 2) - len(head))
            left = int.from_bytes(head[2:], "big") if len(head) > 2 else head[1]
            if not opcode & 0x08:
                # kubectl ends at a message without a channel, before it has read the status.
                more = 0 if size or left else 1
                if fin:
                    more += (1 - size - left - more) % quantum
                left += more
                head[-1] += more
            out += head[len(self._head) :]
        elif not left:
            opcode = CONTINUATION
        if left > limit or opcode == CLOSE:
            return None
        if opcode & 0x08:
            out += bytes(left)
        else:
            out += _filling(left, size, opening, fill)
            size += left
            is_open = is_open and not fin
        if is_open:
            tail = _filling((1 - size) % quantum if size else 1, size, opening, fill)
            out += bytes((_FIN | CONTINUATION, len(tail))) + tail
        return bytes(out)


def _filling(count: int, size: int, opening: bytes, fill: bytes) -> bytes:
    if count and not size:
        return opening + fill * (count - 1)
    return fill * count


def unmask(data: bytes | bytearray | memoryview, mask: bytes, offset: int = 0) -> bytes:
    """The bytes that were masked (RFC 6455, 5.3), or a copy where mask is empty. offset: of data in the payload."""
    if not mask:
        return bytes(data)
    size = len(data)
    turn = offset & 3
    key = ((mask[turn:] + mask[:turn]) * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A whole frame as a server sends it: unmasked, its length in the shortest form."""
    first = opcode | (_FIN if fin else 0)
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 1 << 16:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload
