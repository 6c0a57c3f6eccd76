"""What a session has said, collected for a moment on its way: Session -> Outbox -> Capture -> Upload.

Output comes in pieces of a TLS record or of a keystroke, and each that went its own way would cost a line, a packet,
and in the daemons at both ends of the tailnet more CPU than the proxy spends on it. So pieces of one stream are put
together until there are BATCH bytes of them or WAIT seconds have passed, and go out as one event with the first one's
time; lines of other kinds wait behind them. Nobody sees 20 ms in a replay, and what reaches the recorder is confirmed
by it no sooner than it has been written to a disk.

Where output is not shown before the recorder has it, its owner calls `flush` itself, whenever nothing is on its way
that is not confirmed yet; what comes meanwhile is the next batch. The front of a character at the end of a batch waits
WAIT seconds for its rest, then its bytes go out as they are (Capture.release).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from k8sproxy.recording.capture import Capture

# Bytes. A recorder answers each frame or two with window updates, which cost half of what sending them does; above this
# nothing is gained any more.
BATCH = 128 * 1024
# Bytes, where there is little room for what waits for the recorder: what is collected here comes on top of that.
_LEAST = 8 * 1024
# Seconds. Fifty events a second are a film.
WAIT = 0.02


class Outbox:
    """One session's. capture: turns output into lines. write: takes the lines. prompt: parts of characters do not wait
    for the output that follows. room: bytes that may be written before that is too much."""

    __slots__ = (
        *("_capture", "_lines", "_loop", "_pieces", "_prompt", "_room", "_since", "_size", "_stderr", "_timer"),
        "_write",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        capture: Capture,
        write: Callable[[bytes], None],
        *,
        prompt: bool = False,
        room: Callable[[], int] = lambda: BATCH,
    ) -> None:
        self._room = room
        self._loop = loop
        self._capture = capture
        self._write = write
        self._prompt = prompt
        self._pieces: list[bytes] = []  # of one stream
        self._stderr = False
        self._size = 0
        self._since = 0.0  # when the first of them came
        self._lines: list[bytes] = []  # what goes ahead of them
        self._timer: asyncio.TimerHandle | None = None

    @property
    def due(self) -> float | None:
        """When `deadline` has to be called; None: the header has gone out."""
        return self._capture.due

    @property
    def pending(self) -> int:
        """Bytes that have not been written, as far as they are known: of output, and of lines."""
        return self._size + sum(map(len, self._lines))

    def output(self, stderr: bool, pieces: Sequence[memoryview], now: float) -> None:
        """Bytes of stdout, or of stderr. Views are not kept."""
        if stderr is not self._stderr:
            self._end_piece()
        if not self._pieces:
            self._stderr, self._since = stderr, now
            self._arm()
        for piece in pieces:
            self._pieces.append(bytes(piece))
            self._size += len(piece)
        if self._size >= BATCH or self._size >= max(_LEAST, self._room()):
            self.flush()

    def resize(self, width: int, height: int, now: float) -> None:
        """The terminal has that many columns and rows."""
        self._end_piece()
        self._line(self._capture.resize(width, height, now))

    def gap(self, lost: int, why: str, now: float) -> None:
        """So many bytes of output are missing here."""
        self._end_piece()
        self._line(self._capture.gap(lost, why, now))

    def beside(self, data: bytes, now: float) -> None:
        """Bytes from upstream that no terminal shows."""
        self._end_piece()
        self._line(self._capture.beside(data, now))

    def note(self, text: str, now: float) -> None:
        """A sentence of the proxy's."""
        self._end_piece()
        self._line(self._capture.note(text, now))

    def begin(self, now: float) -> None:
        """The header goes out now."""
        self._end_piece()
        self._line(self._capture.begin(now))
        self.flush()

    def deadline(self, now: float) -> None:
        """The time for the header may have come (Capture.due)."""
        self._end_piece()
        self._line(self._capture.deadline(now))

    def ended(self, now: float) -> None:
        """The session is over: all of it goes."""
        self._end_piece()
        self._line(self._capture.ended(now))
        self.flush()

    def flush(self) -> None:
        """Write what is here."""
        self._end_piece()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            lines, self._lines = self._lines, []
            self._write(lines[0] if len(lines) == 1 else b"".join(lines))
        if self._prompt and self._capture.held:
            self._arm()

    def close(self) -> None:
        """Forget what is here."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pieces.clear()
        self._lines.clear()
        self._size = 0

    def _end_piece(self) -> None:
        """What has come of one stream becomes a line. The capture is told of things in their order."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._size = 0
            self._line(self._capture.output(self._stderr, pieces, self._since))

    def _line(self, data: bytes) -> None:
        if data:
            self._lines.append(data)
            self._arm()

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(WAIT, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._prompt and not self._pieces and self._capture.held:
            self._line(self._capture.release(self._loop.time()))
        self.flush()
