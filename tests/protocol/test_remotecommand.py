"""Remotecommand sessions on both transports: what is told of them, how output could hide, and how they are ended."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol.remotecommand import (
    ERROR,
    MAX_ERROR,
    MAX_FILLING,
    RESIZE,
    SPDY_PROTOCOLS,
    STDERR,
    STDIN,
    STDOUT,
    UNKNOWN,
    WEBSOCKET_PROTOCOLS,
    Closing,
    ErrorData,
    Event,
    Hidden,
    Output,
    Ping,
    RemoteCommand,
    Resize,
    Stdin,
)
from k8sproxy.protocol.spdy import DICTIONARY
from tests.protocol.streams import (
    MASK,
    Heard,
    SpdyWriter,
    control,
    data,
    goaway,
    heard_spdy,
    heard_websocket,
    ping,
    reset,
    said,
    said64,
    typed,
    typed64,
    websocket,
    window_update,
)
from tests.protocol.streams import settings as spdy_settings
from tests.strategies import mutations, splits

STATUS = b'{"kind":"Status","status":"Failure","message":"the recorder is gone"}'
MESSAGE = "the recorder is gone"

V5, V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"
BASE64 = "v4.base64.channel.k8s.io"
SIZE = b'{"Width":80,"Height":24}\n'


def ws(subprotocol: str = V5, *, tty: bool = True) -> RemoteCommand:
    return RemoteCommand("websocket", subprotocol, tty=tty)


class Spdy:
    """A session on SPDY whose streams are open: error 1, stdin 3, stdout 5, stderr 7, resize 9."""

    ERROR, STDIN, STDOUT, STDERR, RESIZE = 1, 3, 5, 7, 9

    def __init__(self, subprotocol: str = V4, *, tty: bool = True, opened: bool = True) -> None:
        self.client = SpdyWriter(DICTIONARY)
        self.upstream = SpdyWriter(DICTIONARY)
        self.command = RemoteCommand("spdy/3.1", subprotocol, tty=tty)
        kinds = [
            b"error",
            b"stdin",
            b"stdout",
            b"stderr",
            *([b"resize"] if subprotocol in (V4, "v3.channel.k8s.io") else []),
        ]
        self.opening = b"".join(self.client.opened(1 + 2 * index, kind) for index, kind in enumerate(kinds))
        self.accepting = b"".join(self.upstream.syn_reply(1 + 2 * index) for index in range(len(kinds)))
        if opened:
            assert self.type(self.opening) == []
            assert self.say(self.accepting) == []

    def type(self, text: bytes) -> list[Event]:
        return self.command.from_client(memoryview(text))

    def say(self, text: bytes) -> list[Event]:
        return self.command.from_upstream(memoryview(text))


@dataclass
class Told:
    """The events of a direction: output put together while the channel stays, each event's place in the whole."""

    outputs: list[tuple[int, bytes]]
    others: list[tuple[Event, int]]
    typed: int


def told(feed: Callable[[memoryview], list[Event]], parts: list[bytes]) -> Told:
    result = Told([], [], 0)
    base = 0
    for part in parts:
        for event in feed(memoryview(part)):
            if isinstance(event, Output | ErrorData):
                channel = event.channel if isinstance(event, Output) else ERROR
                assert event.data
                assert base + event.start <= base + len(part)
                if result.outputs and result.outputs[-1][0] == channel:
                    result.outputs[-1] = (channel, result.outputs[-1][1] + bytes(event.data))
                else:
                    result.outputs.append((channel, bytes(event.data)))
            elif isinstance(event, Stdin):
                result.typed += event.size
            elif isinstance(event, Hidden):
                result.others.append((Hidden(event.data, 0), 0))
            elif isinstance(event, Closing):
                result.others.append((Closing(event.clean, 0), base + event.start))
            else:
                result.others.append((event, 0))
        base += len(part)
    return result


def one_by_one(text: bytes) -> list[bytes]:
    return [text[at : at + 1] for at in range(len(text))]


def test_protocols() -> None:
    for subprotocol in SPDY_PROTOCOLS:
        RemoteCommand("spdy/3.1", subprotocol, tty=False)
    for subprotocol in WEBSOCKET_PROTOCOLS:
        RemoteCommand("websocket", subprotocol, tty=False)
    for upgrade, subprotocol in [
        ("spdy/3.1", V5),
        ("spdy/3.1", BASE64),
        ("websocket", "v3.channel.k8s.io"),
        ("websocket", "SPDY/3.1+portforward.k8s.io"),
        ("h2c", ""),
        ("SPDY/3.1", V4),
    ]:
        with pytest.raises(ProtocolError):
            RemoteCommand(upgrade, subprotocol, tty=False)


# What a session of either kind says, in the transport's own frames.


def upstream_websocket() -> tuple[bytes, int]:
    text = said(1) + said(1, b"hello ") + websocket(10, b"") + said(1, b"world") + said(2, b"oh") + said(1, b"!" * 300)
    text += websocket(2, b"\2a", fin=False) + websocket(9, b"p") + websocket(0, b"bc", fin=False) + websocket(0, b"")
    text += said(255, b"\1") + said(3, b'{"status":"Success"}')
    return text + websocket(8, b"\x03\xe8"), len(text)


def client_websocket() -> tuple[bytes, int]:
    text = typed(0, b"ls\n") + typed(4, SIZE) + typed(4, b'{"Width":81,"Height":24}') + websocket(9, b"hi", mask=MASK)
    text += websocket(10, b"pong", mask=MASK)
    text += typed(0) + websocket(2, b"", mask=MASK) + websocket(1, b"\0more", mask=MASK) + typed(255, b"\0")
    text += websocket(2, b"\0a", fin=False, mask=MASK) + websocket(0, b"bc", mask=MASK) + typed(7, b"unknown")
    return text + websocket(8, b"\x03\xe8", mask=MASK), len(text)


OUTPUTS = [
    *((1, b"hello world"), (2, b"oh"), (1, b"!" * 300), (2, b"abc")),
    (3, b'{"status":"Success"}'),
]
RESIZES: list[tuple[Event, int]] = [(Resize(80, 24), 0), (Resize(81, 24), 0)]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_websocket_in_any_pieces(data: st.DataObject) -> None:
    text, end = upstream_websocket()
    for parts in ([text], one_by_one(text), data.draw(splits(text))):
        assert told(ws().from_upstream, parts) == Told(OUTPUTS, [(Hidden(b"p", 0), 0), (Closing(True, 0), end)], 0)
    text, end = client_websocket()
    pong: tuple[Event, int] = (Ping(websocket(10, b"hi")), 0)
    for parts in ([text], one_by_one(text), data.draw(splits(text))):
        assert told(ws().from_client, parts) == Told([], [*RESIZES, pong, (Closing(True, 0), end)], 8)


@given(st.data(), st.lists(st.tuples(st.sampled_from((1, 2, 3)), st.binary(max_size=50)), max_size=5))
@settings(max_examples=60, deadline=None)
def test_base64_in_any_pieces(data: st.DataObject, messages: list[tuple[int, bytes]]) -> None:
    text = b"".join(said64(channel, payload) for channel, payload in messages)
    text += websocket(1, b"1aGV", fin=False) + websocket(0, b"sbG", fin=False) + websocket(0, b"8=")
    outputs = told(ws(V4).from_upstream, [b"".join(said(*message) for message in [*messages, (1, b"hello")])]).outputs
    for parts in ([text], one_by_one(text), data.draw(splits(text))):
        assert told(ws(BASE64).from_upstream, parts).outputs == outputs
    text = typed64(0, b"typed") + typed64(4, SIZE) + typed64(4, b'{"Width":81,"Height":24}')
    for parts in ([text], one_by_one(text), data.draw(splits(text))):
        assert told(ws(BASE64).from_client, parts).others == RESIZES


def upstream_spdy(session: Spdy) -> tuple[bytes, int]:
    text = (
        session.accepting + data(5, b"hello ") + ping(2) + data(5, b"world") + spdy_settings((4, 100)) + data(7, b"oh")
    )
    text += window_update(3, 1000) + data(5, b"!" * 300) + data(7, b"abc") + data(5, b"") + control(77, b"?")
    text += session.upstream.headers(5, {b"a": b"b"})
    text += data(1, b'{"status":"Success"}', fin=True) + data(5, b"", fin=True) + reset(3)
    end = len(text)
    return text + reset(7) + reset(9) + goaway(9), end


def client_spdy(session: Spdy) -> tuple[bytes, int]:
    text = session.opening + data(3, b"ls\n") + data(9, SIZE) + data(9, b'{"Width":81,"Height":24}') + ping(1) + ping(2)
    text += data(3, b"more", fin=True) + data(5, b"?") + data(11, b"?")
    text += reset(5)
    return text + goaway(0) + data(3, b"unread"), len(text)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_spdy_in_any_pieces(data: st.DataObject) -> None:
    session = Spdy(opened=False)
    text, end = client_spdy(session)
    answer, over = upstream_spdy(session)
    for parts, replies in (
        ([text], [answer]),
        (one_by_one(text), one_by_one(answer)),
        (data.draw(splits(text)), data.draw(splits(answer))),
    ):
        command = RemoteCommand("spdy/3.1", V4, tty=True)
        others = [*RESIZES, (Ping(ping(1)), 0), (Closing(True, 0), end)]
        assert told(command.from_client, parts) == Told([], others, 7)
        hidden: list[tuple[Event, int]] = [
            (Hidden(b"\0\4" + spdy_settings((4, 100))[8:], 0), 0),
            (Hidden(b"\0\x09" + window_update(3, 1000)[8:], 0), 0),
            (Hidden(b"\0M?", 0), 0),
            (Hidden(b"a: b", 0), 0),
        ]
        assert told(command.from_upstream, replies) == Told(OUTPUTS, [*hidden, (Closing(True, 0), over)], 0)


@given(st.data(), st.sampled_from(("websocket", "base64", "spdy")))
@settings(deadline=None)
def test_mutations_give_events_or_a_protocol_error(data: st.DataObject, transport: str) -> None:
    if transport == "spdy":
        session = Spdy(opened=False)
        command = session.command
        sides = [client_spdy(session)[0], upstream_spdy(session)[0]]
    elif transport == "base64":
        command = ws(BASE64)
        sides = [typed64(0, b"abc") + typed64(4, SIZE), said64(1, b"hello") + said64(3, b"{}")]
    else:
        command = ws()
        sides = [client_websocket()[0], upstream_websocket()[0]]
    for feed, side in zip((command.from_client, command.from_upstream), sides, strict=True):
        failure = None
        for part in data.draw(splits(data.draw(mutations(side)))):
            try:
                feed(memoryview(part))
                assert failure is None
            except ProtocolError as error:
                failure = failure or error.message
                assert error.message == failure
        command.farewell(STATUS, MESSAGE)


def test_output_says_where_its_frame_began() -> None:
    command = ws()
    first, second = said(1, b"hello"), said(2, b"world")
    assert [
        (event.start, bytes(event.data))
        for event in command.from_upstream(memoryview(first + second[:4]))
        if isinstance(event, Output)
    ] == [(0, b"hello"), (8, b"w")]
    (event,) = command.from_upstream(memoryview(second[4:]))
    assert isinstance(event, Output)
    assert (event.start, bytes(event.data)) == (-4, b"orld")


def test_upstream_data_is_a_slice() -> None:
    text = bytearray(said(1, b"hello"))
    (event,) = ws().from_upstream(memoryview(text))
    text[3:] = b"jello"
    assert isinstance(event, Output)
    assert bytes(event.data) == b"jello"


# Sizes of the terminal: tests/protocol/test_sizes.py has what Go makes of them.


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (SIZE, [(80, 24)]),
        (SIZE + SIZE, [(80, 24)] * 2),
        (b'{"Width":0,"Height":24}{"Width":80}{}', []),
        (b'{"Width":80,"Hei', []),
        (b"{ width: 100, height: 30}" + SIZE, []),
        (SIZE + b"[]" + SIZE, [(80, 24)]),
        (b"{ " + b" " * 100_000 + SIZE[1:], [(80, 24)]),
        (b"", []),
    ],
)
def test_sizes(text: bytes, sizes: list[tuple[int, int]]) -> None:
    """A size that Go does not take ends the sizes, and nothing else."""
    expected = [Resize(*size) for size in sizes]
    assert ws().from_client(memoryview(typed(4, text))) == expected
    assert ws(BASE64).from_client(memoryview(typed64(4, text))) == expected
    assert Spdy().type(data(9, text)) == expected
    # The objects are a stream: a message's end is none of theirs.
    command = ws()
    assert [event for byte in one_by_one(text[:500]) for event in command.from_client(memoryview(typed(4, byte)))] == [
        event for event in expected if len(text) < 500
    ]
    # Without a terminal nobody heeds them.
    assert ws(tty=False).from_client(memoryview(typed(4, text))) == []
    assert Spdy(tty=False).type(data(9, text)) == []


@pytest.mark.parametrize(
    ("frames", "sizes"),
    [
        # golang.org/x/net takes each frame for a message: a continuation begins with a channel too.
        (websocket(2, b"\4" + SIZE[:9], fin=False, mask=MASK) + websocket(0, b"\4" + SIZE[9:], mask=MASK), [(80, 24)]),
        (
            websocket(2, b"\4" + SIZE[:9], fin=False, mask=MASK)
            + websocket(0, SIZE[9:], mask=MASK)
            + typed(4, SIZE[9:]),
            [(80, 24)],
        ),
        (websocket(2, b"\0a", fin=False, mask=MASK) + websocket(0, b"\4" + SIZE, mask=MASK), [(80, 24)]),
        (websocket(2, b"", fin=False, mask=MASK) + websocket(0, b"\4" + SIZE, mask=MASK), [(80, 24)]),
        # v5: the client ends the channel of sizes, or another, or one that there is not, which ends the session.
        (typed(255, b"\4") + typed(4, SIZE), []),
        (typed(255, b"\0") + typed(4, SIZE), [(80, 24)]),
        (typed(255, b"\5") + typed(4, SIZE), []),
        (typed(255) + typed(4, SIZE), []),
        (typed(255, b"\0\0") + typed(4, SIZE), []),
        (typed(255, bytes(100_000)) + typed(4, SIZE), []),
    ],
)
def test_sizes_in_frames(frames: bytes, sizes: list[tuple[int, int]]) -> None:
    for parts in ([frames], one_by_one(frames[:500]) if len(frames) < 500 else [frames[:7], frames[7:]]):
        command = ws()
        events = [event for part in parts for event in command.from_client(memoryview(part))]
        assert [event for event in events if isinstance(event, Resize)] == [Resize(*size) for size in sizes]


@pytest.mark.parametrize(
    ("messages", "sizes"),
    [
        # A message that is no base64 is dropped whole, and the next one goes on where the last good one ended.
        ([SIZE[:9], b"!", SIZE[9:]], [(80, 24)]),
        ([b"\0{]", SIZE], [(80, 24)]),
        ([b"\0" + SIZE[:8]], []),
    ],
)
def test_sizes_in_base64(messages: list[bytes], sizes: list[tuple[int, int]]) -> None:
    import base64

    def frame(text: bytes) -> bytes:
        if text == b"!":
            return websocket(1, b"4" + base64.b64encode(SIZE) + b"!", mask=MASK)
        if text[:1] == b"\0":
            return websocket(1, b"4" + base64.b64encode(text[1:])[:-1], mask=MASK)
        return typed64(4, text)

    frames = b"".join(map(frame, messages))
    for parts in ([frames], one_by_one(frames)):
        command = ws(BASE64)
        events = [event for part in parts for event in command.from_client(memoryview(part))]
        assert events == [Resize(*size) for size in sizes]


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (b"eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9", 1),
        (b"eyJXaWR0\r\naCI6ODAsI\nkhlaWdodCI6MjR9\r\n", 1),  # line feeds are passed over
        (b"eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9Cg==", 1),
        (b"eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9Cv==", 1),  # bits behind the end
        (b"eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9Cg=", 0),
        (b"eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9Cg", 0),
        (b"eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9Cg==Cg==", 0),
        (b"eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9 ", 0),
        (b"eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9-_-_", 0),
        (b"=", 0),
    ],
)
def test_base64_as_go_decodes_it(text: bytes, sizes: int) -> None:
    frames = websocket(1, b"4" + text, mask=MASK)
    for parts in ([frames], one_by_one(frames)):
        command = ws(BASE64)
        assert len([event for part in parts for event in command.from_client(memoryview(part))]) == sizes


def test_sizes_of_an_endless_base64_message_are_not_all_held() -> None:
    command = ws(BASE64)
    text = b"".join(b'{"Width":%d,"Height":9}' % number for number in range(1, 2001))
    told = command.from_client(memoryview(typed64(4, text)))
    assert told == [Resize(number, 9) for number in range(1937, 2001)]


def test_sizes_end_with_their_stream() -> None:
    for ending in (data(9, b"", fin=True), reset(9)):
        session = Spdy()
        assert session.type(data(9, SIZE)) == [Resize(80, 24)]
        assert session.type(ending + data(9, SIZE)) == []
    session = Spdy(opened=False)
    session.type(SpdyWriter(DICTIONARY).opened(1, b"resize", fin=True))
    assert session.type(data(1, SIZE)) == []


# Where output could hide.


@pytest.mark.parametrize("channel", [0, 4, 5, 200, 254])
def test_output_on_a_channel_that_carries_none(channel: int) -> None:
    (output,) = [event for event in ws().from_upstream(memoryview(said(channel, b"x"))) if isinstance(event, Output)]
    assert (output.channel, bytes(output.data)) == (UNKNOWN, b"x")
    # The channel itself is a byte that a client can read.
    hidden = [Hidden(bytes((channel,)), 0)] if channel > 4 else []
    assert ws().from_upstream(memoryview(said(channel))) == hidden


def test_the_closing_channel_is_of_v5_alone() -> None:
    assert ws(V5).from_upstream(memoryview(said(255, b"\1"))) == []
    assert [type(event) for event in ws(V4).from_upstream(memoryview(said(255, b"\1")))] == [Hidden, Output]


@pytest.mark.parametrize("parts", [1, 3], ids=["in one frame", "in fragments"])
def test_the_closing_channel_carries_one_byte(parts: int) -> None:
    """More of it, an endless frame above all, would be held by who holds the end of a session back."""
    session = ws(V5)
    head = struct.pack(">BBQ", 2 if parts > 1 else 0x82, 127, 1 << 40)
    assert session.from_upstream(memoryview(head + b"\xff\1" if parts == 1 else websocket(2, b"\xff", fin=False))) == []
    assert session.undecided < 16
    events = [
        event
        for _ in range(parts)
        for event in session.from_upstream(memoryview(b"x" if parts == 1 else websocket(0, b"\2", fin=False)))
    ]
    assert events and all(isinstance(event, Output) and event.channel == UNKNOWN for event in events)


@pytest.mark.parametrize("stream", [3, 9, 11, 2, 100])
def test_output_on_a_stream_that_carries_none(stream: int) -> None:
    (output,) = Spdy().say(data(stream, b"x"))
    assert isinstance(output, Output) and (output.channel, bytes(output.data)) == (UNKNOWN, b"x")
    assert Spdy().say(data(stream, b"")) == ([Hidden(stream.to_bytes(4, "big"), 0)] if stream not in (3, 9) else [])


def test_the_error_channel_is_bounded() -> None:
    for say, most, beyond in (
        (ws().from_upstream, said(3, bytes(MAX_ERROR)), said(3, b"x")),
        (Spdy().command.from_upstream, data(1, bytes(MAX_ERROR)), data(1, b"x")),
    ):
        assert [type(event) for event in say(memoryview(most))] == [ErrorData]
        (more,) = say(memoryview(beyond))
        assert isinstance(more, Output) and more.channel == UNKNOWN


@pytest.mark.parametrize(
    ("frames", "hidden"),
    [
        (websocket(9, b""), []),
        (websocket(9, b"secret"), [b"secret"]),
        (websocket(10, b"") + websocket(10, b"mine"), []),  # the client's ping has said that
        (websocket(10, b"mine") * 2, [b"mine"]),
        (websocket(10, b"other"), [b"other"]),
        (websocket(8, b"\x03\xe8"), []),
        (websocket(8, b"\x03\xe8because"), [b"because"]),
        (websocket(8, b"") + websocket(8, b"\x03\xe8again"), [b"again"]),
        (said(255, b"\1") + said(255, b"\4"), []),
    ],
)
def test_what_stands_beside_the_output_of_websocket(frames: bytes, hidden: list[bytes]) -> None:
    command = ws()
    command.from_client(memoryview(websocket(9, b"mine", mask=MASK)))
    assert [event.data for event in command.from_upstream(memoryview(frames)) if isinstance(event, Hidden)] == hidden
    parts = one_by_one(frames)
    command = ws()
    command.from_client(memoryview(websocket(9, b"mine", mask=MASK)))
    events = [event for part in parts for event in command.from_upstream(memoryview(part))]
    assert b"".join(event.data for event in events if isinstance(event, Hidden)) == b"".join(hidden)


@pytest.mark.parametrize(
    ("frames", "hidden"),
    [
        (ping(2) + ping(4) + ping(7), []),
        (ping(2) + ping(2), [b"\0\0\0\2"]),
        (ping(0x53656372), [b"Secr"]),
        (ping(7) + ping(7), [b"\0\0\0\7"]),
        (ping(9), [b"\0\0\0\x09"]),
        (reset(5) + reset(7, 11), []),
        (reset(5, 0x53656372) + reset(77), [b"Secr", b"\0\0\0M"]),
        (goaway(9), []),
        (goaway(11, 0x53656372), [b"Secr", b"\0\0\0\x0b"]),
        (window_update(3, 1000), [b"\0\x09\0\0\0\3\0\0\x03\xe8"]),
        (control(77, b"secret"), [b"\0Msecret"]),
        (spdy_settings((4, 100)), [b"\0\4\0\0\0\1\0\0\0\4\0\0\0d"]),
    ],
)
def test_what_stands_beside_the_output_of_spdy(frames: bytes, hidden: list[bytes]) -> None:
    session = Spdy()
    session.type(ping(7))
    assert [event.data for event in session.say(frames) if isinstance(event, Hidden)] == hidden


def test_header_blocks_stand_beside_the_output() -> None:
    session = Spdy()
    frames = session.upstream.headers(5, {b"a": b"b", b"c": b"d"}) + session.upstream.syn_stream(2, {b"e": b"f"})
    frames += session.upstream.syn_reply(13)
    assert [event.data for event in session.say(frames) if isinstance(event, Hidden)] == [
        *(b"a: b; c: d", b"e: f", b"\0\0\0\x0d"),
    ]


@pytest.mark.parametrize("rubbish", [b"\xff" * 20, control(1, b""), control(3, b"x"), goaway(0)[:-1] + b"?"])
def test_upstream_of_spdy_is_read_without_its_client(rubbish: bytes) -> None:
    """What is known of the streams stays known; on one that the client may have opened since, output is UNKNOWN."""
    session = Spdy()
    if rubbish.endswith(b"?"):
        session.command.give_up_client("an error of ours")
    with pytest.raises(ProtocolError):
        session.type(rubbish)
    events = session.say(data(5, b"known") + data(11, b"unknown") + ping(2) + ping(77) + reset(13) + data(1, b"{}"))
    assert [(event.channel, bytes(event.data)) for event in events if isinstance(event, Output)] == [
        *((1, b"known"), (UNKNOWN, b"unknown")),
    ]
    assert not [event for event in events if isinstance(event, Hidden)]
    assert session.command.farewell(STATUS, MESSAGE, held=True) is not None
    with pytest.raises(ProtocolError):
        session.type(b"")


@pytest.mark.parametrize("rubbish", [b"\xff" * 20, said(0, b"x"), websocket(0, b"x", mask=MASK), b"\x83\x80" + MASK])
def test_upstream_of_websocket_is_read_without_its_client(rubbish: bytes) -> None:
    command = ws()
    with pytest.raises(ProtocolError):
        command.from_client(memoryview(rubbish))
    with pytest.raises(ProtocolError):
        command.from_client(memoryview(typed(0, b"x")))
    (output,) = command.from_upstream(memoryview(said(1, b"hello")))
    assert isinstance(output, Output) and bytes(output.data) == b"hello"
    assert command.farewell(STATUS, MESSAGE) is not None


def test_output_behind_a_reset_or_an_end_is_told() -> None:
    session = Spdy()
    session.type(reset(5))
    assert len(session.say(data(5, b"x"))) == 1
    assert len(session.say(data(5, b"x", fin=True) + data(5, b"y"))) == 2
    assert len(session.say(reset(7) + data(7, b"z"))) == 1


def test_output_behind_a_close_is_told() -> None:
    text = websocket(8, b"\x03\xe8") + said(1, b"x") + websocket(8, b"")
    assert [type(event) for event in ws().from_upstream(memoryview(text))] == [Closing, Output]


def test_streams_that_are_refused() -> None:
    openings: list[Callable[[SpdyWriter], bytes]] = [
        lambda client: client.opened(1, b"stdout") + client.opened(3, b"stdout"),
        lambda client: client.opened(1, b"output"),
        lambda client: client.opened(1, b""),
        lambda client: client.syn_stream(1, {}),
        lambda client: client.opened(1, b"stdout\0stderr"),
        lambda client: client.opened(2, b"stdout"),
        lambda client: client.opened(3, b"stdout") + client.opened(3, b"stderr"),
        lambda client: client.opened(3, b"stdout") + client.opened(1, b"stderr"),
    ]
    for opening in openings:
        session = Spdy(opened=False)
        with pytest.raises(ProtocolError):
            session.type(opening(SpdyWriter(DICTIONARY)))
    session = Spdy("v2.channel.k8s.io")
    with pytest.raises(ProtocolError, match="type"):
        session.type(session.client.opened(9, b"resize"))
    # One that upstream opens is none of the client's: what comes on it is output of nobody knows what.
    session = Spdy()
    events = session.say(session.upstream.opened(2, b"stdout") + data(2, b"x"))
    assert [type(event) for event in events] == [Hidden, Output]
    assert isinstance(events[1], Output) and events[1].channel == UNKNOWN


def test_streams_may_be_opened_in_any_order() -> None:
    session = Spdy(opened=False)
    client = SpdyWriter(DICTIONARY)
    assert session.type(client.opened(7, b"stdout") + client.opened(21, b"error")) == []
    events = session.say(data(21, b"{}") + data(7, b"x"))
    assert [type(event) for event in events] == [ErrorData, Output]


def test_what_can_be_said_after_an_error() -> None:
    command = ws()
    with pytest.raises(ProtocolError, match="masked"):
        command.from_client(memoryview(said(0, b"x")))
    # What upstream said could be read, so the client can still be told why it ends.
    assert command.farewell(STATUS, MESSAGE) is not None
    session = Spdy()
    with pytest.raises(ProtocolError):
        session.say(control(3, b"x"))
    with pytest.raises(ProtocolError):
        session.say(b"")
    assert session.command.farewell(STATUS, MESSAGE) is None


@pytest.mark.parametrize("text", [b"1a", b"1aaa!", b"1aGU=aGU=", b"1a==="])
def test_base64_that_is_none(text: bytes) -> None:
    for parts in ([websocket(1, text)], one_by_one(websocket(1, text))):
        command = ws(BASE64)
        with pytest.raises(ProtocolError, match="base64"):
            told(command.from_upstream, parts)


def test_ten_thousand_empty_frames() -> None:
    text = websocket(2, b"", mask=MASK) * 10_000
    assert ws().from_client(memoryview(text)) == []
    assert ws().from_upstream(memoryview(said(1) * 10_000)) == []
    assert Spdy().say(data(5, b"") * 10_000) == []


# The end.


def test_ends() -> None:
    for payload, clean in ((b"\x03\xe8", True), (b"", False), (b"\x03\xe9", False)):
        assert ws().from_upstream(memoryview(websocket(8, payload))) == [Closing(clean, 0)]
        command = ws()
        assert command.from_client(memoryview(websocket(8, payload, mask=MASK) + typed(0, b"x"))) == [Closing(clean, 0)]
        assert command.from_client(memoryview(b"what servers don't read")) == []
    for frames, clean in (
        (goaway(0), True),
        (goaway(0, 1), False),
        (reset(1) + reset(7) + reset(5), True),
        (reset(1) + reset(7) + reset(5, 6), False),
        (reset(5, 6) + goaway(0), False),
        (data(1, b"", fin=True) + data(5, b"", fin=True) + reset(7) + goaway(0), True),
    ):
        events = Spdy().say(frames)
        assert [event.clean for event in events if isinstance(event, Closing)] == [clean]
    session = Spdy()
    assert session.say(reset(3, 1) + reset(9, 1) + reset(5) + reset(7)) == []
    ended, closing = session.say(session.upstream.syn_reply(1, fin=True))
    assert isinstance(ended, ErrorData) and not ended.data and closing == Closing(True, 0)
    # That nothing was said on the error stream is known with its end, whatever else is open.
    session = Spdy()
    (ended,) = session.say(data(1, b"", fin=True))
    assert isinstance(ended, ErrorData) and not ended.data
    assert session.say(reset(1)) == [] and Spdy().say(data(1, STATUS) + reset(1))[1:] == []


def hello(subprotocol: str) -> bytes:
    text = said(1) + said(1, b"hello " * 20) + websocket(10, b"ab") + said(2, b"oh") + websocket(2, b"\1abc", fin=False)
    text += websocket(0, b"", fin=False) + websocket(10, b"") + websocket(0, b"def") + said(1, b"!" * 70_000)
    if "base64" in subprotocol:
        text = said64(1) + said64(1, b"hello " * 20) + websocket(9, b"ab") + said64(2, b"oh") + said64(2, b"!")
        text += websocket(1, b"1aGV", fin=False) + websocket(10, b"x") + websocket(0, b"sbG8=") + said64(1, b"!" * 300)
    return text


@pytest.mark.parametrize("subprotocol", sorted(WEBSOCKET_PROTOCOLS))
def test_farewell_behind_every_byte_of_websocket(subprotocol: str) -> None:
    text = hello(subprotocol)
    is_base64 = "base64" in subprotocol
    whole = heard_websocket(text, base64_text=is_base64)
    for cut in [*range(500), len(text) - 1, len(text)]:
        if cut > len(text):
            continue
        command = ws(subprotocol)
        command.from_upstream(memoryview(text)[:cut])
        farewell = command.farewell(STATUS, MESSAGE)
        assert farewell is not None
        heard = heard_websocket(text[:cut] + farewell, base64_text=is_base64)
        assert heard.close == 1000
        assert heard.channels[ERROR] == (STATUS if "v" in subprotocol[:1] else MESSAGE.encode())
        for channel in (1, 2):
            assert_filled(heard, whole, channel, half_a_byte=is_base64)


def assert_filled(heard: Heard, whole: Heard, channel: int, *, half_a_byte: bool = False) -> None:
    """What was heard is the beginning of what was said, then NUL."""
    real = heard.channels.get(channel, b"").rstrip(b"\0")
    if half_a_byte and not whole.channels.get(channel, b"").startswith(real):
        real = real[:-1]
    assert whole.channels.get(channel, b"").startswith(real)


@pytest.mark.parametrize("subprotocol", sorted(SPDY_PROTOCOLS))
def test_farewell_behind_every_byte_of_spdy(subprotocol: str) -> None:
    session = Spdy(subprotocol, opened=False)
    text = session.accepting + data(5, b"hello " * 20) + data(7, b"oh") + data(5, b"!" * 300)
    whole = heard_spdy(text + goaway(0))
    said_it = 0
    for cut in range(len(text) + 1):
        command = RemoteCommand("spdy/3.1", subprotocol, tty=True)
        command.from_client(memoryview(session.opening))
        command.from_upstream(memoryview(text)[:cut])
        farewell = command.farewell(STATUS, MESSAGE)
        if farewell is None:
            # Within what accepts the streams: a control frame can't be filled up, and kubectl does not listen yet.
            assert cut < len(session.accepting)
            continue
        said_it += 1
        if cut < len(session.accepting):
            continue
        heard = heard_spdy(text[:cut] + farewell)
        assert heard.channels[1] == (STATUS if subprotocol == V4 else MESSAGE.encode())
        if subprotocol[:1] == "v":
            assert heard.close == 0
            assert heard.ended >= {1, 5, 7}
        else:
            assert (heard.close, heard.ended) == (None, {1})
        for stream in (5, 7):
            assert_filled(heard, whole, stream)
    assert said_it > len(text) - len(session.accepting)


def test_farewells() -> None:
    status = b"{}"
    assert ws().farewell(status, "m") == b"\x82\x03\3{}\x88\x02\x03\xe8"
    assert ws("").farewell(status, "m") == b"\x82\x02\3m\x88\x02\x03\xe8"
    assert ws(BASE64).farewell(status, "m") == b"\x81\x053e30=\x88\x02\x03\xe8"
    assert Spdy().command.farewell(status, "m") == (
        data(1, status, fin=True) + data(5, b"", fin=True) + data(7, b"", fin=True) + goaway(9)
    )
    assert Spdy("").command.farewell(status, "m") == data(1, b"m", fin=True)


def test_farewells_that_cannot_be_said() -> None:
    # Nobody listens on the error stream yet, or ever will.
    session = Spdy(opened=False)
    assert session.command.farewell(STATUS, MESSAGE) is None
    session.type(session.opening)
    assert session.command.farewell(STATUS, MESSAGE) is None
    session.say(session.accepting)
    assert session.command.farewell(STATUS, MESSAGE) is not None
    # Too much would have to be filled up, of WebSocket, whose reset is a failure as well.
    for size, possible in ((MAX_FILLING, True), (MAX_FILLING + 1, False)):
        session = Spdy()
        session.say(data(5, bytes(size))[:8])
        assert session.command.farewell(STATUS, MESSAGE) is not None
        command = ws()
        command.from_upstream(memoryview(websocket(2, bytes(size))[:10]))
        assert (command.farewell(STATUS, MESSAGE) is not None) == possible
    # The error stream ends with the frame that would have to be filled up.
    frame = data(1, STATUS, fin=True)
    for cut in range(len(frame)):
        session = Spdy()
        session.say(frame[:cut])
        farewell = session.command.farewell(STATUS, MESSAGE)
        assert (farewell is None) == (cut > 4)
        if farewell is not None:
            assert heard_spdy(session.accepting + frame[:cut] + farewell).channels[1] == STATUS
    # Upstream is closing.
    session = Spdy()
    session.say(goaway(0)[:9])
    assert session.command.farewell(STATUS, MESSAGE) is None
    session.say(goaway(0)[9:])
    assert session.command.farewell(STATUS, MESSAGE) is None
    command = ws()
    command.from_upstream(memoryview(websocket(8, b"\x03\xe8")[:3]))
    assert command.farewell(STATUS, MESSAGE) is None
    command.from_upstream(memoryview(b"\xe8"))
    assert command.farewell(STATUS, MESSAGE) is None


def test_farewell_in_place_of_the_end() -> None:
    """What upstream said at the end was held back until the recording is safe, and it is not."""
    command = ws()
    text = said(1, b"hello") + said(3, b'{"status":"Success"}') + websocket(8, b"\x03\xe8")
    start = next(event.start for event in command.from_upstream(memoryview(text)) if isinstance(event, ErrorData))
    farewell = command.farewell(STATUS, MESSAGE, held=True)
    assert farewell is not None
    heard = heard_websocket(text[:start] + farewell)
    assert heard == Heard({1: b"hello", 3: STATUS}, set(), 1000)
    session = Spdy()
    text = data(5, b"hello") + data(1, b'{"status":"Success"}', fin=True) + reset(5) + reset(7) + goaway(0)
    start = next(event.start for event in session.say(text) if isinstance(event, ErrorData))
    farewell = session.command.farewell(STATUS, MESSAGE, held=True)
    assert farewell is not None
    heard = heard_spdy(session.accepting + text[:start] + farewell)
    assert heard == Heard({5: b"hello", 7: b"", 1: STATUS}, {1, 5, 7}, 0)
    # A close within a message: its fragments are brought to an end.
    command = ws()
    text = websocket(2, b"\1hello", fin=False)
    command.from_upstream(memoryview(text + websocket(8, b"")))
    farewell = command.farewell(STATUS, MESSAGE, held=True)
    assert farewell is not None
    assert heard_websocket(text + farewell).channels == {1: b"hello", 3: STATUS}


def test_boundaries() -> None:
    command, session = ws(), Spdy()
    for index, byte in enumerate(one_by_one(said(1, b"hello"))):
        assert command.at_boundary == (index == 0)
        command.from_upstream(memoryview(byte))
    assert command.at_boundary
    for index, byte in enumerate(one_by_one(data(5, b"hello"))):
        assert session.command.at_boundary == (index == 0)
        session.say(byte)
    assert session.command.at_boundary
    assert (STDIN, STDOUT, STDERR, ERROR, RESIZE) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("cut", [False, True], ids=["one read", "byte by byte"])
def test_what_stands_before_a_clients_fault_counts_in_the_same_read(cut: bool) -> None:
    """The streams that it has opened, the sizes, the pings."""
    told: list[Event] = []
    session = Spdy(opened=False)
    text = session.opening + data(9, SIZE) + ping(3) + b"\xff" * 20
    with pytest.raises(ProtocolError):
        for part in one_by_one(text) if cut else [text]:
            session.command.from_client(memoryview(part), told)
    assert [type(event) for event in told] == [Resize, Ping]
    events = session.say(session.accepting + data(7, b"to stderr") + data(11, b"unknown"))
    assert [(event.channel, bytes(event.data)) for event in events if isinstance(event, Output)] == [
        *((STDERR, b"to stderr"), (UNKNOWN, b"unknown")),
    ]
    told.clear()
    command = ws()
    text = typed(4, SIZE) + websocket(9, b"now", mask=MASK) + b"\xff" * 20
    with pytest.raises(ProtocolError):
        for part in one_by_one(text) if cut else [text]:
            command.from_client(memoryview(part), told)
    assert [type(event) for event in told] == [Resize, Ping]
    assert command.from_upstream(memoryview(websocket(10, b"now"))) == []


def test_an_answer_to_a_ping_answers_those_before_it() -> None:
    command = ws()
    for payload in (b"one", b"two", b"two", b"three"):
        command.from_client(memoryview(websocket(9, payload, mask=MASK)))
    pongs = websocket(10, b"two") + websocket(10, b"one") + websocket(10, b"two") + websocket(10, b"two")
    events = command.from_upstream(memoryview(pongs))
    assert [bytes(event.data) for event in events if isinstance(event, Hidden)] == [b"one", b"two"]


def test_the_client_closes_one_channel_however_much_it_says() -> None:
    """Of a message on the closing channel, the one byte counts; the rest of it is not kept."""
    command = ws()
    message = typed(255, b"\0" + b"x" * 20)
    for part in one_by_one(message + typed(0, b"still read")):
        command.from_client(memoryview(part))
    assert told(command.from_client, [typed(0, b"abc")]).typed == 3
