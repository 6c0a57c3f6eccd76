"""One API request as an event: what is collected while it passes, and the document that is made of it afterwards.

While a request passes, only what is there already is noted down (a RequestEvent, about a microsecond) and the front of
its body copied (BodyKeeper, a memcpy). Taking off the framing, redaction and JSON come later, in the task that drains
the queue (apievents).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import quote

from k8sproxy.audit.redaction import redact_body, redact_query
from k8sproxy.audit.shares import NO_WEIGHT, Pot, Weight
from k8sproxy.common.formats.apievent import RequestFragments, event_document, request_fragments
from k8sproxy.common.formats.asciicast import MAX_TEXT, bytes_as_text
from k8sproxy.common.formats.bounds import Truncation, bounded
from k8sproxy.common.formats.recorderapi import MAX_EVENTS
from k8sproxy.request.query import values as query_values
from k8sproxy.request.requestinfo import CACHED_TARGET, RequestInfo

# Bytes of a body that are kept: all of nearly every object; etcd takes 1.5 MiB at most.
BODY_LIMIT = 64 * 1024
# Bytes of the bodies of all requests that run: a thousand uploads at once are kept, of more the rest goes untold. A
# client may open connections by the thousand, and stop in the middle of a body on each.
IN_FLIGHT = 64 * 1024 * 1024
# Chunks that are taken apart, some 2 ms of them: Go's clients send 4 KiB and more in one, so a kept body has 16.
MAX_CHUNKS = 1024

# Lines of requests whose fragments are kept, about 3 KiB each: polls and watches repeat.
_LINES = 1024
_lines: dict[tuple[str, str, str, bool], tuple[RequestFragments, bool]] = {}

# What a path has in plain (RFC 3986, pchar and the slash).
_SAFE = "/:@!$&'()*+,;=~"
_PLAIN = re.compile(r"[A-Za-z0-9/:@!$&'()*+,;=~._-]*")


def kept_at_most(limit: int, *, chunked: bool) -> int:
    """Bytes that a BodyKeeper with this limit keeps at the most, framing included."""
    return 2 * limit + 1024 if chunked else limit


class BodyKeeper:
    """The front of a request's body, as it passes. Framing is taken off later, when somebody asks.

    limit: bytes. budget: what it takes them from in the owner's name, until `settle`; where that is used up nothing is
    kept. reserved: bytes that were taken from it already. chunked: what is fed is in chunked coding, which the relay
    has checked. truncated may be set by who knows that the rest did not come.
    """

    __slots__ = ("_budget", "_chunked", "_limit", "_owner", "_room", "_seen", "_taken", "truncated")

    def __init__(
        self,
        limit: int = BODY_LIMIT,
        *,
        chunked: bool = False,
        budget: Pot | None = None,
        owner: str = "",
        reserved: int = 0,
    ) -> None:
        self._budget = budget
        self._owner = owner
        self._taken = reserved
        self._limit = limit
        self._chunked = chunked
        # Framing comes on top. Chunks of a few bytes are mostly framing: they are cut earlier.
        self._room = kept_at_most(limit, chunked=chunked)
        self._seen = bytearray()
        self.truncated = False

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return len(self._seen)

    def feed(self, data: bytes | memoryview) -> None:
        """What has come next, as it is on the wire. Views are not kept."""
        size = len(data)
        if size > self._room:
            self.truncated = True
            data = data[: self._room]
            size = self._room
        if not size:
            return
        budget = self._budget
        more = len(self._seen) + size - self._taken
        if budget is not None and more > 0:
            if not budget.take(self._owner, more):
                self.drop()
                self.truncated = True
                return
            self._taken += more
        self._room -= size
        self._seen += data

    def settle(self) -> None:
        """All that will come has come; what is kept is somebody else's to count from here on."""
        if self._budget is not None:
            self._budget.give(self._owner, self._taken)
            self._budget = None

    def drop(self) -> None:
        """Keep nothing; if there was something, it counts as cut."""
        self.settle()
        self.truncated = self.truncated or bool(self._seen)
        self._seen = bytearray()
        self._room = 0

    def body(self) -> bytes:
        """The body without framing, at most `limit` bytes; `truncated` is final from here on."""
        if not self._chunked:
            return bytes(self._seen)
        seen, body, place = bytes(self._seen), bytearray(), 0
        for _ in range(MAX_CHUNKS):
            end = seen.find(b"\r\n", place)
            try:
                size = int(seen[place:end].partition(b";")[0], 16) if end >= 0 else -1
            except ValueError:
                size = -1
            if size == 0:
                return bytes(body)
            body += seen[end + 2 : end + 2 + size] if size > 0 else b""
            place = end + 2 + size + 2
            if size < 0 or len(body) > self._limit or place > len(seen):
                break
        self.truncated = self.truncated or bool(seen)
        return bytes(body[: self._limit])


@dataclass(slots=True, eq=False)
class RequestEvent:
    """One request, to be told. Light: everything costly is done by document(), in the drain task.

    origin: apievent.origin_fragment's text, made once a connection. timestamp: unix seconds. user_agent, agent_cut: of
    told_agent. session_id: "" where the request is no session. redact: whether secrets are taken out. extra: one more
    JSON member of the document. cut: the query is not told. refused: called with the reason where it must be told, and
    a recorder takes it in no form; for as long as the request runs.
    """

    info: RequestInfo
    origin: str
    timestamp: float
    user_agent: str = ""
    agent_cut: Truncation | None = None
    body: BodyKeeper | None = None
    session_id: str = ""
    redact: bool = True
    extra: str = ""
    cut: bool = False
    weight: Weight = NO_WEIGHT
    refused: Callable[[str], None] | None = None

    @property
    def long_line(self) -> int:
        """Bytes of its line, about, where that is longer than most."""
        return long_line(self.info)

    def drop_query(self) -> None:
        """Keep nothing of the query; what is told is marked as truncated."""
        self.info = replace(self.info, query="", field_selector="", label_selector="")
        self.cut = True

    def strip(self) -> None:
        """Keep only who asked for what: none of what a client can fill as it likes, but for the path."""
        self.drop_query()
        self.body = self.agent_cut = None
        self.user_agent = ""

    def document(self, event_id: str) -> bytes:
        """The redacted document (protocol.apievent)."""
        fragments, redacted = request_line(self.info, redact=self.redact)
        body, truncated = b"", False
        if self.body is not None:
            raw = self.body.body()
            truncated = self.body.truncated
            if self.redact:
                try:
                    body, body_redacted = redact_body(self.info, raw, truncated=truncated)
                except Exception:  # a fault of ours must cost neither the event nor a secret
                    body, body_redacted = b"", True
                redacted = redacted or body_redacted
            else:
                body = raw
        document = self._assembled(event_id, fragments, body, truncated=truncated or self.cut, redacted=redacted)
        # A list in brackets. What was taken out of a body of short values makes it several times as long.
        if len(document) + 2 > MAX_EVENTS:
            document = self._assembled(event_id, fragments, b"", truncated=True, redacted=redacted)
        return document

    def _assembled(
        self, event_id: str, fragments: RequestFragments, body: bytes, *, truncated: bool, redacted: bool
    ) -> bytes:
        return event_document(
            event_id,
            int(self.timestamp),
            self.user_agent,
            fragments,
            self.origin,
            body=body,
            truncated=truncated,
            redacted=redacted,
            session_id=self.session_id,
            extra=self.extra,
            agent_cut=self.agent_cut,
        )


def told_agent(user_agent: bytes) -> tuple[str, Truncation | None]:
    """A User-Agent as it is told, and what it was where it had to be cut."""
    text = user_agent.decode("ascii") if user_agent.isascii() else bytes_as_text(user_agent)
    return bounded(text, MAX_TEXT)


def long_line(info: RequestInfo) -> int:
    """Bytes of a request's line, about, where that is longer than most."""
    size = len(info.path) + len(info.query)
    return 2 * size if size > CACHED_TARGET else 0


def request_line(info: RequestInfo, *, redact: bool = True) -> tuple[RequestFragments, bool]:
    """What depends on the request's line alone, and whether its query is redacted. 4 to 20 us, 0.3 us where cached."""
    # All of a RequestInfo that is told follows from these three.
    key = (info.method, info.path, info.query, redact)
    line = _lines.get(key)
    if line is None:
        if redact:
            query, values, redacted = redact_query(info.query)
        else:
            query, values, redacted = info.query, query_values(info.query), False
        path = info.path if _PLAIN.fullmatch(info.path) else quote(info.path, safe=_SAFE, errors="replace")
        line = request_fragments(info, f"{path}?{query}" if query else path, values), redacted
        if len(info.path) + len(info.query) <= CACHED_TARGET:
            if len(_lines) >= _LINES:
                _lines.clear()
            _lines[key] = line
    return line
