"""Where the recorder listens: what is missing only for now is told apart from what will never work."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from k8sproxy.common.config.addresses import ListenAddress
from k8sproxy.common.errors import StartError
from k8sproxy.common.tailnet.localapi import LocalAPI
from recorder.addresses import Addresses, NotYetError
from standins.tailscaled import FakeTailscaled

ANY = ListenAddress("127.0.0.1", 0)
TAILNET = ListenAddress("tailnet", 0)


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[tuple[Addresses, FakeTailscaled]]:
    localapi = LocalAPI(str(folder / "daemon.sock"))
    async with FakeTailscaled(folder / "daemon.sock") as daemon:
        yield Addresses(localapi), daemon
        await localapi.aclose()


async def test_names(tmp_path: Path) -> None:
    async with node(tmp_path) as (addresses, daemon):
        daemon.name = "Rec.tail1234.ts.net."
        assert await addresses.names() == ["rec.tail1234.ts.net", "rec"]
        daemon.name = ""
        with pytest.raises(NotYetError, match="gives this node no name"):
            await addresses.names()


async def test_without_a_daemon(tmp_path: Path) -> None:
    localapi = LocalAPI(str(tmp_path / "none.sock"))
    addresses = Addresses(localapi)
    with pytest.raises(NotYetError, match="names of the web site are not known"):
        await addresses.names()
    with pytest.raises(NotYetError, match="cannot listen on tailnet:0"):
        await addresses.sockets([TAILNET])
    for sock in await addresses.sockets([ANY]):
        sock.close()
    await localapi.aclose()


async def test_on_the_tailnet(tmp_path: Path) -> None:
    async with node(tmp_path) as (addresses, daemon):
        daemon.tun = False  # a userspace daemon forwards to loopback
        (sock,) = await addresses.sockets([TAILNET])
        assert sock.getsockname()[0] == "127.0.0.1"
        sock.close()
        daemon.tun = True
        daemon.addresses = ["127.0.0.2", "127.0.0.3"]
        found = await addresses.sockets([TAILNET])
        assert [sock.getsockname()[0] for sock in found] == ["127.0.0.2", "127.0.0.3"]
        for sock in found:
            sock.close()
        daemon.backend_state = "NeedsLogin"
        with pytest.raises(NotYetError, match="tailscaled is NeedsLogin"):
            await addresses.sockets([TAILNET])


async def test_what_fails_leaves_no_socket_open(tmp_path: Path) -> None:
    async with node(tmp_path) as (addresses, _):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with socket.create_server(("127.0.0.1", 0)) as other:
                free = other.getsockname()[1]
            with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
                await addresses.sockets([ListenAddress("127.0.0.1", free), ListenAddress("127.0.0.1", port)])
            with socket.create_server(("127.0.0.1", free)):
                pass
        # One of the tailnet may come yet; another one will not.
        with pytest.raises(NotYetError, match="does tailscaled run in userspace mode"):
            await addresses.sockets([ListenAddress("100.64.0.1", 9)])
        with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:9: Cannot assign"):
            await addresses.sockets([ListenAddress("192.0.2.1", 9)])
