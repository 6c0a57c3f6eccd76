"""The JSON API: the handlers, and the table in which each stands with its description."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import structlog
from aiohttp import web

from k8sproxy.common.errors import Refusal
from recorder.access import Action
from recorder.model import End, Recording
from recorder.web import asked, exports, live, openapi, queries, values, windows
from recorder.web.routes import Parameter, Route
from recorder.web.site import SITE, granted_to

# Bytes in one write: a cast's lines are short, and each write is a system call and a chunk's frame.
_PIECE = 64 * 1024

_log = structlog.get_logger(__name__)


def answer(document: Any, *, status: int = 200, content_type: str = "application/json") -> web.Response:
    """An answer with JSON text; ASCII, so that no recorded character is ever a raw one."""
    try:
        text = json.dumps(document, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(document), allow_nan=False)
    return web.Response(body=text.encode() + b"\n", status=status, content_type=content_type)


def _finite(value: Any) -> Any:
    """JSON values without the NaN and Infinity that Python reads from a sender's text, and JSON has not. By way of
    text, for a sender's values may be nested deeper than calls here can be."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def problem(refusal: Refusal) -> web.Response:
    """The answer of a refusal (RFC 9457). cause: a word for programs."""
    document = {
        "type": "about:blank",
        "title": web.Response(status=refusal.status).reason,
        "status": refusal.status,
        "detail": refusal.message,
        "cause": refusal.cause,
    }
    response = answer(document, status=refusal.status, content_type="application/problem+json")
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    return response


async def stream(
    request: web.Request, pieces: AsyncIterator[bytes], headers: dict[str, str], still: live.Still | None = None
) -> web.StreamResponse:
    """An answer in pieces. Where it can't go on, the connection is cut, so that nobody takes a part for the whole; so
    also when `still`, asked every live.RECHECK, says that the peer may have it no longer."""
    response = web.StreamResponse(headers=headers)
    if request.method == "HEAD":
        await response.prepare(request)
        return response
    # What fails before the first byte is still answered with a status.
    held = await anext(pieces, b"")
    await response.prepare(request)
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    try:
        async for piece in pieces:
            held += piece
            if len(held) >= _PIECE:
                await response.write(held)
                held = b""
                if still is not None and loop.time() >= asked_at + live.RECHECK:
                    if not await still():
                        raise live.Withdrawn
                    asked_at = loop.time()
        await response.write(held)
        await response.write_eof()
    except (ConnectionError, TimeoutError, live.Withdrawn):
        cut(request)  # nobody is there any more, or nobody who may have it
    except Exception:
        _log.exception("stream_failed", path=request.path)
        cut(request)
    return response


def cut(request: web.Request) -> None:
    """End a connection in the middle of an answer."""
    if request.transport is not None:
        request.transport.abort()


async def openapi_document(request: web.Request) -> web.Response:
    return answer(openapi.document(ROUTES, request.app[SITE].config.title))


async def whoami(request: web.Request) -> web.Response:
    granted = granted_to(request)
    return answer(values.whoami(granted, asked.rights(granted)))


async def sessions(request: web.Request) -> web.Response:
    found = queries.values(request.query, (*queries.QUERY_FIELDS, *queries.PAGE_FIELDS))
    index = await asked.covered(request)
    page = await asked.find_sessions(request, found, queries.limit(found))
    return answer({"items": [values.row(row) for row in page.items], "cursor": page.cursor, "index": index})


async def session(request: web.Request) -> web.Response:
    found = queries.values(request.query, ("q",))
    wanted = queries.words(found)
    site, granted = request.app[SITE], granted_to(request)
    recording = await site.recording(granted, request.match_info["id"])
    await site.look(granted, "view", recording)
    hits = await asked.find_hits(request, recording, wanted)
    held = await asked.holds_of(request, recording)
    return answer(
        values.session(recording)
        | values.text(await asked.find_row(request, recording))
        | {
            "header": values.header(recording.header),
            "hits": values.hits(hits),
            "rights": asked.rights(granted, recording),
            "holds": None if held is None else [values.hold(hold) for hold in held],
            "proof": values.proof(await asked.standing_of(request, recording)),
            "index": await asked.covered(request),
        }
    )


async def window(request: web.Request) -> web.StreamResponse:
    found = queries.values(request.query, ("at", "from"))
    if len(found) > 1:
        raise queries.bad("the query may have either at or from, not both")
    recording = await asked.readable(request)
    site = request.app[SITE]
    kind = "live" if recording.end is End.RUNNING else "view"
    await site.look(granted_to(request), kind, recording)
    if "from" in found:
        try:
            position = windows.Position.of(found["from"])
        except ValueError as error:
            raise queries.bad(f"from is {error}") from None
        pieces = windows.onward(site.store, recording, position)
    else:
        pieces = windows.around(site.store, recording, queries.number(found, "at") or 0.0)
    async with aclosing(pieces):
        return await stream(request, pieces, {"Content-Type": "application/x-ndjson"})


async def cast(request: web.Request) -> web.StreamResponse:
    found = queries.values(request.query, ("start", "end"))
    start, end = queries.number(found, "start") or 0.0, queries.number(found, "end")
    recording = await _exported(request, "cast")
    async with aclosing(request.app[SITE].store.cast(recording.id, start=start, end=end)) as pieces:
        headers = _attachment(recording, "cast", "application/x-asciicast")
        return await stream(request, pieces, headers, _still(request, recording, Action.EXPORT))


async def text(request: web.Request) -> web.StreamResponse:
    recording = await _exported(request, "text")
    async with aclosing(request.app[SITE].store.cast(recording.id)) as pieces:
        headers = _attachment(recording, "txt", "text/plain; charset=utf-8")
        return await stream(request, exports.text(pieces), headers, _still(request, recording, Action.EXPORT))


async def document(request: web.Request) -> web.StreamResponse:
    recording = await _exported(request, "json")
    async with aclosing(request.app[SITE].store.cast(recording.id)) as pieces:
        made = exports.document(values.session(recording), pieces)
        headers = _attachment(recording, "json", "application/json")
        return await stream(request, made, headers, _still(request, recording, Action.EXPORT))


async def watch(request: web.Request) -> web.StreamResponse:
    site, granted = request.app[SITE], granted_to(request)
    recording = await site.recording(granted, request.match_info["id"], Action.LIVE)
    await site.look(granted, "live", recording)

    still = _still(request, recording, Action.LIVE)
    as_lines = "application/x-ndjson" in request.headers.get("Accept", "")
    response = web.StreamResponse(
        headers={"Content-Type": "application/x-ndjson" if as_lines else "text/event-stream", "X-Accel-Buffering": "no"}
    )
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    try:
        async with (
            aclosing(live.watched(site.store, recording)) as pieces,
            aclosing(live.told(pieces, still, beat=live.KEEP_ALIVE, recheck=live.RECHECK)) as told,
        ):
            async for piece in told if as_lines else live.messages(told):
                if piece:
                    async with asyncio.timeout(live.TAKE):
                        await response.write(piece)
        await response.write_eof()
    except (ConnectionError, TimeoutError, live.Withdrawn):
        cut(request)
    except Exception:
        _log.exception("watch_failed", recording=recording.id)
        cut(request)
    return response


async def unseen(request: web.Request) -> web.Response:
    queries.values(request.query, ())
    recording = await asked.readable(request)
    await request.app[SITE].look(granted_to(request), "view", recording)
    row = await asked.find_row(request, recording)
    found = await asked.find_unseen(request, recording)
    return answer({"items": values.unseen(found), "complete": row is not None and row.searchable})


async def session_events(request: web.Request) -> web.Response:
    queries.values(request.query, ())
    site, granted = request.app[SITE], granted_to(request)
    recording = await site.recording(granted, request.match_info["id"])
    await site.look(granted, "view", recording)
    index = await asked.covered(request)
    found = await asked.related(request, recording)
    return answer({"items": [values.event(event) for event in found], "index": index})


async def events(request: web.Request) -> web.Response:
    found = queries.values(request.query, (*queries.EVENT_FIELDS, *queries.PAGE_FIELDS))
    index = await asked.covered(request)
    page = await asked.find_events(request, found, queries.limit(found))
    return answer({"items": [values.event(event) for event in page.items], "cursor": page.cursor, "index": index})


async def event(request: web.Request) -> web.Response:
    queries.values(request.query, ())
    return answer(values.event(await asked.find_event(request), document=True))


async def activity(request: web.Request) -> web.Response:
    found = queries.values(request.query, ("since", "until", "buckets"))
    index = await asked.covered(request)
    buckets = await asked.activity(request, found)
    return answer({"items": [values.bucket(bucket) for bucket in buckets], "index": index})


async def facets(request: web.Request) -> web.Response:
    queries.values(request.query, ())
    index = await asked.covered(request)
    found = await asked.facets(request)
    return answer(
        {
            "items": {
                name: [{"value": value, "count": count} for value, count in commonest]
                for name, commonest in found.items()
            },
            "index": index,
        }
    )


async def looks(request: web.Request) -> web.Response:
    found = queries.values(request.query, (*queries.LOOK_FIELDS, *queries.PAGE_FIELDS))
    page = await asked.find_looks(request, found, queries.limit(found))
    return answer({"items": [values.look(look) for look in page.items], "cursor": page.cursor})


async def holds(request: web.Request) -> web.Response:
    queries.values(request.query, ())
    told = await asked.told_holds(request)
    return answer({"items": [values.hold(hold) for hold in told.holds], "faults": list(told.faults)})


async def acts(request: web.Request) -> web.Response:
    found = queries.values(request.query, queries.PAGE_FIELDS)
    page, faults = await asked.find_acts(request, found, queries.limit(found))
    return answer({"items": [values.act(act) for act in page.items], "cursor": page.cursor, "faults": list(faults)})


async def _exported(request: web.Request, form: str) -> Recording:
    recording = await asked.readable(request, export=True)
    # Each download is written down by itself; a HEAD takes nothing away, but it is asked by whoever is about to.
    await request.app[SITE].look(granted_to(request), "export", recording, form, join=False)
    return recording


def _still(request: web.Request, recording: Recording, action: Action) -> live.Still:
    """Asks whether what the peer was let do at the beginning of a long answer is still allowed."""

    async def still() -> bool:
        try:
            return (await request.app[SITE].access(request)).may(recording, action)
        except Refusal:
            return False

    return still


def _attachment(recording: Recording, ending: str, content_type: str) -> dict[str, str]:
    return {"Content-Type": content_type, "Content-Disposition": f'attachment; filename="{recording.id}.{ending}"'}


_NUMBER = {"type": "number", "minimum": 0, "maximum": queries.MAX_NUMBER}
_TIME = "RFC 3339, a day, a minute (UTC) or unix seconds"
_MINUTE = "^[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[T ]([01][0-9]|2[0-3]):[0-5][0-9]$"
# What forms send for a field that was left empty is taken as if it was not there.
_MOMENT = {
    "anyOf": [
        {"type": "string", "format": "date-time"},
        {"type": "string", "format": "date"},
        {"type": "string", "pattern": _MINUTE},
        {"type": "number", "minimum": 0, "maximum": queries.MAX_MOMENT},
        {"type": "string", "maxLength": 0},
    ]
}
_PAGE = (
    Parameter("limit", "rows", {"type": "integer", "minimum": 1, "maximum": queries.MAX_LIMIT}),
    Parameter("cursor", "the cursor that the answer before gave", {"type": "string", "pattern": "^[0-9]{0,18}$"}),
)
_PERIOD = (
    Parameter("since", f"not before; {_TIME}", _MOMENT),
    Parameter("until", f"before; {_TIME}", _MOMENT),
)


def _texts(names: Sequence[str]) -> list[Parameter]:
    return [
        Parameter(name, f"the {name.replace('_', ' ')}; * stands for any characters")
        for name in names
        if name not in ("q", "type", "state", "since", "until", "min_duration", "kind", "session", "command")
    ]


def _route(path: str, name: str, summary: str, handler: Callable[..., Any], schema: str, *more: Any) -> Route:
    parameters, refusals = (*more, (), ())[:2] if more else ((), ())
    return Route(path, name, summary, handler, {"application/json": openapi.ref(schema)}, parameters, refusals)


_SESSION_FILTER = (
    Parameter(
        "q",
        "words that were on the screen or in the command; all of them must be there, quotes make a phrase; at most 16",
    ),
    *_texts(queries.QUERY_FIELDS),
    Parameter("command", "a part of the command line"),
    Parameter("type", "exec, attach or ssh"),
    Parameter("state", "running, clean or cut", {"type": "string", "enum": list(queries.STATES)}),
    *_PERIOD,
    Parameter("min_duration", "seconds", _NUMBER),
)
_LOOK_FILTER = (
    Parameter("user", "the user who looked"),
    Parameter("kind", "the kind of look", {"type": "string", "enum": list(queries.KINDS)}),
    Parameter("session", "the id of the session or event that was looked at"),
    *_PERIOD,
)
_TEXT = {"type": "string"}
_RANGE = (
    Parameter("start", "seconds; the answer has whole stored pieces, so it may begin earlier", _NUMBER),
    Parameter("end", "seconds; it may end later", _NUMBER),
)

ROUTES: tuple[Route, ...] = (
    _route("/openapi.json", "openapi", "This description", openapi_document, "Document"),
    _route("/whoami", "whoami", "The caller, and what they may do", whoami, "Whoami"),
    _route("/sessions", "sessions", "Sessions, newest first", sessions, "Sessions", (*_SESSION_FILTER, *_PAGE)),
    _route(
        "/sessions/{id}", "session", "One session", session, "SessionDetail", (Parameter("q", "words to find"),), (404,)
    ),
    Route(
        "/sessions/{id}/window",
        "window",
        "A part of a session's cast: header, events, and a line with the position of the next part",
        window,
        {"application/x-ndjson": _TEXT},
        (
            Parameter("at", "seconds; the answer begins before that moment; default: the beginning", _NUMBER),
            Parameter(
                "from",
                "the position that the part before gave; not together with at",
                {"type": "string", "pattern": f"^$|{windows.POSITION}"},
            ),
        ),
        (404,),
    ),
    Route(
        "/sessions/{id}/cast",
        "cast",
        "Download as asciicast v2",
        cast,
        {"application/x-asciicast": _TEXT},
        _RANGE,
        (404,),
    ),
    Route("/sessions/{id}/text", "text", "Download as plain text", text, {"text/plain": _TEXT}, (), (404,)),
    _route("/sessions/{id}/json", "json", "Download as one JSON document", document, "Export", (), (404,)),
    Route(
        "/sessions/{id}/live",
        "live",
        "Watch a session while it runs",
        watch,
        # No type: some read it as that of the whole stream, some as that of one message.
        {"text/event-stream": {"description": "messages of cast lines"}, "application/x-ndjson": _TEXT},
        (),
        (404,),
    ),
    _route(
        "/sessions/{id}/unseen",
        "unseen",
        "Output that a terminal does not show, in order of time",
        unseen,
        "UnseenList",
        (),
        (404,),
    ),
    _route(
        "/sessions/{id}/events", "sessionEvents", "API events around a session", session_events, "EventList", (), (404,)
    ),
    _route(
        "/events",
        "events",
        "API events, newest first",
        events,
        "Events",
        (*_texts(queries.EVENT_FIELDS), *_PERIOD, *_PAGE),
    ),
    _route("/events/{id}", "event", "One API event as it was sent", event, "EventDetail", (), (404,)),
    _route(
        "/activity",
        "activity",
        "How many sessions and events began, by time",
        activity,
        "Activity",
        (*_PERIOD, Parameter("buckets", "stretches", {"type": "integer", "minimum": 1, "maximum": asked.MAX_BUCKETS})),
    ),
    _route("/facets", "facets", "The values that can be filtered by", facets, "Facets"),
    _route(
        "/looks", "looks", "Who looked at which session or event, newest first", looks, "Looks", (*_LOOK_FILTER, *_PAGE)
    ),
    _route("/holds", "holds", "The holds: what must not be removed, and who placed them", holds, "Holds"),
    _route("/acts", "acts", "Holds, releases, removals and reversals as signed, newest first", acts, "Acts", _PAGE),
)
