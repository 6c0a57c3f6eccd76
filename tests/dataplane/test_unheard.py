"""A side that does not read is waited for; a side that is gone without a word is not."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from k8sproxy.dataplane import wire as module
from k8sproxy.dataplane.handshake import prepare
from k8sproxy.dataplane.wire import ReadBuffer, Wire
from tests.dataplane.proxied import Stage, get


def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    prepare(ours)
    return ours, theirs


class _Answering:
    """A socket whose kernel says this of it."""

    def __init__(self, sock: socket.socket, *, unacked: int, quiet: int) -> None:
        self._sock = sock
        words = [0] * 13
        words[4], words[12] = unacked, quiet
        self._info = struct.pack("=8x13I", *words)

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return self._info[:size]


def test_no_connection_ends_because_it_is_not_read() -> None:
    ours, theirs = _pair()
    with ours, theirs:
        # Not zero: the kernel would break a connection whose window has been closed for that long.
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_closed_window_is_not_silence() -> None:
    async def run() -> None:
        ours, theirs = _pair()
        with theirs:
            wire = Wire(asyncio.get_running_loop(), ours, ReadBuffer())
            while not wire.blocked:
                wire.write(bytes(1 << 20))
            async with asyncio.timeout(10):
                while wire.unheard():  # noqa: ASYNC110  # the kernel's acknowledgements wake nobody
                    await asyncio.sleep(0)
            wire.break_unheard()
            assert not wire.ended
            wire.close()
            assert wire.unheard() == 0.0

    asyncio.run(run())


@pytest.mark.parametrize(("unacked", "quiet", "broken"), [(1, 36_000, True), (1, 34_000, False), (0, 3_600_000, False)])
def test_silence_while_packets_are_in_flight(unacked: int, quiet: int, broken: bool) -> None:
    async def run() -> None:
        ours, theirs = _pair()
        with theirs:
            wire = Wire(asyncio.get_running_loop(), ours, ReadBuffer())
            wire._sock = _Answering(ours, unacked=unacked, quiet=quiet)  # type: ignore[assignment]  # a stand-in
            ends: list[Exception | None] = []
            wire.end = ends.append
            assert wire.unheard() == (quiet / 1000 if unacked else 0.0)
            wire.break_unheard()
            assert wire.ended is broken
            assert [type(end) for end in ends] == ([TimeoutError] if broken else [])
            wire._sock = ours
            wire.close()

    asyncio.run(run())


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_clock_ends_what_runs_with_nobody(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with Stage() as stage:
            client = await stage.client()
            await client.send(get("/api/v1/pods?watch=1"))
            upstream = await stage.api.accept()
            await upstream.head()
            (connection,) = stage.server._connections
            exchange = connection.running.exchange
            assert exchange is not None
            gone = connection.client.wire if side == "client" else exchange._connection.wire
            monkeypatch.setattr(Wire, "unheard", lambda wire: module.UNHEARD + 1 if wire is gone else 0.0)
            for _ in range(8):
                stage.server.tick(0.0)
            if side == "client":
                assert await upstream.rest() == b""
            else:
                assert (await client.head()).startswith(b"HTTP/1.1 502 ")

    asyncio.run(run())
