"""Values -> rows and back. What a sender wrote is cut to a length and cleaned before it gets into a column; as it was
sent it stands in the document beside the row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recorder.index.database import Change, Statement, Text, Writing
from recorder.index.rows import EventRow, Look, RecordingRow
from recorder.index.where import clean, moment
from recorder.model import ApiEvent, End, Recording, Source, day_after, first_id
from recorder.screen import Segment

_COLUMN = 1024  # characters in a column: names are far shorter, and an index's key must fit a page
_COMMAND = 64 * 1024  # characters of a command line: a script given to `sh -c`

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")

_RECORDING = (
    *("number", "id", "user_name", "node", "tags", "cluster", "namespace", "pod", "container", "command"),
    *("session_type", "session_id", "started", "ended", "duration", "size", "events", "state", "damaged"),
    *("indexed", "text_truncated"),
)
# What is still to come when a recording begins; the rest never changes.
_GROWING = ("ended", "duration", "size", "events", "state", "damaged")
# What catch_up read from the store may be older than what the observer was told and has written meanwhile.
_NOT_OLDER = "excluded.state <> 'running' OR (recordings.state = 'running' AND excluded.size >= recordings.size)"
_EVENT = (
    *("number", "id", "user_name", "node", "tags", "cluster", "verb", "resource", "subresource", "api_group"),
    *("namespace", "name", "path", "method", "user_agent", "session_id", "sender", "received"),
)
_LOOK = ("number", "id", "at", "kind", "recording", "user_name", "node", "tags", "address", "detail")

RECORDING_COLUMNS = ", ".join(
    (
        *("r.number", "r.id", "r.started", "r.ended", "r.duration", "r.size", "r.events", "r.state", "r.damaged"),
        *("r.indexed", "r.text_truncated", "r.unseen", "d.header", "d.source"),
    )
)
EVENT_COLUMNS = ", ".join([*(f"e.{column}" for column in _EVENT), "d.document"])
LOOK_COLUMNS = ", ".join(f"l.{column}" for column in _LOOK)


@dataclass(frozen=True, slots=True)
class Extract:
    """The text of a recording. truncated: not all of it. unseen: a terminal does not show some of it."""

    segments: Sequence[Segment]
    truncated: bool
    unseen: bool


def recording_row(row: Sequence[Any]) -> RecordingRow:
    """Of RECORDING_COLUMNS."""
    _, identifier, started, ended, duration, size, events, state, damaged, *text, header, source = row
    indexed, truncated, unseen = text
    recording = Recording(
        id=identifier,
        header=json.loads(header),
        source=Source.of(json.loads(source)),
        started=started,
        ended=ended,
        end=End(state),
        size=size,
        duration=duration,
        events=events,
        damaged=bool(damaged),
    )
    return RecordingRow(recording, indexed, bool(truncated), bool(unseen) if indexed >= 0 else None)


def event_row(row: Sequence[Any]) -> EventRow:
    """Of EVENT_COLUMNS."""
    values = dict(zip(_EVENT, row[:-1], strict=True))
    del values["number"]
    tags = tuple(values.pop("tags").split())
    return EventRow(user=values.pop("user_name"), tags=tags, document=json.loads(row[-1]), **values)


def look_row(row: Sequence[Any]) -> Look:
    """Of LOOK_COLUMNS."""
    values = dict(zip(_LOOK, row, strict=True))
    del values["number"]
    return Look(user=values.pop("user_name"), tags=tuple(values.pop("tags").split()), **values)


async def put_recordings(database: Writing, recordings: Sequence[Recording]) -> list[Change]:
    """What brings their rows up to date, new or not. A new one is found by its command at once; of the others, what is
    known of their text stays."""
    moments = [(recording.id, recording.started) for recording in recordings]
    numbers, old = await _numbers(database, "recordings", moments)
    rows, documents = [], []
    texts: list[Change] = []
    for recording in recordings:
        number = numbers[recording.id]
        rows.append(
            (
                number,
                recording.id,
                *map(_name, (recording.user, recording.node)),
                _tags(recording.tags),
                *map(_name, (recording.cluster, recording.namespace, recording.pod, recording.container)),
                clean(recording.command[:_COMMAND]),
                *map(_name, (recording.session_type, recording.session_id)),
                float(recording.started),
                recording.ended,
                float(recording.duration),
                recording.size,
                recording.events,
                recording.end.value,
                int(recording.damaged),
                -1,
                0,
            )
        )
        if recording.id not in old:
            texts.append(Text(number, command_segments(recording)))
        documents.append((number, _json(dict(recording.header)), _json(recording.source.values())))
    return [
        _insert("recordings", _RECORDING, rows, update=_GROWING),
        _insert("recording_documents", ("number", "header", "source"), documents, key="number"),
        *texts,
    ]


def command_segments(recording: Recording) -> tuple[Segment, ...]:
    """The command as text, before anything on the screen."""
    line = " ".join(_CONTROLS.sub(" ", recording.command[:_COMMAND]).split())
    return (Segment(((0.0, line),)),) if line else ()


async def take_out(database: Writing, identifier: str) -> list[Change]:
    """What removes a recording, or the API events of a day ("events DAY"); looks at them stay."""
    if identifier.startswith("events "):
        day = identifier.removeprefix("events ")
        span = (first_id(day), first_id(day_after(day)))
        which = "SELECT number FROM events WHERE id >= $1 AND id < $2"
        return [
            Statement(f"DELETE FROM event_documents WHERE number IN ({which})", (span,)),
            Statement("DELETE FROM events WHERE id >= $1 AND id < $2", (span,)),
            _leftover(0),
        ]
    rows = await database.known("SELECT number FROM recordings WHERE id = $1", (identifier,))
    return [
        change
        for (number,) in rows
        for change in (
            Text(number, ()),
            Statement("DELETE FROM recording_documents WHERE number = $1", ((number,),)),
            Statement("DELETE FROM recordings WHERE number = $1", ((number,),)),
            _leftover(number),
        )
    ]


def _leftover(number: int) -> Statement:
    return Statement("INSERT INTO leftovers (number) VALUES ($1) ON CONFLICT DO NOTHING", ((number,),))


async def put_text(database: Writing, recording: Recording, text: Extract) -> list[Change]:
    """What makes this the recording's text; nothing where it has no row (any more)."""
    rows = await database.known("SELECT number FROM recordings WHERE id = $1", (recording.id,))
    return [
        change
        for (number,) in rows
        for change in (
            Text(number, (*command_segments(recording), *text.segments)),
            Statement(
                "UPDATE recordings SET indexed = $1, text_truncated = $2, unseen = $3 WHERE number = $4",
                ((recording.size, int(text.truncated), int(text.unseen), number),),
            ),
        )
    ]


async def put_events(database: Writing, events: Sequence[ApiEvent]) -> list[Change]:
    """What adds them; those that are there stay as they are."""
    numbers, old = await _numbers(database, "events", [(event.id, event.received) for event in events])
    events = [event for event in events if event.id not in old]
    if not events:
        return []
    rows = [(numbers[event.id], *_event(event)) for event in events]
    documents = [(numbers[event.id], _json(dict(event.document))) for event in events]
    return [
        _insert("events", _EVENT, rows),
        _insert("event_documents", ("number", "document"), documents, key="number"),
    ]


async def put_look(database: Writing, look: Look) -> list[Change]:
    """What adds it."""
    numbers, _ = await _numbers(database, "looks", [(look.id, look.at)])
    row = (
        *(numbers[look.id], look.id, float(look.at), _name(look.kind), _name(look.recording)),
        *(_name(look.user), _name(look.node), _tags(look.tags), _name(look.address), _name(look.detail)),
    )
    return [_insert("looks", _LOOK, [row])]


async def _numbers(
    database: Writing, table: str, rows: Sequence[tuple[str, float]]
) -> tuple[dict[str, int], frozenset[str]]:
    """Each id's number, and which of them have rows: the one it has, else its moment or the next that is free. Two
    recorders that take the same one at once break the key's uniqueness, and the later one's write is tried again."""
    identifiers = [identifier for identifier, _ in rows]
    present = await database.known(
        f"SELECT id, number FROM {table} WHERE id IN ({_places(identifiers)})",
        identifiers,
    )
    numbers: dict[str, int] = dict(present)
    old = frozenset(numbers)
    fresh = sorted((moment(time), identifier) for identifier, time in rows if identifier not in numbers)
    if not fresh:
        return numbers, old
    wanted = [number for number, _ in fresh]
    taken = {
        number
        for (number,) in await database.known(f"SELECT number FROM {table} WHERE number IN ({_places(wanted)})", wanted)
    }
    for number, identifier in fresh:
        if identifier in numbers:
            continue  # the same one twice in a batch
        if number in taken:
            while number in taken or await database.known(f"SELECT 1 FROM {table} WHERE number = $1", (number,)):
                number += 1
        numbers[identifier] = number
        taken.add(number)
    return numbers, old


def _places(values: Sequence[Any]) -> str:
    return ", ".join(f"${place}" for place in range(1, len(values) + 1))


def _insert(
    table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], *, key: str = "id", update: Sequence[str] = ()
) -> Statement:
    change = ", ".join(f"{column} = excluded.{column}" for column in update)
    then = f"DO UPDATE SET {change} WHERE {_NOT_OLDER}" if change else "DO NOTHING"
    return Statement(
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({_places(columns)}) ON CONFLICT ({key}) {then}",
        rows,
    )


def _event(event: ApiEvent) -> Iterable[Any]:
    document = event.document
    source, kubernetes, request = (_mapping(document, name) for name in ("source", "kubernetes", "request"))
    yield event.id
    yield _name(event.user)
    yield _name(event.node)
    tags = source.get("nodeTags")
    yield _tags([tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else ())
    yield _name(event.cluster)
    for name in ("Verb", "Resource", "Subresource", "APIGroup", "Namespace", "Name"):
        yield _text(kubernetes, name)
    yield _text(kubernetes, "Path") or _text(request, "path")
    yield _text(request, "method")
    yield _text(document, "userAgent")
    yield _name(event.session_id)
    yield _name(event.source.node)
    yield float(event.received)


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return _name(value) if isinstance(value, str) else ""


def _name(text: str) -> str:
    # What is cut ends in a character that says so, and that no grant's glob was meant for.
    return clean(text if len(text) <= _COLUMN else text[: _COLUMN - 1] + "…")


def _tags(tags: Sequence[str]) -> str:
    """With a line feed around each, so that one is found as a whole; blanks have no place in a tag. "" is no tags at
    all: whoever has some, of whatever kind, is tagged, and is nobody's own node (see recorder.access)."""
    kept = ["".join(clean(tag).split()) for tag in tags]
    return "".join(f"\n{tag}" for tag in kept if tag)[:_COLUMN] + "\n" if kept else ""


def _json(value: Any) -> str:
    # ASCII: an escaped surrogate goes into any database. An escaped NUL does too, as this is text to PostgreSQL.
    return json.dumps(value, separators=(",", ":"), default=str)
