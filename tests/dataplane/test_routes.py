"""A reload under open connections: a request has one route from its head to its log, and nobody's identity outlives
what it was found by."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from k8sproxy.access.decision import Snapshot
from k8sproxy.clusters.account import AccountState
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.dataplane.listener import Terms, Trust
from k8sproxy.dataplane.routes import Permit, PermitState, Route, Routes
from k8sproxy.dataplane.upstream import Upstream
from standins.recorder import FakeRecorder
from tests.dataplane.proxied import ANA, CHUNKED, UNKNOWN, Raw, Stage, get, peer, pki, reply
from tests.dataplane.test_listener import proxy_header
from tests.dataplane.test_recorded import agreed, asked, begun, ended, grant
from tests.recording.scenes import WebSocket

_WATCH = "/api/v1/pods?watch=1"


@contextmanager
def blue_route(stage: Stage, *, impersonate: bool = True) -> Iterator[Route]:
    """To another cluster, at the same address: what differs is its name."""
    blue = Upstream("blue", stage.upstream.endpoint, stage.limits, stage.server.buffer)
    yield Route(blue, Snapshot(impersonate=impersonate))
    blue.close()


def change(stage: Stage, route: Route, *, service: str | None = None, trust: Trust = Trust.DIRECT) -> Terms:
    terms = Terms(trust, stage.terms.tls, Permit(Routes(route)), service)
    stage.replace(terms)
    return terms


async def test_a_request_keeps_its_route_while_it_waits_for_whois() -> None:
    """Its cluster, its log line, its session, its recording and its event name one cluster: the one it went to."""
    async with Stage() as stage, FakeRecorder() as recorder:
        asking, answer = asyncio.Event(), asyncio.Event()

        async def slowly(_: str) -> Peer:
            asking.set()
            await answer.wait()
            return peer("dev", recorderAddrs=[recorder.address], enableEvents=True)

        stage.daemon.answer = slowly
        speech = WebSocket()
        client = await stage.client()
        await client.send(asked(speech))
        await asking.wait()
        with blue_route(stage) as route:
            change(stage, route)
            answer.set()
            upstream = await stage.api.accept()
            await upstream.head()
            (connection,) = stage.connections
            assert stage.upstream.active == 1 and not route.upstream.active
            assert '"cluster":"prod"' in connection.entry.who and '"cluster":"blue"' not in connection.entry.who
            await upstream.send(agreed(speech))
            await client.head()
            assert [session["cluster"] for session in stage.sessions.listed()] == ["prod"]
            await recorder.until(lambda: recorder.events)
            (event,) = recorder.events
            assert "prod" in json.dumps(json.loads(event)) and "blue" not in json.dumps(json.loads(event))
            await ended(stage, client, upstream, speech)


async def test_a_request_keeps_its_route_while_its_event_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        stage.daemon.answer = peer("dev", recorderAddrs=[recorder.address], enableEvents=True)
        waiting, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            waiting.set()
            await go_on.wait()

        monkeypatch.setattr(type(stage.events), "admit", lambda *_: False)
        monkeypatch.setattr(type(stage.events), "wait", lambda *_: wait())
        client = await stage.client()
        await client.send(get())
        await waiting.wait()
        with blue_route(stage) as route:
            change(stage, route)
            go_on.set()
            upstream = await stage.api.accept()
            await upstream.head()
            await upstream.send(reply())
            await client.response()
            await recorder.until(lambda: recorder.events)
            assert b"prod" in recorder.events[0] and b"blue" not in recorder.events[0]
            # The next request has the new one, in all its parts.
            await client.send(get())
            other = await stage.api.accept()
            await other.head()
            await other.send(reply())
            await client.response()
            await recorder.until(lambda: len(recorder.events) == 2)
            assert b"blue" in recorder.events[1] and b"prod" not in recorder.events[1]


async def test_what_runs_is_looked_at_again_by_its_own_route() -> None:
    """In passthrough mode the client's own credentials were decided on; that a new cluster has another mode is nothing
    to a watch of the old one."""
    async with Stage(impersonate=False) as stage:
        client, upstream, _ = await stage.exchange(get(_WATCH))
        await upstream.send(CHUNKED)
        await client.head()
        with blue_route(stage, impersonate=True) as route:
            change(stage, route)
            stage.daemon.answer = peer("dev", "more")
            await stage.tick(11)
            await upstream.send(b"3\r\n{}\n\r\n")
            assert await client.exactly(8) == b"3\r\n{}\n\r\n"
            await upstream.send(b"0\r\n\r\n")
            await client.until(b"0\r\n\r\n")


async def idle(stage: Stage, client: Raw | None = None) -> Raw:
    client, upstream, _ = await stage.exchange(get(), client)
    await upstream.send(reply())
    assert (await client.response()).status == 200
    return client


async def test_another_service_ends_an_idle_connection() -> None:
    """What the old Service granted is no grant on the new cluster."""
    async with Stage() as stage:
        client = await idle(stage)
        with blue_route(stage) as route:
            change(stage, route, service="svc:blue")
            assert await client.rest() == b""
            fresh = await stage.client()
            await fresh.send(get())
            upstream = await stage.api.accept()
            await upstream.head()
            assert stage.daemon.services == [None, "svc:blue"]
            await upstream.send(reply())
            await fresh.response()


async def test_another_service_ends_what_runs() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get(_WATCH))
        await upstream.send(CHUNKED + b"3\r\n{}\n\r\n")
        await client.until(b"{}\n\r\n")
        with blue_route(stage) as route:
            change(stage, route, service="svc:blue")
            assert await client.gone() and await upstream.gone()


async def test_another_service_ends_a_session_with_a_word() -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=True)
        client, upstream = await begun(stage, WebSocket())
        with blue_route(stage) as route:
            change(stage, route, service="svc:blue")
            assert b"configuration of this listener has changed" in await client.rest()
        assert await upstream.gone()


@pytest.mark.parametrize("when", ["whois", "recorder"])
async def test_another_service_refuses_a_request_that_is_on_its_way(when: str) -> None:
    """Nothing of it reaches either cluster."""
    async with Stage() as stage, FakeRecorder() as recorder:
        asking, answer = asyncio.Event(), asyncio.Event()
        grant(stage, recorder, enforced=True)
        granted = stage.daemon.answer
        assert isinstance(granted, Peer)
        recorder.accepts = False

        async def slowly(_: str) -> Peer:
            asking.set()
            await answer.wait()
            return granted

        client = await stage.client()
        if when == "whois":
            stage.daemon.answer = slowly
        await client.send(asked(WebSocket()))
        if when == "whois":
            await asking.wait()
        else:
            await recorder.until(lambda: recorder.sessions)
        with blue_route(stage) as route:
            change(stage, route, service="svc:blue")
            answer.set()
            if when == "recorder":
                recorder.sessions[0].accept()
                # It dials, and finds out before it sends a byte.
                upstream = await stage.api.accept()
            status, message = (await client.response()).refusal()
            assert status == 503 and "has changed" in message
            assert await client.rest() == b""
        assert stage.api.untouched() and not route.upstream.opened
        if when == "recorder":
            with pytest.raises(BlockingIOError):
                upstream.sock.recv(1)


async def test_a_half_sent_head_is_refused() -> None:
    async with Stage() as stage:
        client = await idle(stage)
        await client.send(get()[:-2])
        (connection,) = stage.connections
        await stage.until(lambda: bool(connection.client.buffer))
        change(stage, stage.route, service="svc:blue")
        await client.send(b"\r\n")
        assert (await client.response()).refusal()[0] == 503
        assert await client.rest() == b""


@pytest.mark.parametrize("before", list(Trust))
async def test_who_said_which_client_it_is_says_so_no_more(before: Trust) -> None:
    """What a PROXY header claimed does not go on where headers are not believed any more, nor the other way round."""
    after = Trust.DIRECT if before is Trust.PROXY else Trust.PROXY
    async with Stage(trust=before) as stage:
        if before is Trust.PROXY:

            async def known(address: str) -> Peer:
                if address.startswith("127."):
                    raise UNKNOWN
                return ANA

            stage.daemon.answer = known
            raw = await stage.raw()
            await raw.send(proxy_header())
            client = await idle(stage, raw)
        else:
            client = await idle(stage)
        change(stage, stage.route, trust=after)
        assert await client.rest() == b""


@pytest.mark.parametrize("tls", [False, True])
async def test_a_listener_that_begins_or_ends_to_speak_tls_ends_its_connections(tls: bool) -> None:
    async with Stage(tls=tls) as stage:
        client = await idle(stage)
        stage.replace(Terms(Trust.DIRECT, None if tls else (lambda: pki()[0]), Permit(Routes(stage.route))))
        assert await client.rest() == b""


async def test_a_change_within_a_handshake_ends_the_connection() -> None:
    async with Stage(tls=True) as stage:
        raw = await stage.raw()
        await stage.until(lambda: stage.shared.telemetry.connections == 1)
        change(stage, stage.route, service="svc:blue")
        client = await raw.start_tls(pki()[1], server_side=False)
        assert await client.gone()
        assert not stage.daemon.asked


async def test_another_cluster_alone_ends_nothing() -> None:
    async with Stage() as stage:
        watching, upstream, _ = await stage.exchange(get(_WATCH))
        await upstream.send(CHUNKED)
        await watching.head()
        client = await idle(stage)
        with blue_route(stage) as route:
            terms = change(stage, route)
            assert terms.permit is stage.terms.permit and terms.permit.state is PermitState.OPEN
            await upstream.send(b"3\r\n{}\n\r\n0\r\n\r\n")
            assert await watching.until(b"0\r\n\r\n")
            await client.send(get())
            other = await stage.api.accept()
            await other.head()
            assert route.upstream.active == 1
            await other.send(reply())
            await client.response()


async def test_connections_of_a_listener_that_is_gone_end_with_their_next_response() -> None:
    async with Stage() as stage:
        running, upstream, _ = await stage.exchange(get())
        unused = await idle(stage)
        stage.listener.close()
        stage.server.succeed(stage.terms, None)
        await upstream.send(reply(b"whole"))
        assert (await running.response()).body == b"whole"
        assert await running.rest() == b""
        await unused.send(get())
        await upstream.head()
        await upstream.send(reply(b"last"))
        response = await unused.response()
        assert response.body == b"last" and response.fields["connection"] == "close"
        assert await unused.rest() == b""
        with pytest.raises(OSError):
            await stage.raw()


async def test_a_change_between_two_upstream_connections_ends_the_request() -> None:
    """The idle one was stale and another is being dialled: there is no exchange to cut just then."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        await client.response()
        dialling, go_on = asyncio.Event(), asyncio.Event()
        dial = stage.upstream.dial

        async def slowly() -> object:
            dialling.set()
            await go_on.wait()
            return await dial()

        stage.upstream.dial = slowly  # type: ignore[method-assign, assignment]
        await client.send(get())
        await upstream.head()
        upstream.close()
        await dialling.wait()
        change(stage, stage.route, service="svc:blue")
        go_on.set()
        assert (await client.response()).refusal()[0] == 503
        other = await stage.api.accept()
        assert await other.gone()


async def test_a_change_while_a_401_is_doubted_ends_the_request() -> None:
    """The answer is held back just then: there is no exchange to cut, and it must not be passed on afterwards."""
    async with Stage() as stage:
        doubting, go_on = asyncio.Event(), asyncio.Event()

        async def doubt() -> AccountState:
            doubting.set()
            await go_on.wait()
            return AccountState.ACCEPTED

        stage.account.doubt = doubt  # type: ignore[method-assign]  # one that waits
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply(b"{}", "401 Unauthorized"))
        await doubting.wait()
        change(stage, stage.route, service="svc:blue")
        go_on.set()
        status, message = (await client.response()).refusal()
        assert status == 503 and "has changed" in message
        assert await client.rest() == b""
