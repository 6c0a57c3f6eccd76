"""What is fuzzed: each target takes any bytes and raises where the code it drives breaks its word.

The first bytes choose, the rest is input; `seeds` are such bytes, made of the recorded sessions and of what the tests
next door begin with. Nothing here knows the fuzzer: the tests run every target over its seeds and over old findings.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.formats import asciicast
from k8sproxy.common.formats.recorderapi import MAX_MESSAGE, AckReader, RecorderError
from k8sproxy.protocol.http1 import METHODS, Fields, head_end, origin_form, parse_fields, parse_request_line
from k8sproxy.protocol.portforward import CHANNEL_PROTOCOLS, PortForward
from k8sproxy.protocol.remotecommand import (
    MAX_FILLING,
    SPDY_PROTOCOLS,
    WEBSOCKET_PROTOCOLS,
    Closing,
    ErrorData,
    Event,
    Hidden,
    Output,
    RemoteCommand,
    Stdin,
)
from recorder.screen import CastText, Screen
from tests.fuzz import hostile, watches
from tests.fuzz.sessions import CLIENT, UPSTREAM, Pieces, corpus
from tests.protocol.oracles import Other, h11_request, llhttp_requests
from tests.protocol.streams import heard_spdy, heard_websocket

STATUS = b'{"kind":"Status"}'
MESSAGE = "ended"
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*")
_COMMANDS = [
    *(("spdy/3.1", name) for name in sorted(SPDY_PROTOCOLS)),
    *(("websocket", name) for name in sorted(WEBSOCKET_PROTOCOLS)),
]
_FORWARDS = [
    *(("spdy/3.1", name) for name in ("", "portforward.k8s.io")),
    ("websocket", "SPDY/3.1+portforward.k8s.io"),
    *(("websocket", name) for name in sorted(CHANNEL_PROTOCOLS)),
]


@dataclass(frozen=True)
class Target:
    """run: the check. seeds: inputs to begin with."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


# -- sessions: a byte chooses the protocol, then pieces, each behind two bytes: whose it is, whether a farewell is tried
# behind it, and its size (14 bits).


def _pieces(data: bytes) -> list[tuple[bytes, bytes, bool]]:
    pieces = []
    while len(data) >= 2:
        head = int.from_bytes(data[:2], "big")
        size = head & 0x3FFF
        pieces.append((UPSTREAM if head & 0x8000 else CLIENT, data[2 : 2 + size], head & 0x4000 != 0))
        data = data[2 + size :]
    return pieces


def packed(choice: int, pieces: Pieces, *, farewell: bool = False) -> bytes:
    """The input that stands for these pieces."""
    out = bytes((choice,))
    for side, data in pieces:
        for at in range(0, len(data), 0x3FFF):
            part = data[at : at + 0x3FFF]
            head = (0x8000 if side == UPSTREAM else 0) | (0x4000 if farewell else 0) | len(part)
            out += head.to_bytes(2, "big") + part
    return out


def chosen(upgrade: str, subprotocol: str, *, tty: bool) -> int:
    """The byte that chooses a remotecommand."""
    return _COMMANDS.index((upgrade, subprotocol)) | (0 if tty else 0x80)


def _told(events: list[Event], given: int, runs: list[tuple[object, ...]]) -> None:
    """Events, flattened so that those of any cut can be compared: output byte by byte, with its frame's place."""
    for event in events:
        if isinstance(event, Output):
            assert event.data
            runs += [("output", event.channel, given + event.start, byte) for byte in event.data]
        elif isinstance(event, ErrorData):
            runs += [("error", given + event.start, byte) for byte in event.data]
        elif isinstance(event, Hidden):
            runs += [("hidden", given + event.start, byte) for byte in event.data]
        elif isinstance(event, Closing):
            runs.append(("closing", event.clean, given + event.start))
        elif not isinstance(event, Stdin):
            runs.append(tuple(event))


def remotecommand(data: bytes) -> None:
    """No cut matters; a failure is final; a farewell is whole and heard wherever upstream's bytes are a server's."""
    if not data:
        return
    upgrade, subprotocol = _COMMANDS[(data[0] & 0x7F) % len(_COMMANDS)]
    tty = data[0] < 0x80
    whole, single = (RemoteCommand(upgrade, subprotocol, tty=tty) for _ in range(2))
    runs: dict[bytes, list[tuple[object, ...]]] = {CLIENT: [], UPSTREAM: []}
    singles: dict[bytes, list[tuple[object, ...]]] = {CLIENT: [], UPSTREAM: []}
    given = {CLIENT: b"", UPSTREAM: b""}
    unread = False  # the client
    for side, part, try_farewell in _pieces(data[1:]):
        if unread and side == CLIENT:
            continue
        place = len(given[side])
        given[side] += part
        failed = [False, False]
        try:
            feed = whole.from_client if side == CLIENT else whole.from_upstream
            _told(feed(memoryview(part)), place, runs[side])
        except ProtocolError:
            failed[0] = True
        try:
            feed = single.from_client if side == CLIENT else single.from_upstream
            for at in range(len(part)):
                _told(feed(memoryview(part)[at : at + 1]), place + at, singles[side])
        except ProtocolError:
            failed[1] = True
        assert failed[0] == failed[1], "whether it can be read depends on how it is cut"
        if failed[0]:
            assert unread or singles[side][: len(runs[side])] == runs[side]
            for reader in (whole, single):
                _always_fails(reader.from_client if side == CLIENT else reader.from_upstream)
            if side == UPSTREAM:
                assert whole.farewell(STATUS, MESSAGE) is None
                return
            # Upstream is read without the client. What stood before the fault in its piece is told where it was cut.
            unread = True
            continue
        if unread:
            continue
        assert runs == singles, "what is told depends on how it is cut"
        assert whole.at_boundary == single.at_boundary
        assert whole.undecided == single.undecided
        assert 0 <= whole.undecided <= len(given[UPSTREAM])
        if try_farewell:
            first = whole.farewell(STATUS, MESSAGE)
            assert first == single.farewell(STATUS, MESSAGE), "a farewell depends on how the bytes were cut"
            _farewell(upgrade, subprotocol, given[UPSTREAM], first)


def _always_fails(feed: Callable[[memoryview], list[Event]]) -> None:
    try:
        feed(memoryview(b""))
    except ProtocolError:
        return
    raise AssertionError("a failure that is not final")


def _farewell(upgrade: str, subprotocol: str, passed: bytes, farewell: bytes | None) -> None:
    if farewell is None:
        return
    assert len(farewell) < MAX_FILLING + 1024
    encoded = "base64" in subprotocol
    said = STATUS if subprotocol.startswith(("v4", "v5")) else MESSAGE.encode()
    if upgrade == "websocket":
        if not _begins_well_websocket(passed, encoded):
            return  # no server's: a client may not have read so far
        heard = heard_websocket(passed + farewell, base64_text=encoded)
        assert heard.close == 1000
        assert heard.channels[3].endswith(said)
    else:
        try:
            begun = _whole_frames(passed)
            stream = passed[begun : begun + 4]
            heard_spdy(passed[:begun] + (stream + bytes(4) if len(stream) == 4 and stream[0] < 0x80 else b""))
        except AssertionError:
            return
        heard = heard_spdy(passed + farewell)
        assert any(text.endswith(said) for text in heard.channels.values())
        assert heard.close == 0 or subprotocol in ("", "channel.k8s.io")


def _whole_frames(passed: bytes) -> int:
    at = 0
    while at + 8 <= len(passed):
        end = at + 8 + int.from_bytes(passed[at + 5 : at + 8], "big")
        if end > len(passed):
            break
        at = end
    return at


def _begins_well_websocket(passed: bytes, encoded: bool) -> bool:
    """Whether the messages that are whole are a server's own: each in one frame, with a channel."""
    at = 0
    while at + 2 <= len(passed):
        size, head = passed[at + 1], 2
        if size > 125:
            head = 4 if size == 126 else 10
            if at + head > len(passed):
                break
            size = int.from_bytes(passed[at + 2 : at + head], "big")
        if not passed[at] & 0x80 or passed[at] & 0x0F == 0 or (passed[at] & 0x0F < 8 and not size):
            return False
        if passed[at] & 0x0F == 8 or (encoded and passed[at] & 0x0F < 8 and size % 4 != 1):
            return False
        if encoded and passed[at] & 0x0F < 8 and not _BASE64.fullmatch(passed[at + head + 1 : at + head + size - 2]):
            return False
        at += head + size
    whole = passed[: at if at <= len(passed) else 0]
    try:
        heard_websocket(whole, base64_text=encoded)
    except (AssertionError, ValueError):
        return False
    return at >= len(passed) or passed[at] & 0x80 != 0


def _remotecommand_seeds() -> list[bytes]:
    seeds = []
    for session in corpus("remotecommand"):
        choice = chosen(session.facts["upgrade"], session.facts["subprotocol"], tty=session.facts["tty"])
        seeds.append(packed(choice, session.pieces, farewell=True))
        parts = [(side, data[at : at + 40]) for side, data in session.pieces for at in range(0, len(data), 40)]
        seeds.append(packed(choice, parts[:60], farewell=True))
    return [seed for seed in seeds if len(seed) <= 1024]


def portforward(data: bytes) -> None:
    """No cut matters for what is opened and counted (of base64: for what is opened); a failure is final."""
    if not data:
        return
    upgrade, subprotocol = _FORWARDS[data[0] % len(_FORWARDS)]
    whole, single = PortForward(upgrade, subprotocol), PortForward(upgrade, subprotocol)
    size = 0
    for side, part, _ in _pieces(data[1:]):
        size += len(part)
        opened: list[list[object]] = [[], []]
        failed = [False, False]
        try:
            opened[0] += (whole.from_client if side == CLIENT else whole.from_upstream)(memoryview(part))
        except ProtocolError:
            failed[0] = True
        try:
            for at in range(len(part)):
                feed = single.from_client if side == CLIENT else single.from_upstream
                opened[1] += feed(memoryview(part)[at : at + 1])
        except ProtocolError:
            failed[1] = True
        assert failed[0] == failed[1]
        if failed[0]:
            return
        assert opened[0] == opened[1]
        assert sum(whole.sent.values()) + sum(whole.received.values()) <= size
        if "base64" not in subprotocol:
            assert (whole.sent, whole.received) == (single.sent, single.received)


def _portforward_seeds() -> list[bytes]:
    seeds = []
    for session in corpus("portforward"):
        choice = _FORWARDS.index((session.facts["upgrade"], session.facts["subprotocol"]))
        parts = [(side, data[at : at + 60]) for side, data in session.pieces for at in range(0, len(data), 60)]
        seeds += [packed(choice, session.pieces), packed(choice, parts[:60])]
    return seeds


# -- asciicast: a byte for the size of pieces, then output; or a line.


def cast(data: bytes) -> None:
    """Output comes back byte for byte, through the line too; any line is read or is a ProtocolError."""
    if not data:
        return
    step, output = 1 + data[0] % 37, data[1:]
    encoder = asciicast.OutputEncoder()
    texts = [encoder.feed(output[at : at + step]) for at in range(0, len(output), step)]
    texts.append(encoder.finish())
    assert b"".join(map(asciicast.decode_output, texts)) == output
    encoder = asciicast.OutputEncoder()
    lines = [encoder.line(1.5, "o", output[at : at + step]) for at in range(0, len(output), step)]
    read = [asciicast.read_event(line, 1 << 20)[2] for line in lines if line]
    assert b"".join(map(asciicast.decode_output, [*read, encoder.finish()])) == output
    for text in texts:
        line = asciicast.event_line(1.5, "o", text)
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        assert asciicast.read_event(line, 1 << 20) == (1.5, "o", text)
    with contextlib.suppress(ProtocolError):
        seconds, code, text = asciicast.read_event(output, 1 << 20)
        assert 0 <= seconds < 1 << 53 and len(code) == 1
        again = asciicast.read_event(asciicast.event_line(seconds, code, text), 1 << 20)
        assert again[1:] == (code, text)
        asciicast.decode_output(text)
        with contextlib.suppress(ProtocolError):
            asciicast.read_size(text)
    with contextlib.suppress(ProtocolError):
        header = asciicast.read_header(output, 1 << 20)
        assert header["version"] == 2
        json.dumps(header)


def _cast_seeds() -> list[bytes]:
    text = "na\u00efve \u65e5\u672c e\u0301 \U0001f469\u200d\U0001f4bb \U0010feff".encode()
    lines = [
        b'{"version":2,"width":80,"height":24,"timestamp":1700000000,"env":{"TERM":"xterm"},"kubernetes":{"PodName":"a"}}',
        b'[0.25,"o","a\\u001b[1mb\\ud83d\\ude00"]',
        b'[1e3,"r","80x24"]',
        b'[1,"m",""]',
    ]
    noise = [bytes(range(256)) * 5, text * 30, text[:7] + b"\xff\xfe\xed\xa0\x80\xf4\x8f\xbb\xbf"]
    return [bytes((step,)) + item for item in [*lines, *noise] for step in (0, 6)]


# -- the recorder's answers


def acks(data: bytes) -> None:
    """No cut matters; what is held is bounded; numbers never fall."""
    whole, single = AckReader(), AckReader()
    outcome: list[object] = [None, None]
    try:
        whole.receive_data(data)
    except (ProtocolError, RecorderError) as error:
        outcome[0] = (type(error), str(error))
    acked = 0
    try:
        for at in range(len(data)):
            now = single.receive_data(data[at : at + 1])
            assert now >= acked
            acked = now
    except (ProtocolError, RecorderError) as error:
        outcome[1] = (type(error), str(error))
    assert outcome[0] == outcome[1], f"{outcome}"
    assert whole.acked == single.acked
    if outcome[0] is None:
        assert whole.at_boundary == single.at_boundary
        assert len(whole._held) <= MAX_MESSAGE


def _acks_seeds() -> list[bytes]:
    return [
        b'{"ack":1}{"ack": 20}\n{ "ack" : 300 }',
        b'{"ack":5,"more":{"a":[1,"}\\""]}} {"error":"disk full"}',
        b'{"error":""}{"ack":0}{}{"ack":18446744073709551615}',
    ]


# -- request heads


def head(data: bytes) -> None:
    """What is taken, h11 and llhttp take in the same way; what they refuse is not taken."""
    end = head_end(data)
    if end < 0:
        return
    data = data[:end]
    try:
        method, target, start = parse_request_line(data)
        fields = parse_fields(data[start:], max_count=100)
        origin_form(target, fields.host)
    except ProtocolError:
        return
    if method not in METHODS:
        return
    _agree(data, method, target, fields)


def _agree(data: bytes, method: str, target: str, fields: Fields) -> None:
    if fields.content_length or fields.chunked or fields.upgrade:
        return  # bodies and upgrades have tests of their own
    try:
        other = h11_request(data)
    except Other as error:
        raise AssertionError(f"h11 refuses what is taken: {error}") from error
    assert other.start == (method.encode(), target.encode("latin-1"))
    try:
        requests = llhttp_requests(data)
    except Other as error:
        raise AssertionError(f"llhttp refuses what is taken: {error}") from error
    assert len(requests) == 1 and requests[0].start == (method.encode(), target.encode("latin-1"))
    assert [name for name, _ in requests[0].fields] == [name for name, _ in other.fields]


def _head_seeds() -> list[bytes]:
    line = b"GET /api/v1/namespaces/default/pods/web/exec?command=sh&stdin=true HTTP/1.1\r\nHost: k8s.ts.net:8443\r\n"
    fields = [
        b"User-Agent: kubectl/v1.36.0\r\nAccept: application/json;as=Table,text/plain\r\nAccept-Encoding: gzip\r\n",
        b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Content-Length: 0\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n",
        b"Transfer-Encoding: chunked\r\nTE: trailers\r\nExpect: 100-continue\r\nContent-Length: 4\r\n",
    ]
    return [line + field + b"\r\n" for field in fields]


# -- the recorder's reading of casts


def screen(data: bytes) -> None:
    """Any text leaves text within its limit, in linear time (else the fuzzer gives up waiting); no cut matters."""
    if len(data) < 3:
        return
    text = data[3:].decode("utf-8", "surrogateescape")
    if data[2] >= 0xF0:
        text *= 100
    limit = 2000
    at_once, in_parts = (Screen(limit=limit, columns=data[0], rows=data[1]) for _ in range(2))
    at_once.feed(0.0, text)
    third = len(text) // 3
    for part in (text[:third], text[third:]):
        in_parts.feed(0.0, part)
    for seen in (at_once, in_parts):
        seen.finish()
        assert sum(len(line) + 1 for each in seen.segments for _, line in each.lines) <= limit + 1
    assert at_once.segments == in_parts.segments
    whole, single = CastText(), CastText()
    step = 1 + data[2]
    for at in range(0, len(data), step):
        single.feed(data[3 + at : 3 + at + step])
    whole.feed(data[3:])
    assert whole.finish() == single.finish()


def _screen_seeds() -> list[bytes]:
    head = (
        b'{"version":2,"width":80,"height":24}\n[0.1,"o","$ ls -l\\r\\na b\\u001b[2J\\u001b[1;1Hx"]\n[1,"r","100x30"]\n'
    )
    return [
        b"\x50\x18\x05" + head,
        b"\x50\x18\x05a\r\nprogress 10%\rprogress 20%\x1b[K\n\x1b[5;10Hthere\x1b]0;title\x07\x1bP q\x1b\\\x1b[31mred",
        b"\x14\x03\x00" + "\u65e5\u672c e\u0301\b\b\t\x1b[3@\x1b[2P\x1b[1L\x1b(0lqk\x1b(B\x1b[?1049h".encode(),
    ]


TARGETS: dict[str, Target] = {
    "remotecommand": Target(remotecommand, _remotecommand_seeds),
    "portforward": Target(portforward, _portforward_seeds),
    "cast": Target(cast, _cast_seeds),
    "acks": Target(acks, _acks_seeds),
    "head": Target(head, _head_seeds),
    "screen": Target(screen, _screen_seeds),
    "session": Target(hostile.session, hostile.seeds),
    "watch": Target(watches.watch, watches.seeds),
}
