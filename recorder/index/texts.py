"""The texts of recordings, made one after the other out of what the store has of them.

The cast is read back from the store when a recording is over, and while it runs whenever it has doubled (so that all
rereading together costs twice the last one at most). A thread extracts the text, and rests as long as that took: half a
core at most, whatever is being recorded. While much comes in it rests longer: a thread that computes keeps the
interpreter from those who acknowledge, and a text can wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from recorder.index.database import Database
from recorder.index.queue import Queue
from recorder.index.readable import Readable
from recorder.index.records import Extract, put_text
from recorder.model import End, Recording, UnreadableError
from recorder.screen import CastText

_SLICE = 64 * 1024  # bytes of cast a turn of the extracting thread: some milliseconds
_BUSY = 10e6  # bytes a second that come in: with n times as many it rests n times as long as it works, up to
_MOST_REST = 15.0
_LEAST_WAIT = 0.5  # seconds to wait after a failure, doubled each time
_TRIES = 5  # for one recording's text, where what the store has of it can't be read: then it is named (`unread`)
_LAST_WAIT = 600.0  # seconds at most between two tries: somebody may put back what is damaged

_log = structlog.get_logger("recorder.index")


class Texts:
    """queue: the rows that come before their texts. writing: held while a text is written. limits: characters of text,
    bytes of cast, a recording. refresh: seconds before a running recording's text is made, and at least between two
    makings. tries: how often one could not be made, by id. unread: ids of those of which there is little hope; dropped:
    how many those were. at_work: how many are being made."""

    def __init__(
        self, database: Database, queue: Queue, writing: asyncio.Lock, *, limits: tuple[int, int], refresh: float
    ) -> None:
        self.limits = limits
        self.refresh = refresh
        self.tries: dict[str, int] = {}
        self.unread: set[str] = set()
        self.dropped = 0
        self.at_work = 0
        self._database = database
        self._queue = queue
        self._writing = writing
        self._wanted: dict[str, float] = {}  # id -> when it is due, by the loop's clock
        self._made: dict[str, int] = {}  # running recordings: size at the last making
        self._wake = asyncio.Event()

    def want(self, recording: Recording) -> None:
        """Its text is to be made: now if it is over, later if it runs and has grown enough."""
        now = asyncio.get_running_loop().time()
        if recording.end is not End.RUNNING:
            self._made.pop(recording.id, None)
            self._wanted[recording.id] = now
        elif recording.id not in self._wanted and recording.size >= 2 * self._made.get(recording.id, 0):
            self._wanted[recording.id] = now + self.refresh
        self._wake.set()

    def forget(self, identifier: str) -> None:
        """The recording is removed."""
        self._wanted.pop(identifier, None)
        self._made.pop(identifier, None)
        self.tries.pop(identifier, None)
        self.unread.discard(identifier)

    @property
    def due(self) -> list[str]:
        """Those that are to be made now."""
        now = asyncio.get_running_loop().time()
        return [identifier for identifier, due in self._wanted.items() if due <= now]

    async def work(self, store: Readable, step: asyncio.Condition) -> AsyncGenerator[None, None]:
        """Make them, one a step, for ever. step: told after each step of the index. Raises IndexFailure."""
        loop = asyncio.get_running_loop()
        while True:
            due = self.due
            if not due:
                self._wake.clear()
                soonest = min(self._wanted.values(), default=None)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._wake.wait(), None if soonest is None else max(0.0, soonest - loop.time())
                    )
                continue
            for identifier in due:
                if identifier in self._queue.recordings or self._wanted.get(identifier, loop.time() + 1) > loop.time():
                    continue  # its row comes first; or it was removed, or put off
                del self._wanted[identifier]
                self.at_work += 1
                try:
                    await self._make(store, identifier)
                except BaseException:
                    self._wanted.setdefault(identifier, loop.time())
                    raise
                finally:
                    self.at_work -= 1
                yield
            async with step:  # those whose rows are still to come
                if any(identifier in self._queue.recordings for identifier in due):
                    await step.wait()

    async def _make(self, store: Readable, identifier: str) -> None:
        loop = asyncio.get_running_loop()
        text_limit, cast_limit = self.limits
        try:
            recording = await store.get(identifier)
            cast = await extract(store, identifier, text_limit=text_limit, cast_limit=cast_limit, rest=True)
        except KeyError:
            return  # removed meanwhile
        except Exception as error:  # whatever a store raises: this text can wait, the others can't
            tries = self.tries[identifier] = self.tries.get(identifier, 0) + 1
            if tries <= _TRIES:
                _log.warning("index_text_failed", id=identifier, error=type(error).__name__, tries=tries)
            self._wanted[identifier] = loop.time() + min(_LEAST_WAIT * 2.0 ** min(tries, 20), _LAST_WAIT)
            if tries >= _TRIES and isinstance(error, UnreadableError) and identifier not in self.unread:
                self.unread.add(identifier)
                self.dropped += 1
            return
        self.tries.pop(identifier, None)
        self.unread.discard(identifier)
        async with self._writing:
            if identifier in self._queue.recordings:  # its row is still to come, or failed just now
                self._wanted.setdefault(identifier, loop.time())
                return
            await self._database.write(await put_text(self._database, recording, cast))
        if recording.end is End.RUNNING:
            # One that is beyond the limits has all the text that it will ever have.
            self._made[identifier] = 1 << 62 if cast.truncated else max(1, recording.size)


def resting(spent: float, arriving: float) -> float:
    """Seconds to rest after so many seconds of work, while so many bytes a second come in."""
    return spent * min(max(1.0, arriving / _BUSY), _MOST_REST)


async def extract(store: Readable, identifier: str, *, text_limit: int, cast_limit: int, rest: bool) -> Extract:
    """A recording's text, made in a thread. rest: take breaks (`resting`)."""
    loop = asyncio.get_running_loop()
    cast = CastText(limit=text_limit, cast_limit=cast_limit)
    async with aclosing(store.cast(identifier)) as pieces:
        async for piece in pieces:
            for start in range(0, len(piece), _SLICE):
                began = loop.time()
                await asyncio.to_thread(cast.feed, piece[start : start + _SLICE])
                if rest:
                    await asyncio.sleep(resting(loop.time() - began, store.arriving))
            if cast.done:
                break
    segments = await asyncio.to_thread(cast.finish)
    return Extract(segments, cast.truncated, any(piece.marks for piece in cast.unseen))
