"""The text of a session out of its cast: what goes to the screen, and how large the screen is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from k8sproxy.common.formats.asciicast import event_of
from recorder.screen.segments import TEXT_LIMIT, Segment, unseen_segments
from recorder.screen.terminal import Screen, number
from recorder.screen.unseen import Unseen

# Bytes of cast read for a session's text: a minute of CPU where they mean harm, else seconds.
CAST_LIMIT = 16 * 1024 * 1024
_CAST_LINE = 4 * 1024 * 1024  # bytes of one line of a cast; a longer one is skipped


@dataclass(slots=True)
class CastText:
    """The same out of a cast's bytes, in any pieces: the header line gives the size, "o" and "e" events the output.

    limit: characters kept. cast_limit: bytes read. truncated: one of the two was reached; done: no more need be fed.
    unseen: what a terminal would not have shown.
    A line that is not an event is skipped: the index finds what it can, the store keeps all.
    """

    limit: int = TEXT_LIMIT
    cast_limit: int = CAST_LIMIT
    screen: Screen = field(init=False)
    truncated: bool = field(default=False, init=False)
    _rest: bytearray = field(default_factory=bytearray, init=False)
    _skipping: bool = field(default=False, init=False)
    _read: int = field(default=0, init=False)
    _headed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.screen = Screen(limit=self.limit)

    @property
    def unseen(self) -> list[Unseen]:
        """See Screen."""
        return self.screen.unseen

    @property
    def done(self) -> bool:
        """Whether the limits leave no room, so that reading on is useless."""
        return self.truncated

    def feed(self, data: bytes) -> None:
        """Bytes of the cast, from its first on."""
        if self.truncated:
            return
        self._read += len(data)
        lines = data.split(b"\n")
        last = lines.pop()
        for piece in lines:
            if self._rest:
                self._rest += piece
                piece, self._rest = bytes(self._rest), bytearray()
            if not self._skipping:
                self._line(piece)
            self._skipping = False
        if not self._skipping:
            self._rest += last
            if len(self._rest) > _CAST_LINE:
                self._rest = bytearray()
                self._skipping = True
        self.truncated = self.screen.full or self._read > self.cast_limit

    def finish(self) -> list[Segment]:
        """The end of the cast: all segments, those of what is not shown (`unseen_segments`) behind the others."""
        if self._rest and not self._skipping:
            self._line(bytes(self._rest))
        self._rest = bytearray()
        self.screen.finish()
        self.truncated = self.truncated or self.screen.full
        return [*self.screen.segments, *unseen_segments(self.screen.unseen)]

    def _line(self, line: bytes) -> None:
        match event_of(line):
            case (time, "o" | "e", text):
                self.screen.feed(time, text)
            case (_, "r", size):
                columns, _, rows = size.partition("x")
                if number(columns) and number(rows):  # else it names no size, and the terminal stays as it is
                    self.screen.resize(number(columns), number(rows))
            case None if not self._headed:
                self._header(line)
        self._headed = True

    def _header(self, line: bytes) -> None:
        try:
            match json.loads(line):
                case {"width": int(width), "height": int(height)}:
                    self.screen.resize(width, height)
        except (ValueError, RecursionError):  # not JSON, or numbers and nesting beyond reason
            return
