"""API requests told to recorders, off the request's path.

    admit(recorders, enforce, weight)  at the head: may the request go on? For an enforced one places are kept in the
                                queue, also for its body and for a long line.
    await revive(recorders)     where it may not: find a recorder that lives, or NoEventRecorder, which is the refusal
    add(recorders, event, ..)   once all of the body has been seen: the event is queued, nothing is encoded yet
    release(recorders)          instead of add, where an admitted request came to nothing worth telling

There is one queue for each list of recorders that a grant names, and one task that drains it while there is something
in it: it waits a moment for company (BATCH_DELAY), encodes, redacts and hands a batch to `post`, which knows the wire.
The recorder that took the last batch is asked first, then the others in the grant's order.

Enforced: "the event must be accepted by a queue that a live recorder drains". A recorder lives for LIVE_FOR seconds
from its last answer, to a batch or to a probe. An event that was admitted is kept, and posted again and again, until
some recorder takes it; while none does, the queue's recorder is not alive, nothing more is admitted, and so what is
kept is bounded. A failed batch ends that life at once. A recorder that takes the same batch twice, because its answer
was lost, can tell by the events' ids.

A batch that a recorder refuses for what is in it (EventsRefused) would be refused again and again, and everything
behind it would wait. So it is taken apart: what surrounds the event that is meant goes on its way, and that event is
sent once more without its body, query and User-Agent (`truncated`). Where it is refused again, by a recorder that
answers a probe and has taken events of others, it is given up, and nobody is left in the dark: the log says so, the
request is ended if it runs (RequestEvent.refused), and where the event was enforced its owner's next requests are
refused with the reason for REFUSED_FOR seconds. A recorder that has taken nothing yet, or nothing since events of two
owners were given up, refuses whatever it is sent: that is an outage.

Not enforced: events that no recorder takes are dropped and counted, after ATTEMPTS rounds.

A queue is bounded in events, in the bytes of their bodies and in those of long request lines, and one owner may have a
quarter of each (shares). An enforced request for which there is no room is not admitted; for others the event goes
without its body or query, marked as truncated, or is dropped. Owners take turns in being told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog

from k8sproxy.audit.eventqueue import NoEventRecorder, Parcel, Queue
from k8sproxy.audit.requestevent import RequestEvent
from k8sproxy.audit.shares import NO_WEIGHT, Weight
from k8sproxy.common.longwork import LONG, LongWork
from k8sproxy.common.tasks import Tasks, left_to_waiter
from k8sproxy.recording.upload import EventsRefused

# Events in one queue: some 10 s of a busy proxy, a few KiB each without bodies.
QUEUE = 10_000
# Bytes of bodies in one queue. Bodies are mostly a few KiB; 64 KiB each would be 640 MiB.
QUEUE_BYTES = 32 * 1024 * 1024
# Bytes of long lines in one queue: a query may have as many as a head, 64 KiB, and comes without any body.
LINE_BYTES = 32 * 1024 * 1024
# Events in a batch, and bytes of documents after which it is full: what a recorder reads in one go.
BATCH = 200
BATCH_BYTES = 1024 * 1024
# Seconds that an event waits for others to share a request with.
BATCH_DELAY = 0.05
# Events encoded before other tasks have their turn: about 0.2 ms.
_TURN = 10
# Bytes of a body from which on one event is enough for a turn: ten of 8 KiB would be 15 ms of nobody's keystrokes. So
# is one with a line that is longer than most.
_LIGHT = 512
# Seconds from a recorder's last answer for which it counts as alive.
LIVE_FOR = 10.0
# Seconds for one batch, for one probe, and for all probes of a request that waits.
POST_TIMEOUT = 10.0
PROBE_TIMEOUT = 2.0
REVIVE_TIMEOUT = 5.0
# Seconds for which a failed revival is the answer to those who ask again.
_STILL_DEAD = 1.0
# Seconds for which requests are refused whose owner had an event that a recorder takes in no form.
REFUSED_FOR = 30.0
# Owners whose events are given up before a recorder has to take one again.
_MOST_DOUBTED = 2
# Rounds over all recorders before events that are not enforced are dropped, and seconds between rounds.
ATTEMPTS = 3
RETRY_FIRST, RETRY_LAST = 0.2, 5.0
# Seconds that the end of the process waits for the queues.
CLOSE_TIMEOUT = 5.0
# Queues kept though empty, for what they know of their recorders.
_IDLE_QUEUES = 256

_log = structlog.get_logger("k8sproxy")
_STOPPING = "the proxy is stopping"


class ApiEvents:
    """All event queues of the process; for one event loop.

    post: sends documents to one recorder ("IP:PORT") in one request or several, and returns once all are accepted.
    probe: returns where that recorder takes events. Both raise any Exception where not, whose text is told to people;
    post raises EventsRefused where it is the documents' fault.
    limit: events in one queue, which may be changed at any time. longwork: for what takes long to be made a document.
    queued, sent: events. dropped: those there was no room for, failed: those that no recorder took, refused: those that
    a recorder takes in no form, lost: those left over at the end.
    """

    def __init__(
        self,
        post: Callable[[str, Sequence[bytes]], Awaitable[None]],
        probe: Callable[[str], Awaitable[None]],
        *,
        queue: int = QUEUE,
        queue_bytes: int = QUEUE_BYTES,
        batch: int = BATCH,
        batch_delay: float = BATCH_DELAY,
        clock: Callable[[], float] = time.monotonic,
        longwork: LongWork | None = None,
    ) -> None:
        self._longwork = longwork or LongWork()
        self._own_longwork = longwork is None
        self._post = post
        self._probe = probe
        self.limit = queue
        self._bytes_limit = queue_bytes
        self._batch = batch
        self._delay = batch_delay
        self._clock = clock
        self._tasks = Tasks()
        self._queues: dict[tuple[str, ...], Queue] = {}
        self._closing = False
        self._id_prefix = os.urandom(8).hex()
        self._id = 0
        self.sent = 0
        self.dropped = 0
        self.failed = 0
        self.refused = 0
        self.lost = 0

    @property
    def queued(self) -> int:
        """Events that wait or are on their way."""
        return sum(len(queue.events) + queue.inflight for queue in self._queues.values())

    def admit(self, recorders: tuple[str, ...], enforce: bool, weight: Weight = NO_WEIGHT) -> bool:
        """Whether the request may go on. enforce: its event must be kept; True keeps places until add or release, which
        are given the same weight."""
        if not enforce:
            return True
        queue = self._queues.get(recorders)
        if queue is None or self._clock() >= queue.live_until or queue.size >= self.limit or self._closing:
            return False
        queue.owners.set_limit(self.limit)
        if not queue.has_share(weight) or (queue.refused and self.why_refused(recorders, weight.owner) is not None):
            return False
        queue.reserved += 1
        queue.put(weight)
        return True

    def why_refused(self, recorders: tuple[str, ...], owner: str) -> str | None:
        """Why an owner's requests are refused whose events must be told; None where they are not."""
        queue = self._queues.get(recorders)
        if queue is None or owner not in queue.refused:
            return None
        until, why = queue.refused[owner]
        return why if self._clock() < until else None

    def is_full_for(self, recorders: tuple[str, ...], weight: Weight) -> bool:
        """Whether there is room in the queue, and none for this owner or for a body or line of this size."""
        queue = self._queues.get(recorders)
        return queue is not None and queue.size < self.limit and not queue.has_share(weight)

    def release(self, recorders: tuple[str, ...], weight: Weight = NO_WEIGHT) -> None:
        """Give back the places that admit kept: there will be no event."""
        queue = self._queues[recorders]
        queue.reserved -= 1
        queue.take(weight)

    async def revive(self, recorders: tuple[str, ...]) -> None:
        """Look for a recorder that lives, once for all who wait; then admit again.

        Raises NoEventRecorder after REVIVE_TIMEOUT seconds at most, and at once while such a failure is fresh or the
        queue is full though its recorder lives.
        """
        queue = self._queue(recorders)
        now = self._clock()
        if self._closing:
            raise NoEventRecorder([(address, _STOPPING) for address in recorders])
        if now < queue.live_until:
            if queue.size >= self.limit:
                raise NoEventRecorder([(address, "its queue of events is full") for address in recorders])
            return
        if queue.error is not None and now < queue.dead_until:
            raise NoEventRecorder(queue.error.attempts)
        if queue.reviving is None:
            # A revival that fails when nobody waits any more is not worth a line of the log.
            queue.reviving = self._tasks.start(self._revive(queue), "event recorders revived", failed=left_to_waiter)
        task = queue.reviving
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise NoEventRecorder([(address, _STOPPING) for address in recorders]) from None

    def add(self, recorders: tuple[str, ...], event: RequestEvent, *, enforced: bool) -> None:
        """Queue an event; never waits. enforced: admit kept places for it, by the event's weight."""
        queue = self._queues.get(recorders) or self._queue(recorders)
        owner = event.weight.owner
        if enforced:
            queue.reserved -= 1
            queue.take(event.weight)
        if self._closing:
            self.lost += 1
            return
        queue.owners.set_limit(self.limit)
        full = queue.size >= self.limit or (owner != "" and not queue.owners.fits(owner, 1))
        if not recorders or (not enforced and full):
            self.dropped += 1
            return
        body = event.body
        if not enforced:
            if body is not None and not queue.bytes.fits(owner, body.size):
                body.drop()
            if not queue.lines.fits(owner, event.long_line):
                event.drop_query()
        event.weight = Weight(owner, body.size if body is not None else 0, event.long_line)
        queue.put(event.weight)
        queue.events.append(owner, (event, enforced))
        if queue.task is None:
            queue.task = self._tasks.start(self._drain(queue), "api events")

    async def aclose(self, seconds: float = CLOSE_TIMEOUT) -> None:
        """Send what is queued, for so many seconds at most; what is left is counted as lost."""
        self._closing = True
        for queue in self._queues.values():
            queue.wake.set()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._tasks.finished()
        finally:
            await self._tasks.aclose()
            self.lost += self.queued
            self._queues.clear()
            if self._own_longwork:
                await self._longwork.aclose()

    def _queue(self, recorders: tuple[str, ...]) -> Queue:
        queue = self._queues.get(recorders)
        if queue is None:
            if len(self._queues) >= _IDLE_QUEUES:
                now = self._clock()
                # Lists change with grants. Those that nobody uses any more know nothing that can't be found out again.
                self._queues = {
                    key: value for key, value in self._queues.items() if value.in_use or value.refuses_somebody(now)
                }
            queue = self._queues[recorders] = Queue(recorders, self.limit, self._bytes_limit, LINE_BYTES)
        return queue

    # --- one queue's recorders ---

    async def _revive(self, queue: Queue) -> None:
        attempts: list[tuple[str, str]] = []
        deadline = asyncio.get_running_loop().time() + REVIVE_TIMEOUT
        try:
            for place, address in queue.order():
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    attempts.append((address, "not tried: no time was left"))
                    continue
                why = await _attempt(self._probe(address), min(PROBE_TIMEOUT, left))
                if why is None and queue.stuck:
                    # Answers to probes are not enough of one that has just refused events: let it take those first.
                    queue.outcome = asyncio.get_running_loop().create_future()
                    queue.wake.set()
                    why = await _attempt(queue.outcome, deadline - asyncio.get_running_loop().time())
                    if why is None:
                        return
                elif why is None:
                    self._answered(queue, place)
                    return
                attempts.append((address, why))
            queue.error = NoEventRecorder(attempts)
            queue.dead_until = self._clock() + _STILL_DEAD
            raise queue.error
        finally:
            queue.reviving = None

    def _answered(self, queue: Queue, place: int) -> None:
        queue.address = place
        queue.live_until = self._clock() + LIVE_FOR
        queue.error = None
        queue.stuck = False
        queue.wake.set()
        _settle(queue, None)

    # --- draining ---

    async def _drain(self, queue: Queue) -> None:
        try:
            while queue.events:
                if len(queue.events) < self._batch and not self._closing:
                    await asyncio.sleep(self._delay)
                await self._deliver(queue, await self._take(queue))
        finally:
            queue.task = None

    async def _take(self, queue: Queue) -> list[Parcel]:
        """The next batch."""
        batch: list[Parcel] = []
        size = 0
        while queue.events and len(batch) < self._batch and size < BATCH_BYTES:
            event, enforced = queue.events.popleft()
            queue.inflight += 1
            queue.take(event.weight)
            self._id += 1
            event_id = f"{self._id_prefix}-{self._id}"
            try:
                if event.weight.body > LONG or event.weight.line > 2 * LONG:
                    document = await self._longwork.run(event.weight.owner, event.document, event_id)
                else:
                    document = event.document(event_id)
            except Exception:
                # A fault of ours: it costs this event, not those around it and not the queue.
                _log.error("event_faulty", verb=event.info.verb, resource=event.info.resource, exc_info=True)
                self.failed += 1
                queue.inflight -= 1
                continue
            batch.append(Parcel(event, event_id, enforced, document))
            size += len(document)
            if len(batch) % _TURN == 0 or event.weight.line or event.weight.body > _LIGHT:
                await asyncio.sleep(0)
        return batch

    async def _deliver(self, queue: Queue, batch: list[Parcel]) -> None:
        """Post a batch until each of its events has been taken or given up."""
        parts = deque([batch])
        while parts:
            part = parts.popleft()
            refusal = await self._post_until_answered(queue, part)
            if refusal is None:
                continue
            # What is in doubt comes last, when it is known whether the recorder takes anything at all.
            bad, rest = part[: refusal.size], part[refusal.size :]
            if len(bad) > 1:
                half = len(bad) // 2
                parts.extendleft(piece for piece in (bad[half:], bad[:half], rest) if piece)
            elif bad[0].stripped:
                self._give_up(queue, bad[0], str(refusal))
            else:
                if rest:
                    parts.appendleft(rest)
                parts.append([self._stripped(bad[0])])

    async def _post_until_answered(self, queue: Queue, batch: list[Parcel]) -> EventsRefused | None:
        """Post events until a recorder has taken them, or what is not enforced has been tried often enough: None. Or
        until a recorder refuses those at the front for what they are, and none takes them. What was taken is removed
        from the list.
        """
        rounds, pause = 0, RETRY_FIRST
        while batch:
            refusal: EventsRefused | None = None
            for place, address in queue.order():
                try:
                    why = await _attempt(self._post(address, [parcel.document for parcel in batch]), POST_TIMEOUT)
                except EventsRefused as error:
                    if error.taken:
                        self._taken(queue, place, batch, error.taken)
                    refusal = error
                    continue
                if why is None:
                    self._taken(queue, place, batch, len(batch))
                    return None
            if refusal is not None and (not batch[0].stripped or await self._is_of_the_event(queue, batch[0])):
                return refusal
            queue.live_until = float("-inf")
            queue.stuck = True
            _settle(queue, ConnectionError(str(refusal or "it answers, but it does not accept events")))
            rounds += 1
            if rounds >= ATTEMPTS:
                kept = [parcel for parcel in batch if parcel.enforced]
                self.failed += len(batch) - len(kept)
                queue.inflight -= len(batch) - len(kept)
                batch[:] = kept
            if batch:
                # Woken by who revives, or by the end, from when on there is one round every RETRY_FIRST seconds.
                queue.wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_FIRST if self._closing else pause):
                        await queue.wake.wait()
                pause = min(pause * 2, RETRY_LAST)
        queue.stuck = False
        return None

    def _taken(self, queue: Queue, place: int, batch: list[Parcel], count: int) -> None:
        """A recorder has taken so many events from the front of a batch."""
        del batch[:count]
        self.sent += count
        queue.inflight -= count
        queue.taken = True
        queue.doubted.clear()
        self._answered(queue, place)

    # --- what a recorder does not like ---

    def _stripped(self, parcel: Parcel) -> Parcel:
        parcel.event.strip()
        parcel.document, parcel.stripped = parcel.event.document(parcel.id), True
        return parcel

    async def _is_of_the_event(self, queue: Queue, parcel: Parcel) -> bool:
        """Whether a stripped event is refused for what it is, and not because its recorder refuses whatever comes."""
        owner = parcel.event.weight.owner
        if not queue.taken or len(queue.doubted | {owner}) > _MOST_DOUBTED:
            return False
        for place, address in queue.order():
            if await _attempt(self._probe(address), PROBE_TIMEOUT) is None:
                self._answered(queue, place)
                return True
        return False

    def _give_up(self, queue: Queue, parcel: Parcel, why: str) -> None:
        """No recorder takes this event, in no form."""
        event, now = parcel.event, self._clock()
        info, owner = event.info, event.weight.owner
        self.refused += 1
        queue.inflight -= 1
        queue.doubted.add(owner)
        _log.error(
            "event_refused",
            id=parcel.id,
            enforced=parcel.enforced,
            owner=owner,
            method=info.method,
            path=info.path,
            session=event.session_id or None,
            why=why,
        )
        if parcel.enforced:
            queue.forget(now)
            queue.refused[owner] = now + REFUSED_FOR, why
            if event.refused is not None:
                event.refused(why)


async def _attempt(action: Awaitable[None], seconds: float) -> str | None:
    """Why it failed, None where it did not. Raises EventsRefused."""
    try:
        async with asyncio.timeout(seconds):
            await action
    except EventsRefused:
        raise
    except TimeoutError as error:
        return str(error) or f"no answer within {seconds:.1f} s"
    except Exception as error:  # whatever a recorder's client can raise: the next recorder is asked
        return str(error) or type(error).__name__
    return None


def _settle(queue: Queue, error: Exception | None) -> None:
    """Tell who waits for it how the round went."""
    outcome, queue.outcome = queue.outcome, None
    if outcome is not None and not outcome.done():
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)
