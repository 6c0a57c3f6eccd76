"""Port-forwards on all three wires: which ports are opened, and what goes through each."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol import portforward
from k8sproxy.protocol.portforward import MAX_OPEN, MAX_PORTS, MAX_REQUEST_ID, PortForward, PortOpened
from k8sproxy.protocol.spdy import DICTIONARY
from tests.protocol.streams import (
    MASK,
    SpdyWriter,
    data,
    goaway,
    ping,
    reset,
    said,
    said64,
    typed,
    typed64,
    websocket,
)
from tests.strategies import mutations, splits

TUNNEL = "SPDY/3.1+portforward.k8s.io"


def one_by_one(text: bytes) -> list[bytes]:
    return [text[at : at + 1] for at in range(len(text))]


def pair(writer: SpdyWriter, stream: int, port: int, request: int) -> bytes:
    fields = {b"port": b"%d" % port, b"requestid": b"%d" % request}
    opened = writer.syn_stream(stream, {b"streamtype": b"error", **fields}, fin=True)
    return opened + writer.syn_stream(stream + 2, {b"streamtype": b"data", **fields})


def spdy_session() -> tuple[bytes, bytes]:
    """Two connections to port 80 and one to 8080; streams 3, 7 and 11 are data."""
    writer, answers = SpdyWriter(DICTIONARY), SpdyWriter(DICTIONARY)
    client = pair(writer, 1, 80, 0) + data(3, b"GET /") + ping(1) + pair(writer, 5, 8080, 1) + data(7, b"", fin=True)
    client += pair(writer, 9, 80, 2) + data(11, b"x" * 200) + data(1, b"on an error stream") + data(3, b"!", fin=True)
    upstream = b"".join(answers.syn_reply(stream) for stream in (1, 3, 5, 7, 9, 11))
    upstream += data(3, b"200 OK") + data(7, b"abc", fin=True) + data(11, b"y" * 300) + data(1, b"oh") + goaway(11)
    return client, upstream


OPENED = [PortOpened(80, "0"), PortOpened(8080, "1"), PortOpened(80, "2")]
SENT = {80: 206, 8080: 0}
RECEIVED = {80: 306, 8080: 3}


def tunnelled(text: bytes, sizes: list[int], mask: bytes | None) -> bytes:
    """The bytes in binary messages of these sizes over and over, some in fragments, with pings between."""
    out, index = b"", 0
    while text:
        size = sizes[index % len(sizes)]
        piece, text, index = text[:size], text[size:], index + 1
        if index % 3:
            out += websocket(2, piece, mask=mask)
        else:
            out += websocket(2, piece[:1], mask=mask, fin=False) + websocket(9, b"p", mask=mask)
            out += websocket(0, piece[1:], mask=mask)
    return out + websocket(8, b"\x03\xe8", mask=mask)


def run(forward: PortForward, client: list[bytes], upstream: list[bytes]) -> list[PortOpened]:
    events = [event for part in client for event in forward.from_client(memoryview(part))]
    return events + [event for part in upstream for event in forward.from_upstream(memoryview(part))]


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_spdy_in_any_pieces(data: st.DataObject) -> None:
    client, upstream = spdy_session()
    for parts, answers in (
        ([client], [upstream]),
        (one_by_one(client), one_by_one(upstream)),
        (data.draw(splits(client)), data.draw(splits(upstream))),
    ):
        forward = PortForward("spdy/3.1", "portforward.k8s.io")
        assert run(forward, parts, answers) == OPENED
        assert (forward.sent, forward.received) == (SENT, RECEIVED)


@given(st.data(), st.lists(st.integers(1, 200), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_the_tunnel_in_any_pieces_of_any_messages(data: st.DataObject, sizes: list[int]) -> None:
    client, upstream = spdy_session()
    client, upstream = tunnelled(client, sizes, MASK), tunnelled(upstream, sizes, None)
    for parts, answers in (
        ([client], [upstream]),
        (one_by_one(client), one_by_one(upstream)),
        (data.draw(splits(client)), data.draw(splits(upstream))),
    ):
        forward = PortForward("websocket", TUNNEL)
        assert run(forward, parts, answers) == OPENED
        assert (forward.sent, forward.received) == (SENT, RECEIVED)


@given(st.data(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_channels_in_any_pieces(data: st.DataObject, is_base64: bool) -> None:
    say, type_ = (said64, typed64) if is_base64 else (said, typed)
    client = type_(0, b"early!") + type_(2, b"abc") + type_(0, b"GET /.") + type_(2) + websocket(2, b"", mask=MASK)
    client += websocket(9, b"", mask=MASK)
    upstream = say(0, b"\x50\0") + say(1, b"\x50\0") + say(2, b"\x90\x1f") + say(3, b"\x90\x1f") + say(0, b"200 OK")
    upstream += say(0) + websocket(10, b"") + say(1, b"oh") + say(2, b"x" * 300)
    subprotocol = "v4.base64.channel.k8s.io" if is_base64 else "v4.channel.k8s.io"
    for parts, answers in (
        ([client], [upstream]),
        (one_by_one(client), one_by_one(upstream)),
        (data.draw(splits(client)), data.draw(splits(upstream))),
    ):
        forward = PortForward("websocket", subprotocol)
        assert run(forward, parts, answers) == [PortOpened(80, ""), PortOpened(8080, "")]
        assert set(forward.sent) == set(forward.received) == {80, 8080}
        # Of base64 each piece is rounded down, padding is counted.
        counts = (forward.sent[80], forward.sent[8080], forward.received[80], forward.received[8080])
        if is_base64:
            assert all(count <= most for count, most in zip(counts, (15, 3, 6, 300), strict=True))
        else:
            assert counts == (12, 3, 6, 300)


def test_channels_are_counted_to_the_byte() -> None:
    forward = PortForward("websocket", "")
    run(forward, [typed(0, b"early"), typed(1, b"no")], [said(0, b"\x50\0more"), said(4, b"\x51\0")])
    run(forward, [typed(0, b"late"), typed(4, b"x")], [said(0, b"answer")])
    fragments = websocket(2, b"", fin=False) + websocket(0, b"\0ab", fin=False) + websocket(0, b"cd")
    run(forward, [websocket(2, b"\4a", fin=False, mask=MASK) + websocket(0, b"\0b", mask=MASK)], [fragments])
    assert (forward.sent, forward.received) == ({80: 9, 81: 4}, {80: 14, 81: 0})


@given(st.data(), st.sampled_from(("spdy", "tunnel", "channels", "base64")))
@settings(deadline=None)
def test_mutations_give_events_or_a_protocol_error(data: st.DataObject, wire: str) -> None:
    client, upstream = spdy_session()
    forward = PortForward("spdy/3.1", "")
    if wire == "tunnel":
        client, upstream = tunnelled(client, [7, 50], MASK), tunnelled(upstream, [7, 50], None)
        forward = PortForward("websocket", TUNNEL)
    elif wire == "channels":
        client, upstream = typed(0, b"abc") + typed(2, b"d"), said(0, b"\x50\0") + said(2, b"\x51\0") + said(0, b"x")
        forward = PortForward("websocket", "")
    elif wire == "base64":
        client, upstream = typed64(0, b"abc"), said64(0, b"\x50\0") + said64(0, b"x")
        forward = PortForward("websocket", "v4.base64.channel.k8s.io")
    failure = None
    for feed, text in ((forward.from_client, client), (forward.from_upstream, upstream)):
        for part in data.draw(splits(data.draw(mutations(text)))):
            try:
                feed(memoryview(part))
                assert failure is None
            except ProtocolError as error:
                failure = failure or error.message
                assert error.message == failure


def test_protocols() -> None:
    for subprotocol in portforward.SPDY_PROTOCOLS:
        PortForward("spdy/3.1", subprotocol)
    for subprotocol in portforward.WEBSOCKET_PROTOCOLS:
        PortForward("websocket", subprotocol)
    for upgrade, subprotocol in (("spdy/3.1", TUNNEL), ("websocket", "portforward.k8s.io"), ("h2c", "")):
        with pytest.raises(ProtocolError):
            PortForward(upgrade, subprotocol)


@pytest.mark.parametrize(
    "fields",
    [
        {b"streamtype": b"data"},
        {b"streamtype": b"data", b"port": b"0"},
        {b"streamtype": b"data", b"port": b"65536"},
        {b"streamtype": b"data", b"port": b"+80"},
        {b"streamtype": b"data", b"port": b"80 "},
        {b"streamtype": b"data", b"port": b"9" * 4_000},
        {b"streamtype": b"error", b"port": b"80"},
        {b"streamtype": b"stdin", b"port": b"80"},
        {b"port": b"80"},
    ],
)
def test_streams_that_open_nothing(fields: dict[bytes, bytes]) -> None:
    forward = PortForward("spdy/3.1", "")
    assert run(forward, [SpdyWriter(DICTIONARY).syn_stream(1, fields) + data(1, b"x")], [data(1, b"x")]) == []
    assert (forward.sent, forward.received) == ({}, {})


@pytest.mark.parametrize("port", [b"0080", b"0" * 500 + b"80", b"80\x00443", b"80\x00"])
@pytest.mark.parametrize("kind", [b"data", b"data\x00error"])
def test_no_spelling_of_a_port_hides_it(port: bytes, kind: bytes) -> None:
    """As spdystream takes a field apart (golang.org/x's parseHeaderValueBlock), and ParseUint reads a number."""
    fields = {b"streamtype": kind, b"port": port, b"requestid": b"7\x008"}
    forward = PortForward("spdy/3.1", "")
    opened = run(forward, [SpdyWriter(DICTIONARY).syn_stream(1, fields) + data(1, b"x")], [])
    assert opened == [PortOpened(80, "7")] and forward.sent == {80: 1}


def test_a_request_id_is_bounded() -> None:
    fields = {b"streamtype": b"data", b"port": b"80", b"requestid": b"\xff" * 1000}
    events = run(PortForward("spdy/3.1", ""), [SpdyWriter(DICTIONARY).syn_stream(1, fields)], [])
    assert events == [PortOpened(80, "\ufffd" * MAX_REQUEST_ID)]


def test_streams_are_forgotten_when_they_end() -> None:
    writer = SpdyWriter(DICTIONARY)
    forward = PortForward("spdy/3.1", "")
    ends: list[Callable[[int], tuple[list[bytes], list[bytes]]]] = [
        lambda stream: ([reset(stream)], []),
        lambda stream: ([], [reset(stream)]),
        lambda stream: ([data(stream, b"", fin=True)], [data(stream, b"", fin=True)]),
    ]
    for index in range(30):
        stream = 1 + 4 * index
        run(forward, [pair(writer, stream, 80, index)], [])
        run(forward, *ends[index % 3](stream + 2))
        run(forward, [data(stream + 2, b"late")], [data(stream + 2, b"late")])
    assert (forward.sent, forward.received) == ({80: 0}, {80: 0})
    for index in range(30, 30 + MAX_OPEN):
        forward.from_client(memoryview(pair(writer, 1 + 4 * index, 80, index)))
    with pytest.raises(ProtocolError, match="more forwarded"):
        forward.from_client(memoryview(pair(writer, 4_000_001, 80, 0)))


def test_ports_are_bounded() -> None:
    writer = SpdyWriter(DICTIONARY)
    forward = PortForward("spdy/3.1", "")
    for port in range(1, MAX_PORTS + 1):
        stream = 1 + 4 * port
        run(forward, [pair(writer, stream, port, port) + reset(stream + 2)], [])
    run(forward, [pair(writer, 1_000_001, 5, 0)], [])
    with pytest.raises(ProtocolError, match="more forwarded ports"):
        forward.from_client(memoryview(pair(writer, 1_000_005, MAX_PORTS + 1, 0)))


@pytest.mark.parametrize("said_port", [b"\0\0", b"x", b"xyz", b""])
def test_a_channel_has_to_say_its_port(said_port: bytes) -> None:
    text = base64.b64encode(said_port).ljust(4, b"!")
    with pytest.raises(ProtocolError):
        PortForward("websocket", "v4.base64.channel.k8s.io").from_upstream(memoryview(websocket(1, b"0" + text)))
    with pytest.raises(ProtocolError):
        PortForward("websocket", "").from_upstream(memoryview(said(0, bytes(2))))


@pytest.mark.parametrize(
    ("upgrade", "subprotocol", "head", "run"),
    [
        ("spdy/3.1", "portforward.k8s.io", b"", 8),
        ("websocket", TUNNEL, b"\x82\x96", 8),
        ("websocket", "v4.channel.k8s.io", b"\x82\x96", 0),
    ],
)
def test_the_rest_of_a_payload_costs_next_to_nothing(upgrade: str, subprotocol: str, head: bytes, run: int) -> None:
    forward = PortForward(upgrade, subprotocol)
    writer = SpdyWriter(DICTIONARY)
    opening = pair(writer, 1, 80, 0)
    body = data(3, b"x" * 14)
    if upgrade == "websocket" and subprotocol == TUNNEL:
        forward.from_client(memoryview(websocket(2, opening, mask=MASK)))
        before = forward.work
        forward.from_client(memoryview(websocket(2, body, mask=MASK)[:-8]))
        forward.from_upstream(memoryview(websocket(2, body, mask=None)[:-8]))
    elif upgrade == "websocket":
        before = forward.work
        forward.from_client(memoryview(typed(0, b"P\0" + b"x" * 14)[:-8]))
        forward.from_upstream(memoryview(said(0, b"P\0" + b"x" * 14)[:-8]))
        run = 8
    else:
        forward.from_client(memoryview(opening))
        before = forward.work
        forward.from_client(memoryview(body[:-8]))
        forward.from_upstream(memoryview(body[:-8]))
    assert (forward.client_run, forward.upstream_run) == (run, run)
    assert forward.work > before


@pytest.mark.parametrize("upgrade", ["spdy/3.1", "websocket"])
def test_a_direction_that_failed_fails_for_good(upgrade: str) -> None:
    for feed, other in ((0, 1), (1, 0)):
        forward = PortForward(upgrade, "portforward.k8s.io" if upgrade == "spdy/3.1" else TUNNEL)
        sides = (forward.from_client, forward.from_upstream)
        for side in (sides[feed], sides[feed], sides[other]):
            with pytest.raises(ProtocolError):
                side(memoryview(b"\xff" * 40))
