"""The PROXY v2 header, by the sections of its spec; whole, byte by byte, split, cut, followed and mutated."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol.proxyprotocol import (
    HEAD_SIZE,
    MAX_BLOCK_SIZE,
    SIGNATURE,
    ProxyHeader,
    ProxyHeaderParser,
    crc32c,
)


def header(version_command: int, family: int, block: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", version_command, family, len(block)) + block


def tcp4(source: str = "100.64.0.7", port: int = 40001, tlvs: bytes = b"") -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton("100.100.1.2") + struct.pack("!HH", port, 443)
    return header(0x21, 0x11, addresses + tlvs)


def tcp6(source: str, port: int = 40001, destination: str = "fd7a:115c:a1e0::2") -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return header(0x21, 0x21, addresses + struct.pack("!HH", port, 443))


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def checksummed(before: bytes = b"", after: bytes = b"") -> bytes:
    whole = tcp4(tlvs=before + tlv(0x03, bytes(4)) + after)
    offset = HEAD_SIZE + 12 + len(before) + 3
    return whole[:offset] + crc32c(whole).to_bytes(4, "big") + whole[offset + 4 :]


def parse(data: bytes) -> tuple[ProxyHeader | None, bytes]:
    parser = ProxyHeaderParser()
    return parser.receive_data(data), parser.remainder


FROM_7 = ProxyHeader(("100.64.0.7", 40001), ("100.100.1.2", 443))
NOBODY = ProxyHeader(None, None)

GOOD = [
    pytest.param(tcp4(), FROM_7, id="tcp4"),
    pytest.param(
        tcp6("fd7a:115c:a1e0::7"),
        ProxyHeader(("fd7a:115c:a1e0::7", 40001), ("fd7a:115c:a1e0::2", 443)),
        id="tcp6",
    ),
    pytest.param(
        tcp6("::ffff:100.64.0.7", destination="::ffff:100.100.1.2"), FROM_7, id="tcp6 with mapped IPv4 is IPv4"
    ),
    pytest.param(header(0x20, 0x00, b""), NOBODY, id="LOCAL"),
    pytest.param(header(0x20, 0x11, tcp4()[HEAD_SIZE:]), NOBODY, id="LOCAL with addresses: skipped"),
    pytest.param(header(0x20, 0xFF, b"whatever"), NOBODY, id="LOCAL of an unknown family: skipped"),
    pytest.param(header(0x21, 0x00, b""), NOBODY, id="PROXY, unspecified"),
    pytest.param(header(0x21, 0x00, tlv(0x04, b"")), NOBODY, id="PROXY, unspecified, with a TLV"),
    pytest.param(tcp4(tlvs=tlv(0x02, b"k8s.example") + tlv(0x04, bytes(9))), FROM_7, id="TLVs are skipped"),
    pytest.param(tcp4(tlvs=tlv(0x04, bytes(MAX_BLOCK_SIZE - 15))), FROM_7, id="the largest block"),
    pytest.param(checksummed(), FROM_7, id="checksum"),
    pytest.param(checksummed(tlv(0x01, b"h2"), tlv(0x04, b"\0")), FROM_7, id="checksum between other TLVs"),
]

BAD = [
    pytest.param(b"GET / HTTP/1.1\r\n", "does not begin", id="http"),
    pytest.param(b"POST /", "does not begin", id="http that starts as v1 does"),
    pytest.param(b"\x16\x03\x01", "does not begin", id="tls"),
    pytest.param(SIGNATURE[:11] + b"\r", "does not begin", id="signature, last byte"),
    pytest.param(b"PROXY TCP4 100.64.0.7 100.100.1.2 40001 443\r\n", "v2", id="v1"),
    pytest.param(SIGNATURE + b"\x11", "version", id="version 1"),
    pytest.param(SIGNATURE + b"\x31", "version", id="version 3"),
    pytest.param(SIGNATURE + b"\x22", "command", id="command 2"),
    pytest.param(SIGNATURE + b"\x21\x12", "family", id="UDP over IPv4"),
    pytest.param(SIGNATURE + b"\x21\x22", "family", id="UDP over IPv6"),
    pytest.param(SIGNATURE + b"\x21\x31", "family", id="Unix stream"),
    pytest.param(SIGNATURE + b"\x21\x10", "family", id="IPv4 over nothing"),
    pytest.param(SIGNATURE + b"\x21\x11\xff\xff", "at most", id="length at the field's limit"),
    pytest.param(SIGNATURE + b"\x21\x11\x10\x01", "at most", id="length one too many"),
    pytest.param(SIGNATURE + b"\x20\x00\x10\x01", "at most", id="LOCAL too long"),
    pytest.param(SIGNATURE + b"\x21\x11\x00\x0b", "too short", id="IPv4 addresses cut"),
    pytest.param(SIGNATURE + b"\x21\x21\x00\x0c", "too short", id="IPv4 addresses called IPv6"),
    pytest.param(tcp4(tlvs=b"\x04"), "TLV", id="a TLV's head cut"),
    pytest.param(tcp4(tlvs=b"\x04\x00\x01"), "TLV", id="a TLV's value cut"),
    pytest.param(tcp4(tlvs=tlv(0x03, bytes(4))), "checksum", id="checksum wrong"),
    pytest.param(tcp4(tlvs=tlv(0x03, bytes(3))), "checksum", id="checksum short"),
    pytest.param(checksummed(after=tlv(0x03, bytes(4))), "checksum", id="two checksums"),
    pytest.param(checksummed().replace(b"\x64\x40\x00\x07", b"\x64\x40\x00\x08"), "checksum", id="address changed"),
]


@pytest.mark.parametrize(("data", "expected"), GOOD)
def test_a_header(data: bytes, expected: ProxyHeader) -> None:
    assert parse(data) == (expected, b"")


@pytest.mark.parametrize(("data", "expected"), GOOD)
def test_what_follows_is_left_over(data: bytes, expected: ProxyHeader) -> None:
    assert parse(data + b"\x16\x03\x01 and so on") == (expected, b"\x16\x03\x01 and so on")
    assert parse(data + data) == (expected, data)


@pytest.mark.parametrize(("data", "expected"), GOOD)
def test_byte_by_byte(data: bytes, expected: ProxyHeader) -> None:
    parser = ProxyHeaderParser()
    for offset in range(len(data) - 1):
        assert parser.receive_data(data[offset : offset + 1]) is None
        assert parser.remainder == b""
    assert parser.receive_data(data[-1:]) == expected
    assert parser.remainder == b""


@pytest.mark.parametrize(("data", "words"), BAD)
def test_refused(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        parse(data)


@pytest.mark.parametrize(("data", "words"), BAD)
def test_refused_byte_by_byte_and_not_before_its_time(data: bytes, words: str) -> None:
    parser = ProxyHeaderParser()
    with pytest.raises(ProtocolError, match=words):
        for offset in range(len(data)):
            assert parser.receive_data(data[offset : offset + 1]) is None


def test_nothing_is_a_header_to_come() -> None:
    assert parse(b"") == (None, b"")


@pytest.mark.parametrize("first", [b"G", b"\x16", b"\x00", b"p"])
def test_another_protocol_is_told_at_its_first_byte(first: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(first)


def test_a_parsed_header_takes_no_more() -> None:
    parser = ProxyHeaderParser()
    parser.receive_data(tcp4())
    with pytest.raises(ValueError, match="parsed"):
        parser.receive_data(b"x")


def test_crc32c_by_the_rfc() -> None:
    # RFC 3720, appendix B.4: 32 bytes of zeroes, of ones, and counting up; and the check value of the CRC catalogues.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


@given(st.sampled_from([p.values for p in GOOD]), st.binary(max_size=40), st.data())
def test_any_split(case: tuple[bytes, ProxyHeader], behind: bytes, data: st.DataObject) -> None:
    stream, expected = case[0] + behind, case[1]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser, found, rest = ProxyHeaderParser(), None, b""
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if found is None:
            found = parser.receive_data(stream[start:end])
        else:
            rest += stream[start:end]
    assert (found, parser.remainder + rest) == (expected, behind)


@given(
    st.sampled_from([p.values[0] for p in GOOD]),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_mutated_bytes_are_a_header_or_a_protocol_error(whole: bytes, changes: list[tuple[int, int]]) -> None:
    mutated = bytearray(whole)
    for offset, value in changes:
        mutated[offset % len(mutated)] = value
    try:
        found, _ = parse(bytes(mutated))
    except ProtocolError:
        return
    assert found is None or isinstance(found, ProxyHeader)


@given(st.binary(max_size=200))
def test_noise_behind_the_signature(noise: bytes) -> None:
    try:
        parse(SIGNATURE + noise)
    except ProtocolError as error:
        assert error.status == 400


@given(st.ip_addresses(v=6), st.integers(0, 65535))
def test_any_ipv6_address_round_trips(address: object, port: int) -> None:
    found, _ = parse(tcp6(str(address), port))
    assert found is not None and found.source is not None
    text, found_port = found.source
    assert found_port == port
    if "." not in text:
        assert socket.inet_pton(socket.AF_INET6, text) == socket.inet_pton(socket.AF_INET6, str(address))
