"""Where the rectangles of the two plots are: activity over time, and events along a session. No styles, no scripts:
attributes only, so that the strict policy of the pages holds for them too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recorder.index.rows import Bucket, EventRow
from recorder.model import Recording

WIDTH = 960.0  # units of the drawing, which is scaled to the page
HEIGHT = 160.0
_LEFT = 36.0  # for the numbers of the scale


@dataclass(frozen=True, slots=True)
class Bar:
    """One stretch of time. x, width: units. sessions, events: (y, height) of the two bars, from the top."""

    bucket: Bucket
    x: float
    width: float
    sessions: tuple[float, float]
    events: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Activity:
    """A plot. scales: (y, count) of the lines for sessions; events have a scale of their own, up to most_events."""

    bars: Sequence[Bar]
    scale: Sequence[tuple[float, int]]
    most_recordings: int
    most_events: int
    left: float = _LEFT
    width: float = WIDTH
    height: float = HEIGHT


def round_up(count: int) -> int:
    """The next of 1, 2, 4, 5, 10, 20, 40, 50 ..: the top of a scale."""
    power = 1
    while True:
        for step in (1, 2, 4, 5):
            if step * power >= count:
                return step * power
        power *= 10


def activity(buckets: Sequence[Bucket]) -> Activity:
    """Two bars a stretch, sessions and events, each kind on its own scale."""
    top = round_up(max((bucket.recordings for bucket in buckets), default=0))
    most_events = max((bucket.events for bucket in buckets), default=0)
    top_events = round_up(most_events)
    step = (WIDTH - _LEFT) / max(1, len(buckets))
    bars = [
        Bar(
            bucket,
            round(_LEFT + number * step, 2),
            round(step, 2),
            _upright(bucket.recordings, top),
            _upright(bucket.events, top_events),
        )
        for number, bucket in enumerate(buckets)
    ]
    counts = (0, top) if top % 2 else (0, top // 2, top)
    return Activity(
        bars,
        [(round(HEIGHT - HEIGHT * count / top, 2), count) for count in counts],
        max((bucket.recordings for bucket in buckets), default=0),
        most_events,
    )


def _upright(count: int, top: int) -> tuple[float, float]:
    high = round(max(HEIGHT * count / top, 2.0 if count else 0.0), 2)
    return round(HEIGHT - high, 2), high


@dataclass(frozen=True, slots=True)
class Mark:
    """An event on a session's line. x: units of 1000. seconds: of the session. during: not before and not behind it.
    own: it names this session."""

    event: EventRow
    x: float
    seconds: float
    during: bool
    own: bool


def marks(recording: Recording, events: Iterable[EventRow]) -> list[Mark]:
    """Events on the line of a session, oldest first."""
    found = []
    for event in events:
        seconds = event.received - recording.started
        share = seconds / recording.duration if recording.duration > 0 else 0.0
        found.append(
            Mark(
                event,
                round(1000 * min(max(share, 0.0), 1.0), 1),
                seconds,
                0 <= seconds <= recording.duration,
                bool(recording.session_id) and event.session_id == recording.session_id,
            )
        )
    return sorted(found, key=lambda mark: mark.seconds)
