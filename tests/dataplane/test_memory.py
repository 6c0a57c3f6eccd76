"""What is left of a connection that has ended: nothing, and at once. A circle of references would keep the memory of
its TLS until some late collection, so there is none while these tests run."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from k8sproxy.dataplane.client import Client
from k8sproxy.dataplane.connection import Connection
from k8sproxy.dataplane.relay import Exchange
from k8sproxy.dataplane.wire import Wire
from tests.dataplane.living import Living
from tests.dataplane.proxied import CHUNKED, Stage, Truncated, get, reply


@pytest.mark.parametrize("how", ("answered", "client", "reset", "upstream"))
@pytest.mark.parametrize("tls", (False, True), ids=("plain", "tls"))
async def test_ended_connections_leave_nothing(tls: bool, how: str) -> None:
    async with Stage(tls=tls) as stage:
        with Living(Wire, Client, Connection, Exchange) as living:
            client, upstream, _ = await stage.exchange(get())
            assert living.counts() == {"Wire": 2, "Client": 1, "Connection": 1, "Exchange": 1}
            if how == "answered":
                await upstream.send(reply())
                assert (await client.response()).status == 200
                await client.end()
            else:
                await upstream.send(CHUNKED + b"3\r\nabc\r\n")
                await client.until(b"abc\r\n")
                if how == "client":
                    await client.end()
                elif how == "reset":
                    client.reset()
                else:
                    upstream.reset()
                    with contextlib.suppress(OSError, Truncated):
                        await client.rest()
                        await client.end()
            await stage.until(lambda: not stage.connections)
            stage.upstream.close()
            for _ in range(5):
                await asyncio.sleep(0)
            living.assert_none()
