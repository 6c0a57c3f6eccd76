"""What pages and the API do alike: put a question inside the peer's scope, with the look that it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from recorder.access import Access, Action
from recorder.index.coverage import Coverage
from recorder.index.filters import is_unrestricted
from recorder.index.rows import Bucket, EventRow, Hit, Look, Page, RecordingRow
from recorder.model import Recording
from recorder.proof.acts import Act
from recorder.proof.report import Finding
from recorder.retention.holds import Hold
from recorder.screen import Unseen
from recorder.web import kept, queries, values
from recorder.web.archive import Facets
from recorder.web.site import SITE, audit_scope, granted_to

_DAY = 86400.0
MAX_BUCKETS = 366  # a bar for each day of a year


async def find_sessions(request: web.Request, found: Mapping[str, str], limit: int) -> Page[RecordingRow]:
    """The list of sessions; a search for words is a look, and looks into no running session that the peer may not
    watch: word by word, its screen could be guessed. Raises Refusal."""
    site, granted = request.app[SITE], granted_to(request)
    wanted = queries.sessions(found)
    if wanted.text:
        await site.look(granted, "search", detail=wanted.text)
    with queries.reading_cursor():
        return await site.archive.recordings(
            wanted, granted.scope(), limit=limit, cursor=found.get("cursor"), watched=granted.scope(Action.LIVE)
        )


async def find_hits(request: web.Request, recording: Recording, text: str) -> Sequence[Hit]:
    """Where words are in one recording."""
    site, granted = request.app[SITE], granted_to(request)
    if not text or not site.may_read(granted, recording):
        return ()
    try:
        return await site.archive.hits(recording.id, text, granted.scope())
    except KeyError:  # the index has not heard of it yet
        return ()


async def coverage(request: web.Request) -> Coverage:
    """How much of the store the answers are made of. Asked before them: what gets in meanwhile is no fault."""
    return await request.app[SITE].archive.coverage(granted_to(request).scope())


async def covered(request: web.Request) -> dict[str, Any]:
    """The same as the API tells it."""
    counts = is_unrestricted(granted_to(request).scope())
    return values.coverage(await coverage(request), counts=counts)


async def find_row(request: web.Request, recording: Recording) -> RecordingRow | None:
    """What the index knows of a recording, None where it has not heard of it yet."""
    try:
        return await request.app[SITE].archive.get(recording.id, granted_to(request).scope())
    except KeyError:
        return None


async def find_unseen(request: web.Request, recording: Recording) -> Sequence[Unseen]:
    """What it holds that a terminal does not show, for whoever may read it."""
    site, granted = request.app[SITE], granted_to(request)
    if not site.may_read(granted, recording):
        return ()
    try:
        return await site.archive.unseen(recording.id, granted.scope())
    except KeyError:
        return ()


async def find_events(request: web.Request, found: Mapping[str, str], limit: int) -> Page[EventRow]:
    """The list of API events. Raises Refusal."""
    site, granted = request.app[SITE], granted_to(request)
    wanted = queries.events(found)
    with queries.reading_cursor():
        return await site.archive.events(wanted, granted.scope(), limit=limit, cursor=found.get("cursor"))


async def find_event(request: web.Request) -> EventRow:
    """One event, which is a look. Raises Refusal, 404 also for one that is out of scope."""
    site, granted = request.app[SITE], granted_to(request)
    try:
        event = await site.archive.event(request.match_info["id"], granted.scope())
    except KeyError:
        raise queries.missing("event") from None
    await site.look(granted, "event", detail=event.id)
    return event


async def related(request: web.Request, recording: Recording) -> Sequence[EventRow]:
    """Events that belong beside the session, oldest first."""
    site, granted = request.app[SITE], granted_to(request)
    try:
        return await site.archive.related(recording.id, granted.scope())
    except KeyError:
        return ()


async def find_looks(request: web.Request, found: Mapping[str, str], limit: int) -> Page[Look]:
    """The book of looks. Raises Refusal."""
    scope = audit_scope(request)
    with queries.reading_cursor():
        return await request.app[SITE].archive.looks(
            queries.looks(found), scope, limit=limit, cursor=found.get("cursor")
        )


async def told_holds(request: web.Request) -> kept.Told:
    """The holds that the peer may know of. Raises Refusal."""
    site, scope = request.app[SITE], audit_scope(request)
    return await kept.tell(site.keeps, site.store, scope)


async def holds_of(request: web.Request, recording: Recording) -> Sequence[Hold] | None:
    """The holds of one session; None where the peer may not know, or it can't be told."""
    if not granted_to(request).may(recording, Action.AUDIT):
        return None
    return await kept.of(request.app[SITE].keeps, recording)


async def standing_of(request: web.Request, recording: Recording) -> Finding | None:
    """Whether one session is signed; None where that can't be told."""
    return await kept.standing(request.app[SITE].keeps, recording)


async def find_acts(request: web.Request, found: Mapping[str, str], limit: int) -> tuple[Page[Act], Sequence[str]]:
    """The acts, and what is wrong with them. Raises Refusal."""
    before: int | None = None
    if cursor := found.get("cursor"):
        with queries.reading_cursor():
            if not (cursor.isascii() and cursor.isdigit()):
                raise ValueError("not a number")
            before = int(cursor)
    acts, faults = await kept.acts(request.app[SITE].keeps, audit_scope(request), limit=limit + 1, before=before)
    more = len(acts) > limit
    return Page(tuple(acts[:limit]), str(acts[limit - 1].number) if more else None), faults


async def activity(request: web.Request, found: Mapping[str, str]) -> Sequence[Bucket]:
    """What began when; the last two weeks by default, in as many days. Raises Refusal."""
    now = request.app[SITE].clock()
    until = queries.moment(found, "until")
    end = until if until is not None else (now // _DAY + 1) * _DAY
    since = queries.moment(found, "since")
    start = since if since is not None else end - 14 * _DAY
    buckets = queries.count(found, "buckets", 14, MAX_BUCKETS)
    if not start < end:
        raise queries.bad("since must be before until; the default is the last 14 days")
    return await request.app[SITE].archive.activity(granted_to(request).scope(), start, end, buckets)


async def facets(request: web.Request) -> Facets:
    """The values that can be filtered by."""
    return await request.app[SITE].archive.facets(granted_to(request).scope())


async def readable(request: web.Request, *, export: bool = False) -> Recording:
    """The recording of the address, to read what was on its screen. Raises Refusal."""
    site, granted = request.app[SITE], granted_to(request)
    action = Action.EXPORT if export else Action.VIEW
    recording = await site.recording(granted, request.match_info["id"], action)
    if not site.may_read(granted, recording):
        raise queries.forbidden("this session still runs, and your tailnet's policy does not let you watch it live")
    return recording


def rights(granted: Access, recording: Recording | None = None) -> dict[str, bool]:
    """What the peer may do, on one recording or anywhere."""
    return {
        action.value: granted.may(recording, action) if recording is not None else bool(granted.scope(action))
        for action in Action
    }
