"""Recorded sessions through the whole proxy, against a recorder with faults: what comes before what, and what is left.

The sessions themselves are tests/sessions/test_session.py's; here the sockets are real.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

import pytest

from k8sproxy.common.errors import Refusal
from k8sproxy.dataplane.connection import Connection
from k8sproxy.dataplane.relay import Exchange
from k8sproxy.dataplane.switched import Switched
from k8sproxy.dataplane.wire import Wire
from k8sproxy.recording.recording import SLOW
from k8sproxy.sessions.session import Session
from standins.recorder import FakeRecorder
from tests.dataplane.living import Living
from tests.dataplane.proxied import Raw, Stage, peer, reply, request
from tests.dataplane.test_cancel import _stepping
from tests.recording.scenes import Cast, Spdy, Speech, WebSocket

both_legs = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
both_modes = pytest.mark.parametrize("enforced", [False, True], ids=["open", "closed"])
both_wires = pytest.mark.parametrize("version", [1, 2], ids=["v1", "v2"])

EXEC = "/api/v1/namespaces/a/pods/web/exec?command=sh&container=main"


def grant(stage: Stage, *recorders: FakeRecorder | str, enforced: bool) -> None:
    addresses = [recorder if isinstance(recorder, str) else recorder.address for recorder in recorders]
    stage.daemon.answer = peer("dev", recorder=["tag:rec"], recorderAddrs=addresses, enforceRecorder=enforced)


def asked(speech: Speech, path: str = EXEC, *lines: str) -> bytes:
    method, upgrade = ("GET", "websocket") if speech.upgrade == "websocket" else ("POST", "SPDY/3.1")
    offer = f"{speech.field.decode()}: {speech.subprotocol}"
    return request(method, path, "Connection: Upgrade", f"Upgrade: {upgrade}", offer, *lines)


def agreed(speech: Speech) -> bytes:
    upgrade = "websocket" if speech.upgrade == "websocket" else "SPDY/3.1"
    lines = (f"Upgrade: {upgrade}", "Connection: Upgrade", f"{speech.field.decode()}: {speech.subprotocol}")
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode()


async def begun(stage: Stage, speech: Speech, client: Raw | None = None) -> tuple[Raw, Raw]:
    client, upstream, _ = await stage.exchange(asked(speech), client)
    await upstream.send(agreed(speech))
    assert b" 101 " in await client.head()
    if speech.opening:
        await client.send(speech.opening)
        await upstream.exactly(len(speech.opening))
        await upstream.send(speech.accepted)
        await client.exactly(len(speech.accepted))
    return client, upstream


async def ended(stage: Stage, client: Raw, upstream: Raw, speech: Speech) -> None:
    """As a server ends it that has said all, and kubectl behind it."""
    end = speech.status() + speech.end()
    await upstream.send(end)
    assert await client.exactly(len(end)) == end
    await client.end()
    await upstream.rest()
    await upstream.end()
    await client.rest()
    await stage.until(lambda: not stage.connections)


@both_modes
async def test_a_session_is_closed_that_is_ended_while_its_client_goes(enforced: bool) -> None:
    """The task is cancelled in the turn of the loop in which it would go on to close the session."""
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=enforced)
        _, _ = await begun(stage, WebSocket())
        await recorder.until(lambda: recorder.sessions)
        (connection,) = stage.connections
        task = connection.client.task
        assert task is not None
        connection.running.end(Refusal(503, "grant_withdrawn", "the policy does not allow this any more"))
        asyncio.get_running_loop().call_soon(task.cancel)
        await stage.until(lambda: not stage.connections)
        assert stage.sessions.listed() == []
        await recorder.until(lambda: recorder.sessions[0].end)
        assert recorder.sessions[0].end == "clean"


@both_modes
@both_wires
async def test_upstream_hears_nothing_before_the_recorder_accepts(version: int, enforced: bool) -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        recorder.version, recorder.accepts = version, False
        grant(stage, recorder, enforced=enforced)
        speech = WebSocket()
        client = await stage.client()
        await client.send(asked(speech) + speech.typed(b"rm -rf /"))
        await recorder.until(lambda: recorder.sessions)
        for _ in range(20):
            await asyncio.sleep(0)
        assert stage.api.untouched() and not stage.sessions.listed()
        recorder.sessions[0].accept()
        upstream = await stage.api.accept()
        await upstream.head()
        await upstream.send(agreed(speech))
        await client.head()
        assert await upstream.exactly(len(speech.typed(b"rm -rf /"))) == speech.typed(b"rm -rf /")
        await ended(stage, client, upstream, speech)
        assert recorder.sessions[0].end == "clean"


async def test_refusal_leaves_upstream_untouched_and_names_each_recorder() -> None:
    async with Stage() as stage, FakeRecorder() as refusing, FakeRecorder() as dead:
        refusing.statuses = {"HEAD": 200, "POST": 503}
        await dead.stop()
        grant(stage, refusing, dead, enforced=True)
        client = await stage.client()
        await client.send(asked(Spdy()))
        status, message = (await client.response()).refusal()
        assert status == 403 and "(recording: closed)" in message
        assert refusing.address in message and "503" in message
        assert dead.address in message and "refused" in message
        assert await client.rest() == b"" and stage.api.untouched()
        assert stage.sessions.listed() == [] and 'stage="not_accepted"' not in message


async def test_open_goes_on_where_none_accepts() -> None:
    async with Stage() as stage, FakeRecorder() as dead:
        await dead.stop()
        grant(stage, dead, enforced=False)
        speech = WebSocket()
        client, upstream = await begun(stage, speech)
        assert [session["recorded"] for session in stage.sessions.listed()] == [False]
        await ended(stage, client, upstream, speech)


@both_legs
@both_modes
@both_wires
@pytest.mark.parametrize("speech", [WebSocket, Spdy])
async def test_a_session_is_kept(speech: type[WebSocket] | type[Spdy], version: int, enforced: bool, tls: bool) -> None:
    async with Stage(tls=tls) as stage, FakeRecorder() as recorder:
        recorder.version = version
        grant(stage, recorder, enforced=enforced)
        spoken = speech()
        client, upstream = await begun(stage, spoken)
        big = b"0123456789abcdef" * 20_000
        frames = b"".join(spoken.out(big[at : at + 32_000]) for at in range(0, len(big), 32_000))
        sending = asyncio.ensure_future(upstream.send(frames))
        assert await client.exactly(len(frames)) == frames
        await sending
        typed = spoken.typed(b"password")
        await client.send(typed)
        assert await upstream.exactly(len(typed)) == typed
        [listed] = stage.sessions.listed()
        assert listed["recorder"] == recorder.address and listed["peer"] == "ana@example.com"
        assert listed["failureMode"] == ("closed" if enforced else "open") and listed["recorded"]
        await ended(stage, client, upstream, spoken)
        assert stage.sessions.listed() == []
        [session] = recorder.sessions
        assert session.end == "clean" and b"password" not in session.body
        cast = Cast(bytes(session.body))
        assert cast.output == big and listed["id"] in str(cast.header)


async def test_the_audit_log_has_the_same_id() -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=True)
        speech = WebSocket()
        client, upstream, head = await stage.exchange(asked(speech, EXEC, "Audit-ID: mine", "X: y"))
        await upstream.send(agreed(speech))
        await client.head()
        [listed] = stage.sessions.listed()
        assert head.count(b"udit-ID: ") == 1 and f"Audit-ID: {listed['id']}\r\n".encode() in head
        await ended(stage, client, upstream, speech)


@both_wires
async def test_a_switch_that_does_not_come_is_no_recording(version: int) -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        recorder.version = version
        grant(stage, recorder, enforced=True)
        client, upstream, _ = await stage.exchange(asked(WebSocket()))
        await upstream.send(reply(b"no", "404 Not Found"))
        assert (await client.response()).status == 404
        await recorder.until(lambda: recorder.sessions[0].end)
        assert recorder.sessions[0].end in ("reset", "lost") and not recorder.sessions[0].body


@both_modes
async def test_an_answer_in_place_of_a_switch_is_shown_only_where_nothing_is_enforced(enforced: bool) -> None:
    """As an agent of somebody's on another port of the node may answer, which runs what the path says."""
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=enforced)
        path = "/api/v1/nodes/n:9999/proxy/exec/a/web/main?command=id"
        client, upstream, _ = await stage.exchange(asked(WebSocket(), path))
        await upstream.send(reply(b"uid=0(root)"))
        response = await client.response()
        if enforced:
            status, message = response.refusal()
            assert status == 403 and "without a switch" in message and b"uid=0" not in response.body
            assert await upstream.gone()
        else:
            assert (response.status, response.body) == (200, b"uid=0(root)")


HEAD_404 = b"HTTP/1.1 404 Not Found\r\n"
ERRORS: dict[str, Callable[[bytes], bytes]] = {
    "counted": lambda body: HEAD_404 + b"Content-Length: %d\r\n\r\n" % len(body) + body,
    "chunked": lambda body: (
        HEAD_404
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%s\r\n" % (len(body[at : at + 999]), body[at : at + 999]) for at in range(0, len(body), 999))
        + b"0\r\n\r\n"
    ),
    "until its end": lambda body: HEAD_404 + b"\r\n" + body,
    "in its head": lambda body: HEAD_404 + b"X-Secret: " + body + b"\r\nContent-Length: 0\r\n\r\n",
    "in interim answers": lambda body: (
        b"".join(
            b"HTTP/1.1 103 Early Hints\r\nLink: %s\r\n\r\n" % body[at : at + 999] for at in range(0, len(body), 999)
        )
        + HEAD_404
        + b"Content-Length: 0\r\n\r\n"
    ),
}


@both_modes
@pytest.mark.parametrize("how", ERRORS)
@pytest.mark.parametrize("size", [3_000, 30_000], ids=["short", "long"])
async def test_an_error_in_place_of_a_switch_is_bounded(size: int, how: str, enforced: bool) -> None:
    """What is answered with 404 is seen as what is answered with 200, and neither is recorded."""
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=enforced)
        client, upstream, _ = await stage.exchange(asked(WebSocket(), "/api/v1/nodes/n:9999/proxy/exec/a/web/main"))
        answer = ERRORS[how](b"s" * size)
        half = len(answer) // 2
        await upstream.send(answer[:half])
        await upstream.send(answer[half:])
        if how == "until its end":
            await upstream.end()
        got = await client.rest()
        if enforced and size > 16_384:
            assert b"HTTP/1.1 403" in got and b"more than 16384 bytes" in got and got.count(b"s" * 90) < 200
        else:
            assert HEAD_404 in got and got.count(b"s") >= size


@pytest.mark.parametrize("how", ["died", "said so"])
async def test_a_recorder_that_fails_before_the_switch(how: str) -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=True)
        client, upstream, _ = await stage.exchange(asked(WebSocket()))
        if how == "died":
            await recorder.stop()
        else:
            recorder.sessions[0].error("the disk is full")
        await stage.until(lambda: stage.recorders.describe()[0].uploads == 0)
        await asyncio.sleep(0)
        await upstream.send(agreed(WebSocket()) + WebSocket().out(b"the secret"))
        status, message = (await client.response()).refusal()
        assert status == 403 and "must be recorded" in message and await client.rest() == b""
        assert await upstream.gone()


@both_legs
async def test_a_recorder_that_dies_ends_a_closed_session_in_words(tls: bool) -> None:
    async with Stage(tls=tls) as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=True)
        speech = WebSocket()
        client, upstream = await begun(stage, speech)
        frame = speech.out(b"half of this")
        await upstream.send(frame[:7])
        await client.exactly(7)
        await recorder.stop()
        understood = speech.understood(frame[:7] + await client.rest())
        assert understood.closed and understood.stdout == b"half" + bytes(8)
        assert "its recording failed" in understood.message
        assert await upstream.gone()
        await client.end()


async def test_an_open_session_outlives_its_recorder() -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=False)
        speech = Spdy()
        client, upstream = await begun(stage, speech)
        await recorder.stop()
        await stage.until(lambda: not stage.sessions.listed()[0]["recorded"])
        await upstream.send(speech.out(b"still here"))
        assert await client.exactly(len(speech.out(b"still here"))) == speech.out(b"still here")
        await ended(stage, client, upstream, speech)


@both_legs
@both_modes
@pytest.mark.parametrize("who", ["client resets", "upstream resets", "client ends", "upstream ends"])
async def test_whoever_goes_the_recording_is_whole(who: str, enforced: bool, tls: bool) -> None:
    async with Stage(tls=tls) as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=enforced)
        speech = WebSocket()
        client, upstream = await begun(stage, speech)
        await upstream.send(speech.out(b"so far"))
        await client.exactly(len(speech.out(b"so far")))
        goer, stayer = (client, upstream) if who.startswith("client") else (upstream, client)
        if who.endswith("resets"):
            goer.reset()
            assert await stayer.gone()
        else:
            await goer.end()
            assert await stayer.rest() == b""
            await stayer.end()
            await goer.rest()
        await recorder.until(lambda: recorder.sessions[0].end)
        assert recorder.sessions[0].end == "clean"
        assert Cast(bytes(recorder.sessions[0].body)).output == b"so far"
        await stage.until(lambda: not stage.sessions.listed())


async def test_a_slow_recorder_bounds_what_is_held() -> None:
    """Output stops, pings are answered, and what waits is a turn's bytes; all of it arrives in its order."""
    async with Stage() as stage, FakeRecorder() as recorder:
        stage.recorders.limits.buffer = 100_000
        grant(stage, recorder, enforced=True)
        speech = WebSocket()
        client, upstream = await begun(stage, speech)
        await recorder.until(lambda: recorder.sessions[0].body)  # the header, without which nothing is shown
        recorder.sessions[0].reading = False
        texts = [b"%06d" % number + b"x" * 10_000 for number in range(300)]
        frames = b"".join(map(speech.out, texts))
        sending = asyncio.ensure_future(upstream.send(frames))
        exchange = stage.connections[0].running.exchange
        assert exchange is not None and isinstance(exchange._switched, Switched)
        switched, session = exchange._switched, exchange._tap
        got = bytearray()
        recording = stage.sessions.find("")[0]._keeping.recording
        assert recording is not None
        last = [0, 0]

        def settled() -> bool:
            """Blocked for good: until the windows on the way are full, the buffer has room again now and then."""
            if session.blocked and recording.state is SLOW and recording.written == last[0]:
                last[1] += 1
            else:
                last[:] = [recording.written, 0]
            return last[1] >= 50

        async def receive() -> None:
            while True:
                got.extend(await client.receive())

        receiving = asyncio.ensure_future(receive())
        await stage.until(settled)
        assert sum(map(len, switched._held)) <= 65536 + 16384
        assert stage.recorders.describe()[0].uploads == 1
        await client.send(speech.ping())
        await stage.until(lambda: got.endswith(speech.pong))
        receiving.cancel()
        shown = speech.understood(bytes(got))
        assert b"".join(texts).startswith(shown.stdout)
        recorder.sessions[0].read()
        while len(got) < len(frames) + len(speech.pong):
            got += await client.receive()
        await sending
        assert bytes(got).replace(speech.pong, b"") == frames
        await ended(stage, client, upstream, speech)
        assert Cast(bytes(recorder.sessions[0].body)).output == b"".join(texts)


async def test_a_drain_without_grace_brings_recordings_to_their_end() -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=True)
        clients = []
        for _ in range(3):
            client, upstream = await begun(stage, WebSocket(), await stage.client())
            await upstream.send(WebSocket().out(b"said"))
            await client.exactly(len(WebSocket().out(b"said")))
            clients.append(client)
        assert await stage.server.drain(0.0) == 3
        for client in clients:
            assert await client.gone() or client.received == b""
        assert [session.end for session in recorder.sessions] == ["clean"] * 3
        assert all(Cast(bytes(session.body)).output == b"said" for session in recorder.sessions)
        assert not stage.sessions.listed()


async def test_ended_by_an_administrator() -> None:
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=True)
        speech = Spdy()
        client, upstream = await begun(stage, speech)
        [session] = stage.sessions.find(stage.sessions.listed()[0]["id"][:8])
        stage.sessions.end(session, "lunch", "bob@example.com")
        understood = speech.understood(speech.accepted + await client.rest())
        assert understood.closed and understood.message.endswith("ended by an administrator: lunch")
        await client.end()
        assert await upstream.gone()
        await recorder.until(lambda: recorder.sessions[0].end)
        assert recorder.sessions[0].end == "clean"


@both_modes
async def test_cancelled_at_every_await(enforced: bool) -> None:
    """Stage asserts that no task, socket or count is left; no upload is either."""
    at = 1
    while await _cancelled(at, enforced=enforced):
        at += 1
    assert at > 4


async def _cancelled(at: int, *, enforced: bool) -> bool:
    reached = asyncio.Event()
    async with Stage() as stage, FakeRecorder() as recorder:
        grant(stage, recorder, enforced=enforced)
        serve = stage.server._serve
        stage.server._serve = lambda *arguments: _stepping(serve(*arguments), at, reached)  # type: ignore[method-assign]

        async def act() -> None:
            speech = WebSocket()
            client, upstream = await begun(stage, speech)
            await upstream.send(speech.out(b"hello"))
            await client.exactly(len(speech.out(b"hello")))
            await ended(stage, client, upstream, speech)

        acting = asyncio.ensure_future(act())
        cancelled = asyncio.ensure_future(reached.wait())
        await asyncio.wait((acting, cancelled), return_when=asyncio.FIRST_COMPLETED)
        await stage.until(lambda: acting.done() or not stage.connections)
        for task in (acting, cancelled):
            task.cancel()
        await asyncio.wait((acting, cancelled))
        await stage.until(lambda: not stage.sessions._tasks)
        assert not stage.sessions.listed()
        assert all(state.uploads == 0 for state in stage.recorders.describe())
        await recorder.until(lambda: all(session.end for session in recorder.sessions))
    return reached.is_set()


@both_legs
@both_modes
async def test_many_sessions_leave_nothing(enforced: bool, tls: bool) -> None:
    """And at once, without a collection."""
    kinds = (Wire, Connection, Exchange, Switched, Session)
    async with Stage(tls=tls) as stage, FakeRecorder() as recorder:
        recorder.keep = False
        grant(stage, recorder, enforced=enforced)
        seen: list[weakref.ref[Session]] = []
        with Living(*kinds) as living:
            for number in range(20):
                speech = WebSocket() if number % 2 else Spdy()
                client, upstream = await begun(stage, speech, await stage.client())
                await upstream.send(speech.out(b"x"))
                await client.exactly(len(speech.out(b"x")))
                seen += map(weakref.ref, stage.sessions._running.values())
                if number % 5 == 4:
                    client.reset()
                    await stage.until(lambda: not stage.connections)
                else:
                    await ended(stage, client, upstream, speech)
                client.close()
                upstream.close()
            # The client of the last one has gone, and its recording is brought to its end without it.
            await stage.until(lambda: not stage.sessions._tasks)
            for _ in range(5):
                await asyncio.sleep(0)
            stage._clients.clear()
            living.assert_none()
            assert len(seen) >= 20 and all(ref() is None for ref in seen)
