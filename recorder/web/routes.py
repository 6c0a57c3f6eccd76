"""A route of the API and what is said about it, in one table: what is served is what is described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recorder.web.guard import Handler
from recorder.web.queries import MAX_VALUE

Schema = Mapping[str, Any]

BASE = "/api/v1"
# Any text that a query may have: see `recorder.web.queries.values`.
TEXT: Schema = {"type": "string", "maxLength": MAX_VALUE, "pattern": "^[^\\u0000]*$"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of the query. description: a sentence without its full stop."""

    name: str
    description: str
    schema: Schema = field(default_factory=lambda: TEXT)


@dataclass(frozen=True, slots=True)
class Route:
    """path: behind BASE, with {id}. answers: content type -> schema of a 200. refusals: statuses besides those that
    every route has."""

    path: str
    name: str
    summary: str
    handler: Handler
    answers: Mapping[str, Schema]
    parameters: Sequence[Parameter] = ()
    refusals: Sequence[int] = ()
