"""Event queues: what is admitted, what is kept until a recorder takes it, what is dropped and counted, and the end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from k8sproxy.audit import apievents, delivery
from k8sproxy.audit.apievents import ApiEvents
from k8sproxy.audit.eventqueue import NoEventRecorder
from k8sproxy.audit.requestevent import BodyKeeper, RequestEvent
from k8sproxy.audit.shares import Weight
from k8sproxy.recording.upload import EventsRefused
from k8sproxy.request.requestinfo import request_info
from tests.recorder.store.storing import until

ONE = ("100.64.0.9:80",)
TWO = ("100.64.0.9:80", "100.64.0.10:80")


class Recorders:
    """Stand-ins for all recorders. down: addresses that fail; hanging: those that say nothing; deaf: to posts alone."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.down: set[str] = set()
        self.hanging: set[str] = set()
        self.deaf: set[str] = set()
        self.probes: list[str] = []
        self.posts: list[tuple[str, int]] = []
        self.taken: list[str] = []  # paths of the events
        self.changed = asyncio.Condition()

    async def _answer(self, address: str) -> None:
        if address in self.hanging:
            await asyncio.Event().wait()
        if address in self.down:
            raise ConnectionError("connection refused")
        await asyncio.sleep(0)

    async def probe(self, address: str) -> None:
        self.probes.append(address)
        await self._answer(address)

    async def post(self, address: str, documents: Sequence[bytes]) -> None:
        self.posts.append((address, len(documents)))
        async with self.changed:
            self.changed.notify_all()
        if address in self.deaf:
            raise ConnectionError("500")
        await self._answer(address)
        self.taken += [json.loads(document)["request"]["path"] for document in documents]
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for the posts after which it holds."""
        async with self.changed:
            await self.changed.wait_for(condition)

    def events(self, **options: Any) -> ApiEvents:
        return ApiEvents(self.post, self.probe, batch_delay=0, clock=lambda: self.now, **options)


def event(number: int, body: bytes = b"") -> RequestEvent:
    keeper = BodyKeeper()
    keeper.feed(body)
    return RequestEvent(request_info("GET", f"/x/{number}"), '"source":{}', 1.0, body=keeper)


def run(scene: Callable[[Recorders], Awaitable[None]]) -> None:
    """The scene in a loop of its own, in which nothing may be left over."""

    async def main() -> None:
        async with asyncio.timeout(20):
            await scene(Recorders())
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETRY_FIRST", "RETRY_LAST", "PROBE_TIMEOUT", "POST_TIMEOUT"):
        monkeypatch.setattr(delivery, name, 0.01)
    monkeypatch.setattr(apievents, "PROBE_TIMEOUT", 0.01)


# --- admission ---


def test_what_is_not_enforced_needs_no_recorder() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events()
        assert events.admit(ONE, False) and events.admit((), False)
        assert recorders.probes == []

    run(scene)


def test_an_enforced_event_needs_a_recorder_that_answered_lately() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events()
        assert not events.admit(ONE, True)
        await events.revive(ONE)
        assert events.admit(ONE, True)
        recorders.now += delivery.LIVE_FOR
        assert not events.admit(ONE, True)
        # A batch is an answer as well as a probe is.
        events.add(ONE, event(1), enforced=True)
        await recorders.until(lambda: recorders.taken == ["/x/1"])
        await asyncio.sleep(0)
        assert events.admit(ONE, True)
        events.release(ONE)
        await events.aclose()
        assert (events.sent, events.lost) == (1, 0)

    run(scene)


def test_admitted_requests_have_a_place_each() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events(queue=2)
        await events.revive(ONE)
        assert events.admit(ONE, True) and events.admit(ONE, True)
        assert not events.admit(ONE, True)
        with pytest.raises(NoEventRecorder, match="full"):
            await events.revive(ONE)
        # Places that are kept are not given to events that nobody enforces.
        events.add(ONE, event(1), enforced=False)
        assert events.dropped == 1
        events.release(ONE)
        assert events.admit(ONE, True)
        events.add(ONE, event(2), enforced=True)
        events.add(ONE, event(3), enforced=True)
        await events.aclose()
        assert recorders.taken == ["/x/2", "/x/3"]

    run(scene)


def test_no_recorders_at_all() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events()
        assert not events.admit((), True)
        with pytest.raises(NoEventRecorder, match="none has an address"):
            await events.revive(())
        events.add((), event(1), enforced=False)
        assert events.dropped == 1
        await events.aclose()

    run(scene)


# --- revival ---


def test_a_hundred_requests_probe_once() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events()
        await asyncio.gather(*(events.revive(ONE) for _ in range(100)))
        assert recorders.probes == list(ONE)
        assert events.admit(ONE, True)
        await events.revive(ONE)
        assert recorders.probes == list(ONE)

    run(scene)


def test_each_recorder_says_why_not() -> None:
    async def scene(recorders: Recorders) -> None:
        recorders.down.add(TWO[0])
        recorders.hanging.add(TWO[1])
        events = recorders.events()
        with pytest.raises(NoEventRecorder) as caught:
            await events.revive(TWO)
        assert caught.value.attempts == ((TWO[0], "connection refused"), (TWO[1], "no answer within 0.0 s"))
        # For a moment that is the answer; then they are asked again.
        with pytest.raises(NoEventRecorder):
            await events.revive(TWO)
        assert len(recorders.probes) == 2
        recorders.now += 1
        recorders.down.clear()
        await events.revive(TWO)
        assert len(recorders.probes) == 3

    run(scene)


def test_the_time_for_all_probes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(recorders: Recorders) -> None:
        recorders.hanging.update(TWO)
        with pytest.raises(NoEventRecorder) as caught:
            await recorders.events().revive(TWO)
        assert caught.value.attempts[1] == (TWO[1], "not tried: no time was left")

    monkeypatch.setattr(apievents, "REVIVE_TIMEOUT", 0.01)
    run(scene)


def test_who_gives_up_waiting_does_not_end_the_probe_for_others() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events()
        waiting = [asyncio.create_task(events.revive(ONE)) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await waiting[1]
        assert waiting[0].cancelled() and events.admit(ONE, True)

    run(scene)


def test_the_next_recorder_is_asked_and_remembered() -> None:
    async def scene(recorders: Recorders) -> None:
        recorders.down.add(TWO[0])
        events = recorders.events()
        await events.revive(TWO)
        assert recorders.probes == list(TWO)
        assert events.admit(TWO, True)
        events.add(TWO, event(1), enforced=True)
        await recorders.until(lambda: recorders.taken == ["/x/1"])
        assert recorders.posts == [(TWO[1], 1)]
        await events.aclose()

    run(scene)


def test_a_recorder_that_answers_probes_and_takes_no_events_is_not_alive() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events()
        await events.revive(ONE)
        assert events.admit(ONE, True)
        recorders.deaf.add(ONE[0])
        events.add(ONE, event(1), enforced=True)
        await recorders.until(lambda: len(recorders.posts) > 1)
        assert not events.admit(ONE, True)
        with pytest.raises(NoEventRecorder, match="does not accept events"):
            await events.revive(ONE)
        assert not events.admit(ONE, True)
        recorders.deaf.clear()
        recorders.now += 1
        await events.revive(ONE)
        assert recorders.taken == ["/x/1"]
        assert events.admit(ONE, True)
        events.release(ONE)
        await events.aclose()

    run(scene)


# --- delivery ---


def test_batches() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events(batch=40)
        for number in range(100):
            events.add(ONE, event(number), enforced=False)
        assert events.queued == 100 and recorders.posts == []  # nothing happens on the request's path
        await events.aclose()
        assert [count for _, count in recorders.posts] == [40, 40, 20]
        assert recorders.taken == [f"/x/{number}" for number in range(100)]
        assert (events.sent, events.queued, events.lost) == (100, 0, 0)

    run(scene)


def test_large_documents_make_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events()
        for number in range(4):
            events.add(ONE, event(number, b"a" * 1000), enforced=False)
        await events.aclose()
        assert [count for _, count in recorders.posts] == [2, 2]

    monkeypatch.setattr(delivery, "BATCH_BYTES", 2000)
    run(scene)


def test_large_bodies_do_not_hold_up_the_loop() -> None:
    async def scene(recorders: Recorders) -> None:
        threads: list[str] = []

        class Heavy(RequestEvent):
            def document(self, event_id: str) -> bytes:
                threads.append(threading.current_thread().name)
                return super().document(event_id)

        events = recorders.events()
        for size in (100, 20_000):
            keeper = BodyKeeper()
            keeper.feed(b"a" * size)
            events.add(ONE, Heavy(request_info("GET", "/x"), '"source":{}', 1.0, body=keeper), enforced=False)
        await events.aclose()
        assert events.sent == 2
        assert threads[0] == threading.main_thread().name != threads[1]

    run(scene)


def test_ids_are_not_used_twice() -> None:
    async def scene(recorders: Recorders) -> None:
        seen: list[str] = []

        async def post(_: str, documents: Sequence[bytes]) -> None:
            seen.extend(json.loads(document)["id"] for document in documents)

        events = ApiEvents(post, recorders.probe, batch=2, batch_delay=0)
        for number in range(5):
            events.add(TWO[number % 2 :], event(number), enforced=False)
        await events.aclose()
        assert len(set(seen)) == 5

    run(scene)


def test_enforced_events_are_kept_until_a_recorder_takes_them() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events()
        await events.revive(TWO)
        assert events.admit(TWO, True) and events.admit(TWO, True)
        recorders.down.update(TWO)
        events.add(TWO, event(1), enforced=True)
        events.add(TWO, event(2), enforced=False)
        events.add(TWO, event(3), enforced=True)
        await recorders.until(lambda: len(recorders.posts) > 4 * delivery.ATTEMPTS)
        assert events.failed == 1 and not events.admit(TWO, True)
        recorders.down.discard(TWO[1])
        await recorders.until(lambda: recorders.taken == ["/x/1", "/x/3"])
        await events.aclose()
        assert (events.sent, events.failed, events.lost, events.queued) == (2, 1, 0, 0)

    run(scene)


def test_a_recorder_that_says_nothing_is_left_for_the_next() -> None:
    async def scene(recorders: Recorders) -> None:
        recorders.hanging.add(TWO[0])
        events = recorders.events()
        events.add(TWO, event(1), enforced=False)
        await recorders.until(lambda: recorders.taken == ["/x/1"])
        await events.aclose()
        assert recorders.posts == [(TWO[0], 1), (TWO[1], 1)]

    run(scene)


def test_a_full_queue_drops_and_counts() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events(queue=3)
        for number in range(5):
            events.add(ONE, event(number), enforced=False)
        await events.aclose()
        assert (events.dropped, events.sent) == (2, 3)
        assert recorders.taken == ["/x/0", "/x/1", "/x/2"]

    run(scene)


def test_events_in_flight_count_as_queued() -> None:
    async def scene(recorders: Recorders) -> None:
        recorders.down.add(ONE[0])
        events = recorders.events(queue=1)
        events.add(ONE, event(1), enforced=False)
        await recorders.until(lambda: bool(recorders.posts))
        events.add(ONE, event(2), enforced=False)
        assert events.dropped == 1 and events.queued == 1
        await events.aclose()
        assert events.failed == 1

    run(scene)


def test_bodies_without_room_are_left_out() -> None:
    async def scene(recorders: Recorders) -> None:
        documents: list[bytes] = []

        async def post(_: str, batch: Sequence[bytes]) -> None:
            documents.extend(batch)

        events = ApiEvents(post, recorders.probe, queue_bytes=10, batch_delay=0)
        for _ in range(2):
            for number in range(3):
                events.add(ONE, event(number, b"12345678"), enforced=False)
            draining = events._queues[ONE].task
            assert draining is not None
            await draining
        await events.aclose()
        requests = [json.loads(document)["request"] for document in documents]
        assert [request.get("truncated", False) for request in requests] == [False, True, True] * 2
        assert [len(request["body"]) for request in requests] == [12, 0, 0] * 2

    run(scene)


@pytest.mark.parametrize("dear", ["body", "line"])
def test_others_have_their_turn_between_two_dear_events(dear: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 bytes of a body or of a line; ten lines of 2 KiB of broken escapes would be 15 ms."""
    turns = 0
    written: list[int] = []
    write = RequestEvent.document

    def noting(told: RequestEvent, event_id: str) -> bytes:
        written.append(turns)
        return write(told, event_id)

    async def scene(recorders: Recorders) -> None:
        nonlocal turns
        events = recorders.events()
        for number in range(5):
            told = event(number, b"x" * 1000 if dear == "body" else b"")
            if dear == "line":
                told.info = request_info("GET", f"/x/{number}?{'%zz&' * 250}")
            events.add(ONE, told, enforced=False)
        while len(recorders.taken) < 5:
            turns += 1
            await asyncio.sleep(0)
        await events.aclose()
        assert len(set(written)) == 5

    monkeypatch.setattr(RequestEvent, "document", noting)
    run(scene)


@pytest.mark.parametrize("size", [1, 9000])
def test_an_event_that_can_not_be_written_costs_no_other(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write = RequestEvent.document

    def faulty(told: RequestEvent, event_id: str) -> bytes:
        if told.info.path == "/x/1":
            raise RuntimeError("nobody thought of this")
        return write(told, event_id)

    async def scene(recorders: Recorders) -> None:
        events = recorders.events()
        await events.revive(ONE)
        for number in range(3):
            assert events.admit(ONE, True)
            events.add(ONE, event(number, b"x" * size), enforced=True)
        await recorders.until(lambda: len(recorders.taken) == 2)
        await events.aclose()
        assert recorders.taken == ["/x/0", "/x/2"] and (events.failed, events.lost) == (1, 0)

    monkeypatch.setattr(RequestEvent, "document", faulty)
    run(scene)


def test_long_queries_without_room_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come without a body, and ten thousand of 64 KiB each are more than anybody wants to hold."""

    async def scene(recorders: Recorders) -> None:
        documents: list[bytes] = []

        async def post(_: str, batch: Sequence[bytes]) -> None:
            documents.extend(batch)

        events = ApiEvents(post, recorders.probe, batch_delay=0)
        short, long = "?x=1", "?labelSelector=" + "a" * 4000
        for _ in range(2):
            for query in (long, short, long, long, short):
                info = request_info("GET", "/api/v1/pods" + query)
                events.add(ONE, RequestEvent(info, '"source":{}', 1.0), enforced=False)
            draining = events._queues[ONE].task
            assert draining is not None
            await draining
        await events.aclose()
        told = [json.loads(document) for document in documents]
        assert [event["request"].get("truncated", False) for event in told] == [False, False, False, True, False] * 2
        cut = told[3]
        assert cut["request"]["path"] == "/api/v1/pods" and not cut["request"]["queryParameters"]
        assert not cut["kubernetes"]["LabelSelector"] and cut["kubernetes"]["Resource"] == "pods"

    monkeypatch.setattr(apievents, "LINE_BYTES", 18_000)
    run(scene)


def test_lists_that_are_not_used_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events()
        await events.revive(("a:1",))
        assert events.admit(("a:1",), True)
        for number in range(10):
            await events.revive((f"b:{number}",))
        assert len(events._queues) <= 4 and ("a:1",) in events._queues
        events.release(("a:1",))

    monkeypatch.setattr(apievents, "_IDLE_QUEUES", 3)
    run(scene)


# --- the end ---


def test_the_end_is_bounded_and_counts_what_was_lost() -> None:
    async def scene(recorders: Recorders) -> None:
        recorders.hanging.add(ONE[0])
        events = recorders.events(batch=1)
        waiting = asyncio.create_task(events.revive(TWO[:1]))
        for number in range(3):
            events.add(TWO, event(number), enforced=False)
            events.add(ONE, event(number), enforced=False)
        recorders.hanging.add(TWO[1])
        await asyncio.sleep(0)
        await events.aclose(0.001)
        with pytest.raises(NoEventRecorder):
            await waiting
        assert events.lost == 6 and events.queued == 0
        # Who comes too late is refused, or counted.
        assert not events.admit(ONE, True)
        with pytest.raises(NoEventRecorder, match="stopping"):
            await events.revive(ONE)
        events.add(ONE, event(9), enforced=False)
        assert events.lost == 7

    run(scene)


def test_the_end_retries_what_is_enforced() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events()
        await events.revive(ONE)
        assert events.admit(ONE, True)
        recorders.down.add(ONE[0])
        events.add(ONE, event(1), enforced=True)
        await recorders.until(lambda: len(recorders.posts) > 2)
        closing = asyncio.create_task(events.aclose())
        await recorders.until(lambda: len(recorders.posts) > 4)
        recorders.down.clear()
        await closing
        assert (events.sent, events.lost) == (1, 0)

    run(scene)


@pytest.mark.parametrize("turns", range(12))
def test_a_cancel_anywhere_leaves_nothing_behind(turns: int) -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events(batch=2)

        async def work() -> None:
            try:
                await events.revive(ONE)
                for number in range(5):
                    if events.admit(ONE, True):
                        events.add(ONE, event(number), enforced=True)
                await asyncio.Event().wait()
            finally:
                await events.aclose(0.01)

        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert events.sent + events.lost in (0, 5) and events.queued == 0

    run(scene)


# --- shares


def owned(owner: str, number: int, body: bytes = b"") -> RequestEvent:
    told = event(number, body)
    told.weight = Weight(owner)
    return told


def test_one_owner_leaves_room_for_others() -> None:
    """What one user's requests fill is their own share, whether it must be told or not."""

    async def scene(recorders: Recorders) -> None:
        events = recorders.events(queue=40, queue_bytes=4000)
        recorders.hanging.add(ONE[0])
        for number in range(30):
            events.add(ONE, owned("ana", number, b"x" * 90), enforced=False)
        assert events.dropped == 20, "a quarter of the places"
        events.add(ONE, owned("ben", 100, b"y" * 500), enforced=False)
        assert events.dropped == 20
        await events.aclose(0)

    run(scene)


def test_bodies_of_one_owner_leave_room_for_others() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events(queue_bytes=4000)
        kept = [owned("ana", number, b"x" * 400) for number in range(4)] + [owned("ben", 9, b"y" * 400)]
        for one in kept:
            events.add(ONE, one, enforced=False)
        assert [one.body.size if one.body else 0 for one in kept] == [400, 400, 0, 0, 400]
        await events.aclose()

    run(scene)


@pytest.mark.parametrize("what", ["body", "line"])
def test_what_must_be_told_is_never_cut_for_want_of_room(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not admitted, or it is told whole."""
    monkeypatch.setattr(apievents, "LINE_BYTES", 4000)

    async def scene(recorders: Recorders) -> None:
        events = recorders.events(queue_bytes=4000)
        await events.revive(ONE)
        heavy = Weight("ana", **{what: 400})
        admitted = [events.admit(ONE, True, heavy) for _ in range(4)]
        assert admitted == [True, True, False, False] and events.is_full_for(ONE, heavy)
        assert events.admit(ONE, True, Weight("ben", **{what: 400}))
        for owner in ("ana", "ana", "ben"):
            told = owned(owner, 1, b"x" * 400 if what == "body" else b"")
            told.weight = Weight(owner, **{what: 400})
            events.add(ONE, told, enforced=True)
            assert told.body is None or told.body.size in (0, 400)
            assert not told.cut
        assert events.admit(ONE, True, Weight("ana", **{what: 300})) is (what == "line"), "as much as there was in it"
        await events.aclose()

    run(scene)


def test_owners_take_turns_in_being_told() -> None:
    async def scene(recorders: Recorders) -> None:
        events = recorders.events(batch=1)
        for number in range(5):
            events.add(ONE, owned("ana", number), enforced=False)
        events.add(ONE, owned("ben", 9), enforced=False)
        await events.aclose()
        paths = recorders.taken
        assert paths.index("/x/9") == 1 and [path for path in paths if path != "/x/9"] == [f"/x/{n}" for n in range(5)]

    run(scene)


# --- events that a recorder does not like ---


class Choosy:
    """A recorder that refuses requests with certain events. dislikes: by a word in the event. array: events in one
    request. ill: every event is refused."""

    def __init__(self, *dislikes: bytes, array: int = 1000) -> None:
        self.now = 1000.0
        self.dislikes = dislikes
        self.array = array
        self.ill = False
        self.posts = 0
        self.taken: list[dict[str, Any]] = []

    async def probe(self, _: str) -> None:
        await asyncio.sleep(0)

    async def post(self, address: str, documents: Sequence[bytes]) -> None:
        self.posts += 1
        await asyncio.sleep(0)
        for start in range(0, len(documents), self.array):
            part = documents[start : start + self.array]
            if self.ill or any(word in document for word in self.dislikes for document in part):
                raise EventsRefused(f"{address}: HTTP 400 to POST /v2/event: bad", start, len(part))
            self.taken += map(json.loads, part)

    def events(self) -> ApiEvents:
        return ApiEvents(self.post, self.probe, batch_delay=0, clock=lambda: self.now)


def asked(path: str, owner: str = "ana") -> RequestEvent:
    return RequestEvent(request_info("GET", path), '"source":{}', 1.0, "agent", weight=Weight(owner))


async def tell(events: ApiEvents, *told: RequestEvent, enforced: bool = True) -> None:
    """Admit and tell requests, all before the first of them is sent."""
    for one in told:
        if enforced and not events.admit(ONE, True, one.weight):
            await events.revive(ONE)
            assert events.admit(ONE, True, one.weight)
        events.add(ONE, one, enforced=enforced)


async def idle(events: ApiEvents) -> None:
    await until(lambda: not events.queued)


@pytest.mark.parametrize("enforced", [False, True])
@pytest.mark.parametrize("array", [1, 3, 1000])
@pytest.mark.parametrize("bad", [{0}, {7}, {19}, {3, 4}, set(range(20))])
def test_a_refused_event_goes_without_what_a_client_fills(bad: set[int], array: int, enforced: bool) -> None:
    async def scene(_: Recorders) -> None:
        recorder = Choosy(b"evil", array=array)
        events = recorder.events()
        told = [asked(f"/x/{number}?say={'evil' if number in bad else 'good'}") for number in range(20)]
        await tell(events, *told, enforced=enforced)
        await idle(events)
        paths = sorted(event["request"]["path"] for event in recorder.taken)
        assert paths == sorted(f"/x/{number}" + ("" if number in bad else "?say=good") for number in range(20))
        stripped = [event for event in recorder.taken if "?" not in event["request"]["path"]]
        assert all(event["request"]["truncated"] and event["userAgent"] == "" for event in stripped)
        assert len({event["id"] for event in recorder.taken}) == 20
        assert (events.sent, events.refused, events.failed, events.queued) == (20, 0, 0, 0)
        await events.aclose()

    run(scene)


def test_an_event_that_is_refused_in_every_form_refuses_its_owner_and_nobody_else() -> None:
    async def scene(_: Recorders) -> None:
        recorder = Choosy(b"/evil")
        events = recorder.events()
        ended: list[str] = []
        bad = asked("/evil")
        bad.refused = ended.append
        await tell(events, bad, asked("/a", "ben"), asked("/b"))
        await idle(events)
        assert sorted(event["request"]["path"] for event in recorder.taken) == ["/a", "/b"]
        assert events.refused == 1 and len(ended) == 1 and ended[0].endswith("HTTP 400 to POST /v2/event: bad")
        assert not events.admit(ONE, True, Weight("ana")) and events.why_refused(ONE, "ana") == ended[0]
        assert events.admit(ONE, True, Weight("ben")) and events.why_refused(ONE, "ben") is None
        events.release(ONE, Weight("ben"))
        recorder.now += delivery.REFUSED_FOR
        await events.revive(ONE)
        assert events.admit(ONE, True, Weight("ana"))
        events.release(ONE, Weight("ana"))
        await events.aclose()

    run(scene)


def test_a_refused_event_that_need_not_be_told_is_counted_and_refuses_nobody() -> None:
    async def scene(_: Recorders) -> None:
        recorder = Choosy(b"/evil")
        events = recorder.events()
        await tell(events, asked("/evil"), asked("/a"), enforced=False)
        await idle(events)
        assert (events.sent, events.refused) == (1, 1) and events.why_refused(ONE, "ana") is None
        await events.aclose()

    run(scene)


@pytest.mark.parametrize("before", [False, True], ids=["from the start", "later"])
def test_a_recorder_that_refuses_whatever_it_is_sent_is_not_alive(before: bool) -> None:
    """With 400 as well: what is kept is tried again, and nothing more is let through."""

    async def scene(_: Recorders) -> None:
        recorder = Choosy()
        events = recorder.events()
        if before:
            await tell(events, asked("/before"))
            await idle(events)
        recorder.ill = True
        for owner in ("ana", "ben", "cid", "dan"):
            if events.admit(ONE, True, Weight(owner)):
                events.add(ONE, asked("/x", owner), enforced=True)
                most = recorder.posts + 10
                await until(lambda: not events.queued or recorder.posts >= most)  # noqa: B023  # waited for at once
            elif not before and not events.queued:
                await events.revive(ONE)
                assert events.admit(ONE, True, Weight(owner))
                events.add(ONE, asked("/x", owner), enforced=True)
                await until(lambda: recorder.posts >= 10)
        assert events.queued == 1 and not events.admit(ONE, True, Weight("eve"))
        assert events.refused == (2 if before else 0)
        with pytest.raises(NoEventRecorder, match="HTTP 400"):
            await events.revive(ONE)
        recorder.ill = False
        recorder.now += 1
        await events.revive(ONE)
        await idle(events)
        assert events.queued == 0 and events.admit(ONE, True, Weight("eve"))
        events.release(ONE, Weight("eve"))
        await events.aclose()

    run(scene)


def test_what_one_recorder_refuses_another_may_take() -> None:
    async def scene(_: Recorders) -> None:
        first, second = Choosy(b"evil"), Choosy()

        async def post(address: str, documents: Sequence[bytes]) -> None:
            await (first if address == TWO[0] else second).post(address, documents)

        events = ApiEvents(post, first.probe, batch_delay=0)
        await events.revive(TWO)
        for path in ("/x?a=evil", "/y"):
            assert events.admit(TWO, True)
            events.add(TWO, asked(path, ""), enforced=True)
        await idle(events)
        assert [event["request"]["path"] for event in second.taken] == ["/x?a=evil", "/y"]
        await events.aclose()

    run(scene)


def test_a_recorder_that_refuses_probes_too_refuses_whatever_it_is_sent() -> None:
    async def scene(_: Recorders) -> None:
        recorder = Choosy()

        async def probe(address: str) -> None:
            await recorder.probe(address)
            if recorder.ill:
                raise ConnectionError("HTTP 403 to HEAD /v2/event")

        events = ApiEvents(recorder.post, probe, batch_delay=0, clock=lambda: recorder.now)
        await tell(events, asked("/before"), asked("/x", "ben"))
        await idle(events)
        assert events.admit(ONE, True, Weight("ana"))
        recorder.ill = True
        events.add(ONE, asked("/kept"), enforced=True)
        await until(lambda: recorder.posts >= 5)
        assert (events.refused, events.queued) == (0, 1) and not events.admit(ONE, True, Weight("ben"))
        recorder.ill = False
        await idle(events)
        assert recorder.taken[-1]["request"]["path"] == "/kept"
        await events.aclose()

    run(scene)
