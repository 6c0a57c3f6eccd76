"""What the pages and the API ask of the index. `recorder.index.Index` has all of it.

Every question comes with a scope and is answered from inside it: counts, facets and pages know nothing of what is
outside. Cursors are opaque; one that was not given out raises ValueError. IndexFailure means that it can't answer now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from k8sproxy.common.tailnet.peer import Peer
from recorder.index.coverage import Coverage
from recorder.index.filters import EventFilter, Filter, LookFilter, Scope
from recorder.index.rows import Bucket, EventRow, Hit, Look, Page, RecordingRow
from recorder.screen import Unseen

Facets = Mapping[str, Sequence[tuple[str, int]]]  # field -> its commonest values with their counts


class Archive(Protocol):
    """The questions."""

    async def coverage(self, scope: Scope) -> Coverage:
        """How much of the store the answers are made of."""

    async def recordings(
        self,
        asked: Filter,
        scope: Scope,
        *,
        limit: int = 50,
        cursor: str | None = None,
        watched: Scope | None = None,
    ) -> Page[RecordingRow]:
        """Newest first, with hits if words were searched; those of running ones only in the scope `watched`."""

    async def hits(self, identifier: str, text: str, scope: Scope) -> Sequence[Hit]:
        """Where words are in one recording. Raises KeyError, also where it is out of scope."""

    async def get(self, identifier: str, scope: Scope) -> RecordingRow:
        """What the index knows of one. Raises KeyError, also where it is out of scope."""

    async def unseen(self, identifier: str, scope: Scope) -> Sequence[Unseen]:
        """What one holds that a terminal does not show. Raises KeyError, also where it is out of scope."""

    async def events(
        self, asked: EventFilter, scope: Scope, *, limit: int = 50, cursor: str | None = None
    ) -> Page[EventRow]:
        """Newest first."""

    async def event(self, identifier: str, scope: Scope) -> EventRow:
        """One, with its document. Raises KeyError, also where it is out of scope."""

    async def related(self, identifier: str, scope: Scope) -> Sequence[EventRow]:
        """Events that belong beside a recording, oldest first. Raises KeyError, also where it is out of scope."""

    async def activity(self, scope: Scope, start: float, end: float, buckets: int) -> Sequence[Bucket]:
        """What began when (unix seconds), in as many equal stretches."""

    async def facets(self, scope: Scope) -> Facets:
        """The values that can be filtered by."""

    async def looks(self, asked: LookFilter, scope: Scope, *, limit: int = 50, cursor: str | None = None) -> Page[Look]:
        """Newest first; looks at a recording or an API event if it is in scope, others if the scope is everything."""

    async def add_look(self, peer: Peer, kind: str, recording: str, at: float, *, detail: str = "") -> Look:
        """Keep that a peer looked, at unix seconds; safe on return."""
