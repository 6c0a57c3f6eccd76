"""A reset that arrives with bytes ahead of it. libuv tells of an error on a socket once and then watches it no more, so
a wire that has read one turn by then has to find the end by itself: when it writes, or when the clock strikes."""

from __future__ import annotations

import contextlib

import pytest

from k8sproxy.dataplane import wire
from tests.dataplane.proxied import Raw, Stage, Truncated, get, reply, request

_TURN = 1000
ahead = pytest.mark.parametrize("size", [10, _TURN, 3 * _TURN + 10])


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "TURN", _TURN)


def _reset_with(raw: Raw, data: bytes) -> None:
    """Send and reset before the loop gets to run: the other side finds both at once."""
    raw.sock.setblocking(True)
    raw.sock.sendall(data)
    raw.sock.setblocking(False)
    raw.reset()


async def _seen(raw: Raw) -> int:
    """How many bytes came, one of which has been read, before the end."""
    count = 1 + len(raw.received)
    with contextlib.suppress(ConnectionResetError):
        while data := await raw.receive():
            count += len(data)
    return count


@ahead
async def test_upstream_resets_within_a_body(size: int) -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        await client.head()
        _reset_with(upstream, b"x" * size)
        await client.until(b"x")
        await stage.tick(1)
        assert await _seen(client) == size


@ahead
async def test_client_resets_within_an_upload(size: int) -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(request("POST", "/api", "Content-Length: 10000000"))
        _reset_with(client, b"x" * size)
        await upstream.until(b"x")
        await stage.tick(1)
        assert await _seen(upstream) == size


async def test_client_resets_behind_its_request() -> None:
    """Found when the response is written, whatever the clock does."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        await client.response()
        _reset_with(client, get("/next"))
        with contextlib.suppress(Truncated, OSError):
            await upstream.head()
            await upstream.send(reply())
        await stage.until(lambda: not stage.connections)


async def test_upstream_resets_behind_its_response() -> None:
    """The next request finds it, and is sent on a fresh connection."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        _reset_with(upstream, reply())
        assert (await client.response()).status == 200
        _, other, _ = await stage.exchange(get("/next"), client)
        await other.send(reply(b"fine"))
        assert (await client.response()).body == b"fine"


async def test_upstream_that_resets_an_upload_has_answered() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(request("POST", "/api", "Content-Length: 10000000") + b"x" * 1000)
        _reset_with(upstream, reply(b"n" * (2 * _TURN), "413 Payload Too Large"))
        head = await client.head()
        await stage.tick(1)
        assert b" 413 " in head and await client.rest() == b"n" * (2 * _TURN)
