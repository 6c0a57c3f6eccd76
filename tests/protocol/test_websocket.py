"""WebSocket frames, in both directions: RFC 6455, 5, with everything that it forbids and somebody takes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websocket import ABNF
from websocket._abnf import frame_buffer

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Control,
    FrameReader,
    Piece,
    frame,
    unmask,
)
from tests.protocol.streams import MASK, heard_websocket, websocket
from tests.strategies import mutations, splits

Seen = list[tuple[int, bytes, bool]]  # opcode, unmasked payload, fin


def seen(reader: FrameReader, parts: list[bytes]) -> tuple[Seen, list[int]]:
    """The frames that were whole, and where each began in the whole of the parts."""
    frames: Seen = []
    starts: list[int] = []
    payload = b""
    base = 0
    for part in parts:
        for event in reader.receive_data(memoryview(part)):
            if isinstance(event, Control):
                frames.append((event.opcode, event.payload, True))
                starts.append(base + event.start)
                continue
            assert event.offset == len(payload)
            payload += unmask(event.data, event.mask, event.offset)
            if event.last:
                frames.append((event.opcode, payload, event.fin))
                starts.append(base + event.start)
                payload = b""
        base += len(part)
    return frames, starts


@st.composite
def conversations(draw: st.DrawFn) -> Seen:
    """Messages in fragments, some empty, with control frames between and inside them."""
    frames: Seen = []
    for _ in range(draw(st.integers(0, 4))):
        payloads = draw(st.lists(st.binary(max_size=200), min_size=1, max_size=3))
        opcode = draw(st.sampled_from((TEXT, BINARY)))
        for index, payload in enumerate(payloads):
            if draw(st.booleans()):
                frames.append((draw(st.sampled_from((PING, PONG))), draw(st.binary(max_size=125)), True))
            frames.append((opcode if index == 0 else CONTINUATION, payload, index == len(payloads) - 1))
    if draw(st.booleans()):
        frames.append((CLOSE, b"\x03\xe8bye", True))
    return frames


def written(frames: Seen, mask: bytes | None) -> tuple[bytes, list[int]]:
    text, starts = b"", []
    for opcode, payload, fin in frames:
        starts.append(len(text))
        text += websocket(opcode, payload, fin=fin, mask=mask)
    return text, starts


@given(st.data(), conversations(), st.sampled_from((None, MASK, b"\0\0\0\0")))
@settings(deadline=None)
def test_frames_in_any_pieces(data: st.DataObject, frames: Seen, mask: bytes | None) -> None:
    text, starts = written(frames, mask)
    for parts in ([text], [text[at : at + 1] for at in range(len(text))], data.draw(splits(text)) if text else []):
        reader = FrameReader(masked=mask is not None)
        assert seen(reader, parts) == (frames, starts)
        assert reader.at_boundary


@given(st.data(), conversations())
@settings(deadline=None)
def test_only_between_frames_is_a_boundary(data: st.DataObject, frames: Seen) -> None:
    text, starts = written(frames, None)
    reader = FrameReader(masked=False)
    for index in range(len(text)):
        assert reader.at_boundary == (index in starts)
        reader.receive_data(memoryview(text)[index : index + 1])


@given(st.data(), conversations(), st.booleans())
@settings(deadline=None)
def test_mutated_frames_give_frames_or_a_protocol_error(data: st.DataObject, frames: Seen, masked: bool) -> None:
    text = data.draw(mutations(written(frames, MASK if masked else None)[0]))
    reader = FrameReader(masked=masked)
    failure = None
    for part in data.draw(splits(text)) if text else []:
        try:
            reader.receive_data(memoryview(part))
            assert failure is None
        except ProtocolError as error:
            failure = failure or error.message
            assert error.message == failure


@given(st.lists(st.tuples(st.sampled_from((TEXT, BINARY, PING, PONG)), st.binary(max_size=125)), max_size=5))
@settings(deadline=None)
def test_the_same_as_the_python_client_writes(frames: list[tuple[int, bytes]]) -> None:
    text = b"".join(ABNF(1, 0, 0, 0, opcode, 1, payload).format() for opcode, payload in frames)
    found, _ = seen(FrameReader(masked=True), [text])
    assert found == [(opcode, payload, True) for opcode, payload in frames]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
def test_frames_that_are_built_are_read_by_the_python_client(size: int) -> None:
    text = frame(BINARY, bytes(size))
    assert text == websocket(BINARY, bytes(size))
    stream = iter([text])
    left = bytearray()

    def receive(count: int) -> bytes:
        if not left:
            left.extend(next(stream))
        taken = bytes(left[:count])
        del left[:count]
        return taken

    read = frame_buffer(receive, skip_utf8_validation=True).recv_frame()
    assert (read.opcode, read.fin, bytes(left)) == (BINARY, 1, b"")
    assert read.data == bytes(size)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("size", "form"), [(0, 0), (125, 0), (126, 2), (65535, 2), (65536, 8), (5, 2), (5, 8), (0, 8), (300, 8)]
)
def test_lengths_in_every_form(size: int, form: int, masked: bool) -> None:
    text = websocket(BINARY, b"x" * size, form=form, mask=MASK if masked else None)
    text += websocket(PING, b"", mask=MASK if masked else None)
    for cut in range(1, 20):
        found, _ = seen(FrameReader(masked=masked), [text[:cut], text[cut:]])
        assert found == [(BINARY, b"x" * size, True), (PING, b"", True)]


REFUSED = [
    *(pytest.param(websocket(BINARY, b"a", first=bit), id=f"reserved bit {bit:x}") for bit in (0x10, 0x20, 0x40)),
    *(pytest.param(websocket(opcode, b"a"), id=f"opcode {opcode}") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    *(pytest.param(websocket(opcode, b"", fin=False), id=f"control {opcode} in parts") for opcode in (8, 9, 10)),
    *(pytest.param(websocket(opcode, bytes(126)), id=f"long control {opcode}") for opcode in (8, 9, 10)),
    pytest.param(websocket(PING, b"a", form=8), id="control of few bytes in the long form"),
    pytest.param(websocket(CONTINUATION, b"a"), id="continuation of nothing"),
    pytest.param(websocket(BINARY, b"a") + websocket(CONTINUATION, b"a"), id="continuation behind the end"),
    pytest.param(websocket(BINARY, b"a", fin=False) + websocket(TEXT, b"a"), id="a message in a message"),
    pytest.param(websocket(BINARY, b"", mask=MASK), id="masked"),
    pytest.param(b"\x82\x7f\x80" + bytes(7), id="a length of 2^63"),
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text: bytes) -> None:
    for parts in ([text], [text[at : at + 1] for at in range(len(text))]):
        reader = FrameReader(masked=False)
        with pytest.raises(ProtocolError) as first:
            seen(reader, parts)
        with pytest.raises(ProtocolError, match=first.value.message):
            reader.receive_data(memoryview(websocket(PING, b"")))


def test_a_client_has_to_mask() -> None:
    with pytest.raises(ProtocolError, match="masked"):
        FrameReader(masked=True).receive_data(memoryview(websocket(BINARY, b"a")))


def test_nothing_is_held_or_copied_of_data() -> None:
    text = bytearray(websocket(BINARY, b"hello"))
    view = memoryview(text)
    (piece,) = FrameReader(masked=False).receive_data(view)
    assert isinstance(piece, Piece)
    text[2:7] = b"jello"
    assert bytes(piece.data) == b"jello"
    # A length of 2^62 is believed: nothing is made for it.
    reader = FrameReader(masked=False)
    reader.receive_data(memoryview(b"\x82\x7f\x40" + bytes(7) + b"abc"))
    assert not reader.at_boundary


def test_empty_frames_cost_little() -> None:
    pieces = FrameReader(masked=False).receive_data(memoryview(websocket(BINARY, b"") * 10_000))
    assert len(pieces) == 10_000


@given(st.binary(max_size=40), st.binary(min_size=4, max_size=4), st.integers(0, 9))
@settings(deadline=None)
def test_unmask(payload: bytes, mask: bytes, offset: int) -> None:
    expected = bytes(byte ^ mask[(offset + index) % 4] for index, byte in enumerate(payload))
    assert unmask(memoryview(payload), mask, offset) == expected
    assert unmask(payload, b"", offset) == payload


@given(st.data(), conversations())
@settings(max_examples=60, deadline=None)
def test_any_cut_can_be_completed(data: st.DataObject, frames: Seen) -> None:
    frames = [item for item in frames if item[0] != CLOSE]
    # Kubernetes' messages begin with a channel.
    frames = [(item[0], b"\1" + item[1] if item[0] in (TEXT, BINARY) else item[1], item[2]) for item in frames]
    text, _ = written(frames, None)
    cut = data.draw(st.integers(0, len(text)))
    reader = FrameReader(masked=False)
    reader.receive_data(memoryview(text)[:cut])
    completion = reader.completion(b"\1", b"\0", limit=1 << 20)
    assert completion is not None
    heard = heard_websocket(text[:cut] + completion)
    whole = heard_websocket(text).channels.get(1, b"")
    got = heard.channels.get(1, b"")
    assert whole.startswith(got.rstrip(b"\0")) or got[: len(whole)].startswith(whole)
    assert reader.completion(b"\1", b"\0", limit=1 << 20) == completion


@pytest.mark.parametrize(
    ("text", "completion"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"\x82", b"\1\1", id="one byte of a header"),
        pytest.param(b"\x02", b"\1\1\x80\0", id="one byte of a fragment's header"),
        pytest.param(b"\x82\x7e", b"\0\1\1", id="no length yet"),
        pytest.param(b"\x82\x7e\1", b"\0\1" + bytes(255), id="half a length"),
        pytest.param(b"\x82\x7f" + bytes(7), b"\1\1", id="most of a long length"),
        pytest.param(b"\x82\x7f" + bytes(2), bytes(5) + b"\1\1", id="some of a long length"),
        pytest.param(b"\x82\x03", b"\1\0\0", id="a header"),
        pytest.param(b"\x82\x03\2", b"\0\0", id="a channel"),
        pytest.param(b"\x02\x01\2", b"\x80\0", id="between fragments"),
        pytest.param(b"\x02\x00", b"\x80\1\1", id="between fragments, no channel yet"),
        pytest.param(b"\x02\x01\2\x80", b"\0", id="one byte of a continuation"),
        pytest.param(b"\x02\x01\2\x89", b"\0\x80\0", id="one byte of a ping between fragments"),
        pytest.param(b"\x02\x01\2\x89\2a", b"\0\x80\0", id="a ping between fragments"),
        pytest.param(b"\x02\x01\2\x89\0", b"\x80\0", id="behind a ping between fragments"),
        pytest.param(b"\x8a\x02", b"\0\0", id="a pong"),
        pytest.param(b"\x88", None, id="one byte of a close"),
        pytest.param(b"\x88\x02\3", None, id="a close"),
        pytest.param(b"\x82\x7f" + bytes(4) + b"\1", None, id="16 MiB and more"),
    ],
)
def test_completions(text: bytes, completion: bytes | None) -> None:
    reader = FrameReader(masked=False)
    reader.receive_data(memoryview(text))
    assert reader.completion(b"\1", b"\0", limit=1 << 20) == completion


def test_completion_keeps_to_its_limit_and_quantum() -> None:
    reader = FrameReader(masked=False)
    reader.receive_data(memoryview(b"\x02\x7e\x04\x02" + b"1" * 3))
    assert reader.completion(b"1", b"A", limit=1022) is None
    assert reader.completion(b"1", b"A", limit=1023, quantum=4) == b"A" * 1023 + b"\x80\x03AAA"
