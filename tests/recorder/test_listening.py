"""recorder/listening.py: the site's places, and the time for a first head."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from k8sproxy.common.sockets import bind
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.whois import WhoIs
from recorder.ingest.admission import Admission
from recorder.ingest.gate import connections
from recorder.listening import SiteListener
from standins.tailscaled import FakeTailscaled, user_whois
from tests.recorder.ingest.senders import exchange
from tests.recorder.store.storing import run, until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def site(
    folder: Path, *, held: asyncio.Event | None = None
) -> AsyncIterator[tuple[int, SiteListener, FakeTailscaled]]:
    held = asyncio.Event() if held is None else held

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/wait":
            await held.wait()
        return web.Response(text="here")

    app = web.Application()
    app.router.add_get("/{any:.*}", answer)
    async with FakeTailscaled(folder / "daemon.sock") as daemon:
        daemon.peers = lambda ip, port: user_whois("ana@example.com", "laptop", "100.64.0.9")
        localapi = LocalAPI(str(folder / "daemon.sock"))
        whois = WhoIs(localapi)
        listener = SiteListener(app, Admission(whois, domain="x"), connections(4, 2, section="web"))
        sock = bind("127.0.0.1", 0)
        port = sock.getsockname()[1]
        try:
            await listener.start([sock])
            yield port, listener, daemon
        finally:
            await listener.close()
            await whois.aclose()
            await localapi.aclose()


async def until_closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionResetError):
        while await reader.read(1000):
            pass


@pytest.mark.parametrize("first", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_silence_and_slow_heads_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr("k8sproxy.common.heads.HEAD_TIMEOUT", 0.05)
    monkeypatch.setattr("recorder.ingest.gate.FIRST_BYTE", 0.05)

    async def main() -> None:
        async with site(tmp_path) as (port, listener, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            async with asyncio.timeout(20):
                await until_closed(reader)
            writer.close()
            assert (await exchange(port, GET))[0] == 200
            await until(lambda: listener.inside.shares.taken == 0)

    run(main())


def test_a_peer_has_its_share(tmp_path: Path) -> None:
    async def main() -> None:
        held = asyncio.Event()
        async with site(tmp_path, held=held) as (port, listener, daemon):
            waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for _, writer in waiting:
                writer.write(GET.replace(b"/ ", b"/wait ", 1))
            await until(lambda: listener.inside.shares.taken == 2)
            status, fields, _ = await exchange(port, GET)
            assert status == 429
            assert "at most 2 connections of one peer at once (web.connectionsPerPeer)" in fields["recorder-error"]
            daemon.peers = lambda ip, port: user_whois("ben@example.com", "desk", "100.64.0.10")
            assert (await exchange(port, GET))[0] == 200
            held.set()
            for reader, writer in waiting:
                assert (await reader.readline()).split()[1] == b"200"
                writer.transport.abort()
            await until(lambda: listener.inside.shares.taken == 0)

    run(main())


def test_whoever_is_not_known_gets_the_answer_of_the_site(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path) as (port, listener, daemon):
            daemon.peers = lambda ip, port: None
            assert (await exchange(port, GET))[2] == b"here"
            daemon.faults["whois"] = "failing"
            assert (await exchange(port, GET))[2] == b"here"
            await until(lambda: listener.inside.shares.taken == 0)

    run(main())


def test_an_idle_connection_makes_room(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path) as (port, _, _):
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for reader, writer in idle:
                writer.write(GET)
                assert (await reader.readline()).split()[1] == b"200"
            assert (await exchange(port, GET))[0] == 200
            async with asyncio.timeout(20):
                await until_closed(idle[0][0])
            for _, writer in idle:
                writer.transport.abort()

    run(main())
