"""Where a watch may end: between two events, and nowhere else, however its bytes arrive."""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.protocol import watchevents
from k8sproxy.protocol.watchevents import (
    Events,
    GzipEvents,
    JsonEvents,
    OpaqueEvents,
    ProtobufEvents,
    UntypedEvents,
    watch_events,
)

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
_OBJECTS = st.lists(st.dictionaries(st.text(max_size=4), _VALUES, max_size=3), max_size=5)
_FRAMES = st.lists(st.binary(min_size=1, max_size=300), max_size=5)


def line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def frame(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def boundaries(reader: Events, data: bytes, cuts: list[int]) -> set[int]:
    """Of the places where the stream was cut, those that the reader takes for an end."""
    found = {0} if reader.at_boundary else set()
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        reader.take(memoryview(data)[start:end])
        if reader.at_boundary:
            found.add(end)
    return found


def ends(events: list[bytes]) -> set[int]:
    return {sum(map(len, events[:count])) for count in range(len(events) + 1)}


def check(make: Callable[[], Events], events: list[bytes]) -> None:
    data = b"".join(events)
    assert boundaries(make(), data, list(range(1, len(data)))) == ends(events)
    assert make().take(memoryview(data)) >= 0
    for _ in range(5):
        cuts = sorted(random.choices(range(len(data) + 1), k=random.randrange(4)))
        assert boundaries(make(), data, cuts) == ends(events) & {0, *cuts, len(data)}


@given(_OBJECTS)
def test_json(values: list[object]) -> None:
    check(JsonEvents, [line(value) for value in values])
    check(UntypedEvents, [line(value) for value in values])


@given(_FRAMES)
def test_protobuf(frames: list[bytes]) -> None:
    check(ProtobufEvents, [frame(data) for data in frames])
    check(UntypedEvents, [frame(data) for data in frames])


@given(_OBJECTS, st.booleans())
def test_gzip_members(values: list[object], both: bool) -> None:
    """An event a member, or two of them in one."""
    events = [line(value) for value in values]
    if both and len(events) > 1:
        events[:2] = [events[0] + events[1]]
    check(lambda: GzipEvents(JsonEvents()), [gzip.compress(event) for event in events])


@given(_FRAMES)
def test_a_member_that_ends_within_an_event_is_no_end(frames: list[bytes]) -> None:
    data = b"".join(map(frame, frames)) + frame(b"xyz")
    first, second = gzip.compress(data[:-2]), gzip.compress(data[-2:])
    assert boundaries(GzipEvents(ProtobufEvents()), first + second, [len(first)]) == {0, len(first + second)}


def test_one_endless_member_has_no_end() -> None:
    """Flushed behind each event, as HTTP servers do: the client would miss the trailer."""
    deflate = zlib.compressobj(wbits=31)
    reader = GzipEvents(JsonEvents())
    for number in range(3):
        reader.take(memoryview(deflate.compress(line({"n": number})) + deflate.flush(zlib.Z_SYNC_FLUSH)))
        assert not reader.at_boundary
    reader.take(memoryview(deflate.flush()))
    assert reader.at_boundary


def test_what_inflates_too_far_is_followed_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(line({"a": "b" * 10 * watchevents.MAX_INFLATED}))
    inner = JsonEvents()
    reader = GzipEvents(inner)
    assert reader.take(memoryview(bomb)) < 1000 and not reader.at_boundary
    assert reader.take(memoryview(gzip.compress(line({})))) == 0 and not reader.at_boundary
    for broken in bomb[:10] + b"xx", b"not gzip", b"\x1f\x8b\x08":
        reader = GzipEvents(JsonEvents())
        reader.take(memoryview(broken))
        assert not reader.at_boundary


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"a": [{}, {}], "b": {}}, indent=1) + "\n",
        json.dumps({"a": [{}, {}], "b": {}}, indent=0) + "\n",
        '{"a":[\n{}\n]}\n',
        '{"a":1,\n"b":{}}\n',
        "[{}]\n",
        " {}\n",
        "\x1e{}\n",
        "\n",
        "{}\r\n",
        "{}\n\n",
        "data: {}\n\n",
        '"x"\n',
    ],
)
def test_what_is_not_an_object_a_line_is_lost(text: str) -> None:
    data = text.encode()
    for cuts in list(range(1, len(data))), []:
        # Behind a first line that looks whole it may still be taken for an end, once: it is one of JSON's.
        found = boundaries(JsonEvents(), data, cuts) - {0}
        assert all(_is_json(data[:end]) for end in found), found
        reader = JsonEvents()
        reader.take(memoryview(data))
        reader.take(memoryview(b"{}\n"))
        assert not reader.at_boundary or _is_json(data)


def test_what_goes_on_behind_a_line_with_something_else_is_lost() -> None:
    for text in b'{"a":{"b":{}\n,"c":{}\n', b"{}\n}\n", b'{}\n"{}\n', b"{}\n {}\n":
        for step in 1, len(text):
            reader = JsonEvents()
            for at in range(0, len(text), step):
                reader.take(memoryview(text)[at : at + step])
            assert not reader.at_boundary, text


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def test_a_frame_of_nothing_is_lost() -> None:
    reader = ProtobufEvents()
    assert reader.take(memoryview(frame(b"a") + frame(b"") + frame(b"b"))) == 2
    assert not reader.at_boundary


@pytest.mark.parametrize("make", [JsonEvents, ProtobufEvents])
def test_events_smaller_than_any_are_followed_no_longer(make: type[Events]) -> None:
    one = line({}) if make is JsonEvents else frame(b"a")
    reader = make()
    for count, followed in ((watchevents.MAX_EVENTS - 1, True), (100 * watchevents.MAX_EVENTS, False), (1, False)):
        assert reader.take(memoryview(one * count)) <= watchevents.MAX_EVENTS + 1
        assert reader.at_boundary is followed


def test_events_are_paid_for() -> None:
    assert JsonEvents().take(memoryview(line({}) * 1000)) == 1000
    assert ProtobufEvents().take(memoryview(frame(b"a") * 1000)) == 1000
    assert GzipEvents(ProtobufEvents()).take(memoryview(gzip.compress(frame(b"a") * 1000))) > 1000
    zeros, empty = gzip.compress(bytes(100_000)), gzip.compress(b"")
    assert GzipEvents(OpaqueEvents()).take(memoryview(zeros)) > 100_000 // 1024
    assert GzipEvents(OpaqueEvents()).take(memoryview(empty * 25)) >= 100


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ("Content-Type: application/json\r\n", JsonEvents),
        ("Audit-Id: x\r\ncontent-type:application/json;stream=watch\r\nA: b\r\n", JsonEvents),
        ("Content-Type: application/json;as=Table;v=v1;g=meta.k8s.io ; x=y\r\n", JsonEvents),
        ("Content-Type: Application/JSON ;stream=watch\r\nContent-Encoding: identity\r\n", JsonEvents),
        ("Content-Type: application/vnd.x+json\r\n", JsonEvents),
        ("Content-Type: application/vnd.kubernetes.protobuf;stream=watch\r\n", ProtobufEvents),
        ("Content-Type: application/json\r\nContent-Encoding: gzip\r\n", GzipEvents),
        ("Content-Type: application/json\r\nContent-Encoding: zstd\r\n", OpaqueEvents),
        ("Content-Type: application/json\r\nContent-Encoding: gzip, gzip\r\n", OpaqueEvents),
        ("Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Encoding: gzip\r\n", OpaqueEvents),
        ("Content-Type: application/json\r\nContent-Type: text/plain\r\n", OpaqueEvents),
        ("Content-Type: application/cbor-seq\r\n", OpaqueEvents),
        ("Content-Type: application/yaml\r\n", OpaqueEvents),
        ("X-Content-Type: application/json\r\n", UntypedEvents),
        ("", UntypedEvents),
    ],
)
def test_the_reader_is_chosen_by_the_fields(fields: str, kind: type[Events]) -> None:
    events = watch_events(fields.encode())
    assert type(events) is kind
    assert events.at_boundary is (kind is not OpaqueEvents)
    if kind is OpaqueEvents:
        assert events.take(memoryview(b"{}\n")) == 0 and not events.at_boundary


def test_without_a_type_a_chunk_of_something_else_is_an_event() -> None:
    reader = UntypedEvents()
    reader.take(memoryview(b"x"))
    assert reader.at_boundary


@given(st.binary(max_size=200), st.sampled_from(["json", "protobuf", "gzip", "none"]))
def test_no_bytes_do_harm(data: bytes, kind: str) -> None:
    readers: dict[str, Callable[[], Events]] = {"json": JsonEvents, "protobuf": ProtobufEvents, "none": UntypedEvents}
    for split in 0, len(data) // 2:
        reader: Events = GzipEvents(JsonEvents()) if kind == "gzip" else readers[kind]()
        reader.take(memoryview(data)[:split])
        reader.take(memoryview(data)[split:])
        assert reader.at_boundary in (True, False)
