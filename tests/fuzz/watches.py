"""The fuzz target of watch bodies: a byte chooses the type, one the size of pieces, one that of chunks, then the body.

where a watch may end    behind whole events alone, told by a second reader that holds everything; and there always,
                         unless a limit was met (gzip that inflates too far)
cuts                     do not matter
a body in chunks         that is ended at such a place is whole events in whole chunks
"""

from __future__ import annotations

import contextlib
import gzip
import json
import struct
import zlib
from collections.abc import Iterator

from k8sproxy.protocol.body import ChunkedBody
from k8sproxy.protocol.watchevents import Events, OpaqueEvents, watch_events

JSON, PROTOBUF = (
    b"Content-Type: application/json;stream=watch\r\n",
    b"Content-Type: application/vnd.kubernetes.protobuf\r\n",
)
GZIP = b"Content-Encoding: gzip\r\n"
KINDS = (JSON, PROTOBUF, JSON + GZIP, PROTOBUF + GZIP, b"", b"Content-Type: text/plain\r\n")
_CHUNK_END = b"0\r\n\r\n"


def watch(data: bytes) -> None:
    if len(data) < 3:
        return
    kind, step, size, body = KINDS[data[0] % len(KINDS)], 1 + data[1], 1 + data[2], data[3:]
    pieces, single = watch_events(kind), watch_events(kind)
    if isinstance(single, OpaqueEvents):
        pieces.take(memoryview(body))
        assert not pieces.at_boundary
        return
    ends = {0}
    for at in range(len(body)):
        assert single.take(memoryview(body)[at : at + 1]) >= 0
        if single.at_boundary:
            assert _whole(kind, body[: at + 1]), "an end within an event"
            ends.add(at + 1)
        else:
            assert not _regular(kind, body[: at + 1]), "no end behind whole events"
    for at in range(0, len(body), step):
        pieces.take(memoryview(body)[at : at + step])
        end = min(len(body), at + step)
        if kind.endswith(GZIP):
            assert not pieces.at_boundary or end in ends
        else:
            assert pieces.at_boundary == (end in ends), "an end depends on how the bytes are cut"
    _chunked(watch_events(kind), kind, body, step, size)


def _chunked(events: Events, kind: bytes, body: bytes, step: int, size: int) -> None:
    stream = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in _cut(body, size)) + _CHUNK_END
    counter, passed = ChunkedBody(), 0
    counter.seen = events.take
    for piece in _cut(stream, step):
        if passed >= len(stream) // 2 and counter.may_end is None:
            counter.may_end = lambda: events.at_boundary
            counter.try_end()
        if counter.done:
            break
        passed += counter.take(memoryview(piece))
    assert counter.done
    if not counter.cut:
        assert passed == len(stream)
        return
    seen = _unchunked(stream[:passed] + _CHUNK_END)
    assert body.startswith(seen) and (_whole(kind, seen) or not kind), "ended within an event"


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def _unchunked(stream: bytes) -> bytes:
    data = b""
    while True:
        line, _, stream = stream.partition(b"\r\n")
        size = int(line, 16)
        assert stream[size : size + 2] == b"\r\n"
        if not size:
            return data
        data, stream = data + stream[:size], stream[size + 2 :]


def _inflated(kind: bytes, body: bytes) -> bytes | None:
    """What is in whole members of gzip, None where the last one is not whole, or none."""
    if not kind.endswith(GZIP):
        return body
    data = b""
    while body:
        inflate = zlib.decompressobj(wbits=31)
        try:
            data += inflate.decompress(body)
        except zlib.error:
            return None
        if not inflate.eof:
            return None
        body = inflate.unused_data
    return data


def _whole(kind: bytes, body: bytes) -> bool:
    """Whether a body may be whole events: lines that begin and end as an object does, whole frames."""
    data = _inflated(kind, body)
    if data is None:
        return False
    if kind.startswith(PROTOBUF) or (not kind and data[:1] == b"\0"):
        return _frames(data)
    if not kind and data[:1] != b"{":
        return True
    return not data or (data[:1] == b"{" and data.endswith(b"}\n"))


def _regular(kind: bytes, body: bytes) -> bool:
    """Whether a body certainly is whole events, of which no limit was met."""
    data = _inflated(kind, body)
    if data is None or (kind.endswith(GZIP) and len(data) > 4096):
        return False
    if kind.startswith(PROTOBUF) or (not kind and data[:1] == b"\0"):
        return _frames(data)
    if not data.endswith(b"}\n"):
        return False
    with contextlib.suppress(ValueError, RecursionError):
        return all(
            line[:1] == b"{" and isinstance(json.loads(line), dict) and line[-1:] == b"}"
            for line in data.split(b"\n")[:-1]
        )
    return False


def _frames(data: bytes) -> bool:
    while len(data) >= 4:
        (size,) = struct.unpack(">I", data[:4])
        if not 0 < size <= len(data) - 4:
            return False
        data = data[4 + size :]
    return not data


def seeds() -> list[bytes]:
    lines = [json.dumps({"type": "ADDED", "object": {"a": ["}\n{", "é", n]}}).encode() + b"\n" for n in range(3)]
    frames = [struct.pack(">I", n) + b"k8s\0" * n for n in (4, 8, 12)]
    frames = [struct.pack(">I", len(frame) - 4) + frame[4:] for frame in frames]
    pretty = [json.dumps({"a": [{}], "b": {}}, indent=1).encode() + b"\n"]
    found = []
    for number, kind in enumerate(KINDS):
        for events in (frames, lines, pretty) if not kind else (frames,) if PROTOBUF in kind else (lines, pretty):
            members = [gzip.compress(event) for event in events] if kind.endswith(GZIP) else events
            found += [bytes((number, step, size)) + b"".join(members) for step, size in ((0, 0), (6, 9), (255, 40))]
    return found
