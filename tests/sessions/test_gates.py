"""The gates before a session: in their order, and the first that refuses is the last that is asked."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, cast

import pytest

from k8sproxy.common.errors import Refusal
from k8sproxy.sessions.gates import gates_of, pass_gates
from k8sproxy.sessions.session import Session


class Asked:
    """A session, and who counts sessions; `said`: what was asked of them."""

    def __init__(self, demand: object, *, full: bool = False) -> None:
        self.demand = demand
        self.said: list[str] = []
        self._full = full

    def enter(self, session: Session) -> None:
        self.said.append("place")
        if self._full:
            raise Refusal(429, "too_many_sessions", "full")

    async def open(self) -> None:
        self.said.append("recorder")


async def passed(asked: Asked, *more: Any) -> list[str]:
    await pass_gates((*gates_of(asked), *more), cast(Session, asked))
    return asked.said


async def test_a_session_needs_a_place_and_then_a_recorder() -> None:
    assert await passed(Asked("demand")) == ["place", "recorder"]


async def test_a_session_that_is_not_recorded_waits_for_nobody() -> None:
    asked = Asked(None)
    assert [gate.enter(cast(Session, asked)) for gate in gates_of(asked)] == [None, None]
    assert asked.said == ["place"]


async def test_behind_a_gate_that_refuses_nobody_is_asked() -> None:
    asked = Asked("demand", full=True)
    with pytest.raises(Refusal, match="full"):
        await passed(asked)
    assert asked.said == ["place"]


async def test_another_gate_is_asked_behind_them() -> None:
    class Closed:
        def enter(self, session: Session) -> Awaitable[None] | None:
            raise Refusal(403, "no_reason", "say why")

    asked = Asked("demand")
    with pytest.raises(Refusal, match="say why"):
        await passed(asked, Closed())
    assert asked.said == ["place", "recorder"]
