"""States: moves that the table has, moves that it does not have, and tables that are not whole."""

from __future__ import annotations

import pytest

from k8sproxy.common.states import ImpossibleMove, State, table
from tests.lives import assert_documented, documented


class Door(State):
    """Whether somebody can pass.

    OPEN    anybody can                     -> CLOSED, GONE
    CLOSED  nobody can, whatever
            they say                        -> OPEN,
                                               CLOSED
    GONE    there is no door                -> (final)

    Whoever has read so far knows all.
    """

    OPEN = "open"
    CLOSED = "closed"
    GONE = "gone"


table({Door.OPEN: (Door.CLOSED, Door.GONE), Door.CLOSED: (Door.OPEN, Door.CLOSED), Door.GONE: ()})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Door.OPEN, Door.CLOSED),
        (Door.OPEN, Door.GONE),
        (Door.CLOSED, Door.OPEN),
        (Door.CLOSED, Door.CLOSED),
    ],
)
def test_moves_of_the_table(before: Door, after: Door) -> None:
    assert before.to(after) is after


@pytest.mark.parametrize(
    ("before", "after"), [(Door.OPEN, Door.OPEN), (Door.CLOSED, Door.GONE), (Door.GONE, Door.OPEN)]
)
def test_other_moves_raise(before: Door, after: Door) -> None:
    with pytest.raises(ImpossibleMove, match=f"Door: {before.name} -> {after.name}"):
        before.to(after)


def test_a_final_state_has_no_follower() -> None:
    assert [door for door in Door if door.is_final] == [Door.GONE]


def test_a_table_has_every_state() -> None:
    class Light(State):
        ON = "on"
        OFF = "off"

    with pytest.raises(ValueError, match="Light: the table says nothing of OFF"):
        table({Light.ON: (Light.OFF,)})


def test_a_table_leads_to_every_state() -> None:
    class Light(State):
        ON = "on"
        OFF = "off"
        BROKEN = "broken"

    with pytest.raises(ValueError, match="Light: no way leads to BROKEN"):
        table({Light.ON: (Light.OFF,), Light.OFF: (Light.ON,), Light.BROKEN: (Light.OFF,)})


def test_docstring_and_table_are_compared() -> None:
    assert documented(Door)["CLOSED"] == {"OPEN", "CLOSED"}
    assert_documented(Door)

    class Light(State):
        """ON -> OFF
        OFF -> (final)
        """

        ON = "on"
        OFF = "off"

    table({Light.ON: (Light.OFF,), Light.OFF: (Light.ON,)})
    with pytest.raises(AssertionError):
        assert_documented(Light)
