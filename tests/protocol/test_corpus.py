"""Real sessions (corpus/, saved by tests.fuzz.capture): cut and merged they mean the same, damaged it or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.formats.asciicast import OutputEncoder, decode_output, event_line, read_event
from k8sproxy.protocol.remotecommand import STDERR, STDOUT, RemoteCommand
from k8sproxy.protocol.spdy import DICTIONARY, FrameReader
from tests.fuzz.sessions import (
    CLIENT,
    UPSTREAM,
    Heard,
    Pieces,
    Session,
    corpus,
    hear,
    hear_ports,
)
from tests.fuzz.targets import TARGETS, chosen, packed
from tests.protocol.streams import MASK, SpdyWriter, goaway, heard_spdy, heard_websocket, reset, typed, websocket
from tests.strategies import mutations, splits

COMMANDS = {session.name: session for session in corpus("remotecommand")}
FORWARDS = {session.name: session for session in corpus("portforward")}
STATUS = b'{"kind":"Status","status":"Failure","message":"the session was ended"}'


@pytest.fixture(params=COMMANDS)
def session(request: pytest.FixtureRequest) -> Session:
    return COMMANDS[request.param]


@pytest.fixture(params=FORWARDS)
def forward(request: pytest.FixtureRequest) -> Session:
    return FORWARDS[request.param]


@cache
def whole(name: str) -> dict[bytes, Heard]:
    """What a session says when all the client's bytes come before all of upstream's."""
    session = COMMANDS[name]
    return hear(session.reader(), [(side, session.direction(side)) for side in (CLIENT, UPSTREAM)])


def digest(data: bytes) -> list[Any]:
    return [len(data), hashlib.sha256(data).hexdigest()]


def test_the_corpus_holds_each_protocol_that_is_spoken() -> None:
    spoken = {(session.facts["upgrade"], session.facts["subprotocol"]) for session in COMMANDS.values()}
    assert spoken == {
        *(("websocket", name) for name in ("v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "")),
        ("spdy/3.1", "v4.channel.k8s.io"),
    }
    assert {session.facts["subprotocol"] for session in FORWARDS.values()} == {
        *("SPDY/3.1+portforward.k8s.io", "portforward.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io")
    }


def test_a_session_says_what_its_client_saw(session: Session) -> None:
    heard = hear(session.reader(), session.pieces)
    facts = session.facts
    stdout = heard[UPSTREAM].bytes_of(f"output {STDOUT}")
    stderr = heard[UPSTREAM].bytes_of(f"output {STDERR}")
    assert facts.get("stdout", digest(stdout)) == digest(stdout)
    assert facts.get("stderr", digest(stderr)) == digest(stderr)
    about = 2 if "base64" in facts["subprotocol"] else 0
    assert abs(facts.get("typed", heard[CLIENT].typed) - heard[CLIENT].typed) <= about
    sizes = [list(event[1:]) for event in heard[CLIENT].said if event[0] == "resize"]
    assert sizes == facts.get("sizes", [])
    error = heard[UPSTREAM].bytes_of("error")
    if facts.get("exit"):
        assert b'"message":"%d"' % facts["exit"] in error
    assert [event[0] for event in heard[UPSTREAM].said] in ([], ["closing"])


def test_pieces_do_not_depend_on_the_other_direction(session: Session) -> None:
    assert hear(session.reader(), session.pieces) == whole(session.name)


def places(size: int, borders: list[int]) -> list[int]:
    """Every place of some bytes; where they are many, those deep in a long payload are not all looked at."""
    near = {place for border in borders for place in range(border - 3, border + 40)}
    return [cut for cut in range(size + 1) if size < 2000 or cut in near or cut % 61 == 0]


def test_every_split_of_the_client(session: Session) -> None:
    data = memoryview(session.direction(CLIENT))
    for cut in places(len(data), boundaries(session.facts["upgrade"], bytes(data))):
        reader, heard = session.reader(), Heard()
        heard.add(reader.from_client(data[:cut]), cut)
        heard.add(reader.from_client(data[cut:]), len(data) - cut)
        assert without_typed(heard) == without_typed(whole(session.name)[CLIENT]), cut


def test_every_split_of_upstream(session: Session) -> None:
    """The same events; and at each place a farewell that a strict client understands, or none where it can't be."""
    client, data = memoryview(session.direction(CLIENT)), memoryview(session.direction(UPSTREAM))
    wanted = whole(session.name)[UPSTREAM]
    borders = boundaries(session.facts["upgrade"], bytes(data))
    said = 0
    for cut in places(len(data), borders):
        reader, heard = session.reader(), Heard()
        reader.from_client(client)
        heard.add(reader.from_upstream(data[:cut]), cut)
        assert reader.at_boundary == (cut in borders)
        assert 0 <= reader.undecided <= cut - max(border for border in borders if border <= cut)
        said += farewell_is_heard(session, reader, bytes(data[:cut]), heard)
        heard.add(reader.from_upstream(data[cut:]), len(data) - cut)
        assert heard == wanted, cut
    assert said > 20


def farewell_is_heard(session: Session, reader: RemoteCommand, passed: bytes, heard: Heard) -> bool:
    farewell = reader.farewell(STATUS, "the session was ended")
    if farewell is None:
        return False
    output = heard.bytes_of(f"output {STDOUT}")
    said = STATUS if session.facts["subprotocol"].startswith(("v4", "v5")) else b"the session was ended"
    if session.facts["upgrade"] == "websocket":
        client = heard_websocket(passed + farewell, base64_text="base64" in session.facts["subprotocol"])
        assert client.close == 1000
        assert client.channels[3].endswith(said)
    else:
        client = heard_spdy(passed + farewell)
        assert client.close == 0
        frames = FrameReader()  # this one decompresses
        frames.receive_data(memoryview(passed + farewell))
        assert frames.at_boundary
        assert any(text.endswith(said) for text in client.channels.values())
    assert not output or any(text.startswith(output) for text in client.channels.values())
    return True


def boundaries(upgrade: str, data: bytes) -> list[int]:
    """Where frames begin, and where the last one ends."""
    found, at = [0], 0
    while at < len(data):
        if upgrade == "websocket":
            size, head = data[at + 1] & 127, 2
            if size > 125:
                head = 4 if size == 126 else 10
                size = int.from_bytes(data[at + 2 : at + head], "big")
            at += head + size + (4 if data[at + 1] & 128 else 0)
        else:
            at += 8 + int.from_bytes(data[at + 5 : at + 8], "big")
        found.append(at)
    # `kubectl cp` leaves when it has its file: a frame may be unfinished.
    return [border for border in found if border <= len(data)]


def without_typed(heard: Heard) -> tuple[object, ...]:
    """base64 that is cut is counted about."""
    return heard.runs, heard.said, heard.given


def test_byte_by_byte(session: Session) -> None:
    pieces = [(side, data[at : at + 1]) for side, data in session.pieces for at in range(len(data))]
    heard = hear(session.reader(), pieces)
    assert heard[UPSTREAM] == whole(session.name)[UPSTREAM]
    assert without_typed(heard[CLIENT]) == without_typed(whole(session.name)[CLIENT])


@st.composite
def recut(draw: st.DrawFn, pieces: Pieces) -> Pieces:
    """The pieces in their order: neighbours of one side merged at will, then cut at will."""
    merged: Pieces = []
    for side, data in pieces:
        if merged and merged[-1][0] == side and draw(st.booleans()):
            merged[-1] = (side, merged[-1][1] + data)
        else:
            merged.append((side, data))
    return [(side, part) for side, data in merged for part in draw(splits(data))]


@settings(max_examples=60)
@given(st.data())
def test_random_splits_and_merges(data: st.DataObject) -> None:
    session = data.draw(st.sampled_from(list(COMMANDS.values())))
    heard = hear(session.reader(), data.draw(recut(session.pieces)))
    assert heard[UPSTREAM] == whole(session.name)[UPSTREAM]
    assert without_typed(heard[CLIENT]) == without_typed(whole(session.name)[CLIENT])


@settings(max_examples=30)
@given(st.data())
def test_the_cast_gives_back_every_byte(data: st.DataObject) -> None:
    session = data.draw(st.sampled_from(list(COMMANDS.values())))
    output = whole(session.name)[UPSTREAM].bytes_of(f"output {STDOUT}")
    encoder = OutputEncoder()
    texts = [encoder.feed(part) for part in data.draw(splits(output))] if output else []
    lines = [event_line(0.5, "o", text) for text in [*texts, encoder.finish()] if text]
    assert b"".join(decode_output(read_event(line, 1 << 20)[2]) for line in lines) == output


@st.composite
def damaged(draw: st.DrawFn, pieces: Pieces) -> Pieces:
    """The pieces with some bytes changed, put in, taken out or doubled, or cut off somewhere; or one of them lost."""
    damaged = list(pieces)
    place = draw(st.integers(0, len(pieces) - 1))
    kind = draw(st.sampled_from("mtlf"))
    side, data = damaged[place]
    if kind == "m":
        damaged[place] = (side, draw(mutations(data)))
    elif kind == "f" and data:
        flipped = bytearray(data)
        flipped[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        damaged[place] = (side, bytes(flipped))
    elif kind == "t":
        damaged[place:] = [(side, data[: draw(st.integers(0, len(data)))])]
    else:
        del damaged[place]
    return damaged


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_session_gives_events_or_a_protocol_error(data: st.DataObject) -> None:
    session = data.draw(st.sampled_from(list(COMMANDS.values())))
    pieces = data.draw(damaged(session.pieces))
    reader, total = session.reader(), Heard()
    try:
        for side, part in pieces:
            feed = reader.from_client if side == CLIENT else reader.from_upstream
            total.add(feed(memoryview(part)), len(part))
    except ProtocolError:
        with pytest.raises(ProtocolError):
            (reader.from_client if side == CLIENT else reader.from_upstream)(memoryview(b"x"))
    # Nothing is made up: output is never more than what came.
    assert sum(len(run) for _, _, run in total.runs) <= sum(len(part) for _, part in pieces)
    reader.farewell(STATUS, "the session was ended")


# -- port-forwards


def test_a_port_forward_tells_its_ports_and_bytes(forward: Session) -> None:
    reader = forward.port_reader()
    opened = hear_ports(reader, forward.pieces)
    assert [event.port for event in opened] == forward.facts["ports"]
    assert_counted(forward, reader.sent, reader.received)


def assert_counted(forward: Session, sent: dict[int, int], received: dict[int, int]) -> None:
    """Exactly; in base64 three bytes for four characters, the last ones of which may be padding."""
    port = forward.facts["ports"][0]
    slack = 2 if "base64" in forward.facts["subprotocol"] else 0
    assert set(sent) == set(received) == {port}
    assert abs(sent[port] - forward.facts["sent"]) <= slack
    assert abs(received[port] - forward.facts["received"]) <= slack


def test_every_split_of_a_port_forward(forward: Session) -> None:
    if "base64" in forward.facts["subprotocol"]:
        pytest.skip("what is cut within four characters of base64 is counted about")
    client, upstream = (memoryview(forward.direction(side)) for side in (CLIENT, UPSTREAM))
    reader = forward.port_reader()
    wanted = reader.from_client(client)
    reader.from_upstream(upstream)
    upgrade = forward.facts["upgrade"]
    for cut in places(len(client), boundaries(upgrade, bytes(client))):
        again = forward.port_reader()
        assert [*again.from_client(client[:cut]), *again.from_client(client[cut:])] == wanted
        if "channel" in forward.facts["subprotocol"]:
            again.from_upstream(upstream)  # which names the port
        assert again.sent == reader.sent, cut
    for cut in places(len(upstream), boundaries(upgrade, bytes(upstream))):
        again = forward.port_reader()
        again.from_client(client)
        again.from_upstream(upstream[:cut])
        again.from_upstream(upstream[cut:])
        assert again.received == reader.received, cut


@settings(max_examples=40)
@given(st.data())
def test_random_splits_of_a_port_forward(data: st.DataObject) -> None:
    forward = data.draw(st.sampled_from(list(FORWARDS.values())))
    plain, cut = forward.port_reader(), forward.port_reader()
    assert hear_ports(cut, data.draw(recut(forward.pieces))) == hear_ports(plain, forward.pieces)
    if "base64" not in forward.facts["subprotocol"]:
        assert (cut.sent, cut.received) == (plain.sent, plain.received)


@settings(max_examples=100)
@given(st.data())
def test_a_damaged_port_forward_gives_events_or_a_protocol_error(data: st.DataObject) -> None:
    forward = data.draw(st.sampled_from(list(FORWARDS.values())))
    reader = forward.port_reader()
    try:
        hear_ports(reader, data.draw(damaged(forward.pieces)))
    except ProtocolError:
        with pytest.raises(ProtocolError):
            reader.from_client(memoryview(b"x"))


# -- the fuzzer's targets (make fuzz)


@pytest.mark.parametrize("name", TARGETS)
def test_the_fuzzers_targets_hold_on_their_seeds(name: str) -> None:
    seeds = TARGETS[name].seeds()
    assert seeds
    for seed in seeds:
        TARGETS[name].run(seed)


def findings() -> Iterator[tuple[str, bytes]]:
    """What a target once failed on."""
    # An ack of nothing was one that goes backwards, where it came in one piece.
    yield "acks", b'{"ack":1}{"ack":0}'
    # What stood behind a client's end was read, where it came in one piece with that.
    websocket_end = [(CLIENT, typed(0, b"a") + websocket(8, b"\x03\xe8", mask=MASK) + b"\xff" * 8)]
    yield "remotecommand", packed(chosen("websocket", "v5.channel.k8s.io", tty=True), websocket_end)
    spdy = chosen("spdy/3.1", "v4.channel.k8s.io", tty=True)
    yield "remotecommand", packed(spdy, [(CLIENT, goaway(0) + b"\xff" * 8)])
    client, upstream = (SpdyWriter(DICTIONARY) for _ in range(2))
    opening = [(CLIENT, client.opened(1, b"error") + client.opened(3, b"stdout")), (UPSTREAM, upstream.syn_reply(1))]
    # A farewell was DATA on a stream that was not accepted yet, or on one that had ended.
    yield "remotecommand", packed(spdy, opening, farewell=True)
    yield "remotecommand", packed(spdy, [*opening, (UPSTREAM, b"\0\0\0")], farewell=True)
    yield "remotecommand", packed(spdy, [*opening, (UPSTREAM, upstream.syn_reply(3) + reset(1))], farewell=True)
    # A continuation of nothing was only seen once its header was whole; until then it was filled up.
    odd = chosen("websocket", "v4.base64.channel.k8s.io", tty=False)
    yield "remotecommand", packed(odd, [(UPSTREAM, b"\x80")], farewell=True)


@pytest.mark.parametrize(("name", "data"), list(findings()))
def test_what_the_fuzzer_found(name: str, data: bytes) -> None:
    TARGETS[name].run(data)
