"""A store in memory, and recordings to put there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from recorder.index import Index
from recorder.model import ApiEvent, End, Observer, Recording, Source, UnreadableError, id_day, new_id

START = 1_800_000_000.0
SENDER = Source("proxy", "100.64.0.9", tags=("tag:k8sproxy",))
_numbers = count()


@dataclass(frozen=True)
class Place:
    """As recorder.access has it."""

    users: tuple[str, ...] | None = None
    clusters: tuple[str, ...] | None = None
    namespaces: tuple[str, ...] | None = None
    owner: str | None = None
    owner_node: str | None = None


ALL = (Place(),)


def recording(
    user: str = "ann@example.com",
    *,
    node: str = "laptop",
    tags: Sequence[str] = (),
    cluster: str = "prod",
    namespace: str = "shop",
    pod: str = "web-0",
    container: str = "app",
    command: str = "bash",
    session_type: str = "exec",
    session_id: str = "",
    started: float | None = None,
    **more: Any,
) -> Recording:
    """A recording that is over unless `end` says else; each one later than the one before."""
    started = START + next(_numbers) if started is None else started
    header: dict[str, Any] = {
        "version": 2,
        "width": 80,
        "height": 24,
        "command": command,
        "srcNode": f"{node}.",
        "kubernetes": {
            "PodName": pod,
            "Namespace": namespace,
            "Container": container,
            "SessionType": session_type,
            "Cluster": cluster,
        },
        "impersonation": {"user": user, "groups": ["devs"]},
        "sessionID": session_id,
    }
    header |= {"srcNodeTags": list(tags)} if tags else {"srcNodeUser": user}
    state: dict[str, Any] = {"ended": started + 10, "end": End.CLEAN, "duration": 10.0, "size": 100, "events": 1} | more
    return Recording(new_id(started), header, SENDER, started, **state)


def event(document: dict[str, Any], received: float | None = None) -> ApiEvent:
    received = START + next(_numbers) if received is None else received
    return ApiEvent(new_id(received), received, SENDER, document)


def api_event(
    user: str = "ann@example.com",
    *,
    node: str = "laptop",
    tags: Sequence[str] = (),
    cluster: str = "prod",
    verb: str = "get",
    namespace: str = "shop",
    resource: str = "pods",
    name: str = "web-0",
    session_id: str = "",
    received: float | None = None,
) -> ApiEvent:
    path = f"/api/v1/namespaces/{namespace}/{resource}/{name}"
    source: dict[str, Any] = {"node": f"{node}."} | ({"nodeTags": list(tags)} if tags else {"nodeUser": user})
    document = {
        "type": "kubernetes-api-request",
        "userAgent": "kubectl",
        "request": {"method": "GET", "path": path},
        "kubernetes": {
            "Verb": verb,
            "Resource": resource,
            "Namespace": namespace,
            "Name": name,
            "Path": path,
            "Cluster": cluster,
        },
        "source": source,
        "impersonation": {"user": user},
        "sessionID": session_id,
    }
    return event(document, received)


class Library:
    """A store, as far as an index reads it; what is changed is told to the observers."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = list(observers)
        self.kept: dict[str, Recording] = {}
        self.casts: dict[str, bytes] = {}
        self.told: list[ApiEvent] = []
        self.reads: list[str] = []
        self.arriving = 0.0
        self.unreadable: set[str] = set()

    def put(self, kept: Recording, *lines: tuple[float, str]) -> Recording:
        """Add it or change it; without lines its cast stays what it was."""
        new = kept.id not in self.kept
        if lines or new:
            events = [json.dumps([time, "o", f"{line}\r\n"]) for time, line in lines]
            self.casts[kept.id] = "".join(f"{line}\n" for line in [json.dumps(dict(kept.header)), *events]).encode()
        kept = replace(kept, size=len(self.casts[kept.id]))
        self.kept[kept.id] = kept
        for observer in self.observers:
            if kept.end is not End.RUNNING:
                observer.ended(kept)
            elif new:
                observer.began(kept)
            else:
                observer.progressed(kept)
        return kept

    def tell(self, told: ApiEvent) -> ApiEvent:
        self.told.append(told)
        for observer in self.observers:
            observer.event_added(told)
        return told

    def remove(self, identifier: str) -> None:
        del self.kept[identifier], self.casts[identifier]
        for observer in self.observers:
            observer.removed(identifier)

    def remove_events(self, day: str) -> None:
        self.told = [told for told in self.told if id_day(told.id) != day]
        for observer in self.observers:
            observer.removed(f"events {day}")

    async def get(self, identifier: str) -> Recording:
        await asyncio.sleep(0)
        if identifier in self.unreadable:
            raise UnreadableError(identifier)
        return self.kept[identifier]

    async def identifiers(self) -> AsyncGenerator[str, None]:
        for identifier in [*self.kept, *self.unreadable]:
            await asyncio.sleep(0)
            yield identifier

    async def recordings(self) -> AsyncGenerator[Recording, None]:
        for identifier in sorted(self.kept, reverse=True):
            await asyncio.sleep(0)
            yield self.kept[identifier]

    async def cast(
        self, identifier: str, *, start: float = 0.0, end: float | None = None
    ) -> AsyncGenerator[bytes, None]:
        cast = self.casts[identifier]
        self.reads.append(identifier)
        for at in range(0, len(cast), 1000):
            await asyncio.sleep(0)
            yield cast[at : at + 1000]

    async def events(self) -> AsyncGenerator[ApiEvent, None]:
        for told in list(self.told):
            await asyncio.sleep(0)
            yield told

    async def event_days(self) -> set[str]:
        return {id_day(told.id) for told in self.told}


@asynccontextmanager
async def opened(url: str, library: Library | None = None, **options: Any) -> AsyncIterator[tuple[Index, Library]]:
    """An index that watches a store, closed at the end with nothing left behind."""
    before = asyncio.all_tasks()
    index = Index(url, **options)
    await index.open()
    try:
        library = library if library is not None else Library()
        library.observers.append(index)
        index.watch(library)
        try:
            yield index, library
        finally:
            library.observers.remove(index)
    finally:
        await index.aclose()
    assert asyncio.all_tasks() == before
