"""The stand-in tailnet: SOCKS5 leads each person to the proxy from their own address, and nobody anywhere else."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from demo.tailnet import ADDRESS, HOST, PEOPLE, PORT, Person, Tailnet
from standins.tailscaled import groups

ALICE, BOB, CAROL, CI, STRANGER = PEOPLE
PASSWORD = "of this test"

Test = Callable[[Tailnet, list[tuple[str, int]]], Awaitable[None]]


def on_tailnet(test: Test) -> None:
    """Runs `test` with a tailnet whose proxy echoes, and the list of source addresses that the proxy has seen."""

    async def run() -> None:
        seen: list[tuple[str, int]] = []

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(writer.get_extra_info("peername"))
            try:
                while data := await reader.read(1000):
                    writer.write(data)
                writer.write(b" and the end")
            finally:
                writer.close()

        proxy = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with proxy, asyncio.timeout(20):
            async with Tailnet(PEOPLE, proxy.sockets[0].getsockname(), PASSWORD) as tailnet:
                await test(tailnet, seen)
            assert tailnet._open == {}

    asyncio.run(run())


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connection(tailnet: Tailnet, person: Person) -> AsyncIterator[Streams]:
    """A connection to somebody's SOCKS5 port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", tailnet.ports[person.name])
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def ask(streams: Streams, request: bytes, name: str, password: str = PASSWORD) -> bytes:
    """Logs in and sends a request; the replies: the method, the login, the request's."""
    reader, writer = streams
    user, secret = name.encode(), password.encode()
    writer.write(b"\5\2\0\2" + b"\1" + bytes([len(user)]) + user + bytes([len(secret)]) + secret + request)
    replies = b""
    while len(replies) < 14 and (more := await reader.read(14 - len(replies))):
        replies += more
    return replies


def connect(host: str = HOST, port: int = PORT, *, command: int = 1) -> bytes:
    return bytes([5, command, 0, 3, len(host)]) + host.encode() + port.to_bytes(2, "big")


REPLY = b"\0\1\0\0\0\0\0\0"  # what follows the version and the code
NUMERIC = bytes([5, 1, 0, 1, *ipaddress.IPv4Address(ADDRESS).packed]) + PORT.to_bytes(2, "big")


@pytest.mark.parametrize("request_", [connect(), connect(HOST.upper() + "."), connect(ADDRESS), NUMERIC])
def test_a_person_reaches_the_proxy_from_their_address_and_whois_knows_the_connection(request_: bytes) -> None:
    async def test(tailnet: Tailnet, seen: list[tuple[str, int]]) -> None:
        async with connection(tailnet, BOB) as (reader, writer):
            assert await ask((reader, writer), request_, "bob") == b"\5\2\1\0\5\0" + REPLY
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            ((ip, port),) = seen
            assert ip == BOB.address
            assert tailnet.whois(ip, port) == BOB.whois()
            assert tailnet.whois(ip, port ^ 1) is None
            assert tailnet.whois(ALICE.address, port) is None
            writer.write_eof()  # a half-close: what the proxy says after it still arrives
            assert await reader.read() == b" and the end"
        assert tailnet.whois(ip, port) is None

    on_tailnet(test)


def test_whois_knows_the_connection_before_the_proxy_can_ask() -> None:
    async def run() -> None:
        answers = []

        class Proxy(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                answers.append(tailnet.whois(*transport.get_extra_info("peername")))
                assert isinstance(transport, asyncio.Transport)
                transport.close()

        server = await asyncio.get_running_loop().create_server(Proxy, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        async with server, Tailnet(PEOPLE, address, PASSWORD) as tailnet, connection(tailnet, CI) as streams:
            await ask(streams, connect(), "ci")
        assert answers == [CI.whois()]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (connect("localhost"), 2),
        (connect(port=80), 2),
        (connect("127.0.0.1", 443), 2),
        (connect(command=2), 7),
        (b"\5\1\0\4" + bytes(16) + b"\1\xbb", 8),
        (b"\4" + connect()[1:], 1),
    ],
)
def test_nothing_else_is_reached(request_: bytes, code: int) -> None:
    async def test(tailnet: Tailnet, seen: list[tuple[str, int]]) -> None:
        async with connection(tailnet, ALICE) as streams:
            assert await ask(streams, request_, "alice") == b"\5\2\1\0" + bytes([5, code]) + REPLY
        assert seen == []

    on_tailnet(test)


@pytest.mark.parametrize(("name", "password"), [("alice", "wrong"), ("bob", PASSWORD), ("alice", "")])
def test_a_port_wants_the_password_of_the_run_and_its_own_name(name: str, password: str) -> None:
    async def test(tailnet: Tailnet, seen: list[tuple[str, int]]) -> None:
        async with connection(tailnet, ALICE) as streams:
            assert await ask(streams, b"", name, password) == b"\5\2\1\1"
        assert seen == []

    on_tailnet(test)


@pytest.mark.parametrize(("greeting", "reply"), [(b"\5\1\0", b"\5\xff"), (b"\4\1\2", b"\5\xff"), (b"\5", b"")])
def test_a_client_that_offers_no_password_is_refused(greeting: bytes, reply: bytes) -> None:
    async def test(tailnet: Tailnet, seen: list[tuple[str, int]]) -> None:
        async with connection(tailnet, ALICE) as (reader, writer):
            writer.write(greeting)
            writer.write_eof()
            assert await reader.read() == reply
        assert seen == []

    on_tailnet(test)


def test_a_proxy_that_is_not_there_is_said_to_refuse() -> None:
    async def run() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            async with Tailnet(PEOPLE, probe.getsockname(), PASSWORD) as tailnet:
                async with connection(tailnet, ALICE) as streams:
                    assert await ask(streams, connect(), "alice") == b"\5\2\1\0\5\5" + REPLY
                assert tailnet._open == {}

    asyncio.run(run())


def test_closing_ends_what_is_connected() -> None:
    async def test(tailnet: Tailnet, seen: list[tuple[str, int]]) -> None:
        async with connection(tailnet, ALICE) as (reader, writer):
            await ask((reader, writer), connect(), "alice")
            await tailnet.close()
            assert tailnet._open == {}
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""

    on_tailnet(test)


def test_the_people() -> None:
    assert len({person.address for person in PEOPLE}) == len(PEOPLE)
    for person, capabilities in ((ALICE, groups("system:masters")), (CI, groups("demo:deployers")), (CAROL, None)):
        answer = person.whois()
        assert answer is not None
        assert answer["CapMap"] == capabilities
    assert STRANGER.whois() is None
