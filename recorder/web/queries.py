"""What may stand behind the `?` of an address, read strictly: a misspelt filter must not show more than was meant.

Times are RFC 3339, or a day or a minute in UTC as forms send them; a bare number is unix seconds. Empty values, which
forms send too, are none. Everything that does not fit is a Refusal with status 400.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from math import isfinite

from multidict import MultiMapping

from k8sproxy.common.errors import Refusal
from recorder.index.filters import EventFilter, Filter, LookFilter
from recorder.index.words import terms
from recorder.model import End

MAX_VALUE = 500  # characters of one value: no name is longer, and no sentence that one searches for
MAX_LIMIT = 500  # rows of one page; a table that a browser still lays out at once
LIMIT = 50  # rows, by default
MAX_NUMBER = 1e12  # seconds; nothing lasts that long, and every number below it is one that JSON and SQL keep
MAX_MOMENT = 1e11  # unix seconds, to the year 5138
STATES = tuple(end.value for end in End)
KINDS = ("view", "live", "export", "search", "event")

_TEXTS = ("user", "node", "tag", "cluster", "namespace", "pod", "container", "command")
QUERY_FIELDS = ("q", *_TEXTS, "type", "state", "since", "until", "min_duration")
EVENT_FIELDS = ("user", "node", "cluster", "verb", "resource", "namespace", "name", "path", "since", "until")
LOOK_FIELDS = ("user", "kind", "session", "since", "until")
PAGE_FIELDS = ("limit", "cursor")


def bad(message: str) -> Refusal:
    """The answer to a query that can't be read."""
    return Refusal(400, "query", message)


def missing(what: str) -> Refusal:
    """The answer to what is not there, and to what is out of scope."""
    return Refusal(404, "not_found", f"there is no such {what}")


def forbidden(message: str) -> Refusal:
    """The answer to what the peer sees and may not do."""
    return Refusal(403, "not_allowed", message)


@contextmanager
def reading_cursor() -> Iterator[None]:
    """Turns the index's word for a cursor that it did not give into a Refusal."""
    try:
        yield
    except ValueError:
        raise bad("the cursor was not given out by this recorder for this list") from None


def values(query: MultiMapping[str], known: Collection[str]) -> dict[str, str]:
    """The query as a dictionary, empty values left out. Raises Refusal for what is unknown, twice there or too long."""
    found: dict[str, str] = {}
    for name, value in query.items():
        if name not in known:
            raise bad(f"the query may have only {', '.join(known)}" if known else "this address takes no query")
        if name in found:
            raise bad(f"the query has {name} twice")
        if len(value) > MAX_VALUE or "\0" in value:
            raise bad(f"{name} may have at most {MAX_VALUE} characters, and no NUL")
        if value.strip():
            found[name] = value.strip()
    return found


def sessions(found: Mapping[str, str]) -> Filter:
    """The filter of the list of sessions. Raises Refusal."""
    return Filter(
        text=words(found),
        session_type=found.get("type", ""),
        state=End(state) if (state := one_of(found, "state", STATES)) else None,
        since=moment(found, "since"),
        until=moment(found, "until"),
        min_duration=number(found, "min_duration"),
        **{name: found.get(name, "") for name in _TEXTS},
    )


def events(found: Mapping[str, str]) -> EventFilter:
    """The filter of the events. Raises Refusal."""
    return EventFilter(
        since=moment(found, "since"),
        until=moment(found, "until"),
        **{name: found.get(name, "") for name in EVENT_FIELDS[:-2]},
    )


def looks(found: Mapping[str, str]) -> LookFilter:
    """The filter of the book of looks. Raises Refusal."""
    return LookFilter(
        user=found.get("user", ""),
        kind=one_of(found, "kind", KINDS),
        recording=found.get("session", ""),
        since=moment(found, "since"),
        until=moment(found, "until"),
    )


def words(found: Mapping[str, str]) -> str:
    """The words to search for, "" for none. Raises Refusal for more of them than the index takes."""
    text = found.get("q", "")
    try:
        terms(text)
    except ValueError as error:
        raise bad(f"q is not a search: {error}") from None
    return text


def limit(found: Mapping[str, str]) -> int:
    """How many rows. Raises Refusal."""
    return count(found, "limit", LIMIT, MAX_LIMIT)


def count(found: Mapping[str, str], name: str, default: int, most: int) -> int:
    """How many of something, at least one. Raises Refusal."""
    text = found.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise bad(f"{name} must be a number from 1 to {most}")
    return int(text)


def one_of(found: Mapping[str, str], name: str, choices: Collection[str]) -> str:
    """One of few words, or "". Raises Refusal."""
    value = found.get(name, "")
    if value and value not in choices:
        raise bad(f"{name} must be one of {', '.join(choices)}")
    return value


def number(found: Mapping[str, str], name: str) -> float | None:
    """A number that is not negative. Raises Refusal."""
    if name not in found:
        return None
    try:
        value = float(found[name])
    except ValueError:
        value = -1.0
    if not isfinite(value) or not 0 <= value <= MAX_NUMBER:
        raise bad(f"{name} must be a number, from 0 to {MAX_NUMBER:.0f}")
    return value


def moment(found: Mapping[str, str], name: str) -> float | None:
    """A time in unix seconds. Raises Refusal."""
    if name not in found:
        return None
    text = found[name]
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= MAX_MOMENT:
            raise bad(f"{name} must be a time such as 2026-11-22, 2026-11-22T10:00Z or unix seconds") from None
        return seconds
    try:
        return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError):
        raise bad(f"{name} is a time that is too far away") from None
