"""The pages: each asks what the API asks, and puts the answer into a template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from k8sproxy.common.errors import Refusal
from recorder.access import ANYWHERE, Action
from recorder.index.filters import Filter, LookFilter
from recorder.index.rows import Page
from recorder.model import End
from recorder.proof.acts import Act
from recorder.web import asked, plot, queries
from recorder.web.render import Renderer
from recorder.web.site import ACCESS, SITE, granted_to
from recorder.web.words import visible

RENDERER = web.AppKey("RENDERER", Renderer)

_LATEST = 10  # sessions on the start page
_RUNNING = 20
_BARS = 14  # days on its plot


def _page(
    request: web.Request, name: str, values: Mapping[str, Any], *, status: int = 200, player: bool = False
) -> web.Response:
    granted = request.get(ACCESS)
    common = {
        "peer": granted.peer if granted is not None else None,
        "rights": asked.rights(granted) if granted is not None else {},
        "here": request.path,
        "now": request.app[SITE].clock(),
    }
    return request.app[RENDERER].page(name, {**common, **values}, status=status, player=player)


def refusal_page(request: web.Request, refusal: Refusal) -> web.Response:
    """The page of a refusal: one sentence, and the way back for whoever has one."""
    values = {"status": refusal.status, "message": refusal.message, "cause": refusal.cause}
    response = _page(request, "refusal.html", values, status=refusal.status)
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    return response


async def start(request: web.Request) -> web.Response:
    site, granted = request.app[SITE], granted_to(request)
    scope = granted.scope()
    running = await site.archive.recordings(Filter(state=End.RUNNING), scope, limit=_RUNNING)
    latest = await site.archive.recordings(Filter(), scope, limit=_LATEST)
    buckets = await asked.activity(request, {"buckets": str(_BARS)})
    values = {
        "running": running.items,
        "latest": latest.items,
        "plot": plot.activity(buckets),
        "index": await asked.covered(request),
    }
    return _page(request, "start.html", values)


def _filtered(found: Mapping[str, str]) -> bool:
    """Whether a list is narrowed; its second page is not."""
    return any(name not in queries.PAGE_FIELDS for name in found)


async def sessions(request: web.Request) -> web.Response:
    found = queries.values(request.query, (*queries.QUERY_FIELDS, *queries.PAGE_FIELDS))
    index = await asked.covered(request)
    page = await asked.find_sessions(request, found, queries.limit(found))
    values = {
        "index": index,
        "rows": page.items,
        "cursor": page.cursor,
        "found": found,
        "filtered": _filtered(found),
        "more": any(name not in ("q", *queries.PAGE_FIELDS) for name in found),
        "facets": await asked.facets(request),
        "states": queries.STATES,
    }
    return _page(request, "sessions.html", values)


async def session(request: web.Request) -> web.Response:
    found = queries.values(request.query, ("q", "t"))
    at = queries.number(found, "t") or 0.0
    text = queries.words(found)
    site, granted = request.app[SITE], granted_to(request)
    recording = await site.recording(granted, request.match_info["id"])
    await site.look(granted, "view", recording)
    hits = await asked.find_hits(request, recording, text)
    marks = plot.marks(recording, await asked.related(request, recording))
    looks = None
    if granted.may(recording, Action.AUDIT):
        looks = await site.archive.looks(LookFilter(recording=recording.id), granted.scope(Action.AUDIT), limit=20)
    readable = site.may_read(granted, recording)
    running = recording.end is End.RUNNING
    values = {
        "recording": recording,
        "running": running,
        "readable": readable,
        "unseen": await asked.find_unseen(request, recording),
        "known": await asked.find_row(request, recording),
        "index": await asked.covered(request),
        "at": min(at, recording.duration),
        "text": text,
        "hits": hits,
        "marks": marks,
        "markers": [[hit.time, visible("".join(part for part, _ in hit.snippet), 80)] for hit in hits],
        "may": asked.rights(granted, recording),
        "looks": looks,
        "holds": await asked.holds_of(request, recording),
        "proof": await asked.standing_of(request, recording),
    }
    return _page(request, "session.html", values, player=readable)


async def events(request: web.Request) -> web.Response:
    found = queries.values(request.query, (*queries.EVENT_FIELDS, *queries.PAGE_FIELDS))
    index = await asked.covered(request)
    page = await asked.find_events(request, found, queries.limit(found))
    values = {"index": index, "rows": page.items, "cursor": page.cursor, "found": found, "filtered": _filtered(found)}
    return _page(request, "events.html", values)


async def event(request: web.Request) -> web.Response:
    queries.values(request.query, ())
    return _page(request, "event.html", {"event": await asked.find_event(request)})


async def looks(request: web.Request) -> web.Response:
    found = queries.values(request.query, (*queries.LOOK_FIELDS, *queries.PAGE_FIELDS))
    page = await asked.find_looks(request, found, queries.limit(found))
    values = {
        "rows": page.items,
        "cursor": page.cursor,
        "found": found,
        "filtered": _filtered(found),
        "kinds": queries.KINDS,
    }
    return _page(request, "looks.html", values)


async def holds(request: web.Request) -> web.Response:
    found = queries.values(request.query, queries.PAGE_FIELDS)
    told = await asked.told_holds(request)
    everywhere = ANYWHERE in granted_to(request).scope(Action.AUDIT)
    faults = list(told.faults)
    page: Page[Act] = Page((), None)
    if everywhere:
        page, more = await asked.find_acts(request, found, queries.limit(found))
        faults += [fault for fault in more if fault not in faults]
    values = {
        "holds": told.holds,
        "faults": faults,
        "everywhere": everywhere,
        "rows": page.items,
        "cursor": page.cursor,
        "found": found,
    }
    return _page(request, "holds.html", values)


async def about(request: web.Request) -> web.Response:
    queries.values(request.query, ())
    return _page(request, "about.html", {"granted": granted_to(request), "domain": request.app[SITE].config.domain})


async def asset(request: web.Request) -> web.Response:
    return request.app[RENDERER].asset(request, request.match_info["name"])
