"""Dialling: directly, or through the daemon where only it can reach the tailnet."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.dataplane.dial import Dialer, DialError
from tests.common.tailnet.leakless import run

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: ts-dial\r\nConnection: Upgrade\r\n\r\n"


class Daemon:
    """The two endpoints in use, on a unix socket. answer: in pieces, what a dial gets; () answers nothing."""

    def __init__(self) -> None:
        self.tun = False
        self.status = 200
        self.answer: tuple[bytes, ...] = (SWITCHED,)
        self.asked: list[str] = []  # "status", or "HOST PORT" of a dial
        self.close = False
        self.received = bytearray()
        self.changed = asyncio.Event()
        self.connections: set[asyncio.Task[None]] = set()

    async def until(self, asked: int) -> None:
        while len(self.asked) < asked:
            self.changed.clear()
            await self.changed.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            while True:
                request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                assert fields["host"] == "local-tailscaled.sock"
                if request.startswith("GET /localapi/v0/status"):
                    self.note("status")
                    body = json.dumps({"BackendState": "Running", "TUN": self.tun}).encode()
                    writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (self.status, len(body), body))
                    continue
                assert request == "POST /localapi/v0/dial HTTP/1.1"
                assert (fields["upgrade"], fields["connection"]) == ("ts-dial", "upgrade")
                self.note(f"{fields['dial-host']} {fields['dial-port']}")
                for piece in self.answer:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if self.close:
                    return
                while data := await reader.read(1000):
                    self.received += data
                return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections.discard(task)
            writer.close()

    def note(self, what: str) -> None:
        self.asked.append(what)
        self.changed.set()


@asynccontextmanager
async def daemon(path: Path, *, seconds: float = 5.0) -> AsyncGenerator[tuple[Daemon, Dialer], None]:
    made = Daemon()
    sock = str(path / "sock")
    server = await asyncio.start_unix_server(made.serve, sock)
    localapi = LocalAPI(sock)
    try:
        yield made, Dialer(localapi, timeout=seconds)
    finally:
        await localapi.aclose()
        server.close()
        if made.connections:
            await asyncio.wait(tuple(made.connections))


@asynccontextmanager
async def listener() -> AsyncGenerator[int, None]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


async def received(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(sock, 1000)
        assert piece
        data += piece
    return data


def test_an_address_that_is_not_the_tailnets_is_dialled_directly(tmp_path: Path) -> None:
    async def scene() -> None:
        async with daemon(tmp_path) as (fake, dial), listener() as port:
            with await dial("127.0.0.1", port) as sock:
                assert sock.getpeername() == ("127.0.0.1", port)
                assert sock.gettimeout() == 0.0
            assert fake.asked == []

    run(scene())


@pytest.mark.parametrize("address", ["100.64.0.9", "fd7a:115c:a1e0::9"])
def test_a_userspace_daemon_dials_for_us(tmp_path: Path, address: str) -> None:
    async def scene() -> None:
        async with daemon(tmp_path) as (fake, dial):
            fake.answer = (SWITCHED + b"hello",)  # said before the head was read
            for _ in range(2):
                with await dial(address, 80) as sock:
                    assert sock.gettimeout() == 0.0
                    assert await received(sock, 5) == b"hello"
                    await asyncio.get_running_loop().sock_sendall(sock, b"yes")
                    sock.shutdown(socket.SHUT_WR)
                    assert not await asyncio.get_running_loop().sock_recv(sock, 1)
                assert fake.received.endswith(b"yes")
            assert fake.asked == ["status", f"{address} 80", f"{address} 80"]  # the mode is asked for once

    run(scene())


def test_an_answer_in_pieces(tmp_path: Path) -> None:
    async def scene() -> None:
        async with daemon(tmp_path) as (fake, dial):
            whole = SWITCHED + b"\r\n\r\nhello"
            fake.answer = tuple(bytes([byte]) for byte in whole)
            with await dial("100.64.0.9", 80) as sock:
                assert await received(sock, 9) == b"\r\n\r\nhello"

    run(scene())


def test_with_a_tun_device_the_kernel_dials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8sproxy.dataplane.dial.is_tailnet", lambda address: True)

    async def scene() -> None:
        async with daemon(tmp_path) as (fake, dial), listener() as port:
            fake.tun = True
            (await dial("127.0.0.1", port)).close()
            assert fake.asked == ["status"]

    run(scene())


def test_the_mode_is_asked_for_again_after_a_failure(tmp_path: Path) -> None:
    async def scene() -> None:
        async with daemon(tmp_path) as (fake, dial):
            fake.answer = (b"HTTP/1.1 500 X\r\nContent-Length: 16\r\n\r\nno route\x1b[31m\xff\n",)
            for _ in range(2):
                with pytest.raises(DialError) as caught:
                    await dial("100.64.0.9", 80)
            assert caught.value.message == "tailscaled does not dial 100.64.0.9:80: HTTP 500 (no route [31m\ufffd)"
            assert fake.asked == ["status", "100.64.0.9 80"] * 2

    run(scene())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",), "HTTP 403"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",), "HTTP 200"),
        ((b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",), "HTTP 101"),
        ((b"SSH-2.0\r\n\r\n",), "not HTTP"),
        ((b"HTTP/1.1 101 X\r\n" + b"X: y\r\n" * 5000,), "does not end"),
        ((b"HTTP/1.1 101",), "closed the connection"),
        ((), "closed the connection"),
    ],
)
def test_what_is_no_connection(tmp_path: Path, answer: tuple[bytes, ...], why: str) -> None:
    async def scene() -> None:
        async with daemon(tmp_path) as (fake, dial):
            fake.answer = answer
            fake.close = True
            with pytest.raises(DialError, match=why):
                await dial("100.64.0.9", 80)

    run(scene())


def test_a_status_that_cannot_be_had(tmp_path: Path) -> None:
    async def scene() -> None:
        async with daemon(tmp_path) as (fake, dial):
            fake.status = 500
            with pytest.raises(DialError, match="tailscaled failed"):
                await dial("100.64.0.9", 80)
        localapi = LocalAPI(str(tmp_path / "none"))
        with pytest.raises(DialError, match="there is no socket"):
            await Dialer(localapi)("100.64.0.9", 80)
        await localapi.aclose()

    run(scene())


def test_names_are_not_dialled(tmp_path: Path) -> None:
    async def scene() -> None:
        async with daemon(tmp_path) as (_, dial):
            with pytest.raises(DialError, match="only IP addresses"):
                await dial("recorder", 80)

    run(scene())


def test_nobody_listens(tmp_path: Path) -> None:
    async def scene() -> None:
        async with daemon(tmp_path) as (_, dial):
            async with listener() as port:
                pass
            with pytest.raises(DialError, match=f"127.0.0.1:{port}: connection refused"):
                await dial("127.0.0.1", port)

    run(scene())


def test_a_dial_that_takes_too_long(tmp_path: Path) -> None:
    async def scene() -> None:
        async with daemon(tmp_path, seconds=0.05) as (fake, dial):
            fake.answer = ()
            with pytest.raises(DialError, match=r"100.64.0.9:80 did not accept a connection within 0.05 s"):
                await dial("100.64.0.9", 80)

    run(scene())


def test_a_cancel_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        async with daemon(tmp_path) as (_, dial), listener() as port:
            for host in ("100.64.0.9", "127.0.0.1"):
                finished = False
                rounds = 0
                while not finished:
                    dialling = asyncio.ensure_future(dial(host, port))
                    for _ in range(rounds):
                        await asyncio.sleep(0)
                    dialling.cancel()
                    try:
                        (await dialling).close()
                        finished = True
                    except asyncio.CancelledError:
                        pass
                    rounds += 1
        gc.collect()

    run(scene())
