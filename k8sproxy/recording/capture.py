"""What a session shows, as the bytes of its cast. Pure: time is an argument, and what is returned is to be uploaded.

    capture = Capture(header, started, tty=True, event_codes=frozenset("orm"))
    upload(capture.deadline(now))                   at the start, and again at `capture.due` where that is not None
    upload(capture.output(False, [view, ..], now))  once a turn and stream, all that came of it together: one line
    upload(capture.resize(80, 24, now))
    upload(capture.beside(b"..", now))              upstream's bytes that no terminal shows
    upload(capture.note("..", now))                 what the proxy has to say
    upload(capture.ended(now))

**The header waits for the terminal's size, the user doesn't.** A cast's first line has the size, and a client with a
tty sends it only after the switch of protocols, or never. So lines are kept until the first resize, but for HEADER_WAIT
at most and MAX_KEPT bytes at most; then the header goes out with 80x24, and a size that comes later is an "r" event, as
is every other one. A session without a tty has no size to wait for. `begin` sends the header at once: where a session
must be recorded, no output is shown before the recorder has it.

Standard error is written as "e" where the recorder says that it knows that code, otherwise as "o" with the rest, as the
terminal shows it. Input is not kept: it holds passwords that were never echoed.

Each stream has its own decoder (asciicast.OutputEncoder), so a character whose bytes came in two frames is whole again.
After a gap it is begun anew: what follows does not belong to what was there before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from k8sproxy.common.formats.asciicast import MAX_SIDE, CastHeader, OutputEncoder, escape_all, event_line, resize_line

# Seconds that a tty's header waits for the size. kubectl sends it at once; 1 s covers a slow link.
HEADER_WAIT = 1.0
# Bytes of lines kept meanwhile, before the default size has to do: a quarter of a session's default buffer.
MAX_KEPT = 1024 * 1024
# Bytes beside the output that stand in one notice: a control frame of WebSocket has 125 at most.
MAX_BESIDE = 1024
# Columns and rows of who never said: the VT100's, which every terminal program falls back to.
DEFAULT_SIZE = (80, 24)


class Capture:
    """One session. started and every `now` are seconds of the same clock, whichever; later ones are never smaller.

    (Where the clock does go back, the cast's doesn't.) header.timestamp is what readers see as the start. event_codes:
    what the recorder knows beside "o" and "r": "e" (stderr apart), "m" (markers).
    """

    __slots__ = (
        "_codes",
        "_header",
        "_kept",
        "_kept_size",
        "_last",
        "_size",
        "_started",
        "_streams",
        "due",
        "header_size",
    )

    def __init__(self, header: CastHeader, started: float, *, tty: bool, event_codes: frozenset[str]) -> None:
        self._header = header
        self._started = started
        self._codes = event_codes
        self._streams = (OutputEncoder(), OutputEncoder())  # stdout, stderr
        self._size: tuple[int, int] | None = None  # None: the header has not gone out
        self._kept: list[bytes] = []
        self._kept_size = 0
        self._last = 0.0
        self.header_size = 0  # bytes of the header's line; 0: it has not gone out
        #: When deadline() has to be called: at once without a tty. None: the header has gone out.
        self.due: float | None = started + HEADER_WAIT if tty else started

    def output(self, stderr: bool, pieces: Sequence[bytes | memoryview], now: float) -> bytes:
        """Bytes of stdout, or of stderr, in the pieces that they came in; one line for all. Views are not kept."""
        data = b"".join(pieces)
        line = self._streams[stderr].line(self._seconds(now), self._code(stderr), data)
        return self._line(line, now) if line else self.deadline(now)

    def resize(self, width: int, height: int, now: float) -> bytes:
        """The terminal has that many columns and rows. The same again, and sizes that no terminal has, are left out."""
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            return self.deadline(now)
        if self._size is None:
            return self._begin((width, height))
        if self._size == (width, height):
            return b""
        self._size = (width, height)
        return resize_line(self._seconds(now), width, height)

    def gap(self, lost: int, why: str, now: float) -> bytes:
        """Output is missing here. lost: its bytes. why: a few words, for the viewer."""
        return self._flush(now) + self.note(f"{lost} bytes of output are missing here: {why}", now)

    def beside(self, data: bytes, now: float) -> bytes:
        """Bytes that upstream sent beside its output, where a client can find them and a terminal shows none."""
        parts = [data[at : at + MAX_BESIDE] for at in range(0, len(data), MAX_BESIDE)]
        return self._flush(now) + b"".join(
            self.note(f"{len(part)} bytes that a terminal does not show: {_readable(part)}", now) for part in parts
        )

    def note(self, text: str, now: float) -> bytes:
        """A sentence of the proxy's, which is no output."""
        text = f"k8sproxy: {text}"
        if "m" in self._codes:
            line = event_line(self._seconds(now), "m", text)
        else:
            # On lines of its own and dim, so that nobody takes it for what the terminal showed.
            line = event_line(self._seconds(now), "o", f"\r\n\x1b[0;2m[{text}]\x1b[0m\r\n")
        return self._line(line, now)

    @property
    def held(self) -> bool:
        """Whether part of a character is held back that is in no line yet."""
        return any(stream.held for stream in self._streams)

    def holds(self, stderr: bool) -> bool:
        """Whether part of a character of that stream is."""
        return bool(self._streams[stderr].held)

    def release(self, now: float) -> bytes:
        """Parts of characters that are held back, as the bytes that they are: the rest does not come soon enough."""
        return self._flush(now)

    def begin(self, now: float) -> bytes:
        """The header now, with the default size unless there is one, and what was kept behind it."""
        return b"" if self._size is not None else self._begin(DEFAULT_SIZE)

    def deadline(self, now: float) -> bytes:
        """The header, if it has waited long enough, and what was kept behind it."""
        return b"" if self.due is None or now < self.due else self._begin(DEFAULT_SIZE)

    def ended(self, now: float) -> bytes:
        """All that is held back: the session is over."""
        flushed = self._flush(now)
        return flushed if self._size is not None else self._begin(DEFAULT_SIZE)

    def _seconds(self, now: float) -> float:
        self._last = max(self._last, now - self._started)
        return self._last

    def _code(self, stderr: bool) -> str:
        return "e" if stderr and "e" in self._codes else "o"

    def _flush(self, now: float) -> bytes:
        lines = []
        for stderr, stream in enumerate(self._streams):
            text = stream.finish()
            if text:
                lines.append(event_line(self._seconds(now), self._code(bool(stderr)), text))
        return self._line(b"".join(lines), now)

    def _line(self, line: bytes, now: float) -> bytes:
        if self._size is not None:
            return line
        self._kept.append(line)
        self._kept_size += len(line)
        return self._begin(DEFAULT_SIZE) if self._kept_size > MAX_KEPT else self.deadline(now)

    def _begin(self, size: tuple[int, int]) -> bytes:
        """The header, and what was kept behind it."""
        header = self._header.line(*size)
        self._size = size
        self.due = None
        self.header_size = len(header)
        kept, self._kept = self._kept, []
        return b"".join((header, *kept))


def _readable(data: bytes) -> str:
    """Bytes in characters that a terminal prints as they are, so that a notice has no effect on it."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class GuardedCapture(Capture):
    """A Capture whose own faults, which nobody thought of, lose nothing: `fault` is told once, within the except
    clause, and from there on output is written in the plainest form there is, every byte from 0x80 on for itself.
    Should that fail too, `hole` is True: the recording is not whole."""

    __slots__ = ("_fault", "_faulty", "hole")

    def __init__(
        self, header: CastHeader, started: float, *, tty: bool, event_codes: frozenset[str], fault: Callable[[], None]
    ) -> None:
        super().__init__(header, started, tty=tty, event_codes=event_codes)
        self._fault = fault
        self._faulty = False
        self.hole = False

    def output(self, stderr: bool, pieces: Sequence[bytes | memoryview], now: float) -> bytes:
        return self._do(super().output, stderr, pieces, now, rescued=pieces)

    def resize(self, width: int, height: int, now: float) -> bytes:
        return self._do(super().resize, width, height, now)

    def gap(self, lost: int, why: str, now: float) -> bytes:
        return self._do(super().gap, lost, why, now)

    def beside(self, data: bytes, now: float) -> bytes:
        return self._do(super().beside, data, now, rescued=(data,))

    def note(self, text: str, now: float) -> bytes:
        return self._do(super().note, text, now, rescued=(f"\r\n[k8sproxy: {text}]\r\n".encode(),))

    def deadline(self, now: float) -> bytes:
        return self._do(super().deadline, now)

    def begin(self, now: float) -> bytes:
        return self._do(super().begin, now)

    def release(self, now: float) -> bytes:
        return self._do(super().release, now)

    def ended(self, now: float) -> bytes:
        return self._do(super().ended, now)

    def _do(self, step: Callable[..., bytes], *arguments: object, rescued: Sequence[bytes | memoryview] = ()) -> bytes:
        held = [stream.held for stream in self._streams]
        if not self._faulty:
            try:
                return step(*arguments)
            except Exception:
                self._faulty = True
                self._fault()
        try:
            self._streams = (OutputEncoder(), OutputEncoder())
            data = b"".join((*held, *rescued))
            header = b"" if self._size is not None else self._begin(DEFAULT_SIZE)
            return header + (event_line(self._last, "o", escape_all(data)) if data else b"")
        except Exception:
            self.hole = True
            return b""
