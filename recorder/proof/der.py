"""DER (X.690), as much of it as time stamps need: reading strictly, writing the little that is asked. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

INTEGER, BIT_STRING, OCTETS, NULL, OID, SEQUENCE, SET = 0x02, 0x03, 0x04, 0x05, 0x06, 0x30, 0x31
BOOLEAN, GENERALIZED_TIME = 0x01, 0x18
# Bytes that are read: a token with three certificates has some five thousand.
_MOST = 100_000
# Bits of a number in an object identifier: those of UUIDs (2.25) have 128.
_MOST_BITS = 128


class DerError(ValueError):
    """Bytes that are not DER, or not what was expected there."""


@dataclass(frozen=True, slots=True)
class Value:
    """One value. tag: its first byte. raw: all of it; body: without tag and length."""

    tag: int
    raw: bytes
    body: bytes

    def items(self) -> list[Value]:
        """What is in a constructed one. Raises DerError."""
        if not self.tag & 0x20:
            raise DerError("not constructed")
        found, position = [], 0
        while position < len(self.body):
            value = _read(self.body, position)
            position += len(value.raw)
            found.append(value)
        return found

    def need(self, tag: int) -> Value:
        """Itself, if it has that tag. Raises DerError."""
        if self.tag != tag:
            raise DerError("another tag")
        return self

    def whole(self) -> int:
        """An INTEGER. Raises DerError."""
        body = self.need(INTEGER).body
        if not body or (len(body) > 1 and body[0] in (0x00, 0xFF) and (body[0] ^ body[1]) & 0x80 == 0):
            raise DerError("not the shortest form")
        return int.from_bytes(body, "big", signed=True)

    def oid(self) -> str:
        """An OBJECT IDENTIFIER, dotted. Raises DerError."""
        body, numbers, number, begun = self.need(OID).body, list[int](), 0, False
        for byte in body:
            if not begun and byte == 0x80:
                raise DerError("not the shortest form")
            if number >> _MOST_BITS:
                raise DerError("too large")
            number, begun = (number << 7) | (byte & 0x7F), bool(byte & 0x80)
            if not begun:
                numbers.append(number)
                number = 0
        if begun or not numbers:
            raise DerError("cut off")
        first = min(numbers[0] // 40, 2)
        return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))


def read(data: bytes) -> Value:
    """All of the bytes as one value. Raises DerError."""
    if len(data) > _MOST:
        raise DerError("too long")
    value = _read(data, 0)
    if len(value.raw) != len(data):
        raise DerError("more follows")
    return value


def _read(data: bytes, start: int) -> Value:
    if len(data) < start + 2 or data[start] & 0x1F == 0x1F:
        raise DerError("cut off")
    size, position = data[start + 1], start + 2
    if size & 0x80:
        count = size & 0x7F
        octets = data[position : position + count]
        position += count
        size = int.from_bytes(octets, "big")
        if not 1 <= count <= 4 or len(octets) != count or octets[0] == 0 or size < 0x80:
            raise DerError("not the shortest form")
    if len(data) < position + size:
        raise DerError("cut off")
    return Value(data[start], data[start : position + size], data[position : position + size])


def write(tag: int, body: bytes | Iterable[bytes]) -> bytes:
    """A value; a constructed one from its parts."""
    body = body if isinstance(body, bytes) else b"".join(body)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    octets = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + body


def write_whole(number: int) -> bytes:
    """An INTEGER that is not negative."""
    return write(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def write_oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    body = b""
    for number in (40 * first + second, *rest):
        octets = [number & 0x7F]
        while number := number >> 7:
            octets.insert(0, (number & 0x7F) | 0x80)
        body += bytes(octets)
    return write(OID, body)
