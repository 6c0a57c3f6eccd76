"""The events for one list of recorders: what waits, what it takes up, and what is known of them (apievents)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from k8sproxy.audit.requestevent import RequestEvent
from k8sproxy.audit.shares import Pot, Rows, Weight


class NoEventRecorder(Exception):
    """No recorder of a list can take events. attempts: each address with why it failed."""

    def __init__(self, attempts: Sequence[tuple[str, str]]) -> None:
        attempts = [(address, _without(address, why)) for address, why in attempts]
        self.attempts = tuple(attempts)
        super().__init__("; ".join(f"{address}: {why}" for address, why in attempts) or "none has an address")


def _without(address: str, why: str) -> str:
    """A reason without the address that it begins with: who dials says it, and who posts says it again."""
    while why.startswith(f"{address}: "):
        why = why.removeprefix(f"{address}: ")
    return why


@dataclass(slots=True, eq=False)
class Parcel:
    """An event on its way. stripped: without all that a client can fill as it likes."""

    event: RequestEvent
    id: str
    enforced: bool
    document: bytes
    stripped: bool = False


class Queue:
    """Events for one list of recorders."""

    __slots__ = (
        *(
            "address",
            "bytes",
            "dead_until",
            "error",
            "events",
            "inflight",
            "lines",
            "live_until",
            "owners",
            "recorders",
            "reserved",
        ),
        *("doubted", "outcome", "refused", "reviving", "stuck", "taken", "task", "wake"),
    )

    def __init__(self, recorders: tuple[str, ...], limit: int, bytes_limit: int, lines_limit: int) -> None:
        self.recorders = recorders
        self.address = 0  # index of the recorder that answered last
        self.events: Rows[tuple[RequestEvent, bool]] = Rows()  # with whether it is enforced
        self.owners = Pot(limit)  # events in events, and reserved, by owner
        self.bytes = Pot(bytes_limit)  # of the bodies in events, and reserved
        self.lines = Pot(lines_limit)  # and of their lines, as far as those are long
        self.inflight = 0  # events taken out to be sent
        self.reserved = 0  # places of admitted requests whose event has not come
        self.live_until = float("-inf")
        self.dead_until = float("-inf")
        self.error: NoEventRecorder | None = None
        self.task: asyncio.Task[None] | None = None
        self.reviving: asyncio.Task[None] | None = None
        self.stuck = False  # the batch in flight has been refused by all
        self.outcome: asyncio.Future[None] | None = None  # how its next round went, for who revives
        self.taken = False  # whether a recorder has taken any event
        self.doubted: set[str] = set()  # owners of events that were given up since
        self.refused: dict[str, tuple[float, str]] = {}  # owners whose requests are refused: until when, and why
        self.wake = asyncio.Event()  # a recorder has come back, or the end has come

    @property
    def size(self) -> int:
        return len(self.events) + self.inflight + self.reserved

    @property
    def in_use(self) -> bool:
        return bool(self.events or self.inflight or self.reserved or self.task or self.reviving)

    def refuses_somebody(self, now: float) -> bool:
        """Whether there is anybody whose requests are refused."""
        self.forget(now)
        return bool(self.refused)

    def forget(self, now: float) -> None:
        """Those whose requests are not refused any more."""
        self.refused = {owner: entry for owner, entry in self.refused.items() if entry[0] > now}

    def has_share(self, weight: Weight) -> bool:
        """Whether there is room for one more event of its owner's, with its body and line."""
        owner = weight.owner
        return (
            (not owner or self.owners.fits(owner, 1))
            and self.bytes.fits(owner, weight.body)
            and self.lines.fits(owner, weight.line)
        )

    def put(self, weight: Weight) -> None:
        """Count an event, or a place for one."""
        self.owners.add(weight.owner, 1)
        self.bytes.add(weight.owner, weight.body)
        self.lines.add(weight.owner, weight.line)

    def take(self, weight: Weight) -> None:
        """Count it no more."""
        self.owners.give(weight.owner, 1)
        self.bytes.give(weight.owner, weight.body)
        self.lines.give(weight.owner, weight.line)

    def order(self) -> list[tuple[int, str]]:
        """The recorders with their places in the list, the one that answered last in front."""
        places = list(enumerate(self.recorders))
        return places[self.address : self.address + 1] + places[: self.address] + places[self.address + 1 :]
