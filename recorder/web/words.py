"""Values as people read them: times, lengths, sizes, and names that may be hostile."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from math import ceil

# Letters that are drawn as nothing: the fillers of Hangul.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0")
MAX_SHOWN = 300  # characters of a recorded name or command in a page; all of it is in the JSON


def visible(text: str, most: int = MAX_SHOWN) -> str:
    """Text in which nothing acts on what is around it: controls, bidirectional marks, characters without width or
    meaning are spelled as \\u{..}, stacks of combining marks are cut at three, and what is too long ends in an
    ellipsis. Line feeds and tabs become spaces."""
    parts: list[str] = []
    marks = 0
    for character in text[:most]:
        category = unicodedata.category(character)
        if character in "\n\t":
            character = " "
        elif category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or character in _BLANK:
            character = f"\\u{{{ord(character):x}}}"
        marks = marks + 1 if category in ("Mn", "Me", "Mc") else 0
        if marks <= 3:
            parts.append(character)
    return "".join(parts) + ("…" if len(text) > most else "")


def utc(seconds: float) -> datetime:
    """A moment; one that no calendar has is the epoch."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


def rfc3339(seconds: float) -> str:
    """To the millisecond, in UTC."""
    return utc(seconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(seconds: float) -> str:
    """A time within a session: 0:07, 12:34, 1:02:03."""
    whole = int(max(0.0, seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def instant(seconds: float) -> str:
    """A time within a session for an address, in tenths and never before it: what came then is on the screen."""
    return f"{ceil(round(seconds * 10, 6)) / 10:.1f}"


def length(seconds: float) -> str:
    """How long something took: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min" if whole % 3600 // 60 else f"{whole // 3600} h"


def size(count: int) -> str:
    """Bytes: 812 B, 1.2 MiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def ago(seconds: float) -> str:
    """How long ago: just now, 5 min ago, 3 h ago, 12 days ago."""
    if seconds < 60:
        return "just now"
    for unit, name in ((86400, "day"), (3600, "h"), (60, "min")):
        count = int(seconds // unit)
        if count:
            return f"{count} {name}{'s' if name == 'day' and count > 1 else ''} ago"
    raise AssertionError("unreachable")
