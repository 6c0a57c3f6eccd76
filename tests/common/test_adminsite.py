"""The admin site of both programs: who may ask, what is answered, and that nobody keeps a place from a probe."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter

from k8sproxy.common import adminsite
from k8sproxy.common.adminsite import AdminSite
from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.common.tailnet.whois import WhoIs
from tests.recorder.ingest.senders import exchange

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
BOB = Peer("100.64.0.9", "n-bob", "desk.tail1234.ts.net.", login_name="bob@example.com")
GONE = Refusal(503, "whois_unavailable", "tailscaled does not answer")


class Daemon:
    """WhoIs. answer: who asks, or why nobody knows. asked: how often."""

    def __init__(self) -> None:
        self.answer: Peer | Refusal = Refusal(403, "peer_unknown", "nobody")
        self.asked = 0

    def open(self, ip: str, port: int) -> str:
        return f"{ip}:{port}"

    def close(self, key: str) -> None:
        pass

    async def ask(self, key: str) -> Peer:
        self.asked += 1
        if isinstance(self.answer, Refusal):
            raise self.answer
        return self.answer


class Site:
    """A site, its daemon, and what its checks and warnings give."""

    def __init__(self) -> None:
        self.daemon = Daemon()
        self.checks: dict[str, str | None] = {"store": None}
        self.warnings: dict[str, str | None] = {"index": None}
        registry = CollectorRegistry()
        Counter("things", "Things.", registry=registry).inc(5)
        whois = cast(WhoIs, self.daemon)
        self.admin = AdminSite(registry, checks=self._checks, whois=lambda: whois, warnings=lambda: self.warnings)

    async def _checks(self) -> Mapping[str, str | None]:
        return self.checks

    @property
    def port(self) -> int:
        return int(self.admin.address.rpartition(":")[2])

    async def get(self, path: str) -> tuple[int, str]:
        unix = self.admin.address.startswith("unix:")
        connector = aiohttp.UnixConnector(self.admin.address[5:]) if unix else aiohttp.TCPConnector()
        base = "http://localhost" if unix else f"http://{self.admin.address}"
        async with aiohttp.ClientSession(connector=connector) as client, client.get(base + path) as response:
            return response.status, await response.text()


@asynccontextmanager
async def serving(path: Path | None = None) -> AsyncIterator[Site]:
    site = Site()
    if path is None:
        await site.admin.start_tcp("127.0.0.1", 0)
    else:
        await site.admin.start_unix(path)
    try:
        yield site
    finally:
        await site.admin.close()


async def until_closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionResetError):
        while await reader.read(1000):
            pass


async def test_what_it_serves() -> None:
    async with serving() as site:
        assert await site.get("/healthz") == (200, "ok\n")
        assert await site.get("/readyz") == (200, "ok\n")
        status, text = await site.get("/metrics")
        assert status == 200 and "things_total 5.0" in text
        assert (await site.get("/other"))[0] == 404


async def test_readiness_part_by_part() -> None:
    async with serving() as site:
        assert await site.get("/readyz?verbose") == (200, "[+]store ok\n")
        site.warnings = {"store": "nearly full", "index": None}
        assert await site.get("/readyz?verbose") == (200, "[+]store ok (warning: nearly full)\n")
        assert await site.get("/readyz") == (200, "ok\n")
        site.warnings = {"index": "is late"}
        assert await site.get("/readyz") == (200, "[+]store ok\n[!]index is late\n")
        site.checks = {"store": "is full", "draining": None}
        assert await site.get("/readyz") == (503, "[-]store is full\n[+]draining ok\n[!]index is late\n")


async def test_who_may_ask() -> None:
    async with serving() as site:
        site.daemon.answer = BOB
        for path in ("/healthz", "/readyz", "/metrics"):
            assert await site.get(path) == (403, "the admin site is not served to the tailnet\n")
        site.admin.allow = frozenset({"bob@example.com"})
        assert (await site.get("/metrics"))[0] == 200
        site.daemon.answer = GONE
        assert (await site.get("/healthz"))[0] == 200 and (await site.get("/readyz"))[0] == 200
        assert await site.get("/metrics") == (503, "tailscaled does not answer\n")
        asked = site.daemon.asked
        site.admin.trusted = (ipaddress.ip_network("127.0.0.0/8"),)
        assert (await site.get("/metrics"))[0] == 200 and site.daemon.asked == asked


@pytest.mark.parametrize(
    ("address", "asked"),
    [("10.0.0.7", False), ("::ffff:10.0.0.7", False), ("100.64.0.9", True), ("::ffff:127.0.0.1", True), ("::1", True)],
)
async def test_of_whom_the_daemon_is_asked(address: str, asked: bool) -> None:
    class Transport:
        def get_extra_info(self, name: str) -> Any:
            return (address, 5)

    async with serving() as site:
        request = cast(web.Request, type("R", (), {"transport": Transport()})())
        assert await site.admin._peer(request) is None and site.daemon.asked == asked


async def test_whoever_is_gone_is_not_taken_for_a_unix_socket() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        raise AssertionError

    async with serving() as site:
        request = cast(web.Request, type("R", (), {"transport": None, "path": "/healthz"})())
        assert (await site.admin._guard(request, handler)).status == 400


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with serving(path) as first:
        assert path.stat().st_mode & 0o007 == 0
        first.daemon.answer = BOB
        assert (await first.get("/metrics"))[0] == 200 and not first.daemon.asked
        async with serving(path) as second:  # one that was left behind is replaced
            assert (await second.get("/healthz"))[0] == 200
    assert not path.exists()
    with pytest.raises(OSError, match="No such file"):
        await Site().admin.start_unix(tmp_path / "none" / "admin.sock")


async def test_one_that_was_never_started_can_be_closed() -> None:
    await Site().admin.close()


@pytest.mark.parametrize("first", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: x\r\n", GET[:-1]])
async def test_silence_and_slow_heads_are_ended(monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr("k8sproxy.common.heads.HEAD_TIMEOUT", 0.05)
    async with serving() as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(first)
        await until_closed(reader)
        writer.close()
        assert (await exchange(site.port, GET))[0] == 200


async def test_the_oldest_silent_connection_makes_room_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adminsite, "MAX_SILENT", 3)
    async with serving() as site:
        talker, asked = await asyncio.open_connection("127.0.0.1", site.port)
        asked.write(GET)
        await talker.readuntil(b"ok\n")
        silent = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(4)]
        await until_closed(silent[0][0])
        assert (await exchange(site.port, GET))[0] == 200
        await until_closed(silent[1][0])
        asked.write(GET)  # whose first head has come has its place
        await talker.readuntil(b"ok\n")
        for _, writer in (*silent, (None, asked)):
            writer.close()
