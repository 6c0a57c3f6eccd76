"""SPDY/3.1 frames, in any pieces: the running compression, its bombs, and what lenient readers disagree on."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import settings as untimed
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol.spdy import (
    DICTIONARY,
    MAX_CONTROL,
    MAX_HEADER_BLOCK,
    MAX_HEADERS,
    Data,
    Frame,
    FrameReader,
    GoAway,
    Ping,
    Reply,
    Reset,
    SynStream,
    data_frame,
    goaway_frame,
    ping_frame,
)
from tests.protocol import streams
from tests.protocol.streams import SpdyWriter, control, data, goaway, ping, reset, settings, window_update
from tests.strategies import mutations, splits

Seen = list[tuple[object, ...]]


def seen(reader: FrameReader, parts: list[bytes]) -> Seen:
    """The frames, DATA put together, each with where it began in the whole of the parts."""
    frames: Seen = []
    open_data: tuple[int, int] | None = None
    base = 0
    for part in parts:
        for frame in reader.receive_data(memoryview(part)):
            start = base + frame.start
            if not isinstance(frame, Data):
                frames.append((*frame[:-1], start))
                open_data = None
                continue
            if open_data == (frame.stream, start):
                payload = frames.pop()[1]
                assert isinstance(payload, bytes)
            else:
                payload = b""
            open_data = (frame.stream, start)
            frames.append((frame.stream, payload + bytes(frame.data), frame.fin, start))
        base += len(part)
    return frames


HEADERS = st.dictionaries(
    st.sampled_from([b"streamtype", b"port", b"requestid", b"x"]), st.binary(max_size=30), max_size=4
)
STREAMS = st.integers(1, 2**31 - 1)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, Seen]:
    """Some frames of one direction, and what is to be seen of them."""
    writer = SpdyWriter(DICTIONARY)
    text = b""
    frames: Seen = []
    for kind in draw(st.lists(st.sampled_from("dddsrhxpgtwu"), max_size=8)):
        stream, fin, start = draw(STREAMS), draw(st.booleans()), len(text)
        if kind == "d":
            payload = draw(st.binary(max_size=100))
            text += data(stream, payload, fin=fin)
            frames.append((stream, payload, fin, start))
        elif kind in "srh":
            headers = draw(HEADERS)
            if kind == "s":
                text += writer.syn_stream(stream, headers, fin=fin)
                frames.append((stream, headers, fin, start))
            elif kind == "h":
                text += writer.headers(stream, headers, fin=fin)
                frames.append((stream, headers, fin, False, start))
            else:
                text += writer.syn_reply(stream, fin=fin)
                frames.append((stream, {}, fin, True, start))
        elif kind == "x":
            text += reset(stream, 5)
            frames.append((stream, 5, start))
        elif kind == "p":
            text += ping(stream)
            frames.append((stream, start))
        elif kind == "g":
            text += goaway(stream, 2)
            frames.append((stream, 2, start))
        else:
            other = {
                "t": settings((4, 100), (7, 65536)),
                "w": window_update(stream, 65536),
                "u": control(11, draw(st.binary(max_size=20)), 7),
            }[kind]
            text += other
            frames.append(({"t": 4, "w": 9, "u": 11}[kind], other[8:], start))
    return text, frames


@given(st.data(), conversations())
@untimed(deadline=None)
def test_frames_in_any_pieces(data: st.DataObject, conversation: tuple[bytes, Seen]) -> None:
    text, frames = conversation
    for parts in ([text], [text[at : at + 1] for at in range(len(text))], data.draw(splits(text)) if text else []):
        reader = FrameReader()
        assert seen(reader, parts) == frames
        assert reader.at_boundary


@given(st.data(), conversations())
@untimed(deadline=None)
def test_mutated_frames_give_frames_or_a_protocol_error(data: st.DataObject, conversation: tuple[bytes, Seen]) -> None:
    text = data.draw(mutations(conversation[0]))
    reader = FrameReader()
    failure = None
    for part in data.draw(splits(text)) if text else []:
        try:
            reader.receive_data(memoryview(part))
            assert failure is None
        except ProtocolError as error:
            failure = failure or error.message
            assert error.message == failure


def one(text: bytes) -> list[Frame]:
    return FrameReader().receive_data(memoryview(text))


def test_the_dictionary_is_that_of_spdy_3() -> None:
    assert zlib.adler32(DICTIONARY) == streams.DICTIONARY_ID
    assert len(DICTIONARY) == 1423


def test_each_frame_is_told() -> None:
    writer = SpdyWriter(DICTIONARY)
    frames = one(
        writer.opened(1, b"error", fin=True)
        + writer.syn_reply(1)
        + writer.headers(1, {b"a": b"b\0c"})
        + reset(1, 3)
        + ping(7)
        + goaway(1, 1)
        + data(1, b"abc", fin=True)
    )
    assert [type(frame) for frame in frames] == [SynStream, Reply, Reply, Reset, Ping, GoAway, Data]
    assert frames[0][:3] == (1, {b"streamtype": b"error"}, True)
    assert frames[2][:4] == (1, {b"a": b"b\0c"}, False, False)


def test_what_is_built_is_what_is_read() -> None:
    assert data_frame(5, b"abc") == data(5, b"abc")
    assert data_frame(5, b"", fin=True) == data(5, b"", fin=True)
    assert ping_frame(9) == ping(9)
    assert goaway_frame(7, 1) == goaway(7, 1)
    assert goaway_frame(7) == goaway(7)


def test_data_is_told_as_it_comes_and_never_held() -> None:
    text = bytearray(data(5, b"hello"))
    (frame,) = FrameReader().receive_data(memoryview(text))
    text[8:] = b"jello"
    assert isinstance(frame, Data)
    assert bytes(frame.data) == b"jello"
    reader = FrameReader()
    reader.receive_data(memoryview(struct.pack(">II", 5, 0x01FFFFFF) + b"abc"))
    assert (reader.data_left, reader.stream) == (0xFFFFFF - 3, 5)
    assert not reader.skip(0xFFFFFF - 4)
    assert reader.skip(1)
    assert (reader.needed, reader.at_boundary) == (8, True)
    assert reader.receive_data(memoryview(ping(1)[:5])) == []
    assert reader.needed == 3
    assert reader.receive_data(memoryview(ping(1)[5:10])) == []
    assert reader.needed == 2


def test_skipping_moves_where_frames_begin() -> None:
    reader = FrameReader()
    reader.receive_data(memoryview(data(5, b"hello")[:8]))
    reader.skip(3)
    (frame,) = reader.receive_data(memoryview(b"lo"))
    assert frame.start == -11


def syn(block: bytes, stream: int = 1) -> bytes:
    return control(1, struct.pack(">IIBB", stream, 0, 0, 0) + block)


def fields(*pairs: tuple[bytes, bytes]) -> bytes:
    return SpdyWriter(DICTIONARY).syn_stream(1, list(pairs))


def raw(block: bytes) -> bytes:
    return SpdyWriter(DICTIONARY).syn_stream(1, block)


REFUSED = [
    pytest.param(control(6, b"\0\0\0\1", version=2), id="SPDY/2"),
    pytest.param(control(99, b"", version=2), id="SPDY/2, empty"),
    pytest.param(control(99, bytes(MAX_CONTROL + 1))[:100], id="a control frame too long"),
    pytest.param(data(0, b"a"), id="DATA of stream 0"),
    pytest.param(syn(SpdyWriter(DICTIONARY).block({b"streamtype": b"x"})[:9]), id="a block cut off by its frame"),
    pytest.param(control(1, bytes(9)), id="SYN_STREAM too short"),
    pytest.param(control(2, bytes(3)), id="SYN_REPLY too short"),
    pytest.param(control(8, b""), id="HEADERS too short"),
    # spdystream reads eight bytes (four of a PING) whatever the length says, and goes on behind them.
    *(pytest.param(control(kind, bytes(7) + b"\1"), id=f"eight bytes of {kind}") for kind in (4, 6)),
    *(pytest.param(control(kind, b"\0\0\0\1\0\0\0\1" + ping(1)), id=f"{kind} too long") for kind in (3, 7, 9)),
    *(pytest.param(control(kind, b"\0\0\0\1"), id=f"{kind} too short") for kind in (3, 7, 9)),
    pytest.param(control(6, b""), id="PING of nothing"),
    pytest.param(control(6, bytes(4)), id="PING 0"),
    pytest.param(control(6, b"\0\0\0\1", 1), id="PING with flags"),
    pytest.param(reset(1, 0), id="RST_STREAM without a status"),
    pytest.param(reset(0, 1), id="RST_STREAM of stream 0"),
    pytest.param(reset(1 << 31 | 1), id="RST_STREAM with the reserved bit"),
    pytest.param(control(4, b""), id="SETTINGS of nothing"),
    pytest.param(control(4, b"\0\0\0\1" + bytes(16)), id="SETTINGS with more than it says"),
    pytest.param(control(4, b"\x20\0\0\1" + bytes(8)), id="SETTINGS with less than it says"),
    pytest.param(SpdyWriter(DICTIONARY).opened(0, b"error"), id="SYN_STREAM of stream 0"),
    pytest.param(SpdyWriter(DICTIONARY).opened(1 << 31 | 1, b"error"), id="SYN_STREAM with the reserved bit"),
    pytest.param(syn(b"no zlib"), id="no zlib"),
    pytest.param(syn(zlib.compress(bytes(4))), id="a zlib stream that ends"),
    pytest.param(syn(b"\x78\xbb\0\0\0\1\0"), id="another dictionary"),
    pytest.param(raw(b""), id="no count"),
    pytest.param(raw(b"\0\0\0\1"), id="fewer fields than it says"),
    pytest.param(raw(b"\0\0\0\1\0\0\0\5abc"), id="a name that is cut off"),
    pytest.param(raw(b"\0\0\0\1\0\0\0\1a\0\0"), id="a value's length that is cut off"),
    # Go would read what is left over as the beginning of the next block.
    pytest.param(raw(b"\0\0\0\0\0\0\0\1"), id="more than its fields"),
    pytest.param(raw(struct.pack(">I", MAX_HEADERS + 1)), id="too many fields"),
    pytest.param(raw(b"\xff\xff\xff\xff"), id="far too many fields"),
    pytest.param(fields((b"StreamType", b"stdout")), id="a name in capitals"),
    pytest.param(fields((b"a", b"1"), (b"a", b"2")), id="a name twice"),
    pytest.param(fields((b"", b"1")), id="no name"),
    pytest.param(raw(bytes(MAX_HEADER_BLOCK + 1)), id="a large block"),
    pytest.param(raw(bytes(10_000_000)), id="a bomb"),
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text: bytes) -> None:
    for parts in ([text], [text[at : at + 1] for at in range(len(text))]):
        reader = FrameReader()
        with pytest.raises(ProtocolError) as first:
            seen(reader, parts)
        with pytest.raises(ProtocolError, match=first.value.message):
            reader.receive_data(memoryview(ping(1)))


def test_the_largest_that_is_taken() -> None:
    writer = SpdyWriter(DICTIONARY)
    many = [(b"%d" % number, b"v") for number in range(MAX_HEADERS)]
    large = {b"a": b"b" * (MAX_HEADER_BLOCK - 13)}
    frames = one(writer.syn_stream(1, many) + writer.headers(1, large) + control(99, bytes(MAX_CONTROL)))
    assert len(frames) == 3


@pytest.mark.parametrize(
    ("text", "completion"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(data(5, b"hello")[:11], bytes(2), id="DATA"),
        pytest.param(data(5, b"hello")[:8], bytes(5), id="a header of DATA"),
        # Go writes a header as two words.
        pytest.param(data(5, b"hello")[:4], bytes(4), id="DATA of a stream"),
        pytest.param(data(5, b"hello")[:6], bytes(2), id="half a length"),
        pytest.param(data(5, b"x" * 300)[:7], b"\0" + bytes(256), id="most of a length"),
        pytest.param(data(5, b"hello", fin=True)[:5], bytes(3), id="flags"),
        pytest.param(b"\0\0", b"\0\5" + bytes(4), id="half a stream's id"),
        pytest.param(data(9, b"hello")[:4], None, id="DATA of another stream"),
        pytest.param(b"\1", None, id="DATA of a stream far off"),
        pytest.param(b"\x80\x03", ping(2)[2:], id="a control frame"),
        pytest.param(ping(7)[:4], ping(2)[4:], id="a ping"),
        pytest.param(ping(7)[:10], b"\0\2", id="most of a ping"),
        pytest.param(reset(5)[:4], None, id="a reset"),
        pytest.param(goaway(5)[:10], None, id="GOAWAY"),
        pytest.param(data(5, bytes(2000))[:9], bytes(1999), id="a large one"),
        pytest.param(data(5, bytes(1 << 20))[:6], bytes(2 + (1 << 20)), id="perhaps a large one"),
    ],
)
def test_completions(text: bytes, completion: bytes | None) -> None:
    reader = FrameReader()
    reader.receive_data(memoryview(text))
    assert reader.completion([5, 7]) == completion
    if completion is not None:
        reader.receive_data(memoryview(completion))
        assert reader.at_boundary
