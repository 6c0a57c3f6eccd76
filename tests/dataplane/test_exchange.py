"""Requests and responses of every framing: what goes up, what comes down, and what the next request finds."""

from __future__ import annotations

import asyncio

import pytest

from k8sproxy.dataplane.limits import Limits
from tests.dataplane.proxied import CHUNKED, UNTIL_CLOSE, Raw, Stage, get, post, reply, request

both_legs = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@both_legs
async def test_keep_alive(tls: bool) -> None:
    """One connection on either side carries request after request."""
    async with Stage(tls=tls) as stage:
        client, upstream, head = await stage.exchange(get())
        assert head.startswith(b"GET /api/v1/pods HTTP/1.1\r\nHost: api.test\r\n")
        await upstream.send(reply(b"hello", "200 OK", "X-Of-The: server", "Connection: keep-alive"))
        response = await client.response()
        assert (response.status, response.body, response.fields["x-of-the"]) == (200, b"hello", "server")
        assert "connection" not in response.fields
        for number in range(3):
            await client.send(post(b"x" * number))
            assert b"POST" in await upstream.head()
            assert await upstream.exactly(number) == b"x" * number
            await upstream.send(reply(b"%d" % number, "201 Created"))
            assert (await client.response()).body == b"%d" % number
        assert stage.upstream.opened == 1 and len(stage.daemon.asked) == 1


@both_legs
async def test_pipelined_requests_are_answered_in_order(tls: bool) -> None:
    """A later request waits for the earlier one's response, refusals and the proxy's own answers included."""
    async with Stage(tls=tls) as stage:
        sent = post(b"body") + get("/.well-known/k8sproxy/whoami") + get("/2", "Impersonate-User: x") + get("/3")
        client, upstream, head = await stage.exchange(sent)
        assert head.startswith(b"POST") and await upstream.exactly(4) == b"body"
        await upstream.send(reply(b"one"))
        assert (await client.response()).body == b"one"
        assert b"ana@example.com" in (await client.response()).body
        assert (await client.response()).status == 403
        assert (await upstream.head()).startswith(b"GET /3 ")
        await upstream.send(reply(b"three"))
        assert (await client.response()).body == b"three"


async def test_an_offer_of_another_protocol_is_an_ordinary_request() -> None:
    """Apache's HttpClient 5 offers TLS/1.2 to every server (RFC 2817)."""
    async with Stage() as stage:
        offer = ("Connection: Upgrade", "Upgrade: TLS/1.2")
        client, upstream, head = await stage.exchange(get("/version", *offer))
        assert b"pgrade" not in head
        await upstream.send(reply(b"one"))
        assert "connection" not in (await client.response()).fields
        await client.send(post(b"body", "/api/v1/namespaces/a/pods", *offer))
        assert b"pgrade" not in await upstream.head()
        assert await upstream.exactly(4) == b"body"
        await upstream.send(reply(b"two"))
        assert (await client.response()).body == b"two"


async def test_byte_by_byte() -> None:
    async with Stage() as stage:
        client = await stage.client()
        await _slowly(client, post(b"abc"))
        upstream = await stage.api.accept()
        await upstream.head()
        assert await upstream.exactly(3) == b"abc"
        await _slowly(upstream, reply(b"hello"))
        assert (await client.response()).body == b"hello"
        await client.send(get())
        await upstream.head()
        await _slowly(upstream, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n")
        assert (await client.response()).body == b"hello"


async def _slowly(raw: Raw, data: bytes) -> None:
    for byte in data:
        await raw.send(bytes((byte,)))
        await asyncio.sleep(0)


async def test_chunked_both_ways_with_trailers() -> None:
    """Bodies pass as they came: chunk extensions, sizes and trailers included."""
    async with Stage() as stage:
        body = b"5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nX-Check: sum\r\n\r\n"
        client, upstream, head = await stage.exchange(
            request("POST", "/api", "Transfer-Encoding: chunked", "Trailer: X-Check") + body + get("/next")
        )
        assert b"\r\nTransfer-Encoding: chunked\r\n" in head and b"\r\ntrailer: X-Check\r\n" in head
        assert await upstream.exactly(len(body)) == body
        await upstream.send(CHUNKED + body)
        await client.head()
        assert await client.exactly(len(body)) == body
        assert b"GET /next " in await upstream.head()
        await upstream.send(reply())
        assert (await client.response()).status == 200


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
        ("DELETE", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_responses_without_a_body(method: str, answer: bytes) -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(request(method, "/api"))
        await upstream.send(answer)
        assert await client.head() == answer
        await client.send(get("/next"))
        assert b"GET /next " in await upstream.head()
        await upstream.send(reply())
        assert (await client.response()).body == b"ok"


async def test_head_of_a_refusal_has_no_body() -> None:
    async with Stage() as stage:
        client = await stage.client()
        await client.send(request("HEAD", "/api", "Impersonate-User: x") + get("/.well-known/k8sproxy/whoami"))
        assert (await client.response("HEAD")).status == 403
        assert b"ana@example.com" in (await client.response()).body


@both_legs
async def test_response_until_close(tls: bool) -> None:
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(UNTIL_CLOSE + b"some")
        assert b"Connection: close\r\n" in await client.head()
        assert await client.exactly(4) == b"some"
        await upstream.send(b"more")
        await upstream.end()
        assert await client.rest() == b"more"


async def test_http_1_0_response() -> None:
    """An old server behind a service proxy: its answer is whole, its connection isn't reused."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert (await client.response()).body == b"ok"
        assert await upstream.gone() and stage.upstream.idle == 0


async def test_connection_lines_of_a_response_stay_upstream() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        lines = ("Connection: close, X-Hop", "X-Hop: 1", "Keep-Alive: timeout=5", "Proxy-Authenticate: x", "Date: now")
        await upstream.send(reply(b"ok", "200 OK", *lines))
        response = await client.response()
        assert response.fields == {"content-length": "2", "date": "now"}
        assert await upstream.gone()
        await stage.exchange(get("/next"), client)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\nSet-Cookie: z\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
async def test_malformed_answer(answer: bytes) -> None:
    """An answer that two readers could take for two things is none."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(answer)
        response = await client.response()
        assert response.refusal()[0] == 502 and response.fields["connection"] == "close"
        assert await client.rest() == b""
        assert await upstream.gone() and stage.upstream.idle == 0


async def test_interim_responses_come_down_at_once() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        for status in (b"103 Early Hints\r\nLink: </x>", b"102 Processing"):
            await upstream.send(b"HTTP/1.1 " + status + b"\r\n\r\n")
            assert status in await client.head()
        await upstream.send(b"HTTP/1.1 102 Processing\r\n\r\n" + reply())
        assert b"102" in await client.head()
        assert (await client.response()).status == 200


async def test_interim_responses_lose_what_speaks_of_the_connection() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(b"HTTP/1.1 103 Early Hints\r\nConnection: X-Hop\r\nX-Hop: 1\r\nLink: </x>\r\n\r\n")
        head = await client.head()
        assert head == b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"


async def test_interim_responses_without_end_are_no_answer() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 65)
        for _ in range(64):
            assert b" 103 " in await client.head()
        assert b" 502 " in await client.head()


async def test_expect_100_continue() -> None:
    """The body is sent when the API server has asked for it, and not before."""
    async with Stage() as stage:
        client, upstream, head = await stage.exchange(
            request("POST", "/api", "Content-Length: 4", "Expect: 100-continue")
        )
        assert b"expect: 100-continue\r\n" in head
        await upstream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert b"100 Continue" in await client.head()
        await client.send(b"body")
        assert await upstream.exactly(4) == b"body"
        await upstream.send(reply())
        assert (await client.response()).status == 200


async def test_expectation_that_is_refused() -> None:
    """The API server says no instead of 100: what the client sends now can't be told from its body."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(request("POST", "/api", "Content-Length: 4", "Expect: 100-continue"))
        await upstream.send(reply(b"no", "413 Payload Too Large"))
        response = await client.response()
        assert (response.status, response.fields["connection"]) == (413, "close")
        assert await client.rest() == b"" and await upstream.gone()


@both_legs
async def test_early_response_to_an_upload(tls: bool) -> None:
    """The client reads the response to an upload that it is still sending, and no reset."""
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(request("POST", "/api", "Content-Length: 100000000") + b"x")
        await upstream.send(reply(b"too large", "413 Payload Too Large"))
        if tls:
            await upstream.end()
        upstream.close()
        for _ in range(10):
            await client.send(b"x" * 50_000)
        response = await client.response()
        assert (response.status, response.body, response.fields["connection"]) == (413, b"too large", "close")
        assert await client.rest() == b""


async def test_early_response_from_an_upstream_that_resets() -> None:
    """What upstream said before it went is read even when writing to it fails first."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(request("POST", "/api", "Content-Length: 100000000") + b"x" * 1000)
        body = b"no" * 60_000  # more than one turn of reading
        await upstream.send(reply(body, "413 Payload Too Large"))
        upstream.close()  # over unread bytes: a reset
        response = await client.response()
        assert (response.status, len(response.body)) == (413, len(body))


@both_legs
async def test_watch_line_by_line(tls: bool) -> None:
    """Every event is there before the next one is sent, whichever way it is cut."""
    async with Stage(tls=tls) as stage:
        client, upstream, _ = await stage.exchange(get("/api/v1/pods?watch=true"))
        assert stage.server.running() == {"request": 0, "watch": 1, "upgrade": 0}
        await upstream.send(CHUNKED)
        await client.head()
        for number in range(20):
            line = b'{"type":"ADDED","n":%d}\n' % number
            chunk = b"%x\r\n%s\r\n" % (len(line), line)
            half = number % len(chunk)
            await upstream.send(chunk[:half])
            assert await client.exactly(half) == chunk[:half]
            await upstream.send(chunk[half:])
            assert await client.exactly(len(chunk) - half) == chunk[half:]
        await upstream.send(b"0\r\n\r\n")
        assert await client.until(b"0\r\n\r\n") == b"0\r\n\r\n"


async def test_api_servers_own_errors_pass_untouched() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        body = b'{"kind":"Status","message":"pods is forbidden"}'
        await upstream.send(reply(body, "403 Forbidden", "Audit-Id: 1"))
        response = await client.response()
        assert (response.status, response.body, response.fields["audit-id"]) == (403, body, "1")


async def test_unreachable_api_server() -> None:
    async with Stage() as stage:
        stage.api.close()
        client = await stage.client()
        for _ in range(2):
            await client.send(get())
            code, message = (await client.response()).refusal()
            assert code == 502 and "prod" in message


async def test_api_server_that_does_not_shake_hands() -> None:
    async with Stage(Limits(connect_timeout=0.05), tls=True) as stage:
        client = await stage.client()
        await client.send(get())
        assert (await client.response()).refusal()[0] == 504


async def test_client_that_asks_for_the_end() -> None:
    async with Stage() as stage:
        client, upstream, head = await stage.exchange(get("/api", "Connection: close"))
        assert b"onnection" not in head
        await upstream.send(reply())
        response = await client.response()
        assert response.fields["connection"] == "close" and await client.rest() == b""
        assert stage.upstream.idle == 1


async def test_absolute_form_of_the_same_host() -> None:
    async with Stage() as stage:
        client, upstream, head = await stage.exchange(request("GET", "http://K8S/api?x=y"))
        assert head.startswith(b"GET /api?x=y HTTP/1.1\r\n")
        await upstream.send(reply())
        assert (await client.response()).status == 200


async def test_an_internal_fault_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever nobody thought of fails closed: 500, and nothing goes upstream."""
    async with Stage() as stage:
        client = await stage.client()
        monkeypatch.setattr("k8sproxy.dataplane.connection.decide", lambda *_: 1 / 0)
        await client.send(get())
        assert (await client.response()).refusal()[0] == 500
        assert await client.rest() == b"" and stage.api.untouched()


async def test_an_internal_fault_behind_a_response_adds_nothing_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a response has begun, a second one would be read as its body, or as the next one."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        monkeypatch.setattr(stage.shared.telemetry, "request", lambda *_: 1 / 0)
        await upstream.send(reply())
        assert (await client.response()).body == b"ok"
        assert await client.gone()


async def test_a_fault_in_a_callback_ends_the_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault while bytes pass must not leave a stream with a hole in it."""
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda *fault: faults.append(fault))
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(CHUNKED + b"5\r\nhello\r\n")
        await client.until(b"hello\r\n")
        monkeypatch.setattr("k8sproxy.protocol.body.ChunkedBody.take", lambda *_: 1 / 0)
        await upstream.send(b"5\r\nthere\r\n")
        assert await client.gone() and await upstream.gone()
    assert len(faults) == 1


async def test_metrics_of_a_request() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(post(b"12345"))
        await upstream.exactly(5)
        await upstream.send(reply(b"123", "201 Created"))
        await client.response()
        await stage.until(lambda: stage.shared.telemetry.bytes_to_clients == 3)
        assert stage.shared.telemetry.bytes_from_clients == 5
        assert stage.shared.telemetry._requests == {("create", "pods", 201): 1}
