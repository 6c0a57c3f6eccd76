"""The PROXY protocol's version 2 header: who the client is, as the proxy in front of this one says.

Spec: "The PROXY protocol", W. Tarreau, section 2.2 (the binary header). Sixteen bytes, then a block whose length they
give:

    12 bytes signature | version, command | family, transport | length of the block, 2 bytes, big-endian
    block: source address, destination address, source port, destination port, then TLVs (type, 2 bytes length, value)

The parser says nothing about trust. Whoever can open a connection can write this header, so the listener has to know
that the sender may speak for others before it believes one (see `k8sproxy.common.tailnet.whois.WhoIs.resolves`).

What is refused, rather than guessed at: the text header of version 1 (it has no length, so where it ends is a matter of
searching; nothing in front of this proxy needs it), datagrams, Unix sockets, and every version, command or family that
the spec does not give. Each byte is judged as soon as it is there, so a TLS or HTTP client that has come to the wrong
port is told at its first byte and not when its connection times out.

Two kinds of header carry no client: LOCAL (the sender's own health check) and PROXY with an unspecified family. The
spec lets the receiver use the connection's own addresses there; both give `None` here, and the listener decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from struct import Struct

from k8sproxy.common.errors import ProtocolError

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
HEAD_SIZE = 16  # bytes: the signature, version and command, family and transport, length

# Bytes of addresses and TLVs. The length field could say 65,535, and each connection holds them before anybody knows
# whose it is. Addresses take 36; the TLVs of the spec (ALPN, authority, a unique id of 128, a client certificate's
# names) stay under 1 KiB, tailscaled sends none.
MAX_BLOCK_SIZE = 4096

_V1_PREFIX = b"PROXY "

_LOCAL, _PROXY = 0x20, 0x21  # version 2 in the high four bits, the command in the low four (section 2.2)
_UNSPEC, _TCP4, _TCP6 = 0x00, 0x11, 0x21  # family in the high four bits, transport in the low four
_ADDRESSES = {_UNSPEC: Struct("!"), _TCP4: Struct("!4s4sHH"), _TCP6: Struct("!16s16sHH")}

_TYPE_CRC32C = 0x03  # PP2_TYPE_CRC32C, section 2.2.3
_TLV_HEAD = Struct("!BH")

Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Who speaks to whom: (address, port) each, the address in its shortest text form and IPv4 wherever it is a mapped
    one. Both None where the sender speaks for itself or does not know (LOCAL, or an unspecified family)."""

    source: Endpoint | None
    destination: Endpoint | None


class ProxyHeaderParser:
    """Takes a connection's first bytes until its header is whole.

    `receive_data` gives None until then, the header once, and raises ProtocolError as soon as the bytes can't be one;
    after either the parser is at its end and must not be fed. `remainder` is what came behind the header: the client's
    own first bytes. At most HEAD_SIZE + MAX_BLOCK_SIZE bytes are kept, besides the last piece fed.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._done = False

    @property
    def remainder(self) -> bytes:
        """The bytes that followed the header; empty before it is whole."""
        return bytes(self._buffer) if self._done else b""

    def receive_data(self, data: bytes) -> ProxyHeader | None:
        if self._done:
            raise ValueError("the PROXY header has been parsed; what follows is not its parser's")
        self._buffer += data
        _check_head(self._buffer)
        if len(self._buffer) < HEAD_SIZE:
            return None
        size = HEAD_SIZE + int.from_bytes(self._buffer[14:HEAD_SIZE], "big")
        if len(self._buffer) < size:
            return None
        header = _parse(bytes(self._buffer[:size]))
        del self._buffer[:size]
        self._done = True
        return header


def _check_head(head: bytes | bytearray) -> None:
    """Refuses as much of the first sixteen bytes as has come, at the first byte that is wrong."""
    signature = bytes(head[:12])
    if not SIGNATURE.startswith(signature):
        if signature.startswith(_V1_PREFIX):
            raise ProtocolError("a PROXY protocol v1 (text) header; v2 (binary) is needed")
        if _V1_PREFIX.startswith(signature):
            return  # Not a v2 header any more, but a few bytes on the answer can be the more useful one.
        raise ProtocolError("the connection does not begin with a PROXY protocol v2 header")
    if len(head) > 12 and head[12] not in (_LOCAL, _PROXY):
        what = "version" if head[12] >> 4 != 2 else "command"
        raise ProtocolError(f"PROXY header of an unknown {what}: {head[12]:#04x}")
    if len(head) > 13 and head[12] == _PROXY and head[13] not in _ADDRESSES:
        raise ProtocolError(f"PROXY header of a family other than TCP over IPv4 or IPv6: {head[13]:#04x}")
    if len(head) >= HEAD_SIZE:
        length = int.from_bytes(head[14:HEAD_SIZE], "big")
        if length > MAX_BLOCK_SIZE:
            raise ProtocolError(f"PROXY header of {length} bytes; at most {MAX_BLOCK_SIZE} are allowed")
        if head[12] == _PROXY and length < _ADDRESSES[head[13]].size:
            raise ProtocolError(f"PROXY header of {length} bytes is too short for its addresses")


def _parse(header: bytes) -> ProxyHeader:
    """The whole header, its first sixteen bytes checked."""
    if header[12] == _LOCAL:
        return ProxyHeader(None, None)  # Section 2.2: whatever else a LOCAL header holds is to be skipped, unread.
    addresses = _ADDRESSES[header[13]]
    _check_tlvs(header, HEAD_SIZE + addresses.size)
    if header[13] == _UNSPEC:
        return ProxyHeader(None, None)
    source, destination, source_port, destination_port = addresses.unpack_from(header, HEAD_SIZE)
    return ProxyHeader((_text(source), source_port), (_text(destination), destination_port))


def _text(address: bytes) -> str:
    if len(address) == 4:
        return str(IPv4Address(address))
    v6 = IPv6Address(address)
    return str(v6.ipv4_mapped or v6)


def _check_tlvs(header: bytes, offset: int) -> None:
    """Walks the TLVs from `offset` to the end: they fill the header exactly, and a checksum is right."""
    checksum: int | None = None
    while offset < len(header):
        if len(header) - offset < _TLV_HEAD.size:
            raise ProtocolError("PROXY header ends inside a TLV")
        kind, length = _TLV_HEAD.unpack_from(header, offset)
        offset += _TLV_HEAD.size
        if len(header) - offset < length:
            raise ProtocolError("PROXY header ends inside a TLV")
        if kind == _TYPE_CRC32C:
            if length != 4 or checksum is not None:
                raise ProtocolError("PROXY header with a malformed checksum")
            checksum = int.from_bytes(header[offset : offset + 4], "big")
            # Section 2.2.3: computed over the whole header, the checksum's own bytes taken as zero.
            header = header[:offset] + bytes(4) + header[offset + 4 :]
        offset += length
    if checksum is not None and checksum != crc32c(header):
        raise ProtocolError("PROXY header whose checksum is wrong")


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, bits reversed
        table.append(byte)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c(data: bytes) -> int:
    """The CRC-32C of RFC 3720, appendix B.4 (zlib's crc32 is another polynomial)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
