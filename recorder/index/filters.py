"""What may be asked of the index, and from inside which scope.

A text field matches as a whole and in its own case; `*` in it stands for any characters or none, and is the only one
that is special. `command` is looked for anywhere in the command line. "" and None mean any.

A scope is the caller's access: a row is visible if at least one of its places holds for it, so the empty scope is
nothing. It goes into each query's WHERE; no row outside is ever read, counted or paged over. `recorder.access` makes
scopes; here only their shape is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from recorder.model import End


class Place(Protocol):
    """Where something may be seen: all of its conditions hold. None: any value; an empty tuple: no value at all.

    users, clusters, namespaces: globs. owner: a login name whose own (untagged) node it must come from. owner_node: the
    name of the tagged node it must come from. An empty owner owns nothing.
    """

    @property
    def users(self) -> tuple[str, ...] | None:
        """Globs of the session's user."""

    @property
    def clusters(self) -> tuple[str, ...] | None:
        """Globs of the cluster."""

    @property
    def namespaces(self) -> tuple[str, ...] | None:
        """Globs of the namespace."""

    @property
    def owner(self) -> str | None:
        """The user's own."""

    @property
    def owner_node(self) -> str | None:
        """The tagged node's own."""


Scope = Sequence[Place]


@dataclass(frozen=True, slots=True)
class Everywhere:
    """The place without conditions: for the recorder's own command line on its own folder."""

    users: tuple[str, ...] | None = None
    clusters: tuple[str, ...] | None = None
    namespaces: tuple[str, ...] | None = None
    owner: str | None = None
    owner_node: str | None = None


EVERYTHING: Scope = (Everywhere(),)


def is_unrestricted(scope: Scope) -> bool:
    """Whether one of the places has no condition."""
    return any(
        place.users is None
        and place.clusters is None
        and place.namespaces is None
        and place.owner is None
        and place.owner_node is None
        for place in scope
    )


@dataclass(frozen=True, slots=True)
class Filter:
    """Which recordings. text: see `recorder.index.words`. since, until: unix seconds of the start, until excluded.
    min_duration: seconds."""

    text: str = ""
    user: str = ""
    node: str = ""
    tag: str = ""
    cluster: str = ""
    namespace: str = ""
    pod: str = ""
    container: str = ""
    command: str = ""
    session_type: str = ""
    session_id: str = ""
    state: End | None = None
    since: float | None = None
    until: float | None = None
    min_duration: float | None = None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which API events. since, until: unix seconds of their arrival, until excluded."""

    user: str = ""
    node: str = ""
    tag: str = ""
    cluster: str = ""
    verb: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    session_id: str = ""
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True, slots=True)
class LookFilter:
    """Which looks. user, node: who looked. recording: an id. since, until: unix seconds, until excluded."""

    user: str = ""
    node: str = ""
    kind: str = ""
    recording: str = ""
    since: float | None = None
    until: float | None = None
