"""API events on their way to a recorder: pipelined or in arrays, all answered before it counts."""

from __future__ import annotations

import asyncio
import gc
import json

import pytest

from k8sproxy.recording.eventposts import batches
from k8sproxy.recording.upload import EventsRefused, UploadError
from standins.recorder import FakeRecorder
from tests.common.tailnet.leakless import run
from tests.recording.dialled import recorders, turns, unused_port

EVENTS = [json.dumps({"id": number, "text": "x" * number}).encode() for number in range(100)]


def test_one_request_each_on_one_connection() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            await made.post_events(fake.address, EVENTS)
            await made.post_events(fake.address, [])
            await made.post_events(fake.address, EVENTS[:1])
            await made.probe_events(fake.address)
            assert fake.events == [*EVENTS, EVENTS[0]]
            assert (fake.dials, fake.probes) == (1, 2)

    run(scene())


def test_arrays_where_the_recorder_takes_them() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.event_batch = 40
            await made.post_events(fake.address, EVENTS)
            assert [len(json.loads(body)) for body in fake.events] == [40, 40, 20]
            assert [event for body in fake.events for event in json.loads(body)] == [json.loads(e) for e in EVENTS]
            await made.post_events(fake.address, EVENTS[:1])
            assert fake.events[-1] == EVENTS[0]

    run(scene())


def test_batches_are_bounded_in_bytes() -> None:
    assert batches([], 10) == []
    assert batches([b"1", b"2"], 0) == batches([b"1", b"2"], 1) == [(b"1", 1), (b"2", 1)]
    assert batches([b"1", b"2", b"3"], 2) == [(b"[1,2]", 2), (b"[3]", 1)]
    assert [len(made) for made, _ in batches([b"x" * 700_000] * 3, 10)] == [700_002] * 3


def test_large_events() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            bodies = [b"%d" % number + b" " * 300_000 for number in range(40)]
            await made.post_events(fake.address, bodies)
            assert fake.events == bodies

    run(scene())


def test_many_at_once() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            await asyncio.gather(*(made.post_events(fake.address, [event]) for event in EVENTS[:20]))
            assert sorted(fake.events) == sorted(EVENTS[:20])
            dials = fake.dials
            await asyncio.gather(*(made.post_events(fake.address, [event]) for event in EVENTS[:20]))
            assert fake.dials == dials

    run(scene())


@pytest.mark.parametrize("status", [400, 403, 500, 507])
def test_a_recorder_that_refuses(status: int) -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.statuses["EVENT"] = status
            with pytest.raises(UploadError, match=f"HTTP {status} to POST /v2/event"):
                await made.post_events(fake.address, EVENTS[:3])
            fake.statuses = {"HEAD": status}
            for call in (made.probe_events(fake.address), made.post_events(fake.address, EVENTS[:3])):
                with pytest.raises(UploadError, match=f"HTTP {status} to HEAD /v2/event"):
                    await call

    run(scene())


def test_nobody_there() -> None:
    async def scene() -> None:
        async with recorders() as made:
            for address, why in [(f"127.0.0.1:{unused_port()}", "connection refused"), ("recorder:80", "form")]:
                with pytest.raises(UploadError, match=why):
                    await made.post_events(address, EVENTS)
                with pytest.raises(UploadError, match=why):
                    await made.probe_events(address)

    run(scene())


@pytest.mark.parametrize("hang", ["accept", "HEAD", "POST"])
def test_a_recorder_that_hangs(hang: str) -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders(ack_timeout=0.05) as made:
            fake.hang = hang  # type: ignore[assignment]  # one of Step's
            with pytest.raises(UploadError, match=r"did not answer within 0\.05 s"):
                await made.post_events(fake.address, EVENTS[:3])
            await fake.until(lambda: not fake.connections)
            fake.hang = ""
            made.limits.ack_timeout = 30.0
            await made.post_events(fake.address, EVENTS[:3])

    run(scene())


def test_a_connection_that_died_meanwhile() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            await made.post_events(fake.address, EVENTS[:1])
            fake.drop()
            await made.post_events(fake.address, EVENTS[1:2])  # in the same turn: only the answer tells
            fake.drop()
            await fake.until(lambda: not fake.connections)
            await turns()
            await made.post_events(fake.address, EVENTS[2:3])
            assert fake.events == EVENTS[:3] and fake.dials == 3

    run(scene())


def test_a_recorder_that_dies_after_some_answers() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            await made.probe_events(fake.address)
            fake.close_after_event = True
            posting = asyncio.ensure_future(made.post_events(fake.address, EVENTS[:3]))
            await fake.until(lambda: fake.events)
            fake.close_after_event = False
            await posting
            # The second was in the pipeline of a connection that was closed: it is sent again, the first is not.
            assert fake.events.count(EVENTS[0]) == 1 and fake.events[-2:] == EVENTS[1:3]

            fake.close_after_event = True
            with pytest.raises(UploadError, match="closed the connection"):
                await made.post_events(fake.address, EVENTS[:3])

    run(scene())


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000,
    ],
)
def test_an_answer_that_is_none(answer: bytes) -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            await made.probe_events(fake.address)
            fake.hang = "POST"
            posting = asyncio.ensure_future(made.post_events(fake.address, EVENTS[:2]))
            await fake.until(lambda: fake.events)
            connection = next(iter(fake.connections))
            connection.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            connection.write(answer)
            # A kept connection that breaks is tried anew: so break that one as well.
            await fake.until(lambda: len(fake.events) > 2)
            for connection in fake.connections:
                connection.write(answer)
            with pytest.raises(UploadError, match=r"not HTTP/1.1"):
                await posting

    run(scene())


def test_a_cancel_at_any_moment_leaves_nothing() -> None:
    async def scene() -> None:
        finished = False
        rounds = 0
        while not finished:
            async with FakeRecorder() as fake, recorders() as made:
                posting = asyncio.ensure_future(made.post_events(fake.address, EVENTS[:20]))
                await turns(rounds)
                posting.cancel()
                try:
                    await posting
                    finished = True
                except asyncio.CancelledError:
                    await no_connections(fake)
            rounds += 1
        assert rounds > 3
        gc.collect()

    async def no_connections(fake: FakeRecorder) -> None:
        await fake.until(lambda: not fake.connections)

    run(scene())


def test_a_recorder_that_announces_the_end_of_the_connection() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            await made.probe_events(fake.address)
            fake.hang = "POST"
            for number in (1, 2):
                posting = asyncio.ensure_future(made.post_events(fake.address, EVENTS[:1]))
                await fake.until(lambda number=number: len(fake.events) == number)  # type: ignore[misc]  # a lambda's
                for connection in fake.connections:
                    connection.write(b"HTTP/1.1 202 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                await posting
                await fake.until(lambda: not fake.connections)  # ours to close: nothing may follow there
            assert fake.dials == 2

    run(scene())


@pytest.mark.parametrize(("batch", "taken", "size"), [(None, 2, 1), (2, 2, 2), (100, 0, 5)])
def test_a_refusal_says_which_events_it_may_mean(batch: int | None, taken: int, size: int) -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.event_batch, fake.dislikes = batch, b"bad"
            with pytest.raises(EventsRefused, match=r"HTTP 400 to POST /v2/event: I don't like") as caught:
                await made.post_events(fake.address, [b'"a"', b'"b"', b'"bad"', b'"c"', b'"d"'])
            assert (caught.value.taken, caught.value.size) == (taken, size)

    run(scene())


@pytest.mark.parametrize("when", ["HEAD", "EVENT"])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 408, 413, 422, 425, 429, 500, 503])
def test_which_answers_tell_of_events(status: int, when: str) -> None:
    """Those between 400 and 499, save for what says "not you" or "not now"; and none to a probe."""

    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.statuses = {when: status}
            with pytest.raises(UploadError, match=f"HTTP {status}") as caught:
                await made.post_events(fake.address, EVENTS[:1])
            of_events = when == "EVENT" and status in (400, 403, 404, 413, 422)
            assert isinstance(caught.value, EventsRefused) is of_events

    run(scene())


def test_a_probe_that_is_refused_on_the_second_try_tells_nothing_of_events() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            await made.post_events(fake.address, EVENTS[:1])
            made._recorder(fake.address).event_batch = None
            fake.statuses = {"HEAD": 404}
            with pytest.raises(UploadError) as caught:
                await made.post_events(fake.address, EVENTS[:1])
            assert not isinstance(caught.value, EventsRefused)

    run(scene())
