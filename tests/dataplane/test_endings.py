"""Who ends when, and what the other side sees of it: a client that goes takes its request with it, an upstream that
breaks breaks the client's body, and a pooled connection is reused only where both sides agree on where it stands."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import pytest

from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.common.tailnet.whois import ClientKey
from k8sproxy.dataplane.limits import Limits
from k8sproxy.dataplane.running import Running
from tests.dataplane.proxied import ANA, CHUNKED, UNTIL_CLOSE, Raw, Stage, Truncated, get, post, reply, request

both_legs = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
leaving = pytest.mark.parametrize("how", ["end", "cut", "reset"])


async def leave(raw: Raw, how: str) -> None:
    if how == "end":
        await raw.end()
    elif how == "cut":
        raw.cut()
    else:
        raw.reset()


# -- the client goes


@both_legs
@leaving
async def test_client_goes_while_it_waits(tls: bool, how: str) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(get())
        await leave(client, how)
        assert await upstream.gone()


@both_legs
@leaving
async def test_client_goes_within_a_watch(tls: bool, how: str) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(get("/api/v1/pods?watch=1"))
        await upstream.send(CHUNKED + b"1\r\nx\r\n")
        await client.until(b"x\r\n")
        await leave(client, how)
        assert await upstream.gone()


@both_legs
@leaving
async def test_client_goes_within_an_upload(tls: bool, how: str) -> None:
    """Upstream must not take half a body for a whole one."""
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(request("POST", "/api", "Transfer-Encoding: chunked"))
        await client.send(b"5\r\nhello\r\n")
        assert await upstream.until(b"hello\r\n") == b"5\r\nhello\r\n"
        await leave(client, how)
        assert await upstream.gone()


@leaving
async def test_client_goes_within_a_download(how: str) -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
        await client.head()
        await leave(client, how)
        assert await upstream.gone()


@leaving
async def test_client_goes_while_the_daemon_is_asked(how: str) -> None:
    async with Stage() as stage:
        asked, cancelled = asyncio.Event(), asyncio.Event()

        async def never(_: str) -> Peer:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return ANA

        stage.daemon.answer = never
        client = await stage.client()
        await client.send(get())
        await asked.wait()
        await leave(client, how)
        await cancelled.wait()
        assert stage.api.untouched()


@leaving
async def test_client_goes_while_upstream_is_dialled(how: str) -> None:
    """The dial is given up at once, not when its time is over."""
    async with Stage(Limits(connect_timeout=600), tls=True) as stage:
        client = await stage.client()
        await client.send(get())
        await stage.until(lambda: bool(stage.connections) and stage.connections[0].requests == 1)
        dialled, _ = await asyncio.get_running_loop().sock_accept(stage.api._sock)
        await leave(client, how)
        assert await Raw(dialled).gone() or True  # what there is of a TLS handshake, then the end
        dialled.close()
        await stage.until(lambda: not stage.connections)


async def test_client_that_went_before_its_request_was_looked_at_sends_nothing_up() -> None:
    async with Stage() as stage:
        release = asyncio.Event()

        async def later(_: str) -> Peer:
            await release.wait()
            return ANA

        stage.daemon.answer = later
        client = await stage.client()
        await client.send(get())
        await client.end()
        await stage.until(lambda: not stage.connections)
        release.set()
        await asyncio.sleep(0)
        assert stage.api.untouched()


async def test_request_that_came_with_its_clients_end_is_not_sent() -> None:
    """Both in one turn of reading: a full record, and close_notify behind it."""
    async with Stage(tls=True) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        await client.response()
        assert client._tls is not None
        padding = 16384 - len(get("/api", "X: "))
        client._tls.write(get("/api", "X: " + "x" * padding))
        with contextlib.suppress(ssl.SSLError):
            client._tls.unwrap()
        client.sock.send(client._outgoing.read())
        assert await upstream.gone() and stage.api.untouched()


async def test_client_that_ends_its_side_still_gets_the_last_response() -> None:
    """All of it, though most of it waits for room when the end comes."""
    async with Stage() as stage:
        client = await stage.client(receive_buffer=4096)
        _, upstream, _ = await stage.exchange(get("/api", "Connection: close"), client)
        connection = stage.connections[0]
        connection.client.wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        body = b"x" * 60_000
        await upstream.send(reply(body))
        await stage.until(lambda: stage.upstream.idle == 1)
        assert connection.client.wire.blocked
        await client.end()
        await stage.until(lambda: connection.client.wire.ended)
        assert (await client.response()).body == body


# -- upstream breaks


@pytest.mark.parametrize("how", ["cut", "reset"])
@both_legs
@pytest.mark.parametrize(
    "begun",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome", CHUNKED + b"4\r\nsome\r\n", UNTIL_CLOSE + b"some"],
    ids=["length", "chunked", "until-close"],
)
async def test_a_broken_body_is_seen_to_be_broken(begun: bytes, tls: bool, how: str) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(begun)
        await client.head()
        await client.until(b"some")
        if how == "cut" and not tls and begun.startswith(UNTIL_CLOSE):
            pytest.skip("a FIN is the clean end of such a body")
        await leave(upstream, how)
        if tls or begun.startswith(UNTIL_CLOSE):
            with pytest.raises((Truncated, ConnectionResetError)):
                await client.rest()
        else:
            assert b"0\r\n\r\n" not in await client.rest()


@both_legs
async def test_clean_end_within_a_body_is_a_broken_body_too(tls: bool) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(CHUNKED + b"4\r\nsome\r\n")
        await client.until(b"some\r\n")
        await upstream.end()
        if tls:
            with pytest.raises(Truncated):
                await client.rest()
        else:
            assert await client.rest() == b""


@both_legs
@pytest.mark.parametrize("ahead", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 2"])
async def test_upstream_ends_without_an_answer(tls: bool, ahead: bytes) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(ahead)
        if ahead.endswith(b"\n"):
            await client.head()
        await upstream.end()
        upstream.close()
        assert (await client.response()).refusal()[0] == 502
        assert await client.rest() == b"" and stage.api.untouched()


# -- what is reused, and what happens to what should not have been


async def test_bytes_behind_a_response_are_no_answer() -> None:
    """Both sides disagree about where a response ends: what comes next could be somebody else's answer."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply(b"ok") + reply(b"stolen"))
        assert (await client.response()).body == b"ok"
        assert await upstream.gone()
        _, other, _ = await stage.exchange(get("/next"), client)
        await other.send(reply(b"mine"))
        assert (await client.response()).body == b"mine"


@both_legs
async def test_bytes_that_nobody_asked_for_are_no_answer(tls: bool) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply(b"ok"))
        assert (await client.response()).body == b"ok"
        await upstream.send(reply(b"stolen"))
        # At once, so that the proxy has not read it yet; and again when it has.
        _, other, _ = await stage.exchange(get("/next"), client)
        await other.send(reply(b"mine"))
        assert (await client.response()).body == b"mine"
        await other.send(reply(b"stolen"))
        assert await other.gone()
        assert stage.upstream._idle[0].wire.closed


@both_legs
@pytest.mark.parametrize("sent", [get("/next"), post(b"body")], ids=["GET", "POST"])
@pytest.mark.parametrize("seen", [False, True], ids=["crossing", "noticed"])
@leaving
async def test_connection_that_died_idle_costs_no_request(tls: bool, sent: bytes, seen: bool, how: str) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        await client.response()
        await leave(upstream, how)
        if seen:
            await stage.until(lambda: stage.upstream._idle[0].wire.closed)
        _, other, _ = await stage.exchange(sent, client)
        await other.send(reply(b"fine"))
        assert (await client.response()).body == b"fine"


@pytest.mark.parametrize("sent", [post(b""), request("DELETE", "/api")], ids=["POST", "DELETE"])
async def test_connection_that_dies_in_the_very_turn_of_a_request_is_not_used(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is being looked at already, and what can't be repeated has to look before it is sent."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        await client.response()
        await stage.until(lambda: stage.upstream.idle == 1)
        cached = stage.whois.cached

        def dying(key: ClientKey, ahead: float) -> Peer | None:
            upstream.close()
            return cached(key, ahead)

        monkeypatch.setattr(stage.whois, "cached", dying)
        _, other, head = await stage.exchange(sent, client)
        assert head[:6] == sent[:6]
        await other.send(reply(b"fine"))
        assert (await client.response()).body == b"fine"


async def _reused(stage: Stage, sent: bytes) -> tuple[Raw, Raw]:
    """A request on a connection that has carried one before."""
    client, upstream, _ = await stage.exchange(get())
    await upstream.send(reply())
    await client.response()
    await client.send(sent)
    await upstream.head()
    return client, upstream


@both_legs
@leaving
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_request_that_crosses_the_end_is_repeated_once(tls: bool, how: str, method: str) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream = await _reused(stage, request(method, "/again"))
        await leave(upstream, how)
        other = await stage.api.accept()
        assert (await other.head()).startswith(method.encode() + b" /again ")
        await other.send(reply(b""))
        assert (await client.response(method)).status == 200
        assert stage.upstream.opened == 2


async def test_request_is_not_repeated_twice() -> None:
    async with Stage() as stage:
        client, upstream = await _reused(stage, get("/again"))
        upstream.close()
        other = await stage.api.accept()
        await other.head()
        other.close()
        assert (await client.response()).refusal()[0] == 502
        assert stage.api.untouched() and stage.upstream.opened == 2


async def test_repeated_request_goes_to_a_fresh_connection() -> None:
    """Where one pooled connection died of a restart, the others did too."""
    async with Stage() as stage:
        others = [await stage.exchange(get()) for _ in range(3)]
        for client, upstream, _ in others:
            await upstream.send(reply())
            await client.response()
        client = others[0][0]
        await client.send(get("/again"))
        reader = others[-1][1]
        await reader.head()
        reader.close()
        other = await stage.api.accept()
        assert b"/again" in await other.head()
        await other.send(reply())
        assert (await client.response()).status == 200


@pytest.mark.parametrize(
    "sent",
    [
        *(post(b""), post(b"body"), request("PATCH", "/api"), request("PUT", "/api"), request("DELETE", "/api")),
        *(request("GET", "/api", "Content-Length: 1"), request("GET", "/api", "Transfer-Encoding: chunked")),
        request("GET", "/api/v1/namespaces/a/pods/w/exec", "Connection: Upgrade", "Upgrade: websocket"),
    ],
)
async def test_what_may_have_been_done_is_not_repeated(sent: bytes) -> None:
    async with Stage() as stage:
        client, upstream = await _reused(stage, sent)
        upstream.close()
        assert (await client.response()).refusal()[0] == 502
        assert stage.api.untouched() and stage.upstream.opened == 1


async def test_answer_that_has_begun_is_not_repeated() -> None:
    async with Stage() as stage:
        client, upstream = await _reused(stage, get("/again"))
        await upstream.send(b"H")
        await stage.until(
            lambda: bool(stage.connections[0].running.exchange and stage.connections[0].running.exchange._pending)
        )
        upstream.close()
        assert (await client.response()).refusal()[0] == 502
        assert stage.api.untouched()


async def test_idle_connections_are_swept() -> None:
    async with Stage(Limits(pool_idle_timeout=55)) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        await client.response()
        now = asyncio.get_running_loop().time()
        stage.upstream.sweep(now + 50)
        assert stage.upstream.idle == 1
        stage.upstream.sweep(now + 60)
        assert stage.upstream.idle == 0 and await upstream.gone()


async def test_pool_is_bounded() -> None:
    async with Stage(Limits(pool_size=2)) as stage:
        exchanges = [await stage.exchange(get()) for _ in range(4)]
        for client, upstream, _ in exchanges:
            await upstream.send(reply())
            await client.response()
        assert stage.upstream.idle == 2


@pytest.mark.parametrize("tls", (False, True), ids=("plain", "tls"))
async def test_bytes_that_nobody_asked_for_are_no_answer_to_who_asks_in_the_same_turn(tls: bool) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        assert (await client.response()).status == 200
        await stage.until(lambda: stage.upstream.idle == 1)
        # Sent and looked for in one turn of the loop: nobody has read it in between.
        upstream.sock.send(b"\0" * 32)
        assert stage.upstream.take_idle(repeatable=True) is None
        assert stage.upstream.idle == 0


async def test_an_answer_that_comes_behind_the_end_is_not_passed_on() -> None:
    """What ends an exchange is told behind everything else of that turn of the loop, which may read an answer."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        exchange = stage.connections[0].running.exchange
        assert exchange is not None
        upstream.sock.send(reply(b"late"))
        exchange.cut("grant_withdrawn", "not any more")
        exchange._connection.wire._readable()
        assert (await client.response()).refusal() == (503, "k8sproxy: not any more")
        assert await client.gone()
        assert stage.shared.telemetry._requests == {("list", "pods", 503): 1}
        assert stage.shared.telemetry._refusals == {"grant_withdrawn": 1}


# -- each request is counted once, whatever its end


async def test_a_request_whose_client_goes_while_the_daemon_is_asked_is_counted() -> None:
    async with Stage() as stage:
        asked, never = asyncio.Event(), asyncio.Event()

        async def silent(address: str) -> Peer:
            asked.set()
            await never.wait()
            return ANA

        stage.daemon.answer = silent
        client = await stage.client()
        await client.send(get())
        await asked.wait()
        client.cut()
        await stage.until(lambda: not stage.connections)
        assert stage.shared.telemetry._requests == {("", "", 499): 1}
        never.set()


@pytest.mark.parametrize("begun", [False, True], ids=["before the answer", "within it"])
async def test_a_request_that_a_drain_cuts_is_counted(begun: bool) -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        if begun:
            await upstream.send(reply(b"x" * 10)[:-1])
            await client.until(b"x" * 9)
        await stage.server.drain(0.0)
        assert stage.shared.telemetry._requests == {("list", "pods", 200 if begun else 499): 1}
        assert stage.shared.telemetry._refusals == ({"stopping": 1} if begun else {})


async def test_a_request_that_a_fault_of_ours_ends_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    over = Running.over

    def faulty(self: Running) -> None:
        over(self)
        raise RuntimeError("a fault")

    monkeypatch.setattr(Running, "over", faulty)
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        with contextlib.suppress(ConnectionResetError):
            await client.rest()
        await stage.until(lambda: not stage.connections)
        assert stage.shared.telemetry._requests == {("list", "pods", 200): 1}
        assert stage.shared.telemetry._refusals == {"internal": 1}
