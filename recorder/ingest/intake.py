"""One session on its way in, whatever wire it comes over: first the header line, then the store's Live.

Bytes that come before their sender is admitted wait here; flow control bounds them. The wire's side: `feed`, then
`end` (a clean end of the body) or `cut` (anything else). What to tell the sender is read off: `acked`, `over`, `error`.

A session takes a place of its sender's when it is admitted, and one of its user's: at the same moment where the request
says whose it is, so that a refusal comes before the session is taken, else when the header line has said it. The header
line has the last word. What comes of header lines that are not whole yet counts against the sender's share of those.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from k8sproxy.common.errors import Refusal
from k8sproxy.common.formats.asciicast import MAX_HEADER_LINE
from k8sproxy.common.formats.recorderapi import read_user
from recorder.ingest.admission import Door
from recorder.ingest.site import IngestSite, declines
from recorder.model import End, Source, spender
from recorder.store import StoreError
from recorder.store.live import Live
from recorder.store.manifest import parse_header


class Intake:
    """One session. changed: called whenever there may be something to tell the sender."""

    def __init__(
        self, site: IngestSite, door: Door, version: str, changed: Callable[[], None], user: str | None = None
    ) -> None:
        """user: the value of Recorder-User, where there is one."""
        self.live: Live | None = None
        self.error: str | None = None
        self.declines = ""  # beside an error: see recorderapi
        self._named = read_user(user)
        self._site = site
        self._door = door
        self._holder = ""  # whose place it has
        self._user = ""  # the same
        self._version = version
        self._changed = changed
        self._source: Source | None = None
        self._early = bytearray()
        self._held = 0  # bytes of it that count
        self._ended = False
        self._closed = False
        self._awaited = 0  # the position whose becoming safe is timed, one at a time; 0 for none
        self._since = 0.0
        site.counts.opened()

    @property
    def acked(self) -> int:
        """Bytes that are safe."""
        return self.live.acked if self.live is not None else 0

    @property
    def over(self) -> bool:
        """Whether the end of the body was reached and is safe."""
        return self.live is not None and self.live.over and self.error is None

    @property
    def waits(self) -> bool:
        """Whether its sender is not admitted yet: what it sends meanwhile counts against its window."""
        return self._source is None

    @property
    def blocked(self) -> bool:
        """Whether the sender should wait."""
        return self.live is not None and self.live.error is None and self.live.blocked

    @property
    def crowded(self) -> bool:
        """Whether nothing more should be read: all recordings together, or its user's, hold too much."""
        return self._site.store.crowded or (self.live is not None and self.live.crowded)

    def admit(self, source: Source) -> None:
        """Its sender may send. Raises Refusal where there is no place for the session."""
        self._site.check_willing()
        self._site.sessions.take(self._door.holder)
        try:
            self._seat(self._named)
        except Refusal:
            self._site.sessions.give_back(self._door.holder)
            raise
        self._holder, self._source = self._door.holder, source
        self._begin()

    def _seat(self, user: str) -> None:
        """Its place is this user's. Raises Refusal."""
        if user and user != self._user:
            self._site.users.take(user)
            self._unseat()
            self._user = user

    def _unseat(self) -> None:
        if self._user:
            self._site.users.give_back(self._user)
            self._user = ""

    def feed(self, data: bytes) -> None:
        """Bytes of the body."""
        self._site.counts.bytes += len(data)
        if self.error is not None:
            return
        if self.live is None:
            self._early += data
            self._begin()
            if self.live is None and self.error is None:
                self._hold(len(self._early))
            return
        self._write(data)

    def _hold(self, size: int) -> None:
        """Count so many bytes of a header line that is not whole."""
        early = self._site.early
        try:
            early.take(self._door.holder, size - self._held)
            self._held = size
        except Refusal as refusal:
            self._site.refused(refusal, self._door)
            self._early.clear()
            self._fail(refusal.message)

    def _release(self) -> None:
        if self._held:
            self._site.early.give_back(self._door.holder, self._held)
            self._held = 0

    def _write(self, data: bytes) -> None:
        if self.live is None or not data:
            return
        try:
            self.live.write(data)
        except StoreError as error:
            self._fail(str(error))
            return
        if not self._awaited:
            self._awaited, self._since = self.live.given, time.monotonic()

    def _begin(self) -> None:
        if self._source is None or self.live is not None or self.error is not None:
            return
        feed = self._early.find(b"\n") + 1
        if not feed:
            if len(self._early) > MAX_HEADER_LINE:
                self._fail(f"the first line has more than {MAX_HEADER_LINE} bytes", declines="session")
            elif self._ended:
                self._fail("the header line is missing", declines="session")
            return
        line = bytes(self._early[:feed])
        try:
            user = spender(parse_header(line, sent=True), self._source)
            self._seat(user)
            self.live = self._site.store.start(line, self._source)
        except Refusal as refusal:
            self._site.refused(refusal, self._door, session_user=user)
            self._early.clear()
            self._fail(refusal.message, declines=declines(refusal))
            return
        except (StoreError, ValueError) as error:
            self._early.clear()
            self._fail(str(error), declines="" if isinstance(error, StoreError) else "session")
            return
        self._release()
        self._site.counts.sessions[self._version] += 1
        self.live.listener = self._live_changed
        rest = bytes(self._early[feed:])
        self._early = bytearray()
        self._write(rest)
        if self._ended and self.error is None:
            self.live.end_as(End.CLEAN)

    def _live_changed(self) -> None:
        if self.live is not None and self.live.error is not None and self.error is None:
            self.error = str(self.live.error)
        if self.live is not None and 0 < self._awaited <= self.live.acked:
            self._site.counts.ack_seconds(time.monotonic() - self._since)
            self._awaited = 0
        self._changed()

    def end(self) -> None:
        """The body has ended as it should."""
        if self._ended:
            return
        self._ended = True
        if self.live is not None:
            self.live.end_as(End.CLEAN)
        else:
            self._begin()

    def _fail(self, why: str, *, declines: str = "") -> None:
        """Its bytes make no sense, or the store does not take them: keep what is there as CUT, and say why."""
        self.error, self.declines = why, declines
        self._release()
        if self.live is not None and not self.live.over:
            self.live.end_as(End.CUT)
        self._changed()

    def cut(self, why: str | None = None) -> None:
        """The sender has gone, or (why) must go."""
        if why is not None:
            self.error = self.error or why
        if self.live is not None:
            self.live.end_as(End.CUT)

    def close(self) -> None:
        """Nothing more will be told. Whatever is still open is cut."""
        if self._closed:
            return
        self._closed = True
        counts = self._site.counts
        counts.closed()
        self._release()
        if self._source is not None:
            self._site.sessions.give_back(self._holder)
        self._unseat()
        if self.live is not None:
            self.live.listener = None
            self.live.end_as(End.CUT)
            counts.ends["error" if self.error else self.live.end.value] += 1
        self._early = bytearray()
