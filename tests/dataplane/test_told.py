"""Requests that recorders are told of, through the whole proxy: what is told when, and what is left.

The queues themselves are tests/audit/test_apievents.py's, what stays of a body test_redaction.py's.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from typing import Any

import pytest

from k8sproxy.audit.requestevent import IN_FLIGHT
from k8sproxy.audit.shares import Pot
from k8sproxy.dataplane import connection
from k8sproxy.protocol.spdy import DICTIONARY
from standins.recorder import FakeRecorder
from tests.dataplane.proxied import Stage, get, peer, post, reply, request
from tests.dataplane.test_cancel import _stepping
from tests.dataplane.test_recorded import asked
from tests.protocol.streams import SpdyWriter
from tests.recording.scenes import WebSocket

both_modes = pytest.mark.parametrize("enforced", [False, True], ids=["open", "closed"])


def grant(stage: Stage, recorder: FakeRecorder, *, enforced: bool) -> None:
    stage.daemon.answer = peer("dev", recorderAddrs=[recorder.address], enforceRecorder=enforced, enableEvents=True)


def told(recorder: FakeRecorder) -> list[dict[str, Any]]:
    return [json.loads(event) for event in recorder.events]


def body_of(event: dict[str, Any]) -> bytes:
    return base64.b64decode(event["request"]["body"])


@both_modes
async def test_a_request_is_told(enforced: bool) -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=enforced)
        client, upstream, _ = await stage.exchange(post(b'{"kind":"Pod"}'))
        assert await upstream.exactly(14) == b'{"kind":"Pod"}'
        await upstream.send(reply())
        await client.response()
        await recorder.until(lambda: recorder.events)
        [event] = told(recorder)
        assert body_of(event) == b'{"kind":"Pod"}' and "truncated" not in event["request"]


@pytest.mark.parametrize("chunked", [False, True], ids=["counted", "chunked"])
@pytest.mark.parametrize("piece", [b"", b'{"spec":{"x":'], ids=["nothing", "half"])
async def test_a_body_that_did_not_come_whole_is_marked_as_cut(piece: bytes, chunked: bool) -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=False)
        framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 100"
        client, upstream, _ = await stage.exchange(request("POST", "/api/v1/namespaces/a/pods", framing))
        sent = b"%x\r\n%s\r\n" % (len(piece), piece) if chunked and piece else piece
        await client.send(sent)
        await upstream.exactly(len(sent))
        client.reset()
        await recorder.until(lambda: recorder.events)
        [event] = told(recorder)
        assert body_of(event) == piece and event["request"]["truncated"] is True


async def test_a_body_that_was_not_asked_for_is_marked_as_cut() -> None:
    """Refused before it was read: the API server is not to be had."""
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=False)
        stage.api.close()
        client = await stage.client()
        await client.send(post(b'{"kind":"Pod"}'))
        assert (await client.response()).status == 502
        await recorder.until(lambda: recorder.events)
        assert told(recorder)[0]["request"]["truncated"] is True


@pytest.mark.parametrize("what", ["get", "post", "exec"])
async def test_what_must_be_told_and_can_not_be_is_refused(what: str) -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=True)
        recorder.statuses = {"HEAD": 503}
        client = await stage.client()
        await client.send({"get": get(), "post": post(b"{}"), "exec": asked(WebSocket())}[what])
        status, message = (await client.response()).refusal()
        assert status == 403 and "enableEvents" in message and recorder.address in message
        assert stage.api.untouched() and not recorder.sessions


async def test_the_attempt_at_a_session_that_no_recorder_takes_is_told() -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=True)
        recorder.statuses = {"POST": 500}
        client = await stage.client()
        await client.send(asked(WebSocket()))
        assert (await client.response()).status == 403
        await recorder.until(lambda: recorder.events)
        [event] = told(recorder)
        assert event["kubernetes"]["Subresource"] == "exec" and event["sessionID"]
        assert stage.api.untouched()


@pytest.mark.parametrize("opened", [False, True])
async def test_a_port_forward_is_told_at_its_beginning_and_its_end(opened: bool) -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=True)
        lines = ("Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: portforward.k8s.io")
        client, upstream, _ = await stage.exchange(request("POST", "/api/v1/namespaces/a/pods/web/portforward", *lines))
        await recorder.until(lambda: len(recorder.events) == 1)
        await upstream.send("\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode())
        await client.head()
        if opened:
            frame = SpdyWriter(DICTIONARY).syn_stream(1, {b"streamtype": b"data", b"port": b"80"})
            await client.send(frame)
            await upstream.exactly(len(frame))
        client.reset()
        await recorder.until(lambda: len(recorder.events) == 2)
        first, last = told(recorder)
        assert "portForward" not in first
        assert last["portForward"] == ({"80": {"connections": 1, "received": 0, "sent": 0}} if opened else {})
        assert first["sessionID"] == last["sessionID"]


@both_modes
async def test_cancelled_at_every_await(enforced: bool) -> None:
    """No place in a queue stays taken."""
    at = 1
    while await _cancelled(at, enforced=enforced):
        at += 1
    assert at > 2


async def _cancelled(at: int, *, enforced: bool) -> bool:
    reached = asyncio.Event()
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=enforced)
        serve = stage.server._serve
        stage.server._serve = lambda *arguments: _stepping(serve(*arguments), at, reached)  # type: ignore[method-assign]

        async def act() -> None:
            client, upstream, _ = await stage.exchange(post(b"{}"))
            await upstream.send(reply())
            await client.response()
            await client.end()
            await client.rest()

        acting = asyncio.ensure_future(act())
        cancelled = asyncio.ensure_future(reached.wait())
        await asyncio.wait((acting, cancelled), return_when=asyncio.FIRST_COMPLETED)
        await stage.until(lambda: acting.done() or not stage.connections)
        for task in (acting, cancelled):
            task.cancel()
        await asyncio.wait((acting, cancelled))
        await stage.until(lambda: not any(queue.in_use for queue in stage.events.queues._queues.values()))
        assert stage.events._budget.left == IN_FLIGHT
    return reached.is_set()


# -- shares


async def test_unfinished_bodies_of_one_user_leave_room_for_others() -> None:
    """Whoever stops in the middle of bodies takes a quarter of what is kept of bodies at the most. Where events are
    enforced, a request that finds no room is turned down, and none is told with less than there was."""
    async with Stage() as stage, FakeRecorder() as recorder:
        stage.events._budget = Pot(4000)
        grant(stage, recorder, enforced=True)
        held = []
        for _ in range(2):
            client = await stage.client()
            await client.send(request("POST", "/api/v1/namespaces/a/pods", "Content-Length: 400") + b"x")
            await (await stage.api.accept()).head()
            held.append(client)
        client = await stage.client()
        await client.send(post(b"x" * 400))
        response = await client.response()
        assert response.status == 429 and response.fields["retry-after"] == "1"
        assert stage.shared.telemetry._refusals == {"event_share": 1}
        rules = {"recorderAddrs": [recorder.address], "enforceRecorder": True, "enableEvents": True}
        stage.daemon.answer = peer("dev", login="ben@example.com", node="n-ben", **rules)
        body = b'{"kind":"Pod","n":"%s"}' % (b"y" * 380)
        other, upstream, _ = await stage.exchange(post(body))
        assert await upstream.exactly(len(body)) == body
        await upstream.send(reply())
        await other.response()
        await recorder.until(lambda: recorder.events)
        [event] = told(recorder)
        assert body_of(event) == body and "truncated" not in event["request"]
        for client in held:
            client.close()
        await stage.until(lambda: stage.events._budget.left == 4000)


async def test_unfinished_bodies_that_need_not_be_told_are_cut() -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        stage.events._budget = Pot(4000)
        grant(stage, recorder, enforced=False)
        held = []
        for _ in range(4):
            client = await stage.client()
            await client.send(request("POST", "/api/v1/namespaces/a/pods", "Content-Length: 900") + b"x" * 450)
            upstream = await stage.api.accept()
            await upstream.head()
            assert await upstream.exactly(450) == b"x" * 450, "the request itself is as free as ever"
            held.append(client)
        assert stage.events._budget.left == 3100
        for client in held:
            client.close()
        await stage.until(lambda: stage.events._budget.left == 4000)


async def test_idle_sessions_of_one_user_are_limited() -> None:
    async with Stage() as stage:
        stage.sessions.limit = 2
        held = []
        for node in ("n-1", "n-2"):
            stage.daemon.answer = peer("dev", node=node)
            client, upstream, _ = await stage.exchange(asked(WebSocket()))
            held.append((client, upstream))
        stage.daemon.answer = peer("dev", node="n-3")
        client = await stage.client()
        await client.send(asked(WebSocket()))
        code, message = (await client.response()).refusal()
        assert code == 429 and "ana@example.com already has 2 sessions here, from all nodes together" in message
        stage.daemon.answer = peer("dev", login="ben@example.com", node="n-ben")
        await stage.exchange(asked(WebSocket()))
        held[0][0].close()
        await stage.until(lambda: stage.sessions._places["ana@example.com"] == 1)
        stage.daemon.answer = peer("dev", node="n-3")
        await stage.exchange(asked(WebSocket()))
    assert not stage.sessions._places and not stage.sessions._entered


# -- long work


@pytest.mark.parametrize("kind", ["request", "session"])
async def test_long_queries_are_not_read_by_the_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading 60 KiB of escapes takes 30 ms: nobody else's request waits for that."""
    threads: dict[str, set[int]] = {"request_info": set(), "facts_of": set()}
    for name in threads:
        real = getattr(connection, name)

        def noted(*arguments: Any, name: str = name, real: Any = real) -> Any:
            threads[name].add(threading.get_ident())
            return real(*arguments)

        monkeypatch.setattr(connection, name, noted)
    query = "&".join("%41%42=%43" for _ in range(5000))
    async with Stage() as stage:
        if kind == "request":
            client, upstream, head = await stage.exchange(get(f"/api/v1/pods?{query}"))
            await upstream.send(reply())
            assert (await client.response()).status == 200
        else:
            path = f"/api/v1/namespaces/a/pods/web/exec?command=x&{query}"
            client, upstream, head = await stage.exchange(asked(WebSocket(), path))
        assert query.encode() in head
    assert threads["request_info"] and threading.get_ident() not in threads["request_info"] | threads["facts_of"]
    assert bool(threads["facts_of"]) is (kind == "session")


async def test_who_it_is_is_asked_anew_behind_long_work() -> None:
    """A grant that is withdrawn while a query is read counts."""
    async with Stage() as stage:
        client = await stage.client()
        gate = threading.Event()
        busy = asyncio.ensure_future(stage.shared.longwork.run("x", gate.wait, 10))
        await client.send(get("/api/v1/pods?" + "a" * 5000))
        await stage.until(lambda: stage.shared.longwork.waiting == 1)
        stage.daemon.answer = peer("viewers")
        stage.whois.invalidate()
        gate.set()
        await busy
        upstream = await stage.api.accept()
        head = await upstream.head()
        assert b"Impersonate-Group: viewers\r\n" in head and b"dev" not in head
        await upstream.send(reply())
        await client.response()


async def test_a_client_that_goes_during_long_work() -> None:
    async with Stage() as stage:
        client = await stage.client()
        gate = threading.Event()
        busy = asyncio.ensure_future(stage.shared.longwork.run("x", gate.wait, 10))
        await client.send(get("/api/v1/pods?" + "a" * 5000))
        await stage.until(lambda: stage.shared.longwork.waiting == 1)
        client.close()
        await stage.until(lambda: not stage.connections)
        gate.set()
        await busy
        assert stage.api.untouched() and stage.shared.longwork.waiting == 0


@pytest.mark.parametrize("batch", [None, 100])
async def test_an_event_that_a_recorder_refuses_holds_up_no_others(batch: int | None) -> None:
    """What of it can be told is told, and so are the others, in the same batch and behind it."""
    async with Stage() as stage, FakeRecorder() as recorder:
        # A word that is not hexadecimal: each event has a random id, in which "bad" stood once in 300 runs.
        recorder.event_batch, recorder.dislikes = batch, b"unloved"
        grant(stage, recorder, enforced=True)
        for query in ("x=1", "x=unloved", "x=2", "x=3"):
            client, upstream, _ = await stage.exchange(get(f"/api/v1/pods?{query}"))
            await upstream.send(reply(b"ok", "200 OK", "Connection: close"))
            await client.response()
        # Those that were on their way behind it (pipelined) are sent again: they have the same id.
        await recorder.until(lambda: len(_by_id(recorder)) == 4)
        found = _by_id(recorder).values()
        assert sorted(event["request"]["path"] for event in found) == [
            "/api/v1/pods",
            *(f"/api/v1/pods?x={number}" for number in (1, 2, 3)),
        ]
        [bare] = [event for event in found if event["request"]["path"] == "/api/v1/pods"]
        assert bare["request"]["truncated"] is True and bare["kubernetes"]["Resource"] == "pods"
        client, upstream, _ = await stage.exchange(get())  # and the next request goes on
        await upstream.send(reply())
        assert (await client.response()).status == 200


async def test_a_request_whose_event_is_refused_in_every_form_is_ended_and_the_next_are_refused() -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        recorder.dislikes = b"/bad"
        grant(stage, recorder, enforced=True)
        client, upstream, _ = await stage.exchange(get("/api/v1/namespaces/a/pods/good"))
        await upstream.send(reply(b"ok", "200 OK", "Connection: close"))
        await client.response()
        await recorder.until(lambda: recorder.events)
        client, upstream, _ = await stage.exchange(get("/api/v1/namespaces/a/pods/bad"))
        status, message = (await client.response()).refusal()
        assert status == 503 and "I don't like" in message and recorder.address in message
        await upstream.rest()
        client = await stage.client()
        await client.send(get("/api/v1/namespaces/a/pods/good"))
        status, message = (await client.response()).refusal()
        assert status == 403 and "I don't like" in message and stage.api.untouched()


def _by_id(recorder: FakeRecorder) -> dict[str, dict[str, Any]]:
    bodies = map(json.loads, recorder.events)
    return {event["id"]: event for body in bodies for event in (body if isinstance(body, list) else [body])}
