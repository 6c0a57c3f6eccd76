"""Bulk: memory stays what it is, and whoever does not read stops whoever sends."""

from __future__ import annotations

import asyncio
import resource
import socket
import tracemalloc
from itertools import pairwise

import pytest

from k8sproxy.dataplane.client import AHEAD
from k8sproxy.dataplane.wire import TURN as WIRE_TURN
from tests.dataplane.proxied import Raw, Stage, get, post, reply, request

both_legs = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])

_MIB = 1 << 20
_PIECE = b"x" * _MIB
# Bytes that may be under way when nobody reads: four socket buffers of the kernel and a turn's piece. Linux lets a
# buffer grow to 4 or 6 MiB (tcp_wmem, tcp_rmem); what matters is that it ends.
_UNDER_WAY = 40 * _MIB
# Bytes of Python's own for a body of any size: a turn's piece or two on each wire.
_HELD = 2 * _MIB


async def _pour(raw: Raw, pieces: int) -> None:
    for _ in range(pieces):
        await raw.send(_PIECE)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@both_legs
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_constant_memory(tls: bool, direction: str) -> None:
    size = 64 if tls else 200  # MiB
    async with Stage(tls=tls) as stage:
        if direction == "up":
            client, upstream, _ = await stage.exchange(request("POST", "/api", f"Content-Length: {size * _MIB}"))
            source, sink = client, upstream
        else:
            client, upstream, _ = await stage.exchange(get())
            await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (size * _MIB))
            await client.head()
            source, sink = upstream, client
        await asyncio.gather(_pour(source, 1), sink.skip(_MIB))
        before = _resident()
        async with asyncio.TaskGroup() as group:
            group.create_task(_pour(source, size - 1))
            group.create_task(sink.skip((size - 1) * _MIB))
        # The client's and upstream's own buffers here are in it too.
        assert _resident() - before < 8 * _MIB
        if direction == "up":
            await upstream.send(reply())
            assert (await client.response()).status == 200


async def _stopped(raw: Raw) -> int:
    """Send until nothing has been taken for 30 ms; how many bytes were."""
    sent = 0
    while True:
        try:
            async with asyncio.timeout(0.03):
                await raw.send(_PIECE[:65536])
        except TimeoutError:
            return sent
        sent += 65536
        assert sent < _UNDER_WAY, "nothing stops the sender"


@both_legs
async def test_client_that_does_not_read_stops_upstream(tls: bool) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 40))
        tracemalloc.start()
        await _stopped(upstream)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < _HELD
        await client.head()
        await client.skip(_MIB)


@both_legs
async def test_upstream_that_does_not_read_stops_the_client(tls: bool) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(request("POST", "/api", f"Content-Length: {1 << 40}"))
        tracemalloc.start()
        await _stopped(client)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < _HELD
        await upstream.skip(_MIB)


@both_legs
async def test_stops_and_goes_on(tls: bool) -> None:
    """A reader that stops and reads on gets every byte; so does the answer to an upload that came in pieces."""
    async with Stage(tls=tls) as stage:
        client = await stage.client(receive_buffer=4096)
        body = bytes(range(256)) * 4096 * 3  # 3 MiB
        _, upstream, _ = await stage.exchange(request("POST", "/api", "Content-Length: 4"), client)
        await client.send(b"bo")
        assert await upstream.exactly(2) == b"bo"
        await client.send(b"dy")
        assert await upstream.exactly(2) == b"dy"
        answer = asyncio.ensure_future(upstream.send(reply(body)))
        connection = stage.connections[0]
        await stage.until(lambda: connection.client.wire.blocked)
        assert (await client.response()).body == body
        await answer


async def test_pipelining_client_that_does_not_read_is_not_read() -> None:
    """Answers of the proxy itself have no upstream to be paused: the next request has to wait instead."""
    async with Stage() as stage:
        client = await stage.client(receive_buffer=4096)
        await stage.until(lambda: bool(stage.connections))
        connection = stage.connections[0]
        connection.client.wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        whoami = get("/.well-known/k8sproxy/whoami")
        sending = asyncio.ensure_future(client.send(whoami * 1000))
        await stage.until(lambda: connection.client.wire.blocked)
        served = connection.requests
        for _ in range(100):
            await asyncio.sleep(0)
        assert connection.requests == served < 100 and connection.client.wire.blocked
        for _ in range(1000):
            assert (await client.response()).status == 200
        await sending


async def test_pipelining_client_lets_others_have_their_turn() -> None:
    async with Stage() as stage:
        client = await stage.client()
        await stage.until(lambda: bool(stage.connections))
        turns: list[int] = []

        def turn() -> None:
            turns.append(stage.connections[0].requests)
            if turns[-1] < 100:
                asyncio.get_running_loop().call_soon(turn)

        turn()
        await client.send(get("/.well-known/k8sproxy/whoami") * 100)
        for _ in range(100):
            await client.response()
        assert max(later - sooner for sooner, later in pairwise(turns)) <= 2


async def test_pipelined_requests_are_not_hoarded() -> None:
    """Each request that is answered makes room for one, not for another buffer full of them."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get("/0"))
        flood = asyncio.ensure_future(client.send(get("/1", "X: " + "x" * 50) * 100_000))
        for _ in range(200):
            await upstream.send(reply())
            await upstream.head()
            await client.response()
            assert len(stage.connections[0].client.buffer) <= AHEAD + WIRE_TURN
        flood.cancel()
        await asyncio.wait((flood,))


@both_legs
async def test_upgraded_streams_stop_and_go_on(tls: bool) -> None:
    async with Stage(tls=tls) as stage:
        client = await stage.client(receive_buffer=4096)
        sent = request("POST", "/api/v1/namespaces/a/pods/w/exec", "Connection: Upgrade", "Upgrade: SPDY/3.1")
        _, upstream, _ = await stage.exchange(sent, client)
        await upstream.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
        await client.head()
        wires = stage.connections[0].client.wire
        down = asyncio.ensure_future(upstream.send(_PIECE * 8))
        await stage.until(lambda: wires.blocked)
        # The other direction goes on meanwhile.
        await client.send(b"keystroke")
        assert await upstream.exactly(9) == b"keystroke"
        up = asyncio.ensure_future(client.send(_PIECE * 8))
        async with asyncio.TaskGroup() as group:
            group.create_task(client.skip(8 * _MIB))
            group.create_task(upstream.skip(8 * _MIB))
        await asyncio.gather(down, up)


def test_requests_leave_no_memory() -> None:
    """What ten thousand requests leave behind is counted in dozens of KiB, not by request."""

    async def scene() -> None:
        async with Stage() as stage:
            client, upstream, _ = await stage.exchange(get())

            async def many(number: int) -> None:
                for index in range(number):
                    if index:
                        await client.send(post(b"x"))
                        await upstream.head()
                        await upstream.exactly(1)
                    await upstream.send(reply())
                    await client.response()
                await client.send(get())
                await upstream.head()

            await many(50)
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            await many(500)
            after, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert after - before < 100_000
            await upstream.send(reply())
            await client.response()

    asyncio.run(scene())
