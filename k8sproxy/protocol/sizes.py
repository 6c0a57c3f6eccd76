"""Terminal sizes as Go reads them from the client's stream of JSON values.

The kubelet and the API server decode {"Width": uint16, "Height": uint16} with one json.Decoder for the whole session,
and stop reading sizes for good at the first error (handleResizeEvents in cri-streaming and in k8s.io/apiserver). The
session goes on without them. `Sizes` gives the sizes that such a decoder gives, and stops where it stops:

    names       in any case, escapes included; the last of several counts; unknown names are passed over
    numbers     decimal digits alone, up to 65535: 80.0, 1e2, -0 and "80" are errors, null changes nothing
    values      between them blanks or nothing; null is passed over; every other value that is not an object is an error
    syntax      as Go's scanner has it: bytes that are not UTF-8 may stand in strings, and 10,000 levels of nesting

A decoder that has met an error of type would read on to the end of that value before it stops. Nothing that it would
still read is a size, so `Sizes` stops at once. The size of a value is not bounded in Go, and so not here: of a name 36
bytes are kept and of a number five digits, and of nested values one byte for each level.

Oracle: tests/protocol/sizes.json has inputs with what Go answered (tests/protocol/gosizes/main.go makes it).
"""

from __future__ import annotations

import re

# encoding/json's maxNestingDepth.
MAX_DEPTH = 10_000
# Bytes of a name that are kept: six escapes \uXXXX of six characters each, "height"; a longer one is neither name.
_MAX_NAME = 36
_MAX_UINT16 = 0xFFFF

# Sizes as clients write them, and nothing else between them: read at once. Empty objects say nothing, many at a time.
_USUAL = re.compile(
    rb'[ \t\r\n]*+(?:\{[ \t]*+"[Ww]idth"[ \t]*+:[ \t]*+(0|[1-9][0-9]{0,4}+)[ \t]*+,[ \t]*+"[Hh]eight"[ \t]*+:[ \t]*+'
    rb"(0|[1-9][0-9]{0,4}+)[ \t]*+\}|(?:\{[ \t\r\n]*+\}[ \t\r\n]*+)++)"
)
_BLANK = frozenset(b" \t\r\n")
_BLANKS = re.compile(rb"[ \t\r\n]*+")
# What may follow within a string without a look at each byte.
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*+')
_DIGITS = re.compile(rb"[0-9]*+")
_ESCAPED = frozenset(b'bfnrt\\/"')
_HEX = frozenset(b"0123456789abcdefABCDEF")
_QUOTE, _BACKSLASH, _OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST, _COLON, _COMMA = b'"\\{}[]:,'
_ESCAPE = re.compile(rb"\\u([0-9a-fA-F]{4})")
_NAMES = {"width": 0, "height": 1}
_LITERALS = {0x6E: b"ull", 0x74: b"rue", 0x66: b"alse"}

# What comes next. Numbers as Go's scanner names its states.
(
    _TOP,  # a value of the stream
    _FIRST_NAME,  # behind {
    _NAME,  # behind , in an object
    _AFTER_NAME,  # a colon
    _VALUE,  # behind a colon, or behind , in a list
    _FIRST_VALUE,  # behind [
    _AFTER_VALUE,  # a comma or a bracket
    _STRING,
    _STRING_ESCAPE,
    _STRING_HEX,
    _LITERAL,
    _MINUS,  # behind -
    _ZERO,  # behind the 0 that a number begins with
    _INTEGER,
    _POINT,  # behind .
    _FRACTION,
    _EXPONENT,  # behind e
    _SIGN,  # behind e+
    _POWER,
    _STOPPED,
) = range(20)
# What a string is: a value, a name of an object within the outermost one, a name of the outermost one.
_TEXT, _INNER_NAME, _OUTER_NAME = range(3)
_NUMBERS = frozenset((_ZERO, _INTEGER, _FRACTION, _POWER))


class Sizes:
    """One client's stream of sizes. stopped: the server reads no more of it. work: what reading has cost, in
    microseconds or thereabouts; it only grows."""

    __slots__ = ("_field", "_left", "_name", "_number", "_size", "_stack", "_state", "_string", "work")

    def __init__(self) -> None:
        self.work = 0
        self._state = _TOP
        self._stack = bytearray()  # the brackets that are open
        self._size = [0, 0]  # width, height of the object that is open
        self._field = -1  # which of them its value is for
        self._name = b""  # a name of the outermost object, as it is spelt
        self._string = _TEXT  # what the string is that is open
        self._number = b""  # digits of a width or height
        self._left = b""  # what is missing of a literal; or as many bytes as hex digits are missing

    @property
    def stopped(self) -> bool:
        return self._state == _STOPPED

    def stop(self) -> None:
        """The stream has ended: what comes behind its end is not read."""
        self._state = _STOPPED

    def copy(self) -> Sizes:
        """Another one that has read the same."""
        other = Sizes()
        # One by one: the compiled class has no __slots__ to go by.
        other.work = self.work
        other._state = self._state
        other._stack = bytearray(self._stack)
        other._size = list(self._size)
        other._field = self._field
        other._name = self._name
        other._string = self._string
        other._number = self._number
        other._left = self._left
        return other

    def feed(self, data: bytes) -> list[tuple[int, int]]:
        """The sizes that these bytes complete, in columns and rows. Those with a zero say nothing and are left out."""
        sizes: list[tuple[int, int]] = []
        at, end = 0, len(data)
        while at < end and self._state != _STOPPED:
            self.work += 1
            if self._state == _TOP:
                usual = _USUAL.match(data, at)
                if usual is not None and (usual[1] is None or max(int(usual[1]), int(usual[2])) <= _MAX_UINT16):
                    if usual[1] is not None:
                        _complete([int(usual[1]), int(usual[2])], sizes)
                    self.work += 1 + (usual.end() - at) // 64
                    at = usual.end()
                    continue
            at = self._step(data, at, sizes)
        return sizes

    def _step(self, data: bytes, at: int, sizes: list[tuple[int, int]]) -> int:
        """Read at least one byte; where the next one is."""
        state = self._state
        if state == _STRING:
            return self._in_string(data, at)
        byte = data[at]
        if state <= _AFTER_VALUE:
            if byte in _BLANK:
                return _BLANKS.match(data, at).end()  # type: ignore[union-attr]  # it always matches
            self._structure(state, byte, sizes)
        elif state == _LITERAL:
            if byte != self._left[0]:
                self._state = _STOPPED
                return at
            self._left = self._left[1:]
            if not self._left:
                self._ended()
        elif state == _STRING_ESCAPE:
            self._spelt(data[at : at + 1])
            if byte == 0x75:
                self._state, self._left = _STRING_HEX, b"...."
            else:
                self._state = _STRING if byte in _ESCAPED else _STOPPED
        elif state == _STRING_HEX:
            self._spelt(data[at : at + 1])
            self._left = self._left[1:]
            if byte not in _HEX:
                self._state = _STOPPED
            elif not self._left:
                self._state = _STRING
        else:
            return self._in_number(state, data, at)
        return at + 1

    def _structure(self, state: int, byte: int, sizes: list[tuple[int, int]]) -> None:
        """A byte outside of strings, numbers and literals."""
        if state == _FIRST_NAME and byte == _CLOSE:
            self._close(byte, sizes)
        elif state in (_FIRST_NAME, _NAME):
            if byte != _QUOTE:
                self._state = _STOPPED
                return
            self._state = _STRING
            self._string = _OUTER_NAME if len(self._stack) == 1 else _INNER_NAME
            self._name = b""
        elif state == _AFTER_NAME:
            self._state = _VALUE if byte == _COLON else _STOPPED
        elif state == _FIRST_VALUE and byte == _CLOSE_LIST:
            self._close(byte, sizes)
        elif state == _AFTER_VALUE:
            if byte == _COMMA:
                self._state = _NAME if self._stack[-1] == _OPEN else _VALUE
            else:
                self._close(byte, sizes)
        else:
            self._value(state, byte)

    def _value(self, state: int, byte: int) -> None:
        """The first byte of a value."""
        outermost, wanted = state == _TOP, self._field >= 0
        if byte == _OPEN and not wanted:
            self._open(byte, _FIRST_NAME)
        elif outermost:
            # Whatever else is valid is not what is decoded, but for null.
            self._state, self._left = (_LITERAL, b"ull") if byte == 0x6E else (_STOPPED, b"")
        elif byte == 0x6E or (byte in _LITERALS and not wanted):
            self._state, self._left = _LITERAL, _LITERALS[byte]
        elif 0x30 <= byte <= 0x39:
            self._state = _INTEGER if byte > 0x30 else _ZERO
            self._number = bytes((byte,))
        elif wanted:
            self._state = _STOPPED
        elif byte == _OPEN_LIST:
            self._open(byte, _FIRST_VALUE)
        elif byte == _QUOTE:
            self._state, self._string = _STRING, _TEXT
        else:
            self._state = _MINUS if byte == 0x2D else _STOPPED

    def _open(self, bracket: int, state: int) -> None:
        if not self._stack:
            self._size = [0, 0]
        self._stack.append(bracket)
        self._state = state if len(self._stack) <= MAX_DEPTH else _STOPPED

    def _close(self, byte: int, sizes: list[tuple[int, int]]) -> None:
        if byte != (_CLOSE if self._stack[-1] == _OPEN else _CLOSE_LIST):
            self._state = _STOPPED
            return
        self._stack.pop()
        self._ended()
        if not self._stack:
            _complete(self._size, sizes)

    def _ended(self) -> None:
        """A value has ended."""
        self._field = -1
        self._state = _AFTER_VALUE if self._stack else _TOP

    def _in_string(self, data: bytes, at: int) -> int:
        end = _PLAIN.match(data, at).end()  # type: ignore[union-attr]  # it always matches
        self._spelt(data[at:end])
        if end == len(data):
            return end
        byte = data[end]
        if byte == _QUOTE:
            if self._string == _TEXT:
                self._ended()
            else:
                self._state = _AFTER_NAME
                if self._string == _OUTER_NAME:
                    self._field = _field(self._name)
        elif byte == _BACKSLASH:
            self._spelt(b"\\")
            self._state = _STRING_ESCAPE
        else:
            self._state = _STOPPED
        return end + 1

    def _spelt(self, text: bytes) -> None:
        if self._string == _OUTER_NAME:
            self._name = (self._name + text[: _MAX_NAME + 1])[: _MAX_NAME + 1]

    def _in_number(self, state: int, data: bytes, at: int) -> int:
        byte = data[at]
        if 0x30 <= byte <= 0x39:
            if state == _ZERO:
                self._state = _STOPPED
                return at
            end = _DIGITS.match(data, at).end()  # type: ignore[union-attr]  # it always matches
            if state == _MINUS:
                self._state = _INTEGER if byte > 0x30 else _ZERO
                return at + 1
            if self._field >= 0:
                self._number += data[at : min(end, at + 6)]
                if end - at > 5 or int(self._number) > _MAX_UINT16:
                    self._state = _STOPPED
            if state in (_POINT, _EXPONENT, _SIGN):
                self._state = _FRACTION if state == _POINT else _POWER
            return end
        if self._field < 0:
            if byte == 0x2E and state in (_ZERO, _INTEGER):
                self._state = _POINT
                return at + 1
            if byte in b"eE" and state in (_ZERO, _INTEGER, _FRACTION):
                self._state = _EXPONENT
                return at + 1
            if byte in b"+-" and state == _EXPONENT:
                self._state = _SIGN
                return at + 1
        elif byte in b".eE":
            self._state = _STOPPED
            return at
        if state not in _NUMBERS:
            self._state = _STOPPED
            return at
        if self._field >= 0:
            self._size[self._field] = int(self._number)
        self._ended()
        return at


def _complete(size: list[int], sizes: list[tuple[int, int]]) -> None:
    if all(size):
        sizes.append((size[0], size[1]))


def _field(name: bytes) -> int:
    """Which member a name means, -1 for neither. name: as it is spelt, escapes included."""
    if len(name) > _MAX_NAME:
        return -1
    plain = _ESCAPE.sub(lambda match: chr(int(match[1], 16)).encode("utf-8", "replace"), name)
    return _NAMES.get(plain.decode("utf-8", "replace").lower(), -1) if plain.isascii() else -1
