"""Content of pods, services and nodes, through the whole proxy: every answer is guarded, whatever it is, and nobody's
page leads a browser there."""

from __future__ import annotations

import pytest

from k8sproxy.request.foreign import GUARD_FIELDS
from tests.dataplane.proxied import Stage, get, post, reply, request
from tests.dataplane.test_upgrade import switching, upgrade

PROXY = "/api/v1/namespaces/a/services/web/proxy"
_GUARD = GUARD_FIELDS.decode().split("\r\n")[0].partition(": ")[2]
_HOSTILE = (
    "Clear-Site-Data: *",
    "Strict-Transport-Security: max-age=63072000",
    "Service-Worker-Allowed: /",
    "Set-Cookie: a=b; Path=/; Domain=ts.net",
)
_NAVIGATE = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(reply(b"<script>", "200 OK", "Content-Type: text/html", *_HOSTILE), id="page"),
        pytest.param(reply(b"<svg/>", "200 OK", "Content-Type: image/svg+xml", *_HOSTILE), id="svg"),
        pytest.param(reply(b"<script>", "200 OK", *_HOSTILE), id="no-type"),
        pytest.param(reply(b"", "302 Found", "Location: /apis", *_HOSTILE), id="redirect"),
        pytest.param(reply(b"<script>", "404 Not Found", "Content-Type: text/html", *_HOSTILE), id="error"),
        pytest.param(reply(b"<script>", "500 Internal Server Error", *_HOSTILE), id="fault"),
        pytest.param(
            "\r\n".join(("HTTP/1.1 204 No Content", *_HOSTILE, "", "")).encode(), id="no-content"
        ),
        pytest.param(
            "\r\n".join(("HTTP/1.1 304 Not Modified", *_HOSTILE, "", "")).encode(), id="not-modified"
        ),
        pytest.param(
            "\r\n".join(("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", *_HOSTILE, "", "")).encode() + b"0\r\n\r\n",
            id="chunked",
        ),
        pytest.param(
            "\r\n".join(
                ("HTTP/1.1 103 Early Hints", *_HOSTILE, "", "HTTP/1.1 200 OK", "Content-Length: 0", *_HOSTILE, "", "")
            ).encode(),
            id="early-hints",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("path", [f"{PROXY}/x", "/apis/x.io/v1/clusters/c/proxy/x", "/api/v1/nodes/n/proxy/logs/"])
async def test_every_answer_is_guarded(path: str, method: str, answer: bytes) -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(post(b"", path) if method == "POST" else request(method, path))
        await upstream.send(answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else answer)
        if b"103" in answer:
            interim = await client.head()
            assert b"site" not in interim.lower() and b"worker" not in interim.lower() and b"Path=/;" not in interim
            assert b"Domain" not in interim
            if method == "HEAD":
                await upstream.send(answer.partition(b"\r\n\r\n")[2])
        response = await client.response(method)
        assert response.fields["content-security-policy"] == _GUARD
        assert response.fields["x-content-type-options"] == "nosniff"
        for lost in "clear-site-data", "strict-transport-security", "service-worker-allowed":
            assert lost not in response.fields
        assert response.fields["set-cookie"] == f"a=b; Path={path[: path.index('proxy') + 5]}"


async def test_a_switch_of_protocols_sets_no_cookie_for_the_origin() -> None:
    async with Stage() as stage:
        asked = request("GET", f"{PROXY}/ws", "Connection: Upgrade", "Upgrade: websocket")
        client, upstream, _ = await stage.exchange(asked)
        head = switching("websocket")[:-2] + "\r\n".join((*_HOSTILE, "", "")).encode()
        await upstream.send(head)
        answer = await client.head()
        assert b"Clear-Site-Data" not in answer and f"Set-Cookie: a=b; Path={PROXY}\r\n".encode() in answer
        assert b"Content-Security-Policy" not in answer
        await client.end()
        await upstream.rest()
        await upstream.end()
        assert await client.rest() == b""


async def test_the_api_servers_own_answers_stay_as_they_are() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        own = ("Strict-Transport-Security: max-age=1", "X-Content-Type-Options: nosniff")
        await upstream.send(reply(b"{}", "200 OK", *own))
        fields = (await client.response()).fields
        assert fields == {"content-length": "2", **{line.split(": ")[0].lower(): line.split(": ")[1] for line in own}}
        # What a browser opens is a document, whoever has written it: an aggregated API, for one.
        await client.send(get("/apis/x.io/v1/widgets/w/page", "Accept: text/html,*/*"))
        await upstream.head()
        await upstream.send(reply(b"{}", "200 OK", *own))
        fields = (await client.response()).fields
        assert fields["content-security-policy"] == _GUARD and fields["x-content-type-options"] == "nosniff"
        assert "strict-transport-security" in fields


async def test_a_log_is_not_sniffed() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get("/api/v1/namespaces/a/pods/web/log"))
        await upstream.send(reply(b"<script>", "200 OK", "Content-Type: text/plain"))
        fields = (await client.response()).fields
        assert fields["x-content-type-options"] == "nosniff" and fields["content-security-policy"] == _GUARD


async def test_the_proxys_own_answers_are_guarded() -> None:
    async with Stage() as stage:
        client = await stage.client()
        for path in "/.well-known/k8sproxy/whoami", "/.well-known/k8sproxy/none":
            await client.send(get(path))
            assert (await client.response()).fields["content-security-policy"] == _GUARD
        await client.send(get(f"{PROXY}/x", "Impersonate-User: root"))
        assert (await client.response()).fields["content-security-policy"] == _GUARD


@pytest.mark.parametrize(
    "path", [f"{PROXY}/x", "/api/v1/nodes/n/proxy/logs/", "/apis/x.io/v1/clusters/c/proxy/x", "/logs/"]
)
@pytest.mark.parametrize(
    "said",
    [
        _NAVIGATE,
        ("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate"),
        ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"),
        ("Sec-Fetch-Site: none", "Sec-Fetch-Dest: object"),
        ("Service-Worker: script", "Sec-Fetch-Dest: serviceworker", "Sec-Fetch-Site: same-origin"),
    ],
)
async def test_no_page_leads_there(path: str, said: tuple[str, ...]) -> None:
    async with Stage() as stage:
        client = await stage.client()
        for _ in range(2):
            await client.send(get(path, *said))
            status, message = (await client.response()).refusal()
            assert status == 403 and "port-forward" in message
        assert stage.api.untouched()
        # To the API itself a page may lead: it is asked for nothing but what it shows.
        await client.send(get("/api/v1/pods", *said))
        upstream = await stage.api.accept()
        await upstream.head()
        await upstream.send(reply())
        assert (await client.response()).status == 200


async def test_programs_and_people_come_there() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get(f"{PROXY}/"))
        await upstream.send(reply())
        assert (await client.response()).status == 200
        for said in (
            ("Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Sec-Fetch-User: ?1"),
            ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: script"),
        ):
            await client.send(get(f"{PROXY}/", *said))
            await upstream.head()
            await upstream.send(reply())
            assert (await client.response()).status == 200


async def test_with_the_clients_own_credentials_it_is_their_own_matter_where_they_go() -> None:
    async with Stage(impersonate=False) as stage:
        client, upstream, _ = await stage.exchange(get(f"{PROXY}/", *_NAVIGATE))
        await upstream.send(reply())
        assert (await client.response()).fields["content-security-policy"] == _GUARD


async def test_a_page_in_its_sandbox_is_a_stranger_to_the_api() -> None:
    """What such a page sends has no origin (null), and is of another site."""
    async with Stage() as stage:
        client = await stage.client()
        for said in ("Origin: null", "Sec-Fetch-Site: cross-site"), ("Origin: null",):
            await client.send(request("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", *said))
            assert (await client.response()).refusal()[0] == 403
        await client.send(upgrade("websocket", "GET")[:-2] + b"Origin: null\r\n\r\n")
        assert (await client.response()).refusal()[0] == 403
        assert stage.api.untouched()
