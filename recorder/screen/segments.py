"""The text of a session as lines, gathered in segments, and within bounds. A leaf but for `unseen.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from recorder.screen.unseen import Unseen

MARK = "\x1f"  # see unseen_segments
SEGMENT_CHARACTERS = 8192  # about two full screens: small enough to be looked through for a snippet at once
SEGMENT_SECONDS = 300.0  # a line that is shown again after that long is worth a hit of its own
TEXT_LIMIT = 2 * 1024 * 1024  # characters a session: hours of work at a shell; beyond that it is a log, not a session
LINE = 4096  # characters: no screen is that wide; a longer line is output that was never meant to be read, and is cut


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a session's text: lines in the order in which they were done, each with its second (not falling)."""

    lines: tuple[tuple[float, str], ...]

    @property
    def start(self) -> float:
        """Seconds from the session's start to the first line."""
        return self.lines[0][0]

    @property
    def text(self) -> str:
        """The lines, joined by line feeds."""
        return "\n".join(line for _, line in self.lines)


def unseen_segments(found: Iterable[Unseen]) -> list[Segment]:
    """The same as lines: what hid it and the text behind it, each behind a MARK, which no line of a screen has."""
    segments: list[Segment] = []
    lines: list[tuple[float, str]] = []
    gathered = 0
    for piece in sorted(found, key=lambda piece: piece.time):
        for start in range(0, len(piece.text), LINE):
            line = f"{MARK}{piece.kind}{MARK}{piece.text[start : start + LINE]}"
            if lines and gathered + len(line) > SEGMENT_CHARACTERS:
                segments.append(Segment(tuple(lines)))
                lines, gathered = [], 0
            lines.append((piece.time, line))
            gathered += len(line)
    if lines:
        segments.append(Segment(tuple(lines)))
    return segments


class Lines:
    """Takes lines in the order in which they are done, gives segments; a line that the present segment has is left out.

    limit: characters that are kept in all (line feeds count). full: the limit was reached.
    """

    def __init__(self, limit: int) -> None:
        self.segments: list[Segment] = []
        self.full = False
        self._left = limit
        self._lines: list[tuple[float, str]] = []
        self._seen: set[str] = set()
        self._gathered = 0
        self._last = 0.0

    def add(self, time: float, text: str, *, closed: bool = False) -> None:
        """A line of this second, or of that of the line before it if that is later. closed: nothing more is kept."""
        time = max(time, self._last)
        if self._lines and time - self._lines[0][0] > SEGMENT_SECONDS:
            self.cut()
        if not text or text in self._seen or self.full or closed:
            return
        if len(text) + 1 > self._left:
            self.full = True
            return
        if self._gathered + len(text) > SEGMENT_CHARACTERS:
            self.cut()
        self._left -= len(text) + 1
        self._last = time
        self._lines.append((time, text))
        self._seen.add(text)
        self._gathered += len(text) + 1

    def cut(self) -> None:
        """End the present segment."""
        if self._lines:
            self.segments.append(Segment(tuple(self._lines)))
        self._lines, self._seen, self._gathered = [], set(), 0
