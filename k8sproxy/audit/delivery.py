"""Batches of API events on their way: posted until a recorder takes them, taken apart where one refuses them.

A batch that a recorder refuses for what is in it (EventsRefused) would be refused again and again, and everything
behind it would wait. So it is taken apart: what surrounds the event that is meant goes on its way, and that event is
sent once more without its body, query and User-Agent (`truncated`). Where it is refused again, by a recorder that
answers a probe and has taken events of others, it is given up, and nobody is left in the dark: the log says so, the
request is ended if it runs (RequestEvent.refused), and where the event was enforced its owner's next requests are
refused with the reason for REFUSED_FOR seconds. A recorder that has taken nothing yet, or nothing since events of two
owners were given up, refuses whatever it is sent: that is an outage.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog

from k8sproxy.audit.eventqueue import Parcel, Queue
from k8sproxy.common.longwork import LONG, LongWork
from k8sproxy.recording.upload import EventsRefused

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
# Seconds for one batch, for one probe.
POST_TIMEOUT = 10.0
PROBE_TIMEOUT = 2.0
# Seconds for which requests are refused whose owner had an event that a recorder takes in no form.
REFUSED_FOR = 30.0
# Owners whose events are given up before a recorder has to take one again.
_MOST_DOUBTED = 2
# Rounds over all recorders before events that are not enforced are dropped, and seconds between rounds.
ATTEMPTS = 3
RETRY_FIRST, RETRY_LAST = 0.2, 5.0

_log = structlog.get_logger("k8sproxy")


class Delivery:
    """What drains the queues. post, probe, longwork: ApiEvents's. closing: nothing waits for company any more. sent,
    failed, refused: events so far (ApiEvents)."""

    def __init__(
        self,
        post: Callable[[str, Sequence[bytes]], Awaitable[None]],
        probe: Callable[[str], Awaitable[None]],
        longwork: LongWork,
        *,
        batch: int = BATCH,
        batch_delay: float = BATCH_DELAY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.closing = False
        self.sent = 0
        self.failed = 0
        self.refused = 0
        self._post = post
        self._probe = probe
        self._longwork = longwork
        self._batch = batch
        self._delay = batch_delay
        self._clock = clock
        self._id_prefix = os.urandom(8).hex()
        self._id = 0

    async def drain(self, queue: Queue) -> None:
        """Deliver what is in a queue, until there is nothing."""
        try:
            while queue.events:
                if len(queue.events) < self._batch and not self.closing:
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
                    why = await attempt(self._post(address, [parcel.document for parcel in batch]), POST_TIMEOUT)
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
                    async with asyncio.timeout(RETRY_FIRST if self.closing else pause):
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
        self.answered(queue, place)

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
            if await attempt(self._probe(address), PROBE_TIMEOUT) is None:
                self.answered(queue, place)
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

    def answered(self, queue: Queue, place: int) -> None:
        """One of the queue's recorders lives: it has just answered."""
        queue.address = place
        queue.live_until = self._clock() + LIVE_FOR
        queue.error = None
        queue.stuck = False
        queue.wake.set()
        _settle(queue, None)


async def attempt(action: Awaitable[None], seconds: float) -> str | None:
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
