"""One request on an HTTP/2 connection to a recorder, later the carrier of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from h2.stream import H2Stream

from k8sproxy.recording.refusals import Reason
from k8sproxy.recording.upload import Upload


class Carries(Protocol):
    """What a stream needs of its connection."""

    def wake(self, stream: Stream) -> None:
        """There is something new in the stream's row, or its end."""

    def reset(self, stream: Stream) -> None:
        """Forget the stream; the recorder is told unless both ends have ended it."""


class Stream:
    """A request on a connection, later an upload's carrier. answer: once the recorder has accepted it, else Rejected
    with its reason."""

    __slots__ = (
        "_connection",
        "answer",
        "h2",
        "number",
        "question",
        "queued",
        "read",
        "reason",
        "upload",
        "upload_for",
    )

    def __init__(
        self,
        connection: Carries,
        number: int,
        h2_stream: H2Stream,
        upload_for: Callable[[Stream], Upload] | None,
        question: str,
    ) -> None:
        self._connection = connection
        self.question = question  # method and path
        self.reason: Reason | None = None  # it was refused, and why is being read
        self.number = number
        self.h2 = h2_stream
        self.upload_for = upload_for
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queued = False
        self.read = 0  # bytes whose window is not given back yet
        self.upload: Upload | None = None

    def wake(self) -> None:
        self._connection.wake(self)

    def reset(self) -> None:
        self._connection.reset(self)
