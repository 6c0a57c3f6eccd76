"""One row of a terminal of lines, and what is being drawn over in it. A leaf."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Loss:
    """Columns from start to end of a row's text, of which what is from `fresh` on had been written just before."""

    text: str
    fresh: int
    start: int
    end: int
    time: float


@dataclass(slots=True)
class Row:
    """touched: the second of its last change. dirty: it has something that did not go out yet. fresh, since: what is
    there from this column on was written from this second on. loss: what is being drawn over."""

    text: str = ""
    touched: float = 0.0
    dirty: bool = False
    fresh: int = 0
    since: float = -1.0
    loss: Loss | None = None
