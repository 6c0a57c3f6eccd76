"""A recording in windows, so that its middle can be shown without its beginning.

A window is cast text: the header line, events, and last a line {"next": POSITION} of our own, null at the recording's
end. A position is "SECONDS~N": the events whose time is at least that, without the first N of those at just that time;
so windows join without a gap or a repetition however many events share a moment.

    around(at)     what led up to a moment, then what follows it: for a seek
    onward(from)   what follows a position: for playing on

What led up to it: small recordings begin at their beginning, and the screen is exact. Of large ones, about LEAD bytes
before the moment are read, by the recording's average rate, or what the store reads with that moment where it was in a
burst. What was drawn before that and not since is not on the screen, and the terminal has the header's size until the
lead-in resizes it. This is the approximation, and it mends itself with the next full redraw.

Times that fall are taken as the highest one before, as the store takes them.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from math import isfinite

from recorder.model import Recording
from recorder.store import Reading

SMALL = 2 * 1024 * 1024  # bytes of cast text that the player's terminal takes in some 50 ms: read from the beginning
LEAD = 96 * 1024  # bytes before a moment: several full redraws of a large colourful screen; twice that is kept
MOST_LEAD = 8 * 1024 * 1024  # bytes read for a lead-in; where the rate was that far above its average, it is cut short
WINDOW = 128 * 1024  # bytes after it: minutes at a shell, and half a second of a build's log

# Bytes of cast between two turns for others: some 5 ms where nearly all of it is escape sequences.
TURN = 32 * 1024

_TIME = re.compile(rb"\[\s*(-?\d{1,12}(?:\.\d{0,30})?(?:[eE][+-]?\d{1,2})?)\s*,")
POSITION = r"^([0-9]{1,12}(?:\.[0-9]{1,30})?(?:e-[0-9]{1,3})?)~([0-9]{1,9})$"  # of JSON Schema and of Python
_POSITION = re.compile(POSITION)


@dataclass(frozen=True, slots=True)
class Position:
    """Behind the first `skip` events of the time `seconds`."""

    seconds: float
    skip: int = 0

    def __str__(self) -> str:
        return f"{self.seconds!r}~{self.skip}"

    @classmethod
    def of(cls, text: str) -> Position:
        """Raises ValueError."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError("not a position that this recorder gave out")
        return cls(float(match[1]), int(match[2]))


def line_seconds(line: bytes) -> float | None:
    """The time of an event, None for a line that has none."""
    match = _TIME.match(line)
    return float(match[1]) if match is not None and isfinite(float(match[1])) else None


async def lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Line by line, each with its line feed, out of pieces of many; the last may lack it. Whoever waits for the loop
    gets a turn every TURN bytes: what is done with each line is work, and on this loop recordings are acknowledged."""
    rest, given = b"", 0
    async for piece in pieces:
        if rest:
            piece = rest + piece
        *whole, rest = piece.split(b"\n")
        for line in whole:
            yield line + b"\n"
            given += len(line) + 1
            if given >= TURN:
                given = 0
                await asyncio.sleep(0)
    if rest:
        yield rest + b"\n"


async def around(store: Reading, recording: Recording, at: float) -> AsyncGenerator[bytes, None]:
    """The window for a seek to `at` seconds."""
    whole = recording.size <= SMALL
    lead = 0.0 if whole else max(1.0, LEAD * recording.duration / recording.size)
    window = _Window(at, keep=None if whole else 2 * LEAD, most=MOST_LEAD)
    await _fill(window, store, recording, 0.0 if whole else max(0.0, at - lead))
    if window.far:
        window = _Window(at, keep=2 * LEAD)
        await _fill(window, store, recording, at)
    for line in window.result():
        yield line


async def onward(store: Reading, recording: Recording, position: Position) -> AsyncGenerator[bytes, None]:
    """The window from a position on."""
    window = _Window(position.seconds, position=position)
    await _fill(window, store, recording, position.seconds)
    for line in window.result():
        yield line


async def _fill(window: _Window, store: Reading, recording: Recording, start: float) -> None:
    async with aclosing(store.cast(recording.id, start=start)) as pieces:
        async for line in lines(pieces):
            if window.take(line):
                break


class _Window:
    """Gathers one.

    at: seconds. position: where it starts, None for one with a lead-in. keep: bytes of the lead-in that are kept, None
    for all. most: bytes that it may have before `at` is reached; more, and the window gives up (`far`).
    """

    def __init__(
        self, at: float, *, keep: int | None = None, most: int | None = None, position: Position | None = None
    ) -> None:
        self.far = False
        self._at = at
        self._keep = keep
        self._most = most
        self._position = position
        self._header: bytes | None = None
        self._lead: deque[bytes] = deque()
        self._led = 0
        self._read = 0
        self._body: list[bytes] = []
        self._size = 0
        self._latest = 0.0  # seconds, of the last event
        self._same = 0  # events at just that time
        self._next: Position | None = None

    def take(self, line: bytes) -> bool:
        """One line; whether the window is full."""
        if self._header is None:
            self._header = line
            return False
        seconds = line_seconds(line)
        if seconds is None or seconds <= self._latest:
            self._same += 1
        else:
            self._latest, self._same = seconds, 1
        if self._position is not None:
            if self._latest < self._position.seconds:
                return False
            if self._latest == self._position.seconds and self._same <= self._position.skip:
                return False
        elif self._latest <= self._at:
            self._lead.append(line)
            self._led += len(line)
            self._read += len(line)
            while self._keep is not None and self._led > self._keep and len(self._lead) > 1:
                self._led -= len(self._lead.popleft())
            self.far = self._most is not None and self._read > self._most and self._keep is not None
            return self.far
        if self._size >= WINDOW:
            self._next = Position(self._latest, self._same - 1)
            return True
        self._body.append(line)
        self._size += len(line)
        return False

    def result(self) -> list[bytes]:
        """The lines of the window."""
        following = "null" if self._next is None else f'"{self._next}"'
        return [self._header or b"{}\n", *self._lead, *self._body, f'{{"next":{following}}}\n'.encode()]
