"""A recording, played: events out of windows, in their time, with keys that pause and seek.

Theory of operation. Windows (recorder/web/windows.py) give what led up to a moment at once, and then what follows it in
its time; the next window is asked for when one is used up. A pause between two events is cut at `idle_limit`. Between
events a key may come: it pauses, ends, changes the speed or leads to another window. Time is what `wait` says, so that
a test needs none.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from k8sproxy.common.formats.asciicast import decode_output, event_of
from recorder.cli.library import Library
from recorder.cli.tame import CLEAR, Tame
from recorder.screen import Screen

# Seconds that an arrow key moves by.
STEP = 5.0
# Seconds that nobody waits for at once: a pause of an hour is waited for in pieces, so that its end can be moved.
_LONGEST = 1.0

# Waits so many seconds (None: until a key comes) and gives the key, or "" where the time is up.
Wait = Callable[[float | None], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class _Event:
    time: float
    code: str
    text: str


class Player:
    """wait: see Wait. write: takes output, as bytes for the terminal. speed: seconds of the recording a second.
    idle_limit: seconds of the recording, of a pause. raw: the recording's own bytes. position: seconds, where it is.
    unseen: whether what was played so far has output that a terminal does not show."""

    def __init__(
        self,
        library: Library,
        identifier: str,
        *,
        wait: Wait,
        write: Callable[[bytes], None],
        speed: float = 1.0,
        idle_limit: float | None = None,
        raw: bool = False,
    ) -> None:
        self.position = 0.0
        self.speed = speed
        self._library = library
        self._id = identifier
        self._wait = wait
        self._write = write
        self._idle_limit = idle_limit
        self._raw = raw
        self._tame = Tame()
        self._screen = Screen()
        self._target: float | None = None
        self._over = False

    async def run(self, start: float = 0.0) -> None:
        """Play from `start` seconds on to the end, or until told to stop. Raises Failed."""
        self._target = start
        while self._target is not None and not self._over:
            target, self._target = self._target, None
            await self._play_from(target)

    async def _play_from(self, start: float) -> None:
        """From there to the end, or to a key that leads elsewhere."""
        self.position = start
        last, following = start, ""
        first = True
        while first or following:
            position, following = following, ""
            pieces = self._library.window(self._id, at=start, position=position)
            async with aclosing(pieces):
                async for line in pieces:
                    found = event_of(line)
                    if found is None:
                        value = _value(line)
                        if isinstance(value, dict) and "next" in value:
                            following = str(value["next"] or "")
                            break
                        continue
                    event = _Event(*found)
                    if event.time > last:
                        await self._pass(event.time - last)
                        if self._over or self._target is not None:
                            return
                        last = event.time
                    self.position = max(self.position, event.time)
                    self._show(event)
            first = False

    async def _pass(self, seconds: float) -> None:
        """Let time go by, and heed the keys meanwhile."""
        left = seconds if self._idle_limit is None else min(seconds, self._idle_limit)
        while left > 0 and not self._over and self._target is None:
            piece = min(left, _LONGEST * self.speed)
            key = await self._wait(piece / self.speed)
            # A key comes somewhere in the piece; that it is waited for anew is not noticed.
            if key:
                await self._heed(key)
            else:
                left -= piece

    async def _heed(self, key: str) -> None:
        if key == "pause":
            while (key := await self._wait(None)) != "pause":
                await self._heed(key)
                if self._over or self._target is not None:
                    return
        elif key == "quit":
            self._over = True
        elif key in ("back", "on"):
            self._target = max(0.0, self.position + (STEP if key == "on" else -STEP))
            self._tame = Tame()
            self._write(CLEAR.encode())
        elif key in ("faster", "slower"):
            self.speed = min(64.0, max(1 / 16, self.speed * (2.0 if key == "faster" else 0.5)))

    @property
    def unseen(self) -> bool:
        """See the class. To be asked at the end."""
        self._screen.finish()
        return any(piece.marks for piece in self._screen.unseen)

    def _show(self, event: _Event) -> None:
        if event.code not in ("o", "e"):
            return
        self._screen.feed(event.time, event.text)
        if self._raw:
            self._write(decode_output(event.text))
        else:
            self._write(self._tame.feed(event.text).encode("utf-8", "replace"))


def _value(line: bytes) -> object:
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value
