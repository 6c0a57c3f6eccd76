"""recorder/admin.py: who says nothing on the admin site, or only half a head, keeps no place from a probe."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from k8sproxy.common.sockets import bind
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.whois import WhoIs
from recorder.admin import AdminSite
from standins.tailscaled import FakeTailscaled
from tests.recorder.ingest.senders import exchange
from tests.recorder.store.storing import run

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[tuple[int, AdminSite]]:
    async with FakeTailscaled(folder / "daemon.sock"):
        localapi = LocalAPI(str(folder / "daemon.sock"))
        whois = WhoIs(localapi)
        made = AdminSite(CollectorRegistry(), checks=dict, whois=whois)
        sock = bind("127.0.0.1", 0)
        port = sock.getsockname()[1]
        try:
            await made.start(sock)
            yield port, made
        finally:
            await made.close()
            await whois.aclose()
            await localapi.aclose()


async def until_closed(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionResetError):
            while await reader.read(1000):
                pass


@pytest.mark.parametrize("first", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: x\r\n", GET[:-1]])
def test_silence_and_slow_heads_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr("recorder.heads.HEAD_TIMEOUT", 0.05)

    async def main() -> None:
        async with site(tmp_path) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            await until_closed(reader)
            writer.close()
            assert (await exchange(port, GET))[0] == 200

    run(main())


def test_the_oldest_silent_connection_makes_room_for_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.admin.MAX_SILENT", 3)

    async def main() -> None:
        async with site(tmp_path) as (port, _):
            talker, asked = await asyncio.open_connection("127.0.0.1", port)
            asked.write(GET)
            await talker.readuntil(b"ok\n")
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
            await until_closed(silent[0][0])
            assert (await exchange(port, GET))[0] == 200
            await until_closed(silent[1][0])
            asked.write(GET)  # whose first head has come has its place
            await talker.readuntil(b"ok\n")
            for _, writer in (*silent, (None, asked)):
                writer.close()

    run(main())
