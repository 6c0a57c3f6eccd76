"""The OpenAPI 3.1 description, made of the table of routes and the schemas below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recorder.proof.report import SIGNED
from recorder.web.routes import BASE, Route, Schema

_STRING: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SWITCH: Schema = {"type": "boolean"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_STRINGS: Schema = {"type": "array", "items": _STRING}
_ANY: Schema = {"type": "object"}
_CURSOR: Schema = {"type": ["string", "null"], "description": "gives the next part; null on the last"}


def ref(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: Schema) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list(name: str, *, cursor: bool = True, index: bool = True) -> dict[str, Any]:
    fields: dict[str, Schema] = {"items": {"type": "array", "items": ref(name)}}
    if cursor:
        fields["cursor"] = _CURSOR
    if index:
        fields["index"] = ref("Coverage")
    return _object(**fields)


def _extended(base: dict[str, Any], **properties: Schema) -> dict[str, Any]:
    return _object(**base["properties"], **properties)


_SESSION = _object(
    id={"type": "string", "pattern": "^[0-7][0-9A-HJKMNP-TV-Z]{25}$"},
    state={
        "type": "string",
        "enum": ["running", "clean", "cut"],
        "description": "cut: the recording stopped before the session's end",
    },
    started=_TIME,
    ended={"type": ["string", "null"], "format": "date-time"},
    duration={"type": "number", "description": "seconds, the time of the last event"},
    size={"type": "integer", "description": "bytes of cast text"},
    events=_COUNT,
    damaged={"type": "boolean", "description": "a line could not be read as an event"},
    type=_STRING,
    command=_STRING,
    user=_STRING,
    groups=_STRINGS,
    node=_STRING,
    tags=_STRINGS,
    cluster=_STRING,
    namespace=_STRING,
    pod=_STRING,
    container=_STRING,
    sessionId=_STRING,
    userAgent=_STRING,
    truncated={
        "type": "object",
        "description": "members of the header that the sender had to cut",
        "additionalProperties": ref("Cut"),
    },
    source=ref("Source"),
)
_HOLDS: Schema = {
    "type": ["array", "null"],
    "items": ref("Hold"),
    "description": "null: you may not see it, or it is not known",
}
_PROOF: Schema = {
    "type": ["object", "null"],
    "properties": {
        "status": {"type": "string", "enum": [status.value for status in SIGNED]},
        "detail": _STRING,
        "day": {"type": ["string", "null"], "description": "of the manifest that lists it; null: none does yet"},
    },
    "required": ["status", "detail", "day"],
    "additionalProperties": False,
    "description": "whether it is signed, by the signed lists; `recorder verify` alone compares its bytes. null:"
    " nothing is signed, or it can't be told",
}
_HITS: Schema = {"type": "array", "items": ref("Hit")}
_TEXT: dict[str, Schema] = {
    "searchable": {
        "type": "boolean",
        "description": "whether all of its text is searched: it is not indexed to its end yet, or was too long",
    },
    "unseen": {
        "type": ["boolean", "null"],
        "description": "it has output that a terminal does not show; null: its text is not indexed yet",
    },
}
_EVENT = _object(
    id=_STRING,
    received=_TIME,
    user=_STRING,
    node=_STRING,
    tags=_STRINGS,
    cluster=_STRING,
    verb=_STRING,
    apiGroup=_STRING,
    resource=_STRING,
    subresource=_STRING,
    namespace=_STRING,
    name=_STRING,
    method=_STRING,
    path=_STRING,
    userAgent=_STRING,
    sessionId=_STRING,
    sender=_STRING,
)

_FAULTS: Schema = {"type": "array", "items": _STRING, "description": "faults that prevent removals"}
_SESSION_ID: Schema = {"type": ["string", "null"]}

SCHEMAS: dict[str, Any] = {
    "Document": _ANY,
    "Problem": _object(type=_STRING, title=_STRING, status=_COUNT, detail=_STRING, cause=_STRING),
    "Rights": _object(view=_SWITCH, live=_SWITCH, export=_SWITCH, audit=_SWITCH),
    "Whoami": _object(node=_STRING, address=_STRING, user=_STRING, tags=_STRINGS, rights=ref("Rights")),
    "Cut": _object(
        bytes={"type": "integer", "minimum": 0, "description": "how long it was, in UTF-8"},
        sha256={"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "of the whole of it"},
    ),
    "Source": _object(node=_STRING, address=_STRING, user=_STRING, tags=_STRINGS),
    "Hit": _object(
        time=_NUMBER,
        snippet={"type": "array", "items": _object(text=_STRING, match=_SWITCH)},
        unseen={"type": ["string", "null"], "description": "why a terminal did not show it; null: it was shown"},
    ),
    "Session": _extended(_SESSION, hits=_HITS, **_TEXT),
    "Sessions": _list("Session"),
    "SessionDetail": _extended(
        _SESSION,
        **_TEXT,
        header=_ANY,
        hits=_HITS,
        rights=ref("Rights"),
        holds=_HOLDS,
        proof=_PROOF,
        index=ref("Coverage"),
    ),
    "Export": _object(session=_SESSION, header=_ANY, events={"type": "array", "items": {"type": "array"}}),
    "Unseen": _object(time=_NUMBER, kind=_STRING, text=_STRING),
    "UnseenList": _object(items={"type": "array", "items": ref("Unseen")}, complete=_SWITCH),
    "Coverage": _object(
        complete={
            "type": "boolean",
            "description": "false: the index does not have all of the store yet, so the answer may be incomplete",
        },
        share={"type": "number", "minimum": 0, "maximum": 1, "description": "of the sessions that are indexed"},
        indexed={
            "type": ["integer", "null"],
            "description": "sessions that are indexed; null where it is complete, or not shown",
        },
        sessions={"type": ["integer", "null"], "description": "sessions of the store; null as above"},
        running={
            "type": "integer",
            "minimum": 0,
            "description": "sessions that run, the last minutes of which are not searched yet",
        },
        unreadable={
            "type": ["array", "null"],
            "items": _STRING,
            "description": "ids of sessions that cannot be read, at most 20; null as above",
        },
    ),
    "Event": _EVENT,
    "Events": _list("Event"),
    "EventList": _list("Event", cursor=False),
    "EventDetail": _extended(_EVENT, document=_ANY),
    "Bucket": _object(start=_TIME, end=_TIME, sessions=_COUNT, events=_COUNT),
    "Activity": _list("Bucket", cursor=False),
    "Facets": _object(
        items={
            "type": "object",
            "additionalProperties": {"type": "array", "items": _object(value=_STRING, count=_COUNT)},
        },
        index=ref("Coverage"),
    ),
    "Look": _object(
        id=_STRING,
        at=_TIME,
        kind=_STRING,
        session={"type": ["string", "null"]},
        user=_STRING,
        node=_STRING,
        tags=_STRINGS,
        address=_STRING,
        detail=_STRING,
    ),
    "Hold": _object(
        id=_STRING,
        at=_TIME,
        by=_STRING,
        reason=_STRING,
        signed={"type": "boolean", "description": "false: anyone who can write to the store could remove it"},
        session=_SESSION_ID,
        match={
            "type": ["object", "null"],
            "properties": dict.fromkeys(("clusters", "namespaces", "users", "sessionTypes"), _STRINGS),
            "additionalProperties": False,
            "description": "globs of the sessions that are held, also future ones; {} is everything",
        },
    ),
    "Holds": _object(items={"type": "array", "items": ref("Hold")}, faults=_FAULTS),
    "Act": _object(
        number=_COUNT,
        at=_TIME,
        act={"type": "string", "enum": ["hold", "release", "removal", "reversal"]},
        by=_STRING,
        why=_STRING,
        subjects={"type": "array", "items": _object(name=_STRING, why=_STRING, fault=_STRING)},
        of={"type": ["integer", "null"], "description": "the number of the act that it ends"},
        manifest={"type": ["integer", "null"], "description": "the number of the last manifest then"},
        key={"type": "string", "description": "the id of the key that signed it"},
    ),
    "Acts": _object(items={"type": "array", "items": ref("Act")}, cursor=_CURSOR, faults=_FAULTS),
    "Looks": _list("Look", index=False),
}

_REFUSALS = {
    400: "The query is not valid",
    403: "The peer may not do that, or may not use this site",
    404: "It does not exist, or the peer may not see it",
    421: "The site is not served under that name",
    503: "The store, the index or tailscaled cannot answer, or the look cannot be written down",
}


def document(routes: Sequence[Route], title: str) -> dict[str, Any]:
    """The whole."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": "1",
            "summary": "Recorded Kubernetes sessions and API requests.",
            "description": "The connection is the identity: nothing to log in with. Answers have only what the "
            "tailnet's policy lets the peer see.",
        },
        "paths": {BASE + route.path: {"get": _operation(route)} for route in routes},
        "components": {"schemas": SCHEMAS},
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": entry.name, "in": "query", "description": entry.description, "schema": dict(entry.schema)}
        for entry in route.parameters
    ]
    if "{id}" in route.path:
        parameters.insert(0, {"name": "id", "in": "path", "required": True, "schema": _STRING})
    refusals = sorted({400, 403, 421, 503, *route.refusals})
    return {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            "200": {
                "description": route.summary,
                "content": {kind: {"schema": dict(schema)} for kind, schema in route.answers.items()},
            },
            **{
                str(status): {
                    "description": _REFUSALS[status],
                    "content": {"application/problem+json": {"schema": ref("Problem")}},
                }
                for status in refusals
            },
        },
    }
