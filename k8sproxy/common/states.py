"""The life of a thing as states: one enum, and one table of which state may follow which.

    class Life(State):
        '''Where a connection attempt is.

        WAITING     nothing has been tried                  -> TRYING, ENDED
        TRYING      a connection is being made              -> WAITING, ENDED
        ENDED       there will be no other attempt          -> (final)
        '''

        WAITING = "waiting"
        TRYING = "trying"
        ENDED = "ended"


    table({Life.WAITING: (Life.TRYING, Life.ENDED), Life.TRYING: (Life.WAITING, Life.ENDED), Life.ENDED: ()})

The object that has this life keeps the current state in one attribute and moves it in one method:

    self.life = self.life.to(ENDED)

A move that the table does not have is a fault of ours: it raises ImpossibleMove and changes nothing. The first state of
the enum is the one in which a life begins. A state follows itself only where the table says so.

The docstring of the enum has the same table for the reader, one line for each state, its followers behind the arrow.
`tests/lives.py` has the check that both tables are equal.

Moves are on the hot path. So each member holds its followers in a tuple, which is searched by identity: looking them up
in a dictionary would hash the member, and an Enum hashes in Python. Python 3.11 also looks up `Life.ENDED` in Python:
whoever moves often binds the members to names of the module.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Self, TypeVar


class ImpossibleMove(Exception):
    """A move that the table of transitions does not have."""


class State(enum.Enum):
    """The base of an enum of states. followers: the states that may come next; none before `table` was called."""

    followers: tuple[Self, ...]

    def __init__(self, *_: object) -> None:
        self.followers = ()

    def to(self, following: Self) -> Self:
        """The state that follows this one. Raises ImpossibleMove where the table does not have this move."""
        if following not in self.followers:
            raise ImpossibleMove(f"{type(self).__name__}: {self.name} -> {following.name}")
        return following

    @property
    def is_final(self) -> bool:
        """Whether no other state follows."""
        return not self.followers


S = TypeVar("S", bound=State)


def table(moves: Mapping[S, tuple[S, ...]]) -> None:
    """Give the states of one enum their followers. Once, right behind the enum.

    Raises ValueError where a state is missing, or cannot be reached from the first one.
    """
    states = type(next(iter(moves)))
    missing = [state.name for state in states if state not in moves]
    if missing:
        raise ValueError(f"{states.__name__}: the table says nothing of {', '.join(missing)}")
    for state, followers in moves.items():
        state.followers = followers
    reached = [next(iter(states))]
    for state in reached:
        reached += (follower for follower in moves[state] if follower not in reached)
    lost = [state.name for state in states if state not in reached]
    if lost:
        raise ValueError(f"{states.__name__}: no way leads to {', '.join(lost)}")
