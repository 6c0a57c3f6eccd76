"""What the API answers with, as JSON values. Times are RFC 3339 in UTC, lengths are seconds, sizes bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from recorder.access import Access
from recorder.index.coverage import Coverage
from recorder.index.rows import Bucket, EventRow, Hit, Look, RecordingRow
from recorder.model import Recording
from recorder.proof.acts import Act
from recorder.proof.report import Finding
from recorder.retention.holds import Hold
from recorder.screen import Unseen
from recorder.web.words import rfc3339

Values = dict[str, Any]

_MOST_NAMED = 20  # sessions that can't be read: with more of them the store is at fault, and verify lists them


def session(recording: Recording) -> Values:
    """A session without its header."""
    return {
        "id": recording.id,
        "state": recording.end.value,
        "started": rfc3339(recording.started),
        "ended": rfc3339(recording.ended) if recording.ended is not None else None,
        "duration": recording.duration,
        "size": recording.size,
        "events": recording.events,
        "damaged": recording.damaged,
        "type": recording.session_type,
        "command": recording.command,
        "user": recording.user,
        "groups": list(recording.groups),
        "node": recording.node,
        "tags": list(recording.tags),
        "cluster": recording.cluster,
        "namespace": recording.namespace,
        "pod": recording.pod,
        "container": recording.container,
        "sessionId": recording.session_id,
        "userAgent": recording.user_agent,
        "truncated": recording.truncated,
        "source": recording.source.values(),
    }


def hits(found: Iterable[Hit]) -> list[Values]:
    """Where searched words were."""
    return [
        {
            "time": hit.time,
            "snippet": [{"text": text, "match": match} for text, match in hit.snippet],
            "unseen": hit.unseen or None,
        }
        for hit in found
    ]


def row(found: RecordingRow) -> Values:
    """A session of a list."""
    return session(found.recording) | text(found) | {"hits": hits(found.hits)}


def text(found: RecordingRow | None) -> Values:
    """What the index knows of a session's text; None where it does not know the session yet."""
    if found is None:
        return {"searchable": False, "unseen": None}
    return {"searchable": found.searchable, "unseen": found.unseen}


def unseen(found: Iterable[Unseen]) -> list[Values]:
    """Output that a terminal does not show."""
    return [{"time": piece.time, "kind": piece.kind, "text": piece.text} for piece in found]


def coverage(found: Coverage, *, counts: bool) -> Values:
    """How much an answer is made of. counts: say how many sessions there are, and which can't be
    read, to whoever may see them all."""
    return {
        "complete": found.complete,
        "share": found.share,
        "indexed": found.indexed if counts and not found.complete else None,
        "sessions": found.sessions if counts and not found.complete else None,
        "running": found.running,
        "unreadable": list(found.unreadable[:_MOST_NAMED]) if counts and not found.complete else None,
    }


def header(document: Mapping[str, Any]) -> Values:
    """A cast header, as it was sent."""
    return dict(document)


def event(found: EventRow, *, document: bool = False) -> Values:
    """An API event; with what was sent, if asked for."""
    values: Values = {
        "id": found.id,
        "received": rfc3339(found.received),
        "user": found.user,
        "node": found.node,
        "tags": list(found.tags),
        "cluster": found.cluster,
        "verb": found.verb,
        "apiGroup": found.api_group,
        "resource": found.resource,
        "subresource": found.subresource,
        "namespace": found.namespace,
        "name": found.name,
        "method": found.method,
        "path": found.path,
        "userAgent": found.user_agent,
        "sessionId": found.session_id,
        "sender": found.sender,
    }
    return values | {"document": dict(found.document)} if document else values


def look(found: Look) -> Values:
    """That somebody looked."""
    return {
        "id": found.id,
        "at": rfc3339(found.at),
        "kind": found.kind,
        "session": found.recording or None,
        "user": found.user,
        "node": found.node,
        "tags": list(found.tags),
        "address": found.address,
        "detail": found.detail,
    }


def hold(found: Hold) -> Values:
    """That something must not be removed."""
    return {
        "id": found.id,
        "at": rfc3339(found.at),
        "by": found.by,
        "reason": found.reason,
        "signed": found.signed,
        "session": found.held or None,
        "match": None if found.match is None else found.match.values(),
    }


def proof(found: Finding | None) -> Values | None:
    """Whether it is signed, by the signed lists; its bytes are not compared."""
    return None if found is None else {"status": found.status.value, "detail": found.detail, "day": found.day or None}


def act(found: Act) -> Values:
    """What was done to what is kept."""
    return {
        "number": found.number,
        "at": rfc3339(found.at),
        "act": found.kind.value,
        "by": found.by,
        "why": found.why,
        "subjects": [{"name": subject.name, "why": subject.why, "fault": subject.fault} for subject in found.subjects],
        "of": found.of or None,
        "manifest": found.manifest.number or None,
        "key": found.key,
    }


def bucket(found: Bucket) -> Values:
    """What began in a stretch of time."""
    return {
        "start": rfc3339(found.start),
        "end": rfc3339(found.end),
        "sessions": found.recordings,
        "events": found.events,
    }


def whoami(granted: Access, rights: Mapping[str, bool]) -> Values:
    """The caller, and what they may do anywhere."""
    peer = granted.peer
    return {
        "node": peer.node_name.removesuffix("."),
        "address": peer.address,
        "user": "" if peer.is_tagged else peer.login_name,
        "tags": list(peer.tags),
        "rights": dict(rights),
    }
