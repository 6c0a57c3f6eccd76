"""What a session has to pass before upstream hears of it: gates, in order, each of which may refuse.

A gate lets a session pass at once, or gives what has to be waited for. Upstream hears nothing before all of them have
let it pass. The first gate is the owner's share of sessions, the second one the recorder; whoever has to be asked for a
reason or for approval gets a gate behind them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Protocol

from k8sproxy.sessions.session import Session


class Gate(Protocol):
    """One condition."""

    def enter(self, session: Session) -> Awaitable[None] | None:
        """None where the session has passed; else what to wait for until it has. Raises Refusal, at once or then."""


class SessionPlaces(Protocol):
    """Who counts the sessions of each owner (registry.Sessions)."""

    def enter(self, session: Session) -> None:
        """Give the session a place. Raises Refusal 429."""


class PlaceGate:
    """The session's owner has not too many sessions already."""

    def __init__(self, places: SessionPlaces) -> None:
        self._places = places

    def enter(self, session: Session) -> None:
        """Raises Refusal 429 (too_many_sessions)."""
        self._places.enter(session)


class RecorderGate:
    """A recorder has accepted the session, where it must be recorded."""

    def enter(self, session: Session) -> Awaitable[None] | None:
        """Raises Refusal 403 (recorder_unavailable), 429 (too_many_sessions)."""
        return None if session.demand is None else session.open()


def gates_of(places: SessionPlaces) -> tuple[Gate, ...]:
    """All gates, in their order."""
    return PlaceGate(places), RecorderGate()


async def pass_gates(gates: Iterable[Gate], session: Session) -> None:
    """Have the session pass all of them, one after the other. Raises Refusal."""
    for gate in gates:
        wait = gate.enter(session)
        if wait is not None:
            await wait
