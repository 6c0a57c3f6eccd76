"""Whether the lines of a cast are events, told while its text goes by in pieces of any size. Pure.

    HEADER   the first line, which has been looked at already         -> BETWEEN at its line feed
    BETWEEN  behind a line feed: whole lines are read all at once      -> HEAD where a line has only begun
    HEAD     `[seconds,"c","` is not whole yet: a few bytes are held   -> TEXT, or BROKEN
    TEXT     inside the data: characters and escapes, checked and let go, as a line may have 4 MiB -> TAIL, or BROKEN
    TAIL     behind the data's last quote: blanks and one "]"          -> BROKEN where there is more
    BROKEN   it can't be an event any more                             -> BETWEEN at its line feed

What is decided is what `k8sproxy.common.formats.asciicast.read_event` decides of the line, however it is cut.
"""

from __future__ import annotations

import codecs
import enum
import re

import orjson

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.formats.asciicast import are_events, event_of, read_event

# Bytes before the data of an event: a number of some digits, a letter and blanks. Nobody's event has more.
_MOST_HEAD = 512

_HEAD = re.compile(
    rb"[ \t\r]*\[[ \t\r]*-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?[ \t\r]*,"
    rb'[ \t\r]*"(?:[A-Za-z]|\\u[0-9a-fA-F]{4})"[ \t\r]*,[ \t\r]*"'
)
# Whole characters and escapes of a JSON string. A surrogate's escape is whole with the other half behind it.
_WHOLE = re.compile(
    rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}'
    rb"|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))*+"
)
# What may become one of them yet.
_BEGUN = re.compile(rb"\\(?:u(?:[0-9a-fA-F]{0,3}|[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?))?")
_TAIL = re.compile(rb"[ \t\r]*(\]?)[ \t\r]*")
_BACKSLASH = 0x5C
# Bytes of a piece from which on a parser in C is asked first, as a pattern takes six times as long; and of its end,
# which is left to the pattern: whole escapes, the data's end and what follows it are in there.
_LONG = 1024
_END = 256
_SHORTEST_END = 16


class _At(enum.Enum):
    HEADER = enum.auto()
    BETWEEN = enum.auto()
    HEAD = enum.auto()
    TEXT = enum.auto()
    TAIL = enum.auto()
    BROKEN = enum.auto()


class Soundness:
    """See the top of this file. inside: what of a line stands before the first piece; None where the header does."""

    __slots__ = ("_at", "_held", "_resize", "_shut")

    def __init__(self, inside: bytes | None = None) -> None:
        self._at = _At.HEADER
        self._held = b""
        self._shut = False
        self._resize = False
        if inside is not None:
            self._at = _At.BETWEEN
            self._begin(inside)

    @property
    def torn(self) -> bool:
        """Whether what stands behind the last line feed is not an event: nothing, and the header alone, are well."""
        if self._at in (_At.HEADER, _At.BETWEEN):
            return False
        return self._at is not _At.TAIL or not self._shut

    def feed(self, text: bytes) -> bool:
        """The next piece; whether every line that ends in it is an event."""
        sound, start = True, 0
        if self._at is not _At.BETWEEN:
            feed = text.find(b"\n")
            self._go_on(text if feed < 0 else text[:feed])
            if feed < 0:
                return True
            sound = not self.torn
            self._at, start = _At.BETWEEN, feed + 1
        end = text.rfind(b"\n") + 1
        if end > start:
            sound = are_events(text[start:end]) and sound
            start = end
        self._begin(text[start:])
        return sound

    def _begin(self, piece: bytes) -> None:
        if piece:
            self._at, self._held, self._shut, self._resize = _At.HEAD, b"", False, False
            self._go_on(piece)

    def _go_on(self, piece: bytes) -> None:
        if self._at is _At.HEAD:
            piece, self._held = self._held + piece, b""
            head = _HEAD.match(piece)
            if head is None:
                self._held = piece[: _MOST_HEAD + 1]
                if len(self._held) > _MOST_HEAD:
                    self._at, self._held = _At.BROKEN, b""
                return
            event = event_of(head[0] + b'"]')
            if event is None:
                self._at = _At.BROKEN
                return
            self._resize = event[1] == "r"
            self._at, piece = _At.TEXT, piece[head.end() :]
        if self._at is _At.TEXT:
            piece = self._text(piece)
        if self._at is _At.TAIL:
            tail = _TAIL.fullmatch(piece)
            if tail is None or (self._shut and tail[1]):
                self._at = _At.BROKEN
            elif tail[1]:
                self._shut = True

    def _text(self, piece: bytes) -> bytes:
        """Of the data; what is left behind its end."""
        piece, self._held = self._held + piece, b""
        if self._resize:
            return self._size(piece)
        start = _known_whole(piece)
        end = _WHOLE.match(piece, start).end()  # type: ignore[union-attr]  # it matches nothing too
        closed = piece.startswith(b'"', end)
        try:
            whole = start + codecs.utf_8_decode(piece[start:end], "strict", closed)[1]
        except UnicodeDecodeError:
            self._at = _At.BROKEN
            return b""
        if closed:
            self._at = _At.TAIL
            return piece[end + 1 :]
        if end == len(piece) or _BEGUN.fullmatch(piece, end) is not None:
            self._held = piece[whole:]
        else:
            self._at = _At.BROKEN
        return b""

    def _size(self, piece: bytes) -> bytes:
        """Of a resize's data, which is short: all of it is held."""
        data, quote, rest = piece.partition(b'"')
        if not quote:
            self._held = data
            if len(data) > _MOST_HEAD:
                self._at, self._held = _At.BROKEN, b""
            return b""
        try:
            read_event(b'[0,"r","%b"]' % data, len(data) + 10)
        except ProtocolError:
            self._at = _At.BROKEN
            return b""
        self._at = _At.TAIL
        return rest


def _known_whole(piece: bytes) -> int:
    """How many bytes at the start of a piece of data are whole characters and escapes; 0 where that is not plain."""
    if len(piece) < _LONG:
        return 0
    cut = len(piece) - _SHORTEST_END
    escape = piece.rfind(b"\\", len(piece) - _END, cut)
    if escape >= 0:  # an escape begins with the first of several backslashes
        while escape > len(piece) - _END and piece[escape - 1] == _BACKSLASH:
            escape -= 1
        cut = escape
    else:
        while piece[cut] & 0xC0 == 0x80 and cut > len(piece) - _END:  # inside of a character
            cut -= 1
    try:
        orjson.loads(b"".join((b'"', memoryview(piece)[:cut], b'"')))
    except orjson.JSONDecodeError:
        return 0
    return cut
