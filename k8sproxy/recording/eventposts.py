"""API events on their way to a recorder: requests on kept connections, in batches as large as the recorder takes.

A request that met a dead connection is sent again on a new one, so a recorder may see an event twice.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.formats.recorderapi import EVENT_BATCH_FIELD, read_event_batch
from k8sproxy.recording.carriers.errors import ConnectionLost, Rejected
from k8sproxy.recording.carriers.http1 import EventConnection, field_of
from k8sproxy.recording.known import Known
from k8sproxy.recording.limits import Limits
from k8sproxy.recording.upload import EventsRefused, UploadError

# Bytes of one request with many events: with 16 of them in flight a recorder holds what it holds of a session.
_MAX_BATCH_BYTES = 1 << 20
# Of the answers 400 to 499 those that say "not you" or "not now", whatever the events are.
_NOT_OF_EVENTS = frozenset((401, 407, 408, 425, 429))

# A request's body, and how many events are in it.
Batch = tuple[bytes, int]


def batches(bodies: Sequence[bytes], most: int) -> list[Batch]:
    """Request bodies for these events: themselves, or JSON arrays of up to `most` where that is not 0."""
    if most < 2 or len(bodies) < 2:
        return [(body, 1) for body in bodies]
    made: list[Batch] = []
    part: list[bytes] = []
    size = 0
    for body in bodies:
        if part and (len(part) >= most or size + len(body) > _MAX_BATCH_BYTES):
            made.append((b"[" + b",".join(part) + b"]", len(part)))
            part, size = [], 0
        part.append(body)
        size += len(body)
    made.append((b"[" + b",".join(part) + b"]", len(part)))
    return made


class EventPosts:
    """All recorders' events. known: gives what is known of an address, or raises ProtocolError. dialled: makes a
    connected socket, or raises ConnectionLost. closed: no connection is kept any more."""

    __slots__ = ("_dialled", "_known", "_limits", "closed")

    def __init__(
        self, known: Callable[[str], Known], dialled: Callable[[Known], Awaitable[socket.socket]], limits: Limits
    ) -> None:
        self.closed = False
        self._known = known
        self._dialled = dialled
        self._limits = limits

    async def exchange(self, address: str, bodies: Sequence[bytes]) -> None:
        """Post these, or ask without any how many may be posted at once. Raises UploadError; EventsRefused."""
        try:
            recorder = self._known(address)
        except ProtocolError as error:
            raise UploadError(f"{address}: {error.message}") from None
        try:
            requests: Sequence[Batch] | None = None
            taken = 0  # events
            while True:
                posting = False
                events = await self._events(recorder)
                kept = not events.fresh
                try:
                    async with asyncio.timeout(self._limits.ack_timeout):
                        if recorder.event_batch is None or not bodies:
                            head = (await events.exchange("HEAD", (b"",)))[0]
                            recorder.event_batch = read_event_batch(field_of(head, EVENT_BATCH_FIELD))
                        if requests is None:
                            requests = batches(bodies, recorder.event_batch)
                        if requests:
                            if not events.usable:  # closed by the recorder, as it may
                                events = await self._events(recorder)
                            posting = True
                            await events.exchange("POST", [body for body, _ in requests])
                    break
                except ConnectionLost:
                    if not kept:
                        raise
                    if requests is not None:
                        taken += sum(size for _, size in requests[: events.answered])
                        requests = requests[events.answered :]
                except Rejected as error:
                    if (
                        requests is None
                        or not posting
                        or not 400 <= events.refused < 500
                        or events.refused in _NOT_OF_EVENTS
                    ):
                        raise
                    taken += sum(size for _, size in requests[: events.answered])
                    raise EventsRefused(f"{address}: {error}", taken, requests[events.answered][1]) from None
        except (ConnectionLost, Rejected) as error:
            recorder.event_batch = None
            raise UploadError(f"{address}: {error}") from None
        except TimeoutError:
            recorder.event_batch = None
            raise UploadError(f"{address}: did not answer within {self._limits.ack_timeout:g} s") from None
        if events.usable and not self.closed:
            recorder.events.append(events)
        else:
            events.close()

    async def _events(self, recorder: Known) -> EventConnection:
        while recorder.events:
            events = recorder.events.pop()
            if events.usable:
                return events
        sock = await self._dialled(recorder)

        def lost(events: EventConnection) -> None:
            if events in recorder.events:
                recorder.events.remove(events)

        return EventConnection(sock, recorder.address, lost)
