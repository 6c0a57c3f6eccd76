from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.model import Recording, Source
from recorder.web import windows
from recorder.web.windows import Position, around, lines, onward

HEADER = b'{"version":2,"width":80,"height":24}\n'


class Shelf:
    """A store of one recording whose pieces are of a few lines, as the real one's: it gives from the first piece that
    reaches `start`, the header line first."""

    def __init__(self, events: list[list[Any]], grain: int = 3) -> None:
        self.lines = [json.dumps(event).encode() + b"\n" for event in events]
        self.times = [event[0] for event in events]
        self.grain = grain
        self.read = 0

    @property
    def recording(self) -> Recording:
        size = len(HEADER) + sum(map(len, self.lines))
        return Recording("0" * 26, {}, Source("", ""), 0.0, size=size, duration=self.times[-1] if self.times else 0.0)

    async def cast(self, _: str, *, start: float = 0.0, end: float | None = None) -> AsyncGenerator[bytes, None]:
        yield HEADER
        latest = 0.0
        for first in range(0, len(self.lines), self.grain):
            latest = max([latest, *self.times[first : first + self.grain]])
            if latest >= start:
                piece = b"".join(self.lines[first : first + self.grain])
                self.read += len(piece)
                yield piece

    async def get(self, identifier: str) -> Recording:
        return self.recording

    def follow(self, identifier: str, *, start: float = 0.0) -> AsyncGenerator[bytes, None]:
        return self.cast(identifier, start=start)

    def recordings(self) -> AsyncGenerator[Recording, None]:
        raise NotImplementedError

    def events(self) -> AsyncGenerator[Any, None]:
        raise NotImplementedError


async def window(pieces: AsyncGenerator[bytes, None]) -> tuple[list[list[Any]], str | None]:
    values = [json.loads(line) async for line in lines(pieces)]
    assert values[0]["version"] == 2
    return values[1:-1], values[-1]["next"]


async def played(shelf: Shelf, at: float) -> tuple[list[list[Any]], int]:
    """All events from a seek on, and how many windows they took."""
    events, position = await window(around(shelf, shelf.recording, at))
    count = 1
    while position is not None:
        more, position = await window(onward(shelf, shelf.recording, Position.of(position)))
        assert more
        events += more
        count += 1
    return events, count


TIMES = st.lists(st.floats(0, 30, allow_nan=False), max_size=60).map(sorted) | st.lists(
    st.sampled_from([0, 1, 1.5, 2]), max_size=60
).map(sorted)


@settings(max_examples=150, deadline=None)
@given(TIMES, st.integers(1, 7), st.floats(0, 31), st.integers(1, 400))
def test_windows_join_without_gap_or_repetition(times: list[float], grain: int, at: float, size: int) -> None:
    shelf = Shelf([[time, "o", f"{number}"] for number, time in enumerate(times)], grain)
    before = windows.WINDOW
    windows.WINDOW = size
    try:
        events, _ = asyncio.run(played(shelf, at))
    finally:
        windows.WINDOW = before
    assert events == [[time, "o", f"{number}"] for number, time in enumerate(times)]


def test_a_large_recording_is_entered_in_its_middle() -> None:
    shelf = Shelf([[float(number), "o", "x" * 1000] for number in range(20000)], 20)
    events, position = asyncio.run(window(around(shelf, shelf.recording, 15000.0)))
    assert shelf.read < 4 * windows.LEAD
    assert events[0][0] < 15000 - 50 and events[-1][0] > 15000 + 50 and position is not None
    assert [event[0] for event in events] == [float(n) for n in range(int(events[0][0]), int(events[-1][0]) + 1)]


def test_a_burst_far_above_the_average_is_entered_where_the_store_can() -> None:
    burst = [[1000 + number / 100000, "o", "x" * 1000] for number in range(20000)]
    shelf = Shelf([*burst, [100000.0, "o", "end"]], 20)
    events, _ = asyncio.run(window(around(shelf, shelf.recording, 1000.15)))
    assert events[-1][0] > 1000.15 and sum(len(event[2]) for event in events) < 3 * windows.LEAD


def test_times_that_fall_count_as_the_highest_before() -> None:
    shelf = Shelf([[5.0, "o", "a"], [1.0, "o", "b"], [6.0, "o", "c"]])
    assert [event[2] for event in asyncio.run(played(shelf, 0.0))[0]] == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["", "1", "~", "1~", "-1~0", "nan~0", "1~-1", "1~1~1", "1e400~0x", "9" * 20 + "~0"])
def test_positions_of_others_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="position"):
        Position.of(text)


@given(st.floats(0, 1e6, allow_nan=False), st.integers(0, 10**8))
def test_positions_are_read_back(seconds: float, skip: int) -> None:
    assert Position.of(str(Position(seconds, skip))) == Position(seconds, skip)


def test_lines_at_any_split() -> None:
    text = b"a\nbb\n\nccc\nlast"
    chosen = random.Random(5)

    async def check() -> None:
        for _ in range(200):
            cuts = sorted(chosen.sample(range(len(text)), chosen.randint(0, 6)))

            async def pieces(cuts: list[int] = cuts) -> AsyncGenerator[bytes, None]:
                for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
                    yield text[start:end]

            assert b"".join([line async for line in lines(pieces())]) == text + b"\n"

    asyncio.run(check())
