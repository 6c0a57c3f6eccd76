"""A recorder's reason for a refusal, as far as there is time and room for it.

A status alone tells nobody what to mend: "HTTP 503" may be a disk that is nearly full or a recorder that is stopping.
The reason is in the body, as {"error": ".."} or as a line of text, or in the field `Recorder-Error` where there is no
body. It is the other end's text: so much is read, for so long, and one printable line of it is passed on.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from k8sproxy.common.formats.recorderapi import MAX_REFUSAL, read_refusal

# Seconds for the rest of a refusal once its head is here. It is one packet, and a user waits for the next recorder.
REASON_TIME = 0.5

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[^\r\n]*\r\n")


class Reason:
    """The refusal of one request. question: method and path. field: `Recorder-Error`. given: called once, with the
    words, when `done` is or time is up; not after `cancel`."""

    __slots__ = ("_body", "_chunked", "_field", "_given", "_question", "_status", "_timer")

    def __init__(
        self,
        status: int | str,
        question: str,
        field: str | None,
        given: Callable[[str], None],
        *,
        chunked: bool = False,
    ) -> None:
        self._status = status
        self._question = question
        self._field = field
        self._body = b""
        self._chunked = chunked
        self._given: Callable[[str], None] | None = given
        self._timer = asyncio.get_running_loop().call_later(REASON_TIME, self.done)

    def take(self, data: bytes) -> None:
        """Some of the body, as it came."""
        self._body += data[: MAX_REFUSAL - len(self._body)]
        if len(self._body) >= MAX_REFUSAL:
            self.done()

    def done(self) -> None:
        """There is no more of it. Once is enough, twice no harm."""
        given, self._given = self._given, None
        self._timer.cancel()
        if given is not None:
            given(self.words)

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        self._given = None
        self._timer.cancel()

    @property
    def words(self) -> str:
        """What is known so far."""
        said = read_refusal(_unchunked(self._body) if self._chunked else self._body, self._field)
        return f"HTTP {self._status} to {self._question}" + (f": {said}" if said else "")


def _unchunked(data: bytes) -> bytes:
    """The content of a chunked body, or of its beginning (RFC 9112, 7.1)."""
    at, pieces = 0, []
    while match := _CHUNK.match(data, at):
        size = int(match[1], 16)
        pieces.append(data[match.end() : match.end() + size])
        at = match.end() + size + 2
        if not size:
            break
    return b"".join(pieces)
