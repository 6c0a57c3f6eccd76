"""Requests as an attacker writes them. Each is refused with a Status, the connection ends, and upstream saw nothing.

The faults of others that these stand for are in prior-art: requests smuggled past one of two parsers, identity lost
to `Connection: Impersonate-User` or brought along as X-Remote-*, paths that the API server reads as another path.
"""

from __future__ import annotations

import asyncio

import pytest

from k8sproxy.dataplane.limits import Limits
from tests.dataplane.proxied import Raw, Stage, get, peer, reply, request

# What a head says does not depend on who hands it over.
EVENT_LOOPS = ["uvloop"]

_EXEC = "/api/v1/namespaces/a/pods/web/exec"


async def refused(stage: Stage, client: Raw, code: int, words: str = "") -> None:
    """The one answer is this refusal, then the connection ends, and nothing has gone upstream."""
    response = await client.response()
    status, message = response.refusal()
    assert status == code and words in message, message
    assert response.fields["connection"] == "close"
    assert await client.rest() == b""
    assert stage.api.untouched()


# A second request stands behind each: it must never be seen as one.
_BEHIND = get("/smuggled")


@pytest.mark.parametrize(
    ("head", "code", "words"),
    [
        pytest.param(
            request("POST", "/api", "Content-Length: 3", "Transfer-Encoding: chunked"), 400, "both", id="cl-te"
        ),
        pytest.param(
            request("POST", "/api", "Transfer-Encoding: chunked", "Content-Length: 3"), 400, "both", id="te-cl"
        ),
        pytest.param(
            request("POST", "/api", "Content-Length: 3", "Content-Length: 4"), 400, "Content-Length", id="cl-cl"
        ),
        pytest.param(request("POST", "/api", "Content-Length: 3, 3"), 400, "Content-Length", id="cl-list"),
        pytest.param(request("POST", "/api", "Content-Length: +3"), 400, "Content-Length", id="cl-sign"),
        pytest.param(request("POST", "/api", "Content-Length: 0x3"), 400, "Content-Length", id="cl-hex"),
        pytest.param(request("POST", "/api", "Content-Length: -1"), 400, "Content-Length", id="cl-negative"),
        pytest.param(request("POST", "/api", "Content-Length : 3"), 400, "malformed", id="cl-blank"),
        pytest.param(request("POST", "/api", "Transfer-Encoding: gzip, chunked"), 501, "coding", id="te-gzip"),
        pytest.param(request("POST", "/api", "Transfer-Encoding: identity"), 501, "coding", id="te-identity"),
        pytest.param(request("POST", "/api", "Transfer-Encoding: xchunked"), 501, "coding", id="te-xchunked"),
        pytest.param(
            request("POST", "/api", "Transfer-Encoding: chunked", "Transfer-Encoding: x"), 501, "coding", id="te-te"
        ),
        pytest.param(request("POST", "/api", "Transfer-Encoding:\x0bchunked"), 400, "malformed", id="te-vt"),
        pytest.param(b"GET /api HTTP/1.1\nHost: k8s\n\n\r\n\r\n", 400, "", id="bare-lf"),
        pytest.param(request("GET", "/api", "A: b\nImpersonate-User: root"), 400, "bare CR or LF", id="lf-in-value"),
        pytest.param(request("GET", "/api", "A: b\rImpersonate-User: root"), 400, "bare CR or LF", id="cr-in-value"),
        pytest.param(request("GET", "/api", "A: b", " folded: c"), 400, "folded", id="folded"),
        pytest.param(request("GET", "/api", "A: b", "\tfolded"), 400, "folded", id="folded-tab"),
        pytest.param(request("GET", "/api", "A: \x00"), 400, "malformed", id="nul-in-value"),
        pytest.param(request("GET", "/api", "no colon"), 400, "malformed", id="no-colon"),
        pytest.param(request("GET", "/api", ": nameless"), 400, "malformed", id="no-name"),
        pytest.param(request("GET", "/api", "Host: other"), 400, "Host", id="two-hosts"),
        pytest.param(b"GET /api HTTP/1.1\r\n\r\n", 400, "Host", id="no-host"),
        pytest.param(b"GET /api HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "Host", id="host-blank"),
        pytest.param(b"GET /api HTTP/1.1\r\nHost: u@k8s\r\n\r\n", 400, "Host", id="host-userinfo"),
        pytest.param(request("GET", "http://other/api"), 400, "name different hosts", id="absolute-other-host"),
        pytest.param(request("GET", "http://k8s@other/api"), 400, "name different hosts", id="absolute-userinfo"),
        pytest.param(request("GET", "api"), 400, "target", id="relative"),
        pytest.param(request("OPTIONS", "*"), 400, "target", id="asterisk"),
        pytest.param(b"GET  /api HTTP/1.1\r\nHost: k8s\r\n\r\n", 400, "request line", id="two-blanks"),
        pytest.param(b"GET /api\tHTTP/1.1\r\nHost: k8s\r\n\r\n", 400, "request line", id="tab"),
        pytest.param(b"GET /api HTTP/1.1 \r\nHost: k8s\r\n\r\n", 400, "request line", id="blank-behind"),
        pytest.param(b"\r\nGET /api HTTP/1.1\r\nHost: k8s\r\n\r\n", 400, "request line", id="empty-line-ahead"),
        pytest.param(b"GET /api HTTP/1.0\r\nHost: k8s\r\n\r\n", 505, "HTTP/1.1", id="http-1.0"),
        pytest.param(b"GET /api\r\n\r\n", 400, "request line", id="http-0.9"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1", id="http-2-preface"),
        pytest.param(request("TRACE", "/api"), 405, "TRACE", id="trace"),
        pytest.param(request("CONNECT", "k8s:443"), 405, "CONNECT", id="connect"),
        pytest.param(request("get", "/api"), 405, "get", id="lower-case-method"),
        pytest.param(request("TRACK", "/api"), 405, "TRACK", id="track"),
        pytest.param(
            request("GET", _EXEC, "Connection: Upgrade", "Upgrade: TLS/1.2"), 400, "upgrade", id="tls-upgrade-of-exec"
        ),
        pytest.param(request("GET", _EXEC, "Upgrade: SPDY/3.1"), 400, "upgrade", id="half-an-upgrade"),
        pytest.param(request("GET", _EXEC, "Connection: Upgrade"), 400, "upgrade", id="other-half"),
        pytest.param(
            request("POST", _EXEC, "Connection: Upgrade", "Upgrade: SPDY/3.1, websocket"),
            400,
            "upgrade",
            id="two-in-one",
        ),
        pytest.param(
            request("POST", _EXEC, "Connection: Upgrade", "Upgrade: SPDY/3.1", "Content-Length: 5"),
            400,
            "body",
            id="upgrade-with-body",
        ),
        pytest.param(request("GET", "/api", "Expect: the-unexpected"), 417, "100-continue", id="expect"),
        pytest.param(request("GET", "/api//v1"), 400, "//", id="empty-segment"),
        pytest.param(request("GET", "//api/v1"), 400, "//", id="two-slashes"),
        pytest.param(request("GET", "/api/../api/v1"), 400, "dot segment", id="dot-dot"),
        pytest.param(request("GET", "/api/./v1"), 400, "dot segment", id="dot"),
        pytest.param(request("GET", "/api/%2e%2e/v1"), 400, "percent-encoded", id="escaped-dots"),
        pytest.param(request("GET", "/api%2Fv1"), 400, "percent-encoded", id="escaped-slash"),
        pytest.param(request("POST", "/api/v1/namespaces/a/pods/web/%65xec"), 400, "percent-encoded", id="%65xec"),
        pytest.param(request("POST", "/api/v1/namespaces/a/pods/web/exe%63"), 400, "percent-encoded", id="exe%63"),
        pytest.param(request("POST", _EXEC + "/"), 400, "", id="trailing-slash"),
        pytest.param(request("GET", "/api\\v1"), 400, "percent-encoded", id="backslash"),
        pytest.param(request("GET", "/api%5cv1"), 400, "percent-encoded", id="escaped-backslash"),
        pytest.param(request("GET", "/api%00"), 400, "control", id="nul"),
        pytest.param(request("GET", "/api%0d%0aX: y"), 400, "", id="crlf-in-path"),
        pytest.param(request("GET", "/api%zz"), 400, "escape", id="bad-escape"),
        pytest.param(request("GET", "/api%"), 400, "escape", id="cut-escape"),
        pytest.param(request("GET", "/api%25"), 400, "percent-encoded", id="twice-escaped"),
        pytest.param(request("GET", _EXEC + "?command=a&command=b;&command=c"), 400, "semicolon", id="two-commands"),
        pytest.param(request("GET", _EXEC + "?command=a&command=%zz"), 400, "two ways", id="command-with-bad-escape"),
        pytest.param(request("GET", "/api#x"), 400, "", id="fragment"),
        pytest.param(request("GET", "/api\xc3\xa9"), 400, "", id="not-ascii"),
        pytest.param(request("GET", "/api", *[f"X-{n}: y" for n in range(128)]), 431, "fields", id="too-many-fields"),
    ],
)
async def test_refused_with_nothing_upstream(head: bytes, code: int, words: str) -> None:
    async with Stage() as stage:
        client = await stage.client()
        await client.send(head + _BEHIND)
        await refused(stage, client, code, words)


@pytest.mark.parametrize("split", [1, 7])
async def test_refused_in_pieces(split: int) -> None:
    """The same reading, however the bytes arrive."""
    async with Stage() as stage:
        client = await stage.client()
        head = request("POST", "/api", "Content-Length: 3", "Transfer-Encoding: chunked")
        for start in range(0, len(head), split):
            await client.send(head[start : start + split])
            await asyncio.sleep(0)
        await refused(stage, client, 400, "both")


@pytest.mark.parametrize(
    "name", ["Impersonate-User", "impersonate-group", "IMPERSONATE-UID", "Impersonate_User", "Impersonate-Extra-x"]
)
async def test_impersonation_is_refused_by_name(name: str) -> None:
    async with Stage() as stage:
        client = await stage.client()
        await client.send(get("/api", f"{name}: root", "Connection: close"))
        await refused(stage, client, 403, "Impersonate-*")


@pytest.mark.parametrize(
    "line",
    [
        *("X-Remote-User: root", "X-Remote-Group: system:masters", "x_remote_user: root", "X-Remote-Extra-Scopes: x"),
        *(
            "Authorization: Bearer stolen",
            "authorization: Basic eDp5",
            "X-Forwarded-For: 10.0.0.1",
            "X-Real-Ip: 10.0.0.1",
        ),
        *("X-Forwarded-Proto: https", "X_Forwarded_Host: x", "Forwarded: for=1", "Tailscale-User-Login: root"),
        *(
            "TE: trailers",
            "Keep-Alive: 5",
            "Proxy-Authorization: x",
            "Proxy-Connection: keep-alive",
            "HTTP2-Settings: x",
        ),
        *("Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.c3RvbGVu", "Connection: X-Mine\r\nX-Mine: 1"),
    ],
)
async def test_what_a_client_may_not_say_is_left_out(line: str) -> None:
    async with Stage() as stage:
        client, upstream, head = await stage.exchange(get("/api", line, "X-Kept: yes"))
        await upstream.send(reply())
        assert (await client.response()).status == 200
        line_one, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        assert line_one == b"GET /api HTTP/1.1"
        assert sorted(lines) == [
            *(b"Authorization: Bearer the-proxy", b"Host: api.test", b"Impersonate-Group: dev"),
            *(b"Impersonate-User: ana@example.com", b"X-Forwarded-For: 100.64.0.7", b"x-kept: yes"),
        ]


@pytest.mark.parametrize(
    "tokens", ["Impersonate-User", "impersonate-user, Impersonate-Group", "Authorization", "X-Forwarded-For, host"]
)
async def test_connection_tokens_strip_no_identity(tokens: str) -> None:
    """What Connection names goes before the identity is set, so that it can't take it away."""
    async with Stage() as stage:
        client, upstream, head = await stage.exchange(get("/api", f"Connection: {tokens}"))
        await upstream.send(reply())
        assert (await client.response()).status == 200
        for line in (b"Host: api.test", b"Impersonate-User: ana@example.com", b"Impersonate-Group: dev"):
            assert head.count(line + b"\r\n") == 1
        assert head.count(b"Authorization: Bearer the-proxy\r\n") == 1


async def test_an_offer_of_h2c_is_passed_over() -> None:
    """Nothing of it goes upstream, and no bytes behind it are anything but the next request."""
    async with Stage() as stage:
        lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        client, upstream, head = await stage.exchange(get("/api", *lines))
        assert b"pgrade" not in head and b"ettings" not in head and b"h2c" not in head
        await upstream.send(reply())
        assert (await client.response()).status == 200


async def test_connection_can_not_hide_framing() -> None:
    """Connection: Content-Length takes the line away, not the length: the body is still no request."""
    async with Stage() as stage:
        body = get("/smuggled")
        sent = request("POST", "/api", f"Content-Length: {len(body)}", "Connection: Content-Length, Transfer-Encoding")
        client, upstream, head = await stage.exchange(sent + body)
        assert b"Content-Length: %d\r\n" % len(body) in head
        assert await upstream.exactly(len(body)) == body
        await upstream.send(reply())
        assert (await client.response()).status == 200


async def test_nested_authorization_passes_in_passthrough_mode() -> None:
    async with Stage(impersonate=False) as stage:
        lines = ("Authorization: Bearer mine", "Impersonate-User: bob", "X-Remote-User: root")
        client, upstream, head = await stage.exchange(get("/api", *lines))
        await upstream.send(reply())
        assert (await client.response()).status == 200
        assert b"authorization: Bearer mine\r\n" in head and b"impersonate-user: bob\r\n" in head
        assert b"the-proxy" not in head and b"root" not in head and b"ana@" not in head


# -- heads without end


async def test_head_too_large() -> None:
    async with Stage(Limits(head_bytes=4096)) as stage:
        client = await stage.client()
        await client.send(get("/api", "X-Pad: " + "x" * 4096))
        await refused(stage, client, 431, "4096 bytes")


async def test_head_that_does_not_end_is_not_held() -> None:
    async with Stage(Limits(head_bytes=4096)) as stage:
        client = await stage.client()
        await client.send(b"GET /api HTTP/1.1\r\nX: " + b"x" * 5000)
        await refused(stage, client, 431, "4096 bytes")


async def test_slow_head() -> None:
    """A head must be whole in time, however steadily its bytes come."""
    async with Stage(Limits(head_timeout=10)) as stage:
        client = await stage.client()
        await client.send(b"GET /api HTTP/1.1\r\n")
        await stage.until(lambda: bool(stage.connections and stage.connections[0].client.buffer))
        await stage.tick(9)
        await client.send(b"X: y\r\n")
        await stage.until(lambda: b"X: y" in stage.connections[0].client.buffer)
        await stage.tick(11)
        await refused(stage, client, 408, "too long")


async def test_slow_second_head() -> None:
    async with Stage(Limits(head_timeout=10, idle_timeout=300)) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        await client.response()
        await stage.tick(200)
        await client.send(b"G")
        await stage.until(lambda: bool(stage.connections[0].client.buffer))
        await stage.tick(11)
        await refused(stage, client, 408, "too long")


async def test_silent_connection_ends() -> None:
    async with Stage(Limits(head_timeout=10)) as stage:
        client = await stage.client()
        await stage.until(lambda: bool(stage.connections))
        await stage.tick(11)
        assert await client.rest() == b""


async def test_idle_connection_ends() -> None:
    async with Stage(Limits(idle_timeout=300)) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        await client.response()
        await stage.tick(299)
        assert stage.connections
        await stage.tick(301)
        assert await client.rest() == b""


async def test_upload_that_stalls_is_ended() -> None:
    async with Stage(Limits(idle_timeout=300)) as stage:
        client, upstream, _ = await stage.exchange(request("POST", "/api", "Content-Length: 100") + b"some")
        assert await upstream.exactly(4) == b"some"
        await stage.tick(1)
        await stage.tick(200)
        await client.send(b"more")
        assert await upstream.exactly(4) == b"more"
        await stage.tick(400)
        await stage.tick(699)
        assert len(stage.connections) == 1
        await stage.tick(702)
        assert (await client.response()).refusal()[0] == 503
        assert await upstream.gone() and await client.gone()


# -- smuggling behind and within bodies


async def test_bytes_behind_a_refused_upgrade_are_no_request() -> None:
    """By the API server: what was sent ahead of a switch that did not come belongs to no request."""
    async with Stage() as stage:
        sent = request("POST", _EXEC, "Connection: Upgrade", "Upgrade: SPDY/3.1") + _BEHIND
        client, upstream, _ = await stage.exchange(sent)
        await upstream.send(reply(b"no", "403 Forbidden"))
        response = await client.response()
        assert (response.status, response.body, response.fields["connection"]) == (403, b"no", "close")
        assert await client.rest() == b""
        assert stage.api.untouched() and upstream.received == b""
        client.close()
        stage.upstream.close()
        assert await upstream.gone()


async def test_bytes_behind_an_upgrade_that_the_proxy_refuses_are_no_request() -> None:
    async with Stage() as stage:
        stage.daemon.answer = peer("dev", enforceRecorder=True)
        client = await stage.client()
        await client.send(request("POST", _EXEC, "Connection: Upgrade", "Upgrade: SPDY/3.1") + _BEHIND)
        await refused(stage, client, 403, "recorded")


async def test_bytes_behind_a_refused_body_are_no_request() -> None:
    """A body that is refused unread is not read as the next request."""
    async with Stage() as stage:
        client = await stage.client()
        sent = request("POST", "/api", f"Content-Length: {len(_BEHIND)}", "Impersonate-User: root")
        await client.send(sent + _BEHIND)
        await refused(stage, client, 403)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"5;" + b"x" * 300 + b"\r\n", id="long-extension"),
        pytest.param(b"-5\r\nhello\r\n0\r\n\r\n", id="negative"),
        pytest.param(b"0x5\r\nhello\r\n0\r\n\r\n", id="0x"),
        pytest.param(b"5 5\r\nhello\r\n0\r\n\r\n", id="two-sizes"),
        pytest.param(b"5\nhello\r\n0\r\n\r\n", id="bare-lf"),
        pytest.param(b"5\r\rhello\r\n0\r\n\r\n", id="bare-cr"),
        pytest.param(b"5\r\nhelloX\r\n0\r\n\r\n", id="longer-than-its-size"),
        pytest.param(b"5\r\nhello0\r\n\r\n", id="no-crlf"),
        pytest.param(b"FFFFFFFFFFFFFFFF1\r\nx", id="overflow"),
        pytest.param(b"\r\n", id="no-size"),
        pytest.param(b"0\r\nContent-Length: 5\r\n\r\n", id="framing-trailer"),
        pytest.param(b"0\r\nImpersonate-User: root\r\n\r\n", id="identity-trailer"),
        pytest.param(b"0\r\n folded\r\n\r\n", id="folded-trailer"),
        pytest.param(b"0\r\nX: " + b"y" * 9000 + b"\r\n\r\n", id="long-trailer"),
    ],
)
@pytest.mark.parametrize("ahead", [False, True], ids=["behind-the-head", "later"])
async def test_malformed_chunks(body: bytes, ahead: bool) -> None:
    """Found at once or in the middle of the stream: the client is told, that upstream connection is never reused."""
    async with Stage() as stage:
        client = await stage.client()
        head = request("POST", "/api", "Transfer-Encoding: chunked")
        if ahead:
            _, upstream, _ = await stage.exchange(head + b"3\r\nabc\r\n", client)
            assert await upstream.exactly(8) == b"3\r\nabc\r\n"
            await client.send(body + _BEHIND)
            assert b"smuggled" not in await _all(upstream)
        else:
            await client.send(head + body + _BEHIND)
            # Dialled before the body was looked at, and closed again without a byte.
            assert await (await stage.api.accept()).gone()
        response = await client.response()
        assert response.refusal()[0] == 400 and response.fields["connection"] == "close"
        assert await client.rest() == b""
        assert stage.upstream.idle == 0 and stage.api.untouched()


async def _all(raw: Raw) -> bytes:
    try:
        return await raw.rest()
    except OSError:
        return raw.received


async def test_malformed_chunk_within_the_response_cuts() -> None:
    """The answer has begun: there is no room for a Status, and the response must not look whole."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(request("POST", "/api", "Transfer-Encoding: chunked"))
        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await client.head()
        await client.send(b"zz\r\n" + _BEHIND)
        assert await client.rest() == b"hello"
        assert await upstream.gone() and stage.upstream.idle == 0 and stage.api.untouched()


# -- not HTTP at all


async def test_garbage_on_a_tls_port() -> None:
    async with Stage(tls=True) as stage:
        client = await stage.raw()
        await client.send(b"\x00" * 200)
        await _all(client)
        assert stage.api.untouched() and stage.shared.telemetry.handshake_failures == 1


async def test_plain_http_on_a_tls_port() -> None:
    async with Stage(tls=True) as stage:
        client = await stage.raw()
        await client.send(get())
        assert b"HTTP/1.1 2" not in await _all(client)
        assert stage.api.untouched() and stage.shared.telemetry.handshake_failures == 1


async def test_tls_on_a_plain_port() -> None:
    async with Stage(Limits(head_bytes=512)) as stage:
        client = await stage.raw()
        await client.send(b"\x16\x03\x01\x02\x00\x01\x00" + b"\x13" * 600)
        await refused(stage, client, 431)


async def test_silent_handshake_ends() -> None:
    async with Stage(Limits(handshake_timeout=0.05), tls=True) as stage:
        client = await stage.raw()
        await client.send(b"\x16\x03\x01")
        assert await client.gone()
        assert stage.shared.telemetry.handshake_failures == 1
