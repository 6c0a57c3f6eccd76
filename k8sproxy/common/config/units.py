"""Durations and sizes as people write them: "1m30s", "500ms", "90d", "64KiB".

A duration is spelled as Go's time.ParseDuration spells it, the way Kubernetes users know it, or in days of 24 hours,
and becomes seconds. A size has a binary unit, or none and is bytes. A bare number is not a duration: nobody can tell
seconds from milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_DURATION = re.compile(r"(?:(?:\d+\.?\d*|\.\d+)(?:ms|us|µs|d|h|m|s))+\Z", re.ASCII)
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ms|us|µs|d|h|m|s)", re.ASCII)
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d{1,15})(B|KiB|MiB|GiB|TiB)?\Z", re.ASCII)
_BYTES = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_duration(value: object) -> float:
    """Seconds. Raises ValueError with a message for the reader."""
    if not isinstance(value, str) or len(value) > 40 or not _DURATION.match(value):
        raise ValueError('must be a duration with its unit, such as "500ms", "10s", "5m" or "1h30m"')
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(value))


def parse_size(value: object) -> int:
    """Bytes. Raises ValueError with a message for the reader."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = _SIZE.match(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('must be a size, such as "64KiB", "1GiB" or a number of bytes')
    return int(match[1]) * _BYTES[match[2]]


def duration_between(low: str, high: str) -> Callable[[object], float]:
    """A validator: a duration from low to high, both allowed."""
    lowest, highest = parse_duration(low), parse_duration(high)

    def check(value: object) -> float:
        seconds = parse_duration(value)
        if not lowest <= seconds <= highest:
            raise ValueError(f"must be from {low} to {high}")
        return seconds

    return check


def size_between(low: str, high: str) -> Callable[[object], int]:
    """A validator: a size from low to high, both allowed."""
    lowest, highest = parse_size(low), parse_size(high)

    def check(value: object) -> int:
        size = parse_size(value)
        if not lowest <= size <= highest:
            raise ValueError(f"must be from {low} to {high}")
        return size

    return check


def number_between(low: int, high: int) -> Callable[[object], int]:
    """A validator: a whole number from low to high, both allowed."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return check
