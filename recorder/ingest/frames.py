"""The frames of a connection of HTTP/2, cut out of its bytes, priced and bounded before anything of them is kept.

A frame goes on whole, but for the plain ones: DATA of a running session with neither padding nor END_STREAM, which are
nearly all of the bytes. Those go to their session in the pieces in which they are read, so a frame is never put
together. However cheap its frames are, a connection has its turn of the loop, and then others have theirs.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from k8sproxy.common.states import State, table
from recorder.ingest.budgets import EARN, REQUEST, Budget, of_connection
from recorder.ingest.site import MAX_HEAD

# Bytes of a frame. Larger ones would be held here until they are whole.
MAX_FRAME = 128 << 10
# Frames of SETTINGS in a connection's life, and settings in one: there are 7 kinds, and h2 remembers every number that
# it is told, known or not (700 bytes each, of 65,536).
MAX_SETTINGS = 32
MAX_SETTINGS_SIZE = 16 * 6
# What a connection may do in one turn of the loop: 1 is a plain frame of a body (measured: 5 us with one
# event in it), and DEAR is any other (7 us for a window update, 10 for a ping, 125 for a request with its session).
TURN = 1000
DEAR = 50

_HEADER_SIZE = 9
_DATA, _HEADERS, _SETTINGS, _CONTINUATION = 0x0, 0x1, 0x4, 0x9
_ACK, _END_HEADERS = 0x1, 0x4
_PREFACE_SIZE = 24


class FramesError(Exception):
    """What the connection has to be ended for; the message says why."""


class At(State):
    """What the next byte of a connection is part of.

    PREFACE     the preface, with which it begins (RFC 9113, 3.4)                     -> FRAME
    FRAME       a frame, which is held until it is whole, unless it is a plain one    -> BODY, BLOCK
    BODY        the body of a plain frame                                             -> FRAME
    BLOCK       a frame that goes on with a block of fields; no other may stand here  -> FRAME
    """

    PREFACE = "preface"
    FRAME = "frame"
    BODY = "body"
    BLOCK = "block"


table({At.PREFACE: (At.FRAME,), At.FRAME: (At.BODY, At.BLOCK), At.BODY: (At.FRAME,), At.BLOCK: (At.FRAME,)})

# Looking up a member of an Enum is slow in Python 3.11.
_PREFACE, _FRAME, _BODY, _BLOCK = At.PREFACE, At.FRAME, At.BODY, At.BLOCK


class Receiver(Protocol):
    """Whose frames they are."""

    def books(self, number: int, size: int) -> bool:
        """Whether DATA without flags, of so many bytes on this stream, is plain. Then it has been booked, and its body
        comes next."""

    def body(self, number: int, data: bytes) -> None:
        """A piece of a plain frame's body."""

    def frame(self, data: bytes) -> None:
        """The preface, or a whole frame."""

    def block_turned(self, begun: bool) -> None:
        """A block of fields has begun and is not whole yet, or has ended."""


class Frames:
    """One connection's. sender: the budget of all of its sender's connections."""

    __slots__ = (
        "_at", "_block", "_budget", "_held", "_loop", "_missing", "_number", "_receiver", "_sender", "_settings",
        "_turn", "_wanted",
    )  # fmt: skip

    def __init__(self, receiver: Receiver, sender: Budget) -> None:
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._budget = of_connection(self._loop.time())
        self._sender = sender
        self._at = _PREFACE
        self._turn = 0  # what this turn has cost
        self._held = bytearray()  # of a frame that is not whole, or of what the next turn is for
        self._wanted = _PREFACE_SIZE  # bytes that there must be to go on
        self._number = 0  # the stream of a plain frame of which
        self._missing = 0  # bytes are still to come
        self._block = 0  # bytes of a block of fields
        self._settings = 0

    def _move(self, at: At) -> None:
        self._at = self._at.to(at)

    def earn(self, size: int) -> None:
        """A session has got so many bytes."""
        self._budget.earn(size / EARN)
        self._sender.earn(size / EARN)

    def hold(self, data: bytes) -> None:
        """Bytes for the next turn."""
        self._held += data

    def receive(self, data: bytes) -> bool:
        """One turn: cut what is held and these bytes into frames. Whether there is more for another turn. Raises
        FramesError."""
        self._turn = 0
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                return False
            data = bytes(self._held)
            self._held.clear()
        at, end = 0, len(data)
        while at < end:
            if self._turn >= TURN:
                self._held += data[at:]
                self._wanted = 0
                return True
            if self._at is _BODY:
                size = min(self._missing, end - at)
                self._missing -= size
                self._turn += 1
                if not self._missing:
                    self._move(_FRAME)
                self._receiver.body(self._number, data if size == end else data[at : at + size])
                at += size
                continue
            if self._at is _PREFACE:
                size = _PREFACE_SIZE
            elif end - at < _HEADER_SIZE:
                size = _HEADER_SIZE
            else:
                size = _HEADER_SIZE + int.from_bytes(data[at : at + 3], "big")
                if self._is_plain(data, at, size - _HEADER_SIZE):
                    at += _HEADER_SIZE
                    continue
                self._check_length(data[at + 3], size - _HEADER_SIZE)
            if end - at < size:
                self._held += data[at:]
                self._wanted = size
                return False
            if self._at is _PREFACE:
                self._move(_FRAME)
            else:
                self._admit(data[at + 3], data[at + 4], size - _HEADER_SIZE)
            self._receiver.frame(data[at : at + size])
            at += size
        return False

    def _is_plain(self, data: bytes, at: int, size: int) -> bool:
        if data[at + 3] != _DATA or data[at + 4] or not size or self._at is _BLOCK:
            return False
        number = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF  # without the reserved bit
        if not self._receiver.books(number, size):
            return False
        self._move(_BODY)
        self._number, self._missing = number, size
        return True

    def _check_length(self, kind: int, size: int) -> None:
        """Before any of a frame is kept. Raises FramesError."""
        if kind == _DATA:
            if size > MAX_FRAME:
                raise FramesError("an overlong frame")
            return
        if kind == _SETTINGS and size > MAX_SETTINGS_SIZE:
            raise FramesError(f"a frame of more than {MAX_SETTINGS_SIZE // 6} settings")
        if size + (self._block if kind == _CONTINUATION else 0) > MAX_HEAD:
            is_head = kind in (_HEADERS, _CONTINUATION)
            raise FramesError(f"a head of more than {MAX_HEAD} bytes" if is_head else "an overlong frame")

    def _admit(self, kind: int, flags: int, size: int) -> None:
        """Count a whole frame that is not a session's plain bytes. Raises FramesError where it may not come."""
        self._turn += DEAR
        cost, now = 1 + (REQUEST if kind == _HEADERS else 0), self._loop.time()
        if not self._budget.spend(cost, now):
            raise FramesError("more frames without data than a connection may send")
        if not self._sender.spend(cost, now):
            raise FramesError("more frames without data than a sender may send on all of its connections")
        if kind == _SETTINGS and not flags & _ACK:
            self._settings += 1
            if self._settings > MAX_SETTINGS:
                raise FramesError(f"more than {MAX_SETTINGS} frames of settings")
        if kind in (_HEADERS, _CONTINUATION):
            self._block = size + (self._block if kind == _CONTINUATION else 0)
            ends = bool(flags & _END_HEADERS)
            if ends is (self._at is _BLOCK):
                self._move(_FRAME if ends else _BLOCK)
                self._receiver.block_turned(not ends)
