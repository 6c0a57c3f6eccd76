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

What becomes of a batch, and of an event that every recorder refuses, is delivery's.

Not enforced: events that no recorder takes are dropped and counted, after ATTEMPTS rounds.

A queue is bounded in events, in the bytes of their bodies and in those of long request lines, and one owner may have a
quarter of each (shares). An enforced request for which there is no room is not admitted; for others the event goes
without its body or query, marked as truncated, or is dropped. Owners take turns in being told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from k8sproxy.audit.delivery import BATCH, BATCH_DELAY, PROBE_TIMEOUT, Delivery, attempt
from k8sproxy.audit.eventqueue import NoEventRecorder, Queue
from k8sproxy.audit.requestevent import RequestEvent
from k8sproxy.audit.shares import NO_WEIGHT, Weight
from k8sproxy.common.longwork import LongWork
from k8sproxy.common.tasks import Tasks, left_to_waiter

# Events in one queue: some 10 s of a busy proxy, a few KiB each without bodies.
QUEUE = 10_000
# Bytes of bodies in one queue. Bodies are mostly a few KiB; 64 KiB each would be 640 MiB.
QUEUE_BYTES = 32 * 1024 * 1024
# Bytes of long lines in one queue: a query may have as many as a head, 64 KiB, and comes without any body.
LINE_BYTES = 32 * 1024 * 1024
# Seconds for all probes of a request that waits.
REVIVE_TIMEOUT = 5.0
# Seconds for which a failed revival is the answer to those who ask again.
_STILL_DEAD = 1.0
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
        self.limit = queue
        self._bytes_limit = queue_bytes
        self._clock = clock
        self._probe = probe
        self._delivery = Delivery(post, probe, self._longwork, batch=batch, batch_delay=batch_delay, clock=clock)
        self._tasks = Tasks()
        self._queues: dict[tuple[str, ...], Queue] = {}
        self._closing = False
        self.dropped = 0
        self.lost = 0

    @property
    def sent(self) -> int:
        return self._delivery.sent

    @property
    def failed(self) -> int:
        return self._delivery.failed

    @property
    def refused(self) -> int:
        return self._delivery.refused

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
            queue.task = self._tasks.start(self._delivery.drain(queue), "api events")

    async def aclose(self, seconds: float = CLOSE_TIMEOUT) -> None:
        """Send what is queued, for so many seconds at most; what is left is counted as lost."""
        self._closing = self._delivery.closing = True
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
                why = await attempt(self._probe(address), min(PROBE_TIMEOUT, left))
                if why is None and queue.stuck:
                    # Answers to probes are not enough of one that has just refused events: let it take those first.
                    queue.outcome = asyncio.get_running_loop().create_future()
                    queue.wake.set()
                    why = await attempt(queue.outcome, deadline - asyncio.get_running_loop().time())
                    if why is None:
                        return
                elif why is None:
                    self._delivery.answered(queue, place)
                    return
                attempts.append((address, why))
            queue.error = NoEventRecorder(attempts)
            queue.dead_until = self._clock() + _STILL_DEAD
            raise queue.error
        finally:
            queue.reviving = None
