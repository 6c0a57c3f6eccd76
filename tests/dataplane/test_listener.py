"""Which connections are taken at all: PROXY headers and who may send them, limits, and the end of a process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from functools import partial

import pytest

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.dataplane.limits import Limits
from k8sproxy.dataplane.listener import Trust
from k8sproxy.protocol.proxyprotocol import SIGNATURE
from tests.dataplane.proxied import (
    ANA,
    AWAY,
    CHUNKED,
    UNKNOWN,
    UNTIL_CLOSE,
    Raw,
    Stage,
    Truncated,
    get,
    peer,
    pki,
    reply,
    request,
)

both_legs = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


def proxy_header(source: str = "100.64.0.7", *, command: int = 0x21) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 40000, 8080)
    return SIGNATURE + struct.pack("!BBH", command, 0x11, len(addresses)) + addresses


class Service:
    """The daemon behind a Tailscale Service: it knows tailnet addresses, and loopback only where `direct` says so."""

    def __init__(self, direct: Peer | Refusal = UNKNOWN) -> None:
        self.direct = direct

    async def __call__(self, address: str) -> Peer:
        if address.startswith("100."):
            return ANA
        if isinstance(self.direct, Refusal):
            raise self.direct
        return self.direct


async def test_accepted_connections_have_keep_alive_and_no_delay() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        sock = stage.connections[0].client.wire._sock
        assert not sock.getblocking()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await upstream.send(reply())
        await client.response()


# -- PROXY headers


async def test_header_byte_by_byte() -> None:
    async with Stage(trust=Trust.PROXY) as stage:
        stage.daemon.answer = Service()
        client = await stage.raw()
        for byte in proxy_header():
            await client.send(bytes((byte,)))
            await asyncio.sleep(0)
        _, upstream, head = await stage.exchange(get(), client)
        assert b"Impersonate-User: ana@example.com\r\n" in head
        await upstream.send(reply())
        assert (await client.response()).status == 200
        assert stage.daemon.asked[-1].startswith("100.64.0.7:") and len(stage.daemon.asked) == 2


async def test_request_right_behind_the_header() -> None:
    async with Stage(trust=Trust.PROXY) as stage:
        stage.daemon.answer = Service()
        client, upstream, head = await stage.exchange(proxy_header() + get(), await stage.raw())
        assert b"ana@example.com" in head
        await upstream.send(reply())
        assert (await client.response()).status == 200


async def test_tls_right_behind_the_header() -> None:
    """In one segment: not a byte of the handshake may be taken with the header."""
    async with Stage(trust=Trust.PROXY, tls=True) as stage:
        stage.daemon.answer = Service()
        client = await stage.raw()
        ahead = proxy_header()
        send = client._loop.sock_sendall

        async def together(sock: socket.socket, data: bytes) -> None:
            nonlocal ahead
            data, ahead = ahead + data, b""
            await send(sock, data)

        client._loop = _Loop(together, client._loop)  # type: ignore[assignment]  # the two calls that Raw makes
        await client.start_tls(pki()[1], server_side=False)
        _, upstream, head = await stage.exchange(get(), client)
        assert b"ana@example.com" in head
        await upstream.send(reply())
        assert (await client.response()).status == 200


class _Loop:
    def __init__(self, sock_sendall: object, loop: asyncio.AbstractEventLoop) -> None:
        self.sock_sendall = sock_sendall
        self.sock_recv = loop.sock_recv


@pytest.mark.parametrize(
    ("header", "direct", "cause"),
    [
        pytest.param(proxy_header(), ANA, "proxy_forged", id="forged"),
        pytest.param(proxy_header(), AWAY, "whois_unavailable", id="nobody-to-ask"),
        pytest.param(proxy_header(command=0x20), UNKNOWN, "proxy_without_client", id="LOCAL"),
        pytest.param(get(), UNKNOWN, "", id="no-header"),
        pytest.param(b"PROXY TCP4 100.64.0.7 127.0.0.1 1 2\r\n", UNKNOWN, "", id="v1"),
        pytest.param(proxy_header()[:12] + b"\x31" + proxy_header()[13:], UNKNOWN, "", id="version-3"),
        pytest.param(SIGNATURE + b"\x21\x11\xff\xff", UNKNOWN, "", id="huge"),
        pytest.param(b"\x16\x03\x01\x02\x00", UNKNOWN, "", id="TLS"),
    ],
)
async def test_header_refused(header: bytes, direct: Peer | Refusal, cause: str) -> None:
    """Not a byte in answer, and nobody is taken for the one that the header names."""
    async with Stage(trust=Trust.PROXY) as stage:
        stage.daemon.answer = Service(direct)
        client = await stage.raw()
        await client.send(header + get())
        assert await client.gone()
        assert stage.api.untouched() and stage.shared.telemetry.handshake_failures == 1
        assert set(stage.shared.telemetry._refusals) == ({cause} if cause else set())
        assert not any(address.startswith("100.") for address in stage.daemon.asked)


async def test_header_from_elsewhere_than_loopback() -> None:
    async with Stage(trust=Trust.PROXY) as stage:
        stage.daemon.answer = Service()
        ours, theirs = socket.socketpair()
        client = Raw(theirs)
        await client.send(proxy_header() + get())
        stage.server.take(ours, ("100.64.0.9", 1234), stage.terms)
        assert await client.gone()
        client.close()
        assert stage.shared.telemetry._refusals == {"proxy_not_loopback": 1} and stage.daemon.asked == []


async def test_header_that_does_not_end() -> None:
    async with Stage(Limits(handshake_timeout=0.05), trust=Trust.PROXY) as stage:
        client = await stage.raw()
        await client.send(proxy_header()[:-1])
        assert await client.gone()
        assert stage.daemon.asked == []


async def test_header_that_is_cut() -> None:
    async with Stage(trust=Trust.PROXY) as stage:
        client = await stage.raw()
        await client.send(proxy_header()[:20])
        client.cut()
        assert await client.gone()


async def test_header_on_a_listener_that_takes_none() -> None:
    async with Stage() as stage:
        client = await stage.raw()
        await client.send(proxy_header() + get())
        assert (await client.response()).refusal()[0] == 400
        assert await client.rest() == b"" and stage.api.untouched()


# -- limits


async def test_connections_are_limited() -> None:
    async with Stage(Limits(connections=2)) as stage:
        clients = [(await stage.exchange(get()))[0] for _ in range(2)]
        other = await stage.client()
        assert await other.gone()
        assert stage.shared.telemetry._refusals == {"too_many_connections": 1}
        clients[0].close()
        await stage.until(lambda: len(stage.connections) == 1)
        await stage.exchange(get())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("silent", ["at once", "behind the handshake"])
async def test_silent_connections_make_way(silent: str, tls: bool) -> None:
    """Behind a userspace daemon nobody can tell whose a connection is that asks nothing: it keeps no other out."""
    async with Stage(Limits(connections=8), tls=tls) as stage:
        known = [(await stage.exchange(get()))[:2] for _ in range(3)]
        held = []
        for number in range(20):
            held.append(await (stage.raw() if silent == "at once" else stage.client()))
            await stage.until(partial(lambda count: stage.shared.telemetry.accepted == count, number + 4))
        assert len(stage.server._places.anonymous) == 4
        for client in held[:16]:
            assert await client.gone()
        assert stage.shared.telemetry._refusals == {"silent_connection": 16}
        await stage.exchange(get())
        for client, upstream in known:
            await upstream.send(reply())
            assert (await client.response()).status == 200


async def test_places_that_are_all_taken_by_their_owners() -> None:
    async with Stage(Limits(connections=2)) as stage:
        silent = await stage.raw()
        await stage.until(lambda: len(stage.connections) == 1)
        await stage.exchange(get())
        assert await silent.gone()
        await stage.exchange(get())
        refused = await stage.raw()
        assert await refused.gone()
        assert stage.shared.telemetry._refusals["too_many_connections"] == 1


async def test_connections_of_a_peer_are_limited() -> None:
    async with Stage(Limits(connections_per_peer=2)) as stage:
        held = [await stage.exchange(get()) for _ in range(2)]
        other = await stage.client()
        await other.send(get())
        response = await other.response()
        assert response.refusal()[0] == 429 and response.fields["retry-after"] == "1"
        assert await other.rest() == b"" and stage.api.untouched()
        stage.daemon.answer = peer("dev", login="ben@example.com", node="n-ben")
        await stage.exchange(get())
        stage.daemon.answer = ANA
        held[0][0].close()
        await stage.until(lambda: stage.shared.per_peer["ana@example.com"] == 1)
        stage.daemon.answer = peer("dev", node="n-ana-2")
        await stage.exchange(get())
        assert stage.shared.per_peer == {"ana@example.com": 2, "ben@example.com": 1}, "all nodes of a user together"


async def test_connections_that_ask_nothing_are_limited() -> None:
    async with Stage(Limits(connections_per_peer=2), trust=Trust.PROXY) as stage:
        stage.daemon.answer = Service()
        silent = []
        for _ in range(4):
            silent.append(await stage.raw())
            await silent[-1].send(proxy_header())
            await stage.until(lambda: len(stage.connections) == len(silent))
        other = await stage.raw()
        await other.send(proxy_header())
        assert await other.gone()
        assert stage.shared.telemetry._refusals == {"too_many_connections": 1}
        third = await stage.raw()
        await third.send(proxy_header("100.64.0.8"))
        await stage.until(lambda: len(stage.connections) == 5)
        assert stage.server._held == {"100.64.0.7:0": 4, "100.64.0.8:0": 1}
        silent[0].close()
        await stage.until(lambda: len(stage.connections) == 4)
        again = await stage.raw()
        await again.send(proxy_header() + get())
        await (await stage.api.accept()).head()
    assert not stage.server._held


# -- HTTP where TLS is spoken


@pytest.mark.parametrize("first", [get(), request("DELETE", "/api"), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"C"])
async def test_plain_http_to_a_tls_listener_is_told(first: bytes) -> None:
    async with Stage(tls=True) as stage:
        raw = await stage.raw()
        await raw.send(first)
        status, message = (await raw.response()).refusal()
        assert status == 400 and "https://" in message
        await raw.end()
        assert await raw.rest() == b""
        assert not stage.daemon.asked and stage.api.untouched()


async def test_plain_http_behind_a_proxy_header() -> None:
    async with Stage(trust=Trust.PROXY, tls=True) as stage:
        stage.daemon.answer = UNKNOWN
        raw = await stage.raw()
        await raw.send(proxy_header() + get())
        assert (await raw.response()).refusal()[0] == 400
        await raw.end()
        assert await raw.rest() == b""


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x00\x02ab", b"\x00", b"\x80\x2e\x01", b"\r\n", b"1"])
async def test_what_is_neither_http_nor_tls_is_told_nothing(first: bytes) -> None:
    async with Stage(tls=True) as stage:
        raw = await stage.raw()
        await raw.send(first + b" " * 100)
        with contextlib.suppress(ConnectionResetError):
            assert not (await raw.receive()).startswith(b"HTTP")


# -- drain


async def test_drain() -> None:
    """Idle: closed. Running: finished, and told that it was the last. Watching: ended between two events."""
    async with Stage() as stage:
        watching, watched, _ = await stage.exchange(get("/api/v1/pods?watch=1"))
        await watched.send(CHUNKED + b"1\r\nx\r\n")
        await watching.until(b"x\r\n")
        within, event, _ = await stage.exchange(get("/api/v1/pods?watch=1"))
        await event.send(CHUNKED + b"5\r\nhal")
        await within.until(b"hal")
        quiet, silent, _ = await stage.exchange(get("/api/v1/pods?watch=1"))
        running, busy, _ = await stage.exchange(get("/busy"))
        idle, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        await idle.response()
        drained = asyncio.ensure_future(stage.server.drain(10))
        assert await idle.rest() == b""
        assert await watching.rest() == b"0\r\n\r\n" and await watched.gone()
        # Not in the middle of an event: behind it.
        await event.send(b"f!\r\n")
        assert await within.rest() == b"f!\r\n0\r\n\r\n" and await event.gone()
        await silent.send(CHUNKED)
        assert (await quiet.head()).endswith(b"Connection: close\r\n\r\n")
        assert await quiet.rest() == b"0\r\n\r\n"
        await busy.send(reply(b"done"))
        response = await running.response()
        assert (response.body, response.fields["connection"]) == (b"done", "close")
        assert await running.rest() == b""
        for client in (idle, watching, within, quiet, running):
            client.close()
        assert await drained == 0
        late = await stage.raw()
        assert await late.gone()


@both_legs
@pytest.mark.parametrize(
    "begun",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome", CHUNKED + b"4\r\nso", UNTIL_CLOSE + b"some"],
    ids=["length", "chunked", "until-close"],
)
async def test_what_is_left_after_the_grace_is_cut(begun: bytes, tls: bool) -> None:
    """And seen to be cut: it must not look like a whole response."""
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(begun)
        await client.until(b"so")
        assert await stage.server.drain(0) == 1
        with pytest.raises((Truncated, ConnectionResetError)):
            await client.rest()
        assert await upstream.gone()


async def test_drain_waits_for_an_answer_that_is_on_its_way() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(request("POST", "/api", "Content-Length: 4"))
        drained = asyncio.ensure_future(stage.server.drain(10))
        await asyncio.sleep(0)
        await client.send(b"body")
        assert await upstream.exactly(4) == b"body"
        await upstream.send(reply(b"", "201 Created"))
        response = await client.response()
        assert (response.status, response.fields["connection"]) == (201, "close")
        assert await client.rest() == b""
        client.close()
        assert await drained == 0
