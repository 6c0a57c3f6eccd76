"""The budget of a turn of the loop: what one connection, one peer and all of them may spend on reading.

Nothing here measures time. A flood is 64 KiB of what is dear to read, as one turn of a wire brings it; what is looked
at is how much work was done in each turn of the loop, and that every byte came through in the end. (How long others
wait meanwhile: python -m bench.floods.)
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import Callable
from typing import cast

import pytest

from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.dataplane import client as client_module
from k8sproxy.dataplane.client import Client
from k8sproxy.dataplane.limits import Limits
from k8sproxy.dataplane.turns import (
    ESCAPE,
    GRANT,
    HANDSHAKE,
    HEAD_BYTES,
    REQUEST,
    ROW,
    STEP,
    TARGET_CHARACTERS,
    TURN,
    Pace,
    Turns,
)
from k8sproxy.dataplane.wire import BULK, ReadBuffer, Wire
from k8sproxy.protocol.http1 import Fields, parse_fields
from k8sproxy.protocol.spdy import DICTIONARY
from tests.dataplane.proxied import CHUNKED, Stage, get, request
from tests.protocol.streams import MASK, SpdyWriter, data, ping, typed, websocket
from tests.recording.scenes import CLOSED, OPEN, FakeWire, Scene, Spdy, Speech, WebSocket, until

# Units by which a step may overdraw what was granted: STEP bytes of the dearest kind, two bytes and four units a size.
OVERDRAWN = STEP * 4
SIZE = 64 * 1024


def many(piece: bytes) -> bytes:
    return piece * (SIZE // len(piece))


def resets() -> bytes:
    return many(struct.pack(">HHIII", 0x8003, 3, 8, 3, 5))


def opened() -> bytes:
    """Streams with as large a header block as is taken, of a few bytes each."""
    writer, text, number = SpdyWriter(DICTIONARY), b"", 11
    while len(text) < SIZE:
        fields = {b"streamtype": b"error", **{b"%d" % field: b"x" * 250 for field in range(14)}}
        text += writer.syn_stream(number, fields)
        number += 2
    return text


# name -> (who sends it, on what, bytes)
FLOODS: dict[str, tuple[str, type[Speech], Callable[[], bytes]]] = {
    "pings": ("client", Spdy, lambda: many(ping(7))),
    "resets": ("client", Spdy, resets),
    "frames of a byte": ("client", Spdy, lambda: many(data(3, b"x"))),
    "empty frames": ("client", Spdy, lambda: many(data(3, b""))),
    "sizes": ("client", Spdy, lambda: many(data(9, b"{}" * 125))),
    "WebSocket pings": ("client", WebSocket, lambda: many(websocket(9, b"", mask=MASK))),
    "WebSocket pongs": ("client", WebSocket, lambda: many(websocket(10, b"", mask=MASK))),
    "empty messages": ("client", WebSocket, lambda: many(websocket(2, b"", mask=MASK))),
    "messages of a byte": ("client", WebSocket, lambda: many(typed(0, b"x"))),
    "fragments": (
        "client",
        WebSocket,
        lambda: websocket(2, b"\0", fin=False, mask=MASK) + many(websocket(0, b"", fin=False, mask=MASK)),
    ),
    "WebSocket sizes": ("client", WebSocket, lambda: many(typed(4, b"{}" * 125))),
    "upstream's pings": ("upstream", Spdy, lambda: many(ping(2))),
    "output of a byte": ("upstream", Spdy, lambda: many(data(5, b"x"))),
    "upstream's empty frames": ("upstream", WebSocket, lambda: many(websocket(2, b""))),
    "WebSocket output of a byte": ("upstream", WebSocket, lambda: many(websocket(2, b"\1x"))),
}


async def play(scene: Scene, pace: Pace, work: Callable[[], int]) -> list[int]:
    """What is done in each turn of the loop from here on, until nothing waits."""
    spent = []
    before = work()
    while pace.waiting:
        await asyncio.sleep(0)
        spent.append(work() - before)
        before = work()
        assert len(spent) < 10_000
    return spent


@pytest.mark.parametrize("mode", [None, OPEN, CLOSED], ids=["unrecorded", "open", "closed"])
@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_takes_a_bounded_part_of_each_turn(flood: str, mode: RecordingLevel | None) -> None:
    who, speech, make = FLOODS[flood]
    scene = Scene(speech(), mode, tty=True)
    await scene.begin()
    await asyncio.sleep(0)
    switched, text = scene.switched, make()
    source, sink = (scene.client, scene.upstream) if who == "client" else (scene.upstream, scene.client)
    pace = switched._up if who == "client" else switched._down
    started, before = len(sink.written), scene.session.work
    source.arrive(text)
    assert scene.session.work - before <= GRANT + OVERDRAWN, "at once"
    assert source.paused and len(sink.written) - started < SIZE // 8
    spent = await play(scene, pace, lambda: scene.session.work)
    assert max(spent) <= ROW + OVERDRAWN
    assert bytes(sink.written[started:]) == text and not scene.over
    assert not source.paused, "read again"
    await scene.finish()


async def test_header_blocks_are_paced_too() -> None:
    scene = Scene(Spdy(), None, kind="portforward")
    scene.speech.subprotocol = "portforward.k8s.io"
    await scene.session.open()
    scene.switch()
    text = opened()
    scene.client.arrive(text)
    assert scene.session.work <= GRANT + OVERDRAWN
    spent = await play(scene, scene.switched._up, lambda: scene.session.work)
    assert len(spent) > 10 and max(spent) <= ROW + OVERDRAWN
    assert scene.upstream.written == text
    scene.switched.let_go()
    await scene.session.close()


@pytest.mark.parametrize("kind", [4, 8, 2, 9, 77], ids=["SETTINGS", "HEADERS", "SYN_REPLY", "WINDOW_UPDATE", "unknown"])
async def test_what_no_client_sends_is_not_read(kind: int) -> None:
    """A frame of a type that kubectl has no use for costs nothing: of a session that must be recorded it is the end."""
    frame = struct.pack(">HHI", 0x8003, kind, 8) + bytes(8)
    scene = Scene(Spdy(), CLOSED)
    await scene.begin()
    scene.up(frame)
    assert scene.over
    await scene.close()
    scene = Scene(Spdy(), None)
    await scene.begin()
    scene.up(frame)
    before = scene.session.work
    scene.up(many(frame))
    assert scene.session.work <= before and not scene.switched._up.waiting
    scene.switched.let_go()
    await scene.session.close()


async def test_all_connections_together_have_one_turn() -> None:
    """A hundred connections that flood at the same moment do no more work in a turn than the turn has."""
    turns = Turns(asyncio.get_running_loop())
    read: list[tuple[int, int]] = []  # (bytes, units), as it is asked for

    def dear(view: memoryview, units: int) -> tuple[int, int]:
        used = min(units, len(view))
        read.append((used, used))
        return used, used

    paces = []
    for number in range(100):
        wire = FakeWire(paused=False)
        pace = Pace(turns, f"peer {number % 2}", cast(Wire, wire), dear, may=lambda: True, failed=_raise)
        pace.receive(memoryview(bytes(GRANT * 2)))
        paces.append(pace)
    assert sum(units for _, units in read) <= TURN
    while turns.waiting:
        read.clear()
        await asyncio.sleep(0)
        assert sum(units for _, units in read) <= ROW
    assert not any(pace.waiting for pace in paces)


class Bulk:
    """Wires in full flow, which one owner pays for."""

    def __init__(self, turns: Turns, buffer: ReadBuffer, owner: str, count: int, size: int) -> None:
        self.owner = owner
        self.budget = turns
        self.reads = 0
        self.got = 0
        self.ours: list[socket.socket] = []
        self.wires: list[Wire] = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * size)
            theirs.setblocking(False)
            ours.sendall(b"x" * size)
            wire = Wire(asyncio.get_running_loop(), theirs, buffer)
            wire.payer = self
            wire.receiver = self.receive
            self.ours.append(ours)
            self.wires.append(wire)

    def receive(self, view: memoryview) -> None:
        self.reads += 1
        self.got += len(view)

    def close(self) -> None:
        for wire in self.wires:
            wire.close()
        for sock in self.ours:
            sock.close()


async def test_bulk_of_many_connections_is_read_within_the_turns() -> None:
    """Many connections in full flow; one of somebody else's is read meanwhile as if it were alone."""
    turns, buffer = Turns(asyncio.get_running_loop()), ReadBuffer()
    size, some = 256 * 1024, TURN // BULK + ROW // BULK + 4
    flood = Bulk(turns, buffer, "flooding", 120, size)
    other = Bulk(turns, buffer, "other", 1, size)
    for wire in (*flood.wires, *other.wires):
        wire.resume()
    await until(lambda: flood.reads >= 120)  # the first turn of each, before it is in full flow
    turn = 0
    while flood.got < 120 * size:
        before = flood.reads
        await asyncio.sleep(0)
        turn += 1
        assert flood.reads - before <= some
        if turn == 12:
            assert other.got == size
    assert turn > 12 and other.got == size
    flood.close()
    other.close()


async def test_a_wire_that_waits_for_its_turn_may_be_paused_and_closed() -> None:
    turns, buffer = Turns(asyncio.get_running_loop()), ReadBuffer()
    bulk = Bulk(turns, buffer, "flooding", 60, 256 * 1024)
    for wire in bulk.wires:
        wire.resume()
    await until(lambda: turns.waiting > 0)
    for number, wire in enumerate(bulk.wires):
        wire.pause()
        if number % 3 == 0:
            wire.close()
    await until(lambda: not turns.waiting)
    reads = bulk.reads
    await asyncio.sleep(0)
    assert bulk.reads == reads
    for wire in bulk.wires:
        wire.resume()
    await until(lambda: bulk.got >= 40 * 256 * 1024)
    bulk.close()


async def test_each_peer_has_its_own_row() -> None:
    """Who has one connection does not wait behind another's hundred."""
    turns = Turns(asyncio.get_running_loop())
    order: list[str] = []

    def resume(owner: str, count: int) -> Callable[[int], int]:
        def go_on(units: int) -> int:
            order.append(owner)
            if count > 1:
                turns.wait(owner, resume(owner, count - 1))
            return units

        return go_on

    for _ in range(100):
        turns.wait("flooding", resume("flooding", 5))
    turns.wait("quiet", resume("quiet", 2))
    await until(lambda: order.count("quiet") == 2)
    assert len(order) <= 4
    await until(lambda: not turns.waiting)
    assert len(order) == 502


async def test_a_turn_begins_anew() -> None:
    turns = Turns(asyncio.get_running_loop())
    assert turns.grant() == GRANT
    turns.spend(TURN - 10)
    assert turns.grant() == 10
    turns.spend(5000)
    turns.spend(-1)
    assert turns.grant() == 0
    await asyncio.sleep(0)
    assert turns.grant() == GRANT and not turns.waiting


def _raise(error: Exception) -> None:
    raise error


class Reader:
    """A unit a byte."""

    def __init__(self) -> None:
        self.turns = Turns(asyncio.get_running_loop())
        self.wire = FakeWire(paused=False)
        self.got = b""
        self.room = True
        self.failures: list[Exception] = []
        self.failing = False
        self.pace = Pace(
            self.turns, "peer", cast(Wire, self.wire), self.read, may=lambda: self.room, failed=self.failures.append
        )

    def read(self, view: memoryview, units: int) -> tuple[int, int]:
        if self.failing:
            raise RuntimeError("ours")
        used = min(units, len(view))
        self.got += view[:used]
        return used, used


async def test_an_end_waits_behind_the_bytes() -> None:
    reader = Reader()
    assert not reader.pace.behind(lambda: None)
    reader.pace.receive(memoryview(b"x" * 1000))
    ends: list[int] = []
    assert reader.pace.behind(lambda: ends.append(len(reader.got)))
    assert reader.pace.behind(lambda: ends.append(-1)), "a second end is no news"
    await until(lambda: ends)
    assert ends == [1000] and reader.wire.paused, "nothing comes behind an end"


async def test_what_waits_has_no_place_to_go() -> None:
    reader = Reader()
    reader.pace.receive(memoryview(b"x" * 1000))
    reader.room = False
    got = len(reader.got)
    for _ in range(5):
        await asyncio.sleep(0)
    reader.pace.resume()
    assert len(reader.got) == got and reader.wire.paused and not reader.turns.waiting
    reader.pace.receive(memoryview(b"y"))  # what a wire had when it was paused
    reader.room = True
    reader.pace.resume()
    reader.pace.resume()
    await until(lambda: not reader.pace.waiting)
    assert reader.got == b"x" * 1000 + b"y" and not reader.wire.paused


async def test_a_wire_reads_less_while_its_bytes_are_dear() -> None:
    reader = Reader()
    reader.pace.receive(memoryview(b"x" * 1000))
    assert reader.wire.most == 4096
    await until(lambda: not reader.pace.waiting)
    for expected in (8192, 16384, 32768, 65536, 65536):
        reader.pace.receive(memoryview(b"x"))
        assert reader.wire.most == expected


async def test_what_is_dropped_is_never_read() -> None:
    reader = Reader()
    reader.pace.receive(memoryview(b"x" * 1000))
    got = len(reader.got)
    reader.pace.drop()
    reader.pace.resume()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(reader.got) == got and not reader.turns.waiting and reader.wire.most == 65536
    assert not reader.pace.behind(lambda: None)


async def test_a_fault_in_a_later_turn_is_told() -> None:
    reader = Reader()
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    reader.pace.receive(memoryview(b"x" * 1000))
    reader.failing = True
    for _ in range(3):
        await asyncio.sleep(0)
    assert [str(error) for error in reader.failures] == ["ours"] and faults == reader.failures
    assert not reader.turns.waiting


CHUNK_FLOODS = {
    "of a byte": b"1\r\nx\r\n",
    "with extensions": b"1;\r\nx\r\n",
    "with zeros": b"0001\r\nx\r\n",
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("chunk", CHUNK_FLOODS)
async def test_small_chunks_take_a_bounded_part_of_each_turn(
    chunk: str, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways, sent ahead of the head's answer and behind it; and the next request finds all of it gone."""
    spends: list[int] = []
    spend = Turns.spend

    def counted(self: Turns, units: int) -> None:
        spends.append(units)
        spend(self, units)

    monkeypatch.setattr(Turns, "spend", counted)
    body = CHUNK_FLOODS[chunk] * 20_000 + b"0\r\n\r\n"
    async with Stage(tls=tls) as stage:
        client = await stage.client()
        sent = request("POST", "/api/v1/namespaces/a/services/x/proxy/", "Transfer-Encoding: chunked") + body + get()
        sending = asyncio.ensure_future(client.send(sent))
        upstream = await stage.api.accept()
        await upstream.head()
        assert await upstream.exactly(len(body)) == body
        await sending
        answering = asyncio.ensure_future(upstream.send(CHUNKED + body))
        await client.head()
        assert await client.exactly(len(body)) == body
        await answering
        await upstream.head()
        await upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        await upstream.end()
        await client.head()
        assert await client.exactly(len(body)) == body, "also where the API server ends behind it at once"
    assert spends and max(spends) <= GRANT + STEP


EVENT_FLOODS = {
    "empty members": ("application/json\r\nContent-Encoding: gzip", gzip.compress(b"")),
    "members of an event": ("application/json\r\nContent-Encoding: gzip", gzip.compress(b"{}\n")),
    "members of zeros": ("application/json\r\nContent-Encoding: gzip", gzip.compress(bytes(30_000))),
    "members of frames": (
        "application/vnd.kubernetes.protobuf\r\nContent-Encoding: gzip",
        gzip.compress(b"\0\0\0\1a" * 1000),
    ),
    "events": ("application/json", b"{}\n"),
    "frames": ("application/vnd.kubernetes.protobuf", b"\0\0\0\1a"),
}


@pytest.mark.parametrize("flood", EVENT_FLOODS)
async def test_the_events_of_a_watch_take_a_bounded_part_of_each_turn(
    flood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large the chunks are that they come in."""
    spends: list[int] = []
    spend = Turns.spend

    def counted(self: Turns, units: int) -> None:
        spends.append(units)
        spend(self, units)

    monkeypatch.setattr(Turns, "spend", counted)
    kind, piece = EVENT_FLOODS[flood]
    data = many(piece) * 4
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get("/apis/x.io/v1/things?watch=1"))
        head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: {kind}\r\n\r\n"
        answering = asyncio.ensure_future(upstream.send(head.encode() + body))
        await client.head()
        assert await client.exactly(len(body)) == body
        await answering
    # The dearest is followed once, and then no longer.
    assert spends and max(spends) <= GRANT + 2 * OVERDRAWN and sum(units > GRANT + OVERDRAWN for units in spends) <= 1


async def test_a_client_that_goes_while_its_chunks_wait() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(request("POST", "/api", "Transfer-Encoding: chunked"))
        await client.send(b"1\r\nx\r\n" * 20_000)
        client.reset()
        clock = asyncio.ensure_future(stage._run_clock())  # which finds resets that libuv told of once
        await upstream.gone()
        clock.cancel()


async def test_a_malformed_chunk_behind_many() -> None:
    async with Stage() as stage:
        client = await stage.client()
        await client.send(request("POST", "/api", "Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 9000 + b"zz\r\n")
        upstream = await stage.api.accept()
        await upstream.head()
        assert (await client.response()).status == 400
        assert (await upstream.exactly(6)) == b"1\r\nx\r\n"


# -- requests and handshakes


async def test_requests_wait_for_their_turn() -> None:
    """Two thousand requests in the same moment would be the loop's work for a tenth of a second."""
    turns = Turns(asyncio.get_running_loop())
    done: list[str] = []

    async def ask(owner: str) -> None:
        await turns.turn(owner, REQUEST)
        done.append(owner)

    flood = [asyncio.ensure_future(ask("flooding")) for _ in range(200)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    begun = len(done)
    assert begun <= 1 + (TURN + ROW) // REQUEST
    other = asyncio.ensure_future(ask("quiet"))
    await other
    assert done.index("quiet") <= begun + 2 * (1 + (TURN + ROW) // REQUEST), "not behind the flood"
    seen = len(done)
    while len(done) < 201:
        await asyncio.sleep(0)
        assert len(done) - seen <= 1 + (TURN + ROW) // REQUEST
        seen = len(done)
    await asyncio.gather(*flood)
    assert not turns.waiting


async def test_large_heads_are_parsed_within_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty connections, each with a head of 60 KiB at the same moment, would be 35 ms."""
    turns = Turns(asyncio.get_running_loop())
    head = get("/api", *(f"X-{number}: {'v' * 480}" for number in range(120)))
    parsed = 0

    def parse(block: bytes, *, max_count: int) -> Fields:
        nonlocal parsed
        parsed += 1
        return parse_fields(block, max_count=max_count)

    monkeypatch.setattr(client_module, "parse_fields", parse)
    wires = [FakeWire(paused=False) for _ in range(50)]
    clients = [Client(cast(Wire, wire), Limits(), None, turns, "flooding") for wire in wires]
    for wire in wires:
        vars(wire)["ended"] = False
    waiting = [asyncio.ensure_future(client.drive.run(client.next_head())) for client in clients]
    await asyncio.sleep(0)
    for wire in wires:
        wire.arrive(head)
    seen = parsed  # in the turn in which they came
    assert seen <= 2
    while seen < 50:
        await asyncio.sleep(0)
        assert parsed - seen <= 2 + (TURN + ROW) * HEAD_BYTES // len(head)
        seen = parsed
    assert {found.target for found in await asyncio.gather(*waiting) if found is not None} == {"/api"}
    assert not turns.waiting


@pytest.mark.parametrize(
    ("size", "escapes", "units"),
    [(1600, 0, 1600 // TARGET_CHARACTERS), (1600, 500, 1600 // TARGET_CHARACTERS + 500 * ESCAPE), (8000, 0, 0)],
)
async def test_a_target_has_its_price(size: int, escapes: int, units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read in a thread costs the loop nothing."""
    paid: list[int] = []
    begin = Turns.begin

    def counted(turns: Turns, units: int) -> bool:
        paid.append(units)
        return begin(turns, units)

    monkeypatch.setattr(Turns, "begin", counted)
    async with Stage() as stage:
        client = await stage.client()
        await client.send(get(("/.well-known/k8sproxy/whoami?" + "%41" * escapes).ljust(size, "x")))
        assert (await client.response()).status == 200
    assert REQUEST + units in paid


async def test_who_leaves_its_row_takes_no_units() -> None:
    turns = Turns(asyncio.get_running_loop())
    turns.spend(TURN)
    waiting = [asyncio.ensure_future(turns.turn("peer", HANDSHAKE)) for _ in range(10)]
    await asyncio.sleep(0)
    for task in waiting[:9]:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not turns.waiting and not waiting[9].cancelled()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_many_clients_at_once_are_all_served(tls: bool) -> None:
    async with Stage(tls=tls) as stage:
        clients = [await stage.client() for _ in range(60)]
        for client in clients:
            await client.send(get("/.well-known/k8sproxy/whoami"))
        assert {(await client.response()).status for client in clients} == {200}
