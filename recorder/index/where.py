"""Filters and scopes as SQL conditions. Every value is a parameter; only names from here stand in the text."""

from __future__ import annotations

import re
from typing import Any

from recorder.index.database import Dialect
from recorder.index.filters import EventFilter, Filter, LookFilter, Place, Scope
from recorder.model import End

MOST = 512  # characters of a filter's field, the same as of a grant's glob
_UNKEPT = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL takes no NUL in a text, and UTF-8 no surrogates


def clean(text: str) -> str:
    """A text that both databases keep; used for what is kept and for what is asked, so that they meet."""
    return _UNKEPT.sub("\ufffd", text)


def moment(time: float) -> int:
    """Unix seconds as the microseconds that rows are numbered by; beyond reason it is the nearest that can be kept."""
    return int(min(max(time, 0.0), 9e12) * 1e6)


class Where:
    """Conditions that must all hold, and their parameters, $1 on."""

    def __init__(self, dialect: Dialect, parameters: list[Any] | None = None) -> None:
        self.parameters: list[Any] = [] if parameters is None else parameters
        self._dialect = dialect
        self._conditions: list[str] = []

    def __str__(self) -> str:
        return " AND ".join(self._conditions) or "TRUE"

    def add(self, condition: str) -> None:
        """A condition without values."""
        self._conditions.append(condition)

    def value(self, value: Any) -> str:
        """A parameter; what stands for it."""
        self.parameters.append(clean(value) if isinstance(value, str) else value)
        return f"${len(self.parameters)}"

    def text(self, column: str, asked: str) -> None:
        """A filter's field: a glob if it has a `*`."""
        if asked:
            if len(asked) > MOST:
                raise ValueError(f"a filter has at most {MOST} characters")
            self.add(self._matches(column, asked))

    def tag(self, column: str, asked: str) -> None:
        """One of the tags that stand in a column with a line feed around each; a glob stays within one tag only
        as far as its literal parts do, which is far enough for tags."""
        if asked:
            self.text(column, f"*\n{asked}\n*")

    def span(self, column: str, since: float | None, until: float | None) -> None:
        """From since to before until, of a column of moments."""
        if since is not None:
            self.add(f"{column} >= {self.value(moment(since))}")
        if until is not None:
            self.add(f"{column} < {self.value(moment(until))}")

    def scope(self, scope: Scope, table: str) -> None:
        """At least one of the places; of none, nothing."""
        if condition := self._within(scope, table):
            self.add(condition)

    def over_or_in(self, scope: Scope) -> None:
        """Of `recordings r`: those that are over, and the running ones of a scope."""
        if condition := self._within(scope, "r"):
            self.add(f"(r.state <> {self.value(End.RUNNING.value)} OR {condition})")

    def _within(self, scope: Scope, table: str) -> str:
        """The condition that a row is in a scope, "" where every row is."""
        if any(_is_anywhere(place) for place in scope):
            return ""  # before any value is bound: one without a place in the statement is a fault to SQLite
        places = [self._place(place, table) for place in scope]
        return f"({' OR '.join(places)})" if places else "FALSE"

    def _place(self, place: Place, table: str) -> str:
        conditions = []
        for column, globs in (("user_name", place.users), ("cluster", place.clusters), ("namespace", place.namespaces)):
            if globs is not None and "*" not in globs:  # that one is any
                ways = [self._matches(f"{table}.{column}", glob) for glob in globs]
                conditions.append(f"({' OR '.join(ways)})" if ways else "FALSE")
        # A tagged node has no user: the name that stands there is a stand-in, and may be anybody's.
        for column, owner, tagged in (("user_name", place.owner, "="), ("node", place.owner_node, "<>")):
            if owner is not None:
                own = f"{table}.{column} = {self.value(owner)} AND {table}.tags {tagged} ''" if owner else "FALSE"
                conditions.append(f"({own})")
        return f"({' AND '.join(conditions)})"

    def _matches(self, column: str, glob: str) -> str:
        if "*" not in glob:
            return f"{column} = {self.value(glob)}"
        return f"{column} {self._dialect.glob} {self.value(self._dialect.pattern(glob))}"


def _is_anywhere(place: Place) -> bool:
    """Whether a place has no condition."""
    lists = (place.users, place.clusters, place.namespaces)
    return place.owner is None and place.owner_node is None and all(globs is None or "*" in globs for globs in lists)


def recordings(where: Where, asked: Filter, number: str) -> None:
    """The conditions on `recordings r` but for the text. number: the column to bound by."""
    for column, value in (
        ("user_name", asked.user),
        ("node", asked.node),
        ("cluster", asked.cluster),
        ("namespace", asked.namespace),
        ("pod", asked.pod),
        ("container", asked.container),
        ("session_type", asked.session_type),
        ("session_id", asked.session_id),
    ):
        where.text(f"r.{column}", value)
    where.tag("r.tags", asked.tag)
    if asked.command:
        where.text("r.command", f"*{asked.command}*")
    if asked.state is not None:
        where.text("r.state", asked.state.value)
    where.span(number, asked.since, asked.until)
    if asked.min_duration is not None:
        where.add(f"r.duration >= {where.value(float(asked.min_duration))}")


def events(where: Where, asked: EventFilter) -> None:
    """The conditions on `events e`."""
    for column, value in (
        ("user_name", asked.user),
        ("node", asked.node),
        ("cluster", asked.cluster),
        ("verb", asked.verb),
        ("resource", asked.resource),
        ("subresource", asked.subresource),
        ("namespace", asked.namespace),
        ("name", asked.name),
        ("path", asked.path),
        ("session_id", asked.session_id),
    ):
        where.text(f"e.{column}", value)
    where.tag("e.tags", asked.tag)
    where.span("e.number", asked.since, asked.until)


def looks(where: Where, asked: LookFilter) -> None:
    """The conditions on `looks l`."""
    for column, value in (
        ("user_name", asked.user),
        ("node", asked.node),
        ("kind", asked.kind),
        ("recording", asked.recording),
    ):
        where.text(f"l.{column}", value)
    where.span("l.number", asked.since, asked.until)
