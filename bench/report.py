"""What is printed: Markdown tables, and goals beside what was reached.

A documentation file keeps each benchmark's last results between two comments, `<!-- begin NAME -->` and
`<!-- end NAME -->`, and write_section() puts new ones there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure and its limit: at most, or (at_most=False) at least. spread: the figure's least and most in a round."""

    text: str
    value: float
    limit: float
    at_most: bool = True
    spread: tuple[float, float] | None = None

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def goals_table(goals: Iterable[Goal]) -> Iterable[str]:
    """Markdown: the goals, what was reached, and whether that is enough."""
    yield from table_head("goal", "limit", "reached", "in a round", "")
    for goal in goals:
        spread = f"{number(goal.spread[0])} to {number(goal.spread[1])}" if goal.spread else ""
        limit = f"{'≤' if goal.at_most else '≥'} {number(goal.limit)}"
        yield row(goal.text, limit, number(goal.value), spread, "met" if goal.met else "**not met**")


def number(value: float) -> str:
    """Three digits that count, and no exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def table_head(first: str, *columns: str) -> Iterable[str]:
    """The first two lines of a Markdown table: figures stand right."""
    yield row(first, *columns)
    yield "| --- |" + " ---: |" * len(columns)


def row(*cells: str) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def write_section(path: Path, name: str, lines: Sequence[str]) -> None:
    """Put the lines between the comments of that name; a file that has none is written anew."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = "\n".join((begin, "", *lines, "", end))
    old = path.read_text() if path.exists() else ""
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if between.search(old):
        path.write_text(between.sub(lambda _: section, old, count=1))
    else:
        path.write_text(section + "\n")
