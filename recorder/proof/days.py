"""Days, as the proof counts them: in UTC, as "yyyy-mm-dd". Pure."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

_DAY = re.compile(r"\d{4}-\d\d-\d\d\Z", re.ASCII)
_SECONDS = 86400


def is_day(text: str) -> bool:
    """Whether it is a day as "yyyy-mm-dd"."""
    if not _DAY.match(text):
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def day_of(seconds: float) -> str:
    """The day (UTC) of a moment in unix seconds; of what no calendar has, the first there is."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    except (OverflowError, ValueError, OSError):
        return "1970-01-01"


def day_end(day: str) -> float:
    """When a day is over, in unix seconds."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() + _SECONDS


def next_day(day: str) -> str:
    """The day behind it."""
    return day_of(day_end(day))
