"""What the index answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from recorder.model import Recording

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of an answer, newest first. cursor: gives the next part; None on the last. Opaque; it holds a place in
    time and no more, so that it is worth nothing outside the scope of whoever uses it."""

    items: tuple[T, ...] = ()
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A line of the screen with a searched word. time: seconds of the cast. snippet: the text around it, in pieces of
    (text, whether it is what was searched). It is what a session showed: hostile input to whatever prints it. unseen:
    what kept a terminal from showing it (see recorder.screen.unseen), "" for what was on the screen."""

    time: float
    snippet: tuple[tuple[str, bool], ...]
    unseen: str = ""


@dataclass(frozen=True, slots=True)
class RecordingRow:
    """A recording, as the index last heard of it. indexed: bytes of cast its text was made of, -1 before the first
    time. text_truncated: its text went beyond the limits, and its end is not searchable. unseen: it holds output that a
    terminal does not show, None where its text has not been read. hits: the first ones."""

    recording: Recording
    indexed: int = -1
    text_truncated: bool = False
    unseen: bool | None = None
    hits: tuple[Hit, ...] = ()

    @property
    def searchable(self) -> bool:
        """Whether all of its text that was kept is searched."""
        return self.indexed == self.recording.size and not self.text_truncated


@dataclass(frozen=True, slots=True)
class EventRow:
    """One API event. received: unix seconds. user: a login name, "" where the node is tagged. sender: the node that
    sent it. document: as it was sent."""

    id: str
    received: float
    user: str = ""
    node: str = ""
    tags: tuple[str, ...] = ()
    cluster: str = ""
    verb: str = ""
    resource: str = ""
    subresource: str = ""
    api_group: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    method: str = ""
    user_agent: str = ""
    session_id: str = ""
    sender: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Look:
    """That somebody looked. at: unix seconds. kind: a word for what was done (view, live, export, search ..).
    recording: its id, "" for none. detail: what was searched, or in which form it was taken away."""

    id: str
    at: float
    kind: str
    recording: str = ""
    user: str = ""
    node: str = ""
    tags: tuple[str, ...] = ()
    address: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Bucket:
    """What began in a stretch of time. start, end: unix seconds, the end excluded."""

    start: float
    end: float
    recordings: int = 0
    events: int = 0
