"""Whose connection it is, at each request and while something runs: faults of the daemon, and grants that change."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from k8sproxy.access.decision import Snapshot
from k8sproxy.access.grants import GrantSettings
from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.dataplane import connection, standing
from k8sproxy.dataplane.listener import Terms, Trust
from k8sproxy.dataplane.routes import Permit, Route, Routes
from k8sproxy.dataplane.upstream import Upstream
from standins.tailscaled import FakeTailscaled, groups, user_whois
from tests.dataplane.proxied import ANA, AWAY, CHUNKED, KUBERNETES, UNKNOWN, Raw, Stage, get, peer, reply, request
from tests.dataplane.test_listener import proxy_header


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("unknown", 403, "knows no peer"),
        *(
            (fault, 503, "tailscaled")
            for fault in ("close", "garbage", "nonsense", "half", "denied", "failing", "busy")
        ),
        *((fault, 503, "tailscaled") for fault in ("hang", "missing", "empty", "oversize", "stopped")),
    ],
)
async def test_daemon_at_fault(tmp_path: Path, fault: str, code: int, words: str) -> None:
    """Refused with what is wrong, nothing upstream; the next request on the same connection is asked about anew."""
    async with FakeTailscaled(tmp_path / "sock") as daemon:
        async with Stage(localapi=(api := LocalAPI(daemon.path, timeout=0.2))) as stage:
            ana = user_whois("ana@example.com", "laptop", "100.64.0.7", groups("dev"))
            if fault == "stopped":
                await daemon.stop()
            elif fault != "unknown":
                daemon.peers["127.0.0.1"] = ana  # type: ignore[index]  # a dict here
                daemon.faults["whois"] = fault
            client = await stage.client()
            await client.send(get())
            status, message = (await client.response()).refusal()
            assert status == code and words in message
            assert stage.api.untouched() and stage.upstream.opened == 0
            if fault == "stopped":
                await daemon.start()
            daemon.faults.clear()
            daemon.peers["127.0.0.1"] = ana  # type: ignore[index]  # a dict here
            _, upstream, head = await stage.exchange(get(), client)
            assert b"Impersonate-User: ana@example.com\r\n" in head
            await upstream.send(reply())
            assert (await client.response()).status == 200
        await api.aclose()


async def test_slow_daemon_is_waited_for() -> None:
    async with Stage() as stage:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def slow(_: str) -> Peer:
            asked.set()
            await answer.wait()
            return ANA

        stage.daemon.answer = slow
        client = await stage.client()
        await client.send(get())
        await asked.wait()
        assert stage.api.untouched()
        answer.set()
        upstream = await stage.api.accept()
        assert b"ana@example.com" in await upstream.head()
        await upstream.send(reply())
        assert (await client.response()).status == 200


@pytest.mark.parametrize(
    "rules",
    [
        ({"impersonate": "x"},),
        ({"impersonate": {"groups": ["a\r\nImpersonate-Group: system:masters"]}},),
        ({"impersonate": {"groups": [""]}},),
        ("text",),
    ],
)
async def test_malformed_grant_refuses_everything(rules: tuple[object, ...]) -> None:
    async with Stage() as stage:
        stage.daemon.answer = Peer("100.64.0.7", "n", "l.", login_name="ana@x", capabilities={KUBERNETES: rules})
        client = await stage.client()
        for path in ("/api/v1/pods", "/.well-known/k8sproxy/whoami"):
            await client.send(get(path))
            assert (await client.response()).refusal()[0] == 403
        assert stage.api.untouched()


async def test_once_a_connection_then_after_its_time() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        await client.response()
        for now, asked in ((1009.0, 1), (1011.0, 2), (1020.0, 2)):
            stage.now = now
            await client.send(get())
            await upstream.head()
            await upstream.send(reply())
            await client.response()
            assert len(stage.daemon.asked) == asked


async def test_changed_grants_hold_for_the_next_request() -> None:
    async with Stage() as stage:
        client, upstream, head = await stage.exchange(get())
        assert b"Impersonate-Group: dev\r\n" in head
        await upstream.send(reply())
        await client.response()
        stage.daemon.answer = peer("ops", "view")
        stage.whois.invalidate()
        await client.send(get())
        head = await upstream.head()
        assert b"Impersonate-Group: ops\r\nImpersonate-Group: view\r\n" in head and b"dev" not in head
        await upstream.send(reply())
        await client.response()
        stage.daemon.answer = UNKNOWN
        stage.whois.invalidate()
        await client.send(get())
        assert (await client.response()).refusal()[0] == 403
        stage.daemon.answer = ANA
        await client.send(get())
        assert b"Impersonate-Group: dev\r\n" in await upstream.head()
        await upstream.send(reply())
        assert (await client.response()).status == 200


async def _watching(stage: Stage) -> tuple[Raw, Raw]:
    client, upstream, _ = await stage.exchange(get("/api/v1/pods?watch=true"))
    await upstream.send(CHUNKED + b"1\r\nx\r\n")
    await client.until(b"x\r\n")
    return client, upstream


withdrawals = pytest.mark.parametrize(
    "answer",
    [
        UNKNOWN,
        peer(),
        peer("other"),
        peer("dev", login="ben@example.com"),
        peer("dev", node="n-another"),
        Peer("100.64.0.7", "n-ana", "l.", login_name="ana@example.com", capabilities={KUBERNETES: ("bad",)}),
    ],
    ids=["unknown", "no-group", "other-group", "other-user", "other-node", "malformed"],
)


@withdrawals
async def test_withdrawn_grant_ends_a_watch(answer: Peer | Refusal) -> None:
    async with Stage() as stage:
        client, upstream = await _watching(stage)
        stage.daemon.answer = answer
        await stage.tick(1)
        assert stage.server.running()["watch"] == 1  # the answer from before is still good
        await stage.tick(10)
        assert b"0\r\n\r\n" not in await client.rest()
        assert await upstream.gone()


async def test_withdrawn_grant_ends_a_session_and_an_unanswered_request() -> None:
    async with Stage() as stage:
        lines = ("Connection: Upgrade", "Upgrade: websocket")
        client, upstream, _ = await stage.exchange(request("GET", "/api/v1/namespaces/a/pods/w/exec", *lines))
        await upstream.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await client.head()
        other, waiting, _ = await stage.exchange(get())
        stage.daemon.answer = UNKNOWN
        await stage.tick(11)
        why = "k8sproxy: the tailnet's policy does not allow this any more"
        assert why.encode() in await client.rest() and await upstream.gone()
        assert (await other.response()).refusal() == (503, why)
        assert await waiting.gone()


async def test_withdrawn_grant_ends_a_request_that_waits_for_its_connection() -> None:
    """Upstream hears nothing of it."""
    async with Stage(tls=True) as stage:
        client = await stage.client()
        await client.send(get())
        # Its handshake with upstream has no answer yet.
        await stage.until(lambda: any(one.running.asked is not None for one in stage.connections))
        stage.daemon.answer = UNKNOWN
        await stage.tick(11)
        upstream = await stage.api.accept()
        why = "k8sproxy: the tailnet's policy does not allow this any more"
        assert (await client.response()).refusal() == (503, why)
        assert await upstream.gone()


async def test_withdrawn_grant_ends_what_runs_before_the_answer_is_stale() -> None:
    """The clock strikes once a second: the last stroke within the time is the one that counts."""
    async with Stage() as stage:
        client, upstream = await _watching(stage)
        stage.daemon.answer = peer("other")
        await stage.tick(8.9)
        assert stage.server.running()["watch"] == 1
        await stage.tick(1)
        assert b"0\r\n\r\n" not in await client.rest() and await upstream.gone()


async def test_withdrawn_grant_ends_what_runs_though_another_connection_has_asked() -> None:
    """They share the answer, and whoever polls is always the first to ask when it has become stale."""
    async with Stage(trust=Trust.PROXY) as stage:
        now = ANA

        async def answer(address: str) -> Peer:
            if not address.startswith("100."):
                raise UNKNOWN
            return now

        stage.daemon.answer = answer
        watch = proxy_header() + get("/api/v1/pods?watch=true")
        client, upstream, _ = await stage.exchange(watch, await stage.raw())
        await upstream.send(CHUNKED + b"1\r\nx\r\n")
        await client.until(b"x\r\n")
        now = peer("dev", "more")
        stage.now += 11
        poll, polled, _ = await stage.exchange(proxy_header() + get(), await stage.raw())
        await polled.send(reply())
        await poll.response()
        asked = len(stage.daemon.asked)
        for _ in range(3):
            await stage.tick()
        assert stage.server.running()["watch"] == 1 and len(stage.daemon.asked) == asked
        now = peer("other")
        stage.now += 11
        await poll.send(get())
        assert b"Group: other" in await polled.head()
        await polled.send(reply())
        await poll.response()
        await stage.tick()
        assert b"0\r\n\r\n" not in await client.rest() and await upstream.gone()


@pytest.mark.parametrize("answer", [ANA, peer("dev"), peer("dev", "more")], ids=["same", "equal", "more"])
async def test_what_is_still_granted_goes_on(answer: Peer) -> None:
    async with Stage() as stage:
        client, upstream = await _watching(stage)
        stage.daemon.answer = answer
        for _ in range(3):
            await stage.tick(11)
        assert len(stage.daemon.asked) == 4
        await upstream.send(b"1\r\ny\r\n0\r\n\r\n")
        assert await client.exactly(11) == b"1\r\ny\r\n0\r\n\r\n"


async def test_narrower_grant_after_a_wider_one_ends_what_began_under_the_first() -> None:
    """A watch runs as it was decided; what has been granted meanwhile and taken away again changes nothing."""
    async with Stage() as stage:
        client, upstream = await _watching(stage)
        for answer in (peer("dev", "ops"), peer("dev")):
            stage.daemon.answer = answer
            await stage.tick(11)
        assert stage.server.running()["watch"] == 1
        stage.daemon.answer = peer("ops")
        await stage.tick(11)
        assert await client.gone() and await upstream.gone()


async def test_outage_of_the_daemon_is_survived_for_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 5000.0
    for module in (connection, standing):
        monkeypatch.setattr(module, "perf_counter", lambda: clock)
    async with Stage() as stage:
        client, upstream = await _watching(stage)
        stage.daemon.answer = AWAY
        clock += 59
        await stage.tick(11)
        await stage.tick(11)
        assert stage.server.running()["watch"] == 1
        # Known again: the grace begins anew.
        stage.daemon.answer = ANA
        await stage.tick(11)
        stage.daemon.answer = AWAY
        clock += 59
        await stage.tick(11)
        assert stage.server.running()["watch"] == 1
        # A new request has no grace.
        other = await stage.client()
        await other.send(get())
        assert (await other.response()).refusal()[0] == 503
        clock += 2
        await stage.tick(11)
        assert b"0\r\n\r\n" not in await client.rest() and await upstream.gone()


async def test_recheck_of_a_request_that_is_over_touches_no_other() -> None:
    """The answer comes when the exchange has ended and the next one runs: that one was decided by itself."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        answer: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()

        async def later(_: str) -> Peer:
            return await asyncio.shield(answer)

        stage.daemon.answer = later
        stage.now += 11
        stage.server.tick(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        await upstream.send(reply())
        await client.response()
        await client.send(get("/next"))
        answer.set_result(peer("other"))
        head = await upstream.head()
        assert b"Impersonate-Group: other\r\n" in head
        await stage.until(lambda: not stage.server._rechecking)
        await upstream.send(reply())
        assert (await client.response()).status == 200


async def test_unknown_fields_of_a_grant_are_said_once_a_peer() -> None:
    async with Stage() as stage:
        stage.daemon.answer = peer("dev", enforceRecoder=True)
        with capture_logs() as logs:
            for _ in range(3):
                client = await stage.client()
                await client.send(get("/.well-known/k8sproxy/whoami") * 2)
                assert (await client.response()).status == 200
            stage.now += 60
            await client.send(get("/.well-known/k8sproxy/whoami"))
            await client.response()
            stage.daemon.answer = peer("dev", enforceRecoder=True, recorders=[])
            stage.now += 60
            await client.send(get("/.well-known/k8sproxy/whoami"))
            for _ in range(2):
                await client.response()
        said = [line for line in logs if line["event"] == "grant_unknown_field"]
        assert [len(line["fields"]) for line in said] == [1, 2]
        assert {line["log_level"] for line in said} == {"warning"}
        assert "rule 1 has the unknown field 'enforceRecoder'; did you mean enforceRecorder?" in said[0]["fields"][0]


async def test_unknown_fields_refuse_where_the_configuration_says_so() -> None:
    async with Stage() as stage:
        stage.daemon.answer = peer("dev", enforceRecoder=True)
        route = Route(stage.upstream, snapshot=Snapshot(GrantSettings(refuse_unknown=True)))
        stage.replace(Terms(Trust.DIRECT, None, Permit(Routes(route))))
        client = await stage.client()
        await client.send(get())
        status, message = (await client.response()).refusal()
        assert status == 403 and "did you mean enforceRecorder?" in message
        assert stage.api.untouched()


@pytest.mark.parametrize(
    ("settings", "ends"),
    [(GrantSettings("a.b"), False), (GrantSettings("c.d"), True), (GrantSettings("a.b", refuse_unknown=True), True)],
)
async def test_what_runs_is_judged_by_the_settings_of_a_reload(settings: GrantSettings, ends: bool) -> None:
    """A rule under the new domain may be one that cannot be read; an unknown field may refuse from now on."""
    async with Stage() as stage:
        rules = {KUBERNETES: ({"enforceRecoder": True},), "c.d/cap/k8sproxy": ({"recordin": "closed"},)}
        stage.daemon.answer = Peer("100.64.0.7", "n", "l.", login_name="ana@x", capabilities=rules)
        client, upstream = await _watching(stage)
        route = Route(stage.upstream, snapshot=Snapshot(settings))
        stage.replace(Terms(Trust.DIRECT, None, Permit(Routes(route))))
        await stage.tick(1)
        assert stage.server.running().get("watch", 0) == (0 if ends else 1)
        if ends:
            assert b"0\r\n\r\n" not in await client.rest() and await upstream.gone()
        else:
            asked = len(stage.daemon.asked)
            await stage.tick(1)
            assert len(stage.daemon.asked) == asked


async def test_another_domain_of_the_configuration_counts_for_the_next_request() -> None:
    async with Stage() as stage:
        rules = {"tailscale.com/cap/k8sproxy": ({"recording": "open"},), "a.b/cap/k8sproxy": ({"recording": "closed"},)}
        stage.daemon.answer = Peer("100.64.0.7", "n", "l.", login_name="ana@x", capabilities=rules)
        client = await stage.client()
        await client.send(get("/.well-known/k8sproxy/whoami"))
        document = json.loads((await client.response()).body)
        assert (document["recording"], document["enforceRecorder"]) == ("open", False)
        route = Route(stage.upstream, snapshot=Snapshot(GrantSettings("a.b")))
        stage.replace(Terms(Trust.DIRECT, None, Permit(Routes(route))))
        await client.send(get("/.well-known/k8sproxy/whoami"))
        document = json.loads((await client.response()).body)
        assert (document["recording"], document["enforceRecorder"]) == ("closed", True)


async def test_a_refusal_is_logged_with_the_address_of_the_tailnet() -> None:
    """As a request is: behind a userspace daemon the socket's own is of loopback."""
    async with Stage() as stage:
        client = await stage.client()
        with capture_logs() as lines:
            await client.send(get("/api", "Impersonate-User: root"))
            await client.response()
            stage.daemon.answer = UNKNOWN
            await stage.tick(11)
            await client.send(get())
            await client.response()
        known, unknown = (line["address"] for line in lines if line["event"] == "refused")
        assert known == "100.64.0.7" and unknown.startswith("127.0.0.1:")


async def test_log_names_the_cluster_of_the_request() -> None:
    """A reload may give an open connection another cluster: from then on its lines say so."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        await client.response()
        (connection,) = stage.connections
        assert '"cluster":"prod"' in connection.entry.who
        blue = Upstream("blue", stage.upstream.endpoint, stage.limits, stage.server.buffer)
        stage.replace(Terms(Trust.DIRECT, None, Permit(Routes(Route(blue)))))
        await client.send(get())
        other = await stage.api.accept()
        await other.head()
        await other.send(reply())
        await client.response()
        assert '"cluster":"blue"' in connection.entry.who
        blue.close()
