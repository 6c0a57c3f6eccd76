"""Switched connections: nothing lost, nothing before its turn, each end passed on and the other side drained."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import socket
import termios
import weakref

import pytest

from k8sproxy.dataplane.relay import ExchangeState
from tests.dataplane.proxied import Raw, Stage, Truncated, peer, reply, request

both_legs = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])

_EXEC = "/api/v1/namespaces/a/pods/web/exec?command=sh"


def upgrade(protocol: str = "SPDY/3.1", method: str = "POST") -> bytes:
    return request(method, _EXEC, "Connection: Upgrade", f"Upgrade: {protocol}", "X-Stream-Protocol-Version: v4")


def switching(protocol: str = "SPDY/3.1") -> bytes:
    lines = ("Connection: Upgrade", f"Upgrade: {protocol}", "X-Stream-Protocol-Version: v4")
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode()


async def switched(stage: Stage) -> tuple[Raw, Raw]:
    client, upstream, _ = await stage.exchange(upgrade())
    await upstream.send(switching())
    assert b" 101 " in await client.head()
    return client, upstream


async def test_an_upgrade_that_is_no_session_leaves_nothing() -> None:
    """It has no session's tap; the one that stands in for it is not everybody's."""
    async with Stage() as stage:
        path = "/api/v1/namespaces/a/services/web/proxy/ws"
        client, upstream, _ = await stage.exchange(request("GET", path, "Connection: Upgrade", "Upgrade: websocket"))
        await upstream.send(switching("websocket"))
        await client.head()
        exchange = weakref.ref(stage.connections[0].running.exchange)
        await client.end()
        assert await upstream.rest() == b""
        await upstream.end()
        assert await client.rest() == b""
        await stage.until(lambda: not stage.connections)
    gc.collect()
    assert exchange() is None


@both_legs
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("protocol", ["SPDY/3.1", "spdy/3.1", "sPdY/3.1", "websocket", "WebSocket"])
async def test_switch(protocol: str, method: str, tls: bool) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, head = await stage.exchange(upgrade(protocol, method))
        assert head.lower().count(b"\r\nupgrade: " + protocol.lower().encode() + b"\r\n") == 1
        assert head.count(b"\r\nConnection: Upgrade\r\n") == 1 and b"x-stream-protocol-version: v4" in head
        await upstream.send(switching(protocol))
        assert await client.head() == (
            b"HTTP/1.1 101 Switching Protocols\r\nX-Stream-Protocol-Version: v4\r\nConnection: Upgrade\r\nUpgrade: "
            + protocol.encode()
            + b"\r\n\r\n"
        )
        assert stage.server.running()["upgrade"] == 1
        for number in range(5):
            await client.send(b"up%d" % number)
            assert await upstream.exactly(3) == b"up%d" % number
            await upstream.send(b"down%d" % number)
            assert await client.exactly(5) == b"down%d" % number
        await client.end()
        assert await upstream.rest() == b""
        await upstream.end()
        assert await client.rest() == b""


@both_legs
async def test_bytes_ahead_go_first(tls: bool) -> None:
    """Sent before the answer is here: by the client behind its head, and by upstream behind the 101."""
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(upgrade() + b"1st")
        await client.send(b"2nd")
        connection = stage.connections[0]
        await stage.until(lambda: connection.client.buffer == b"1st2nd")
        assert upstream.received == b""
        await upstream.send(switching() + b"hello")
        await client.send(b"3rd")
        assert await upstream.exactly(9) == b"1st2nd3rd"
        await client.head()
        assert await client.exactly(5) == b"hello"


@both_legs
async def test_half_close_of_the_client(tls: bool) -> None:
    """`exec -i` with the end of its input: the command's output still comes, all of it."""
    async with Stage(tls=tls) as stage:
        client, upstream = await switched(stage)
        await client.send(b"input")
        await client.end()
        assert await upstream.rest() == b"input"
        output = b"x" * 3_000_000
        sending = asyncio.ensure_future(upstream.send(output))
        assert await client.exactly(len(output)) == output
        await sending
        await upstream.end()
        assert await client.rest() == b""


@both_legs
async def test_half_close_of_upstream(tls: bool) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream = await switched(stage)
        await upstream.send(b"output")
        await upstream.end()
        assert await client.rest() == b"output"
        data = b"y" * 3_000_000
        sending = asyncio.ensure_future(client.send(data))
        assert await upstream.exactly(len(data)) == data
        await sending
        await client.end()
        assert await upstream.rest() == b""


@both_legs
@pytest.mark.parametrize("size", [16384, 65536, 5 * 16384, 262144 + 16384, 1_000_000])
async def test_output_and_its_end_reach_a_slow_client(tls: bool, size: int) -> None:
    """The client has ended its side, upstream ends behind its last byte, and only then the client reads."""
    async with Stage(tls=tls) as stage:
        client = await stage.client(receive_buffer=4096)
        _, upstream, _ = await stage.exchange(upgrade(), client)
        await upstream.send(switching())
        await client.head()
        await client.end()
        assert await upstream.rest() == b""
        output = b"x" * size

        async def say_all() -> None:
            await upstream.send(output)
            await upstream.end()

        async with asyncio.TaskGroup() as group:
            group.create_task(say_all())
            await asyncio.sleep(0.02)  # nothing tells how far the bytes have come
            assert await client.rest() == output


@both_legs
async def test_upstream_that_closes_loses_no_output(tls: bool) -> None:
    """The API server closes behind its last byte; what the client still says has nowhere to go, which is no fault."""
    async with Stage(tls=tls) as stage:
        client = await stage.client(receive_buffer=4096)
        _, upstream, _ = await stage.exchange(upgrade(), client)
        await upstream.send(switching())
        await client.head()
        wire = stage.connections[0].client.wire
        wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        # A turn of reading, and a little that waits in the kernel until the client has taken that.
        output = b"x" * (65536 + 16384)
        await upstream.send(output)
        await stage.until(lambda: wire.blocked)
        await upstream.end()
        await stage.until(lambda: not fcntl.ioctl(upstream.sock, termios.TIOCOUTQ, b"1234").strip(b"\0"))
        upstream.close()
        for _ in range(3):
            await client.send(b"ping")
            await asyncio.sleep(0.001)
        assert await client.rest() == output


@both_legs
async def test_upstream_that_has_ended_and_takes_no_more_is_no_fault(tls: bool) -> None:
    """Its end has been passed on; that a late frame of the client's finds it gone must not break what was said."""
    async with Stage(tls=tls) as stage:
        client, upstream = await switched(stage)
        await upstream.send(b"output")
        await upstream.end()
        exchange = stage.connections[0].running.exchange
        assert exchange is not None
        switched_ = exchange._switched
        assert switched_ is not None
        await stage.until(lambda: switched_._upstream_ended)
        upstream.close()
        while not exchange._connection.wire.broken:
            await client.send(b"ping")
            await asyncio.sleep(0.001)
        assert await client.rest() == b"output"
        assert exchange.state is ExchangeState.RUNNING
        await client.end()
        await stage.until(lambda: not stage.connections)


@pytest.mark.parametrize("how", ["cut", "reset"])
@both_legs
async def test_broken_upstream_breaks_the_client(tls: bool, how: str) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream = await switched(stage)
        if how == "reset":
            upstream.reset()
        elif tls:
            upstream.cut()
        else:
            pytest.skip("a FIN is a clean end")
        with pytest.raises((Truncated, ConnectionResetError)):
            await client.rest()


@pytest.mark.parametrize("how", ["cut", "reset"])
@both_legs
async def test_client_that_goes_ends_the_session(tls: bool, how: str) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream = await switched(stage)
        if how == "reset":
            client.reset()
        elif tls:
            client.cut()
        else:
            pytest.skip("a FIN is a half-close")
        assert await upstream.gone()


async def test_client_that_goes_after_its_half_close_ends_the_session() -> None:
    """Gone for good is found when something is to be written to it."""
    async with Stage() as stage:
        client, upstream = await switched(stage)
        await client.end()
        assert await upstream.rest() == b""
        client.reset()
        for _ in range(3):
            try:
                await upstream.send(b"output")
            except OSError:
                break
            await asyncio.sleep(0.002)
        await stage.until(lambda: not stage.connections)


@pytest.mark.parametrize(
    "answer",
    [
        switching("websocket"),
        switching("h2c"),
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        switching("SPDY/3.1, websocket"),
    ],
)
async def test_switch_to_another_protocol(answer: bytes) -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(upgrade() + b"secret")
        await upstream.send(answer)
        response = await client.response()
        assert response.refusal()[0] == 502 and await client.rest() == b""
        assert await upstream.gone() and upstream.received == b""


@both_legs
async def test_refused_upgrade_passes_untouched(tls: bool) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(upgrade())
        body = b'{"kind":"Status","message":"pods \\"web\\" not found","code":404}'
        await upstream.send(reply(body, "404 Not Found", "Audit-Id: 7"))
        response = await client.response()
        assert (response.status, response.body, response.fields["audit-id"]) == (404, body, "7")
        assert response.fields["connection"] == "close" and await client.rest() == b""


async def test_enforced_recording_without_a_recorder_is_refused() -> None:
    async with Stage() as stage:
        stage.daemon.answer = peer("dev", enforceRecorder=True)
        client = await stage.client()
        await client.send(upgrade())
        assert (await client.response()).refusal()[0] == 403
        assert await client.rest() == b"" and stage.api.untouched()


async def test_switched_connection_is_never_pooled() -> None:
    async with Stage() as stage:
        client, upstream = await switched(stage)
        await client.end()
        await upstream.rest()
        await upstream.end()
        await client.rest()
        await stage.until(lambda: not stage.connections)
        assert stage.upstream.idle == 0
