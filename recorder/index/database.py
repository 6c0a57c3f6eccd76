"""What the queries need of a database; `sqlite` and `postgres` have it.

SQL is written once, with `$1`, `$2` .. for its parameters. Where the two differ in words, `Dialect` has both; where
they differ in kind (full text, replacing the whole), a method here has two bodies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from recorder.index.rows import Hit
from recorder.index.words import Term
from recorder.screen import Segment

Rows = list[tuple[Any, ...]]
Rest = Callable[[float], Awaitable[None]]  # told how many seconds the step took


class IndexFailure(Exception):
    """The index could not do it; the message is fit for an operator and holds no password.

    passing: whether the same may succeed later (a lock, a full disk, a server away); else what was asked is at fault.
    """

    def __init__(self, message: str, *, passing: bool = True) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Dialect:
    """Words of the two that differ. key, real, text: types, of a 64-bit primary key, a double, a text that compares by
    bytes. glob: the operator that matches a whole text."""

    key: str
    real: str
    text: str
    glob: str

    def pattern(self, glob: str) -> str:
        """A glob in which `*` alone is special, as this operator's pattern."""
        if self.glob == "GLOB":
            return glob.replace("[", "[[]").replace("?", "[?]")
        for special in "\\%_":
            glob = glob.replace(special, "\\" + special)
        return glob.replace("*", "%")


SQLITE = Dialect("INTEGER", "REAL", "TEXT", "GLOB")
# The "C" collation compares bytes, as SQLite does, and lets LIKE 'a%' use an index.
POSTGRES = Dialect("BIGINT", "DOUBLE PRECISION", 'TEXT COLLATE "C"', "LIKE")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement for each of the rows of parameters."""

    sql: str
    rows: Sequence[tuple[Any, ...]] = ((),)


@dataclass(frozen=True, slots=True)
class Text:
    """All the text of a recording, instead of what was there. number: the recording's."""

    number: int
    segments: Sequence[Segment]


Change = Statement | Text


@dataclass(frozen=True, slots=True)
class Having:
    """A part of a query for recordings `r`. source: what the rows are taken from. condition: what holds for them.
    number: the column to bound and order by, which is the recording's number by the shortest way."""

    source: str = "recordings r"
    condition: str = "TRUE"
    number: str = "r.number"


class Writing(Protocol):
    """Where changes go."""

    async def write(self, changes: Sequence[Change]) -> None:
        """All of them or none; safe on return. Raises IndexFailure."""

    async def known(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """What is there as a writer sees it. Raises IndexFailure."""


class Database(Writing, Protocol):
    """An open database whose schema is the present one."""

    @property
    def dialect(self) -> Dialect:
        """Its words."""

    async def open(self, *, anew: bool = False) -> None:
        """Connect and bring the schema up to date. anew: what is damaged may be laid aside. Raises IndexFailure."""

    async def aclose(self) -> None:
        """Let go of it."""

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """Answer a query. Raises IndexFailure."""

    def having(self, asked: tuple[Term, ...], parameters: list[Any]) -> Having:
        """What restricts recordings to those that have all terms. Its parameters are appended."""

    async def hits(self, numbers: Sequence[int], asked: tuple[Term, ...], most: int) -> dict[int, tuple[Hit, ...]]:
        """The first hits in each of these recordings. Raises IndexFailure."""

    async def wipe(self, rest: Rest) -> float:
        """See that what was taken out (`leftovers`) stands nowhere in the files any more, as far as the database lets
        one. Seconds in which nothing else could be written at a stretch. rest: waits for as long as it likes, between
        two steps. Raises IndexFailure; then it is to be tried again."""

    def replacement(self) -> AbstractAsyncContextManager[Writing]:
        """An empty index to fill, which takes the place of this one (its looks are kept) when the context is left
        without an exception, at once for all who read. Raises IndexFailure."""
