from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import aiohttp
from aiohttp import web

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.whois import WhoIs
from recorder.web import whois_finder
from standins.tailscaled import FakeTailscaled, user_whois


def test_a_connection_is_asked_about_once_and_forgotten_with_it(tmp_path: Path) -> None:
    async def check() -> None:
        async with FakeTailscaled(tmp_path / "socket") as daemon:
            localapi = LocalAPI(str(tmp_path / "socket"))
            whois = WhoIs(localapi)
            find = whois_finder(whois)

            async def answer(request: web.Request) -> web.Response:
                try:
                    return web.Response(text=(await find(request)).login_name)
                except Refusal as refusal:
                    return web.Response(status=refusal.status, text=refusal.cause)

            app = web.Application()
            app.router.add_get("/", answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            address = f"http://127.0.0.1:{runner.addresses[0][1]}/"
            name = "ana@example.com"
            daemon.peers = lambda ip, port: user_whois(name, name.partition("@")[0], "100.64.0.7")
            async with aiohttp.ClientSession() as client:
                for _ in range(3):
                    async with client.get(address) as response:
                        assert await response.text() == "ana@example.com"
                assert whois.misses == 1
                # Another node under the same connection is nobody.
                name = "ben@example.com"
                whois.invalidate()
                async with client.get(address) as response:
                    assert (response.status, await response.text()) == (403, "peer_changed")
            async with aiohttp.ClientSession() as client, client.get(address) as response:
                assert await response.text() == "ben@example.com"
            daemon.peers = {}
            async with aiohttp.ClientSession() as client, client.get(address) as response:
                assert (response.status, await response.text()) == (403, "peer_unknown")
            await runner.cleanup()
            gc.collect()
            assert not whois._kept
            await whois.aclose()
            await localapi.aclose()

    asyncio.run(check())
