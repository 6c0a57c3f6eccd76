"""/sessions on the admin site: who may see and end what runs, and what is said to whom may not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec, cast

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.admin import REASON, AdminSite
from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.dataplane.shared import Shared
from k8sproxy.recording.recorders import Recorders
from k8sproxy.sessions.registry import Sessions
from tests.recording.scenes import FACTS, Scene, WebSocket, scene

P = ParamSpec("P")
BOB = Peer("100.64.0.9", "n-bob", "desk.tail1234.ts.net.", login_name="bob@example.com")


class Daemon:
    """WhoIs. answer: who asks, or why nobody knows."""

    def __init__(self) -> None:
        self.answer: Peer | Refusal = Refusal(403, "peer_unknown", "nobody")

    def open(self, ip: str, port: int) -> str:
        return f"{ip}:{port}"

    def close(self, key: str) -> None:
        pass

    async def ask(self, key: str) -> Peer:
        if isinstance(self.answer, Refusal):
            raise self.answer
        return self.answer


class Books:
    """Telemetry. causes: of what was refused."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.causes: list[str] = []

    def refusal(self, cause: str) -> None:
        self.causes.append(cause)


class Place:
    """An admin site, what it needs, and a session that runs."""

    def __init__(self, admin: AdminSite, daemon: Daemon, books: Books, sessions: Sessions, played: Scene) -> None:
        self.admin, self.daemon, self.books, self.sessions, self.played = admin, daemon, books, sessions, played
        self.id = FACTS.id

    async def ask(
        self,
        method: str = "GET",
        path: str = "/sessions",
        *,
        host: str = "localhost",
        body: bytes | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        unix = self.admin.address.startswith("unix:")
        connector = aiohttp.UnixConnector(self.admin.address[5:]) if unix else aiohttp.TCPConnector()
        base = "http://localhost" if unix else f"http://{self.admin.address}"
        headers = {"Host": host} | ({"Content-Type": content_type} if body is not None else {})
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.request(method, base + path, data=body, headers=headers) as response,
        ):
            text = await response.text()
            return response.status, json.loads(text) if text.startswith("{") else text

    async def end(self, reason: object = "lunch", **more: Any) -> tuple[int, Any]:
        body = json.dumps({"reason": reason}).encode()
        return await self.ask("POST", f"/sessions/{more.pop('id', self.id)}/end", **({"body": body} | more))


@asynccontextmanager
async def place(path: Path | None = None) -> AsyncGenerator[Place, None]:
    daemon, books = Daemon(), Books()

    async def dial(host: str, port: int) -> Any:
        raise OSError("no recorder here")

    async def checks() -> dict[str, str | None]:
        return {}

    sessions = Sessions(Recorders(dial))
    site = cast(Shared, type("S", (), {"whois": daemon, "telemetry": books, "sessions": sessions})())
    admin = AdminSite(site, checks=checks, ca_pem=lambda: None, allow=("bob@example.com",))
    if path is None:
        await admin.start_tcp("127.0.0.1", 0)
    else:
        await admin.start_unix(path)
    played = Scene(WebSocket(), RecordingLevel.CLOSED)
    await played.begin()
    sessions.begun(played.session)
    try:
        yield Place(admin, daemon, books, sessions, played)
    finally:
        sessions.over(played.session)
        await played.close()
        await admin.close()
        await sessions.aclose()


def unixed(function: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    def run(tmp_path: Path) -> None:
        scene(lambda: function(tmp_path))()

    run.__name__ = function.__name__
    return run


@scene
async def test_this_machine_sees_what_runs() -> None:
    async with place() as at:
        for host in ("localhost", "127.0.0.1:9002", "[::1]:9002"):
            status, answer = await at.ask(host=host)
            assert status == 200
        [session] = answer["sessions"]
        assert session["id"] == at.id and session["peer"] == "ana@example.com" and session["user"] == "ana@example.com"
        assert (session["namespace"], session["pod"], session["container"]) == ("a", "web", "main")
        assert session["command"] == "sh -c x" and session["recorded"] and session["failureMode"] == "closed"


@scene
async def test_this_machine_ends_a_session() -> None:
    async with place() as at:
        assert await at.end("lunch — back at two", id=at.id[:4]) == (200, {"ended": at.id})
        understood = WebSocket().understood(at.played.shown)
        assert understood.closed and understood.message.endswith("by an administrator: lunch — back at two")


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "desk"])
@scene
async def test_a_page_under_its_own_name_is_refused(host: str) -> None:
    async with place() as at:
        assert (await at.ask(host=host))[0] == 403
        assert (await at.end(host=host))[0] == 403
        assert at.books.causes == ["admin_from_network"] * 2 and not at.played.over


@scene
async def test_peers() -> None:
    async with place() as at:
        at.daemon.answer = Peer("100.64.0.8", "n-eve", "pc.tail1234.ts.net.", login_name="eve@example.com")
        assert (await at.ask())[0] == 403 and (await at.end())[0] == 403
        at.daemon.answer = BOB
        for host in ("proxy", "proxy.tail1234.ts.net:9002", "100.64.0.1:9002", "PROXY.tail1234.TS.net."):
            assert (await at.ask(host=host))[0] == 200, host
        # A name that leads here, in the browser of somebody who is allowed.
        for host in ("evil.example", "tail1234.ts.net.evil.example", "evil.other.ts.net"):
            assert (await at.ask(host=host))[0] == 403, host
        at.daemon.answer = Refusal(503, "whois_unavailable", "tailscaled is not there")
        assert (await at.ask())[0] == 503 and (await at.end())[0] == 503
        assert not at.played.over


@pytest.mark.parametrize("address", ["10.0.0.7", "192.168.1.1", "::ffff:10.0.0.7", "100.64.0.3"])
def test_the_network_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of the cluster; and one of the tailnet that WhoIs does not know."""
    import ipaddress

    import k8sproxy.admin
    import k8sproxy.common.adminsite

    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    for module in (k8sproxy.admin, k8sproxy.common.adminsite):
        monkeypatch.setattr(module, "address_of", lambda request: found)

    @scene
    async def play() -> None:
        async with place() as at:
            assert (await at.ask())[0] == 403
            assert (await at.end())[0] == 403
            assert (await at.ask(path="/healthz"))[0] == 200
            assert not at.played.over

    play()


@unixed
async def test_a_unix_socket(tmp_path: Path) -> None:
    async with place(tmp_path / "admin.sock") as at:
        assert (await at.ask(host="whatever.example"))[0] == 200
        assert (await at.end())[0] == 200


@scene
async def test_who_is_gone_is_not_taken_for_this_machine(monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    async with place() as at:
        request = type("R", (), {"transport": None, "path": "/sessions", "url": None})()

        async def handler(_: object) -> Any:
            raise AssertionError("it was handled")

        guard: Any = at.admin._guard
        assert (await guard(request, handler)).status == 400


@pytest.mark.parametrize(
    "reason", [None, "", "   ", 7, ["a"], "two\nlines", "bell\a", "\x9b31m", "\u202eright", "x" * 501]
)
@scene
async def test_bad_reasons(reason: object) -> None:
    async with place() as at:
        status, answer = await at.end(reason)
        assert status == 400 and answer["kind"] == "Status" and str(REASON) in answer["message"]
        assert not at.played.over


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"reason":"x"}', "text/plain"),
        (b'{"reason":"x"}', "application/x-www-form-urlencoded"),
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b"{", "application/json"),
        (b"\xff", "application/json"),
        (b"[" * 8000, "application/json"),
        (b'{"reason":"x"}', "application/json; charset=no-such-thing"),
    ],
)
@scene
async def test_bad_bodies(body: bytes, content_type: str) -> None:
    async with place() as at:
        status, _ = await at.ask("POST", f"/sessions/{at.id}/end", body=body, content_type=content_type)
        assert status == 400 and not at.played.over


@scene
async def test_which_session() -> None:
    async with place() as at:
        for prefix in ("0f0", "ffffffff", "..%2F", "%00abc", at.id + "0"):
            assert (await at.end(id=prefix))[0] == 404, prefix
        other = Scene(WebSocket(), None)
        await other.begin()
        at.sessions._running[FACTS.id[:-1] + "2"] = other.session
        status, answer = await at.end(id=at.id[:-1])
        assert status == 404 and "more than one" in answer["message"]
        del at.sessions._running[FACTS.id[:-1] + "2"]
        await other.close()
        assert (await at.end(body=b"{" + b" " * 9000 + b"}"))[0] == 413
        assert (await at.ask("GET", f"/sessions/{at.id}/end"))[0] == 405 and not at.played.over
        await asyncio.sleep(0)
