"""A running recording, as it grows: as server-sent events for the page, as lines for programs.

    text/event-stream        each message is cast lines; "event: over" at the recording's end; comments keep it alive
    application/x-ndjson     cast lines

It begins with the header line and what is on the screen: all there is of a small recording, the last events of a large
one. Whoever watches is asked about again every RECHECK, so that a grant that is withdrawn ends what it allowed. That is
not the recording's end: a page is told by "event: withdrawn", a program by a connection that is cut. A viewer who takes
in nothing holds one piece here and no more: the store is asked for the next when the last is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from k8sproxy.common.tasks import Tasks, left_to_waiter
from recorder.model import Recording
from recorder.store import Reading
from recorder.web.windows import LEAD, SMALL, line_seconds, lines

KEEP_ALIVE = 15.0  # seconds between signs of life; proxies and phones drop what is silent for 30
RECHECK = 10.0  # seconds; the time for which WhoIs answers are kept by default
TAKE = 10.0  # seconds that a viewer has to take in a piece before it counts as gone


class Withdrawn(Exception):
    """The viewer may watch no longer, though the recording goes on."""


Still = Callable[[], Awaitable[bool]]  # whether the viewer may still watch


async def watched(store: Reading, recording: Recording) -> AsyncGenerator[bytes, None]:
    """Pieces of whole lines: the header, the recent past, then what comes."""
    past = recording.size > SMALL
    old = max(0.0, recording.duration - max(1.0, LEAD * recording.duration / recording.size)) if past else 0.0
    async with aclosing(follow(store, recording.id, old)) as pieces:
        async for piece in pieces:
            yield piece


async def follow(store: Reading, identifier: str, start: float) -> AsyncGenerator[bytes, None]:
    """What the store gives, without the events before `start` seconds."""
    async with aclosing(store.follow(identifier, start=start)) as pieces:
        if start <= 0:
            async for piece in pieces:
                yield piece
            return
        head, reached = True, False
        async for line in lines(pieces):
            reached = reached or (line_seconds(line) or 0.0) >= start
            if head or reached:
                yield line
            head = False


async def told(
    pieces: AsyncIterator[bytes], still: Still, *, beat: float, recheck: float
) -> AsyncGenerator[bytes | None, None]:
    """The pieces, and None for every `beat` seconds without one. Raises Withdrawn when `still` says no, which it is
    asked every `recheck` seconds however much there is to show."""
    loop = asyncio.get_running_loop()
    asked = loop.time()
    waited = loop.time()
    tasks = Tasks()
    step: asyncio.Task[bytes] | None = None
    try:
        while True:
            if step is None:
                step = tasks.start(_next(pieces), "next piece of a recording", failed=left_to_waiter)
            due = min(asked + recheck, waited + beat)
            await asyncio.wait((step,), timeout=max(0.0, due - loop.time()))
            if loop.time() >= asked + recheck:
                if not await still():
                    raise Withdrawn
                asked = loop.time()
            if step.done():
                try:
                    piece = step.result()
                except StopAsyncIteration:
                    return
                step = None
                waited = loop.time()
                yield piece
            elif loop.time() >= waited + beat:
                waited = loop.time()
                yield None
    finally:
        await tasks.aclose()


async def _next(pieces: AsyncIterator[bytes]) -> bytes:
    return await pieces.__anext__()


async def messages(pieces: AsyncIterator[bytes | None]) -> AsyncIterator[bytes]:
    """Server-sent events out of pieces of lines (WHATWG HTML, 9.2)."""
    try:
        async for piece in pieces:
            if piece is None:
                yield b": still here\n\n"
                continue
            parts = [b"data: " + line.replace(b"\r", b"") for line in piece.split(b"\n") if line]
            if parts:
                yield b"\n".join(parts) + b"\n\n"
    except Withdrawn:
        yield b"event: withdrawn\ndata:\n\n"
    else:
        yield b"event: over\ndata:\n\n"
