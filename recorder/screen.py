"""The text that was on a terminal's screen, out of a cast's events: what the index searches.

Theory of operation. A terminal emulator knows what every cell shows at every moment; that is the player's business and
too slow for every session that ends. Search needs words and the second at which they stood there, so this is a
terminal of lines. One row is open: printable runs are written into it at the cursor, `\\r`, `\\b`, tabs, erasures and
cursor moves within the row do what a terminal does, so that a typed and corrected command, echoed character by
character, ends up as one line, and a progress bar as its last state. The row goes out as a line when a line feed
leaves it. Where a cursor move leaves it (full-screen programs, progress of several lines), it is laid aside under its
row number, picked up when the cursor comes back, and goes out when the screen is cleared or changed, when it stood for
`_STOOD` seconds before it is drawn over, or at the end. Long lines wrap at the terminal's width without being cut, so a
`\\r` goes back to the start of the screen row, as readline expects when it wraps what is typed.

Lines gather in segments; a line that a segment has already (`watch`, a redrawn screen) is not kept twice. What is kept
is bounded: characters a line, rows laid aside, characters a session. Escape sequences are parsed by states whose every
step consumes input, and a parameter string is kept only as far as it can matter, so time is linear in the input
whatever it holds (ECMA-48 for the sequences; xterm's ctlseqs for what is not in there).

What a terminal would not show (`recorder.unseen`) is gathered beside the lines, with what hid it. Text that is erased
or drawn over is among it if it stood for less than `_GLANCE` seconds and has a word that is on no line: a progress bar
repeats its words, and who corrects what they type takes longer.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from k8sproxy.common.formats.asciicast import event_of
from recorder.unseen import INVISIBLE, Colours, Ink, Unseen, of_characters, of_string

MARK = "\x1f"  # see unseen_segments
SEGMENT_CHARACTERS = 8192  # about two full screens: small enough to be looked through for a snippet at once
SEGMENT_SECONDS = 300.0  # a line that is shown again after that long is worth a hit of its own
TEXT_LIMIT = 2 * 1024 * 1024  # characters a session: hours of work at a shell; beyond that it is a log, not a session
CAST_LIMIT = (
    16 * 1024 * 1024
)  # bytes of cast read for a session's text: a minute of CPU where they mean harm, else seconds

_LINE = 4096  # characters: no screen is that wide; a longer line is output that was never meant to be read, and is cut
_ROWS = 256  # rows laid aside at once: more than any screen has
_LAST_ROW = 9999  # no cursor address beyond it is believed
_PARAMETERS = 64  # characters of a CSI's parameters that are kept
_RENDITION = 512  # of those that may turn out to be colours: the thirty numbers that terminals heed
_STRING = (
    1024 * 1024
)  # characters of an OSC, DCS, APC, PM or SOS that are skipped: an inline image; then it is text again
_LOSS = 3  # columns of a row that must be lost for that to be a loss: more than a letter that is corrected
_GLANCE = 0.1  # seconds that text must have stood to have been seen at all
UNSEEN_LIMIT = 256 * 1024  # characters of what is not shown, a session
_UNSEEN_PIECE = 64 * 1024  # characters of one piece of it: of an inline image the beginning is enough
_STOOD = 1.0  # seconds that a row must have stood before it is drawn over, to count as seen
_CAST_LINE = 4 * 1024 * 1024  # bytes of one line of a cast; a longer one is skipped

_PRINTABLE = re.compile("[^\x00-\x1f\x7f-\x9f]+")
_RUN = re.compile("[^\x00-\x1f\x7f-\x9f]*(?:\x1b\\[[0-9;:]{0,48}m[^\x00-\x1f\x7f-\x9f]*)*")
_COLOURS = re.compile("\x1b\\[([0-9;:]{0,48})m")
_WORD = re.compile(r"[^\W_]{4,}")
_LETTER = re.compile(r"[^\W\d_]")
_SHOWS = re.compile(r"[^\W_]")
_CSI_BODY = re.compile("[ -?]*")
_STRING_END = re.compile("[\x07\x18\x1a\x1b\x9c]")
_GAPS = re.compile(" {3,}")
# Line drawing (DEC special graphics) stands where ` to ~ stand; bytes that were not UTF-8 (see
# k8sproxy.common.formats.asciicast), lone surrogates and characters without width must neither hide nor break a word.
_DRAWING = dict.fromkeys(range(0x60, 0x7F), " ")
# Words of letters that no frame is drawn with.
_DRAWN = re.compile("[a-z]*(?:[b-ioprsyz][a-z]*){3}")
_ODD = re.compile(r"[\xad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]|([\ud800-\udfff\U0010fe80-\U0010feff])")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a session's text: lines in the order in which they were done, each with its second (not falling)."""

    lines: tuple[tuple[float, str], ...]

    @property
    def start(self) -> float:
        """Seconds from the session's start to the first line."""
        return self.lines[0][0]

    @property
    def text(self) -> str:
        """The lines, joined by line feeds."""
        return "\n".join(line for _, line in self.lines)


def unseen_segments(found: Iterable[Unseen]) -> list[Segment]:
    """The same as lines: what hid it and the text behind it, each behind a MARK, which no line of a screen has."""
    segments: list[Segment] = []
    lines: list[tuple[float, str]] = []
    gathered = 0
    for piece in sorted(found, key=lambda piece: piece.time):
        for start in range(0, len(piece.text), _LINE):
            line = f"{MARK}{piece.kind}{MARK}{piece.text[start : start + _LINE]}"
            if lines and gathered + len(line) > SEGMENT_CHARACTERS:
                segments.append(Segment(tuple(lines)))
                lines, gathered = [], 0
            lines.append((piece.time, line))
            gathered += len(line)
    if lines:
        segments.append(Segment(tuple(lines)))
    return segments


@dataclass(slots=True)
class _Loss:
    """Columns from start to end of a row's text, of which what is from `fresh` on had been written just before."""

    text: str
    fresh: int
    start: int
    end: int
    time: float


@dataclass(slots=True)
class _Row:
    text: str = ""
    touched: float = 0.0  # the second of its last change
    dirty: bool = False  # it has something that did not go out yet
    fresh: int = 0  # from this column on, what is there was written
    since: float = -1.0  # from this second on
    loss: _Loss | None = None  # what is being drawn over


class Screen:
    """Takes output, gives segments.

    limit: characters that are kept in all (line feeds count). columns, rows: the terminal's size, 0 without one.
    segments: what is done so far; complete after finish(). full: the limit was reached, and the rest is thrown away.
    unseen: what a terminal would not have shown, in the order in which it was found; complete after finish().
    """

    def __init__(self, *, limit: int = TEXT_LIMIT, columns: int = 0, rows: int = 0) -> None:
        self.segments: list[Segment] = []
        self.unseen: list[Unseen] = []
        self.full = False
        self._unseen_left = UNSEEN_LIMIT
        self._unseen_seen: set[tuple[str, str]] = set()
        self._ink = Ink()
        self._saved = Ink()
        self._own = Colours()
        self._hides = ""  # what the ink does
        self._veiled: dict[str, str] = {}  # what hides -> the text, until text that it does not hide, or a line feed
        self._lost: list[Unseen] = []  # erased at once
        self._just: deque[Unseen] = deque(maxlen=_ROWS)  # lines that went out as soon as they were written
        self._stood: set[str] = set()  # words that were erased after they had been seen
        self._held_back = False  # synchronized output: nothing is shown until its end
        self._wraps = True
        self._string_of = ""
        self._string_body: list[str] = []
        self._left = limit
        self._lines: list[tuple[float, str]] = []
        self._seen: set[str] = set()
        self._gathered = 0
        self._last = 0.0
        self._now = 0.0
        self._state: Callable[[str, int], int] = self._ground
        self._parameters = ""
        self._rendition = ""
        self._skipped = 0
        self._intermediate = ""
        self._drawing = [False, False]  # G0, G1
        self._shift = 0
        self._row = _Row()
        self._number = 0  # of the open row, from the first row ever; it only scrolls, so the screen's top moves
        self._top = 0
        self._column = 0
        self._aside: dict[int, _Row] = {}
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        """The terminal's new size; anything that is not a likely one means that there is no terminal."""
        self._width = columns if 2 <= columns <= _LINE else _LINE
        self._height = rows if 2 <= rows <= _LAST_ROW else 24

    def feed(self, time: float, text: str) -> None:
        """Output at `time`, seconds from the start; a time before the last one counts as the last one."""
        if self.full:
            return
        self._now = max(self._now, time)
        position, end = 0, len(text)
        while position < end:
            if self._state != self._ground:
                position = self._state(text, position)
                continue
            # Nearly all of it is text with colours and line feeds, and this is its short way.
            start = position
            position = _RUN.match(text, start).end()  # type: ignore[union-attr]  # it matches nothing too
            if position > start:
                run = text[start:position]
                if "\x1b" in run:
                    self._write_coloured(run)
                else:
                    self._write(run)
            if text.startswith("\r\n", position):
                self._line_feed()
                position += 2
            elif position < end:
                position = self._ground(text, position)

    def finish(self) -> None:
        """The end of the output: what is open goes out."""
        if self._state == self._string:
            self._end_string()
        self._unveil(self._veiled)
        self._clear()
        self._cut()
        self._tell_lost()

    # --- states: each takes the text and a position, consumes at least one character and tells where it stopped

    def _ground(self, text: str, position: int) -> int:
        if run := _PRINTABLE.match(text, position):
            self._write(run.group())
            return run.end()
        character = text[position]
        position += 1
        if character == "\n" or character in "\x0b\x0c\x84\x85":
            self._line_feed()
        elif character == "\r":
            self._column = (self._column - 1) // self._width * self._width if self._column else 0
        elif character == "\x1b":
            self._intermediate = ""
            self._state = self._escape
        elif character == "\b":
            self._column = max(0, self._column - 1)
        elif character == "\t":
            self._column = min(self._column // 8 * 8 + 8, _LINE)
        elif character in "\x0e\x0f":
            self._shift = int(character == "\x0e")
        elif character >= "\x80":
            self._introduce(character)
        return position

    def _escape(self, text: str, position: int) -> int:
        character = text[position]
        position += 1
        if " " <= character <= "/":
            self._intermediate = character  # the last one is enough to tell what matters here
        elif "@" <= character <= "_" and not self._intermediate:
            self._state = self._ground
            self._introduce(chr(ord(character) + 0x40))
            if character == "M":  # reverse index
                self._go(self._number - 1, self._column)
            elif character in "DE":
                self._line_feed()
        elif character == "\x1b":
            self._intermediate = ""
        else:
            self._state = self._ground
            if self._intermediate in "()" and self._intermediate:
                self._drawing["()".index(self._intermediate)] = character == "0"
            elif character == "8" and self._intermediate == "#":  # all of the screen becomes E
                self._wipe()
            elif character in "78" and not self._intermediate:
                self._keep_ink(restore=character == "8")
            elif character == "c":
                self._wipe()
                self._own = Colours()
                self._set_ink(Ink())
                self._drawing = [False, False]
            elif character < " ":
                return position - 1  # a control within: the sequence is dropped, the control counts
        return position

    def _introduce(self, character: str) -> None:
        """The C1 controls that begin something (ECMA-48, 5.3), as themselves or as ESC and a letter."""
        if character == "\x9b":
            self._parameters = self._rendition = ""
            self._state = self._csi
        elif character in "\x90\x98\x9d\x9e\x9f":
            self._skipped = 0
            self._string_of, self._string_body = character, []
            self._state = self._string

    def _csi(self, text: str, position: int) -> int:
        body = _CSI_BODY.match(text, position)
        if body and body.end() > position:
            room = _PARAMETERS - len(self._parameters)
            self._parameters += text[position : min(body.end(), position + room)]
            room = _RENDITION - len(self._rendition)
            self._rendition += text[position : min(body.end(), position + room)]
            return body.end()
        self._state = self._ground
        character = text[position]
        if character == "\x7f":  # nothing to a terminal, wherever it stands
            self._state = self._csi
            return position + 1
        if character < "@" or character > "~":
            return self._ground(text, position)  # not a final byte: the sequence is dropped
        if len(self._parameters) < _PARAMETERS or character == "m":
            self._control(character, self._parameters)
        return position + 1

    def _string(self, text: str, position: int) -> int:
        end = _STRING_END.search(text, position)
        if self._skipped < _UNSEEN_PIECE:
            self._string_body.append(text[position : end.start() if end else len(text)])
        self._skipped += (end.start() if end else len(text)) - position
        if end is None:
            if self._skipped > _STRING:
                self._state = self._ground
                self._end_string()
            return len(text)
        self._state = self._ground
        self._end_string()
        if text[end.start()] == "\x1b":  # the start of ST, or of another sequence
            self._intermediate = ""
            self._state = self._escape
        return end.end()

    # --- what the sequences do

    def _control(self, final: str, parameters: str) -> None:
        if parameters[:1] in ("?", ">", "<", "="):
            if final in "hl" and parameters[0] == "?":
                self._mode(parameters[1:].split(";"), final == "h")
            return
        if final == "m":
            self._colour(self._rendition)
            return
        if final in "su" and not parameters:
            self._keep_ink(restore=final == "u")
        elif final == "p" and parameters == "!":  # soft reset
            self._set_ink(Ink())
        numbers = parameters.split(";")
        first = _number(numbers[0])
        count = max(1, first)
        if final == "K":
            self._erase_in_line(first)
        elif final == "C" or final == "a" or final == "b":  # b repeats a character: room, not a word
            self._column = min(self._column + count, _LINE)
        elif final == "D":
            self._column = max(0, self._column - count)
        elif final in "G`":
            self._column = self._column // self._width * self._width + min(count, self._width) - 1
        elif final in "Hf":
            column = max(1, _number(numbers[1])) if len(numbers) > 1 else 1
            self._go(self._top + min(count, _LAST_ROW) - 1, min(column, self._width) - 1)
        elif final in "AF":
            self._up(count, keep=final == "A")
        elif final in "BeE":
            self._go(self._number + min(count, _LAST_ROW), self._column if final != "E" else 0)
        elif final == "d":
            self._go(self._top + min(count, _LAST_ROW) - 1, self._column)
        elif final == "J":
            self._erase_in_display(first)
        elif final in "P@X":
            self._edit(final, min(count, _LINE))
        elif (final in "LMST" and count >= self._height) or (final in "z{" and parameters.endswith("$")):
            self._wipe_in_place()  # all of it is moved out of sight; a rectangle is erased
        elif final == "M":
            self._delete_line()

    def _mode(self, modes: list[str], on: bool) -> None:
        if any(mode in ("47", "1047", "1049") for mode in modes):
            self._wipe()  # the other screen
        if "1048" in modes or "1049" in modes:
            self._keep_ink(restore=not on)
        if "7" in modes:
            self._wraps = on
        if "2026" in modes:
            self._held_back = on

    def _colour(self, parameters: str) -> None:
        self._ink.set(parameters)
        self._hides = self._ink.hides(self._own)

    def _set_ink(self, ink: Ink) -> None:
        self._ink = ink
        self._hides = ink.hides(self._own)

    def _keep_ink(self, *, restore: bool) -> None:
        """Colours are saved and restored with the cursor (DECSC, DECRC)."""
        if restore:
            self._set_ink(replace(self._saved))
        else:
            self._saved = replace(self._ink)

    def _erase_in_line(self, what: int) -> None:
        row, column = self._row, self._column
        if what == 0:
            self._lose(row, column, len(row.text))
            row.text = row.text[:column]
        elif what == 1:
            self._lose(row, 0, column + 1)
            row.text = " " * min(column + 1, len(row.text)) + row.text[column + 1 :]
        elif what == 2:
            self._lose(row, 0, len(row.text))
            row.text = ""

    def _erase_in_display(self, what: int) -> None:
        if what == 0 and (self._number > self._top or self._column):
            # The usual redraw of a prompt; what is below goes out, as it was seen.
            self._lose(self._row, self._column, len(self._row.text))
            self._row.text = self._row.text[: self._column]
            for number in sorted(number for number in self._aside if number > self._number):
                self._out(self._aside.pop(number))
        else:
            self._wipe_in_place()

    def _wipe_in_place(self) -> None:
        number, column = self._number, self._column
        self._wipe()
        self._number, self._column = number, column

    def _delete_line(self) -> None:
        row = self._row
        if self._now - row.touched >= _STOOD:
            self._out(row)
        self._lose(row, 0, len(row.text))
        row.text = ""

    def _edit(self, final: str, count: int) -> None:
        row, column = self._row, self._column
        if column >= len(row.text):
            return
        if final != "@":
            self._lose(row, column, column + count)
        if final == "P":
            row.text = row.text[:column] + row.text[column + count :]
        elif final == "@":
            row.text = (row.text[:column] + " " * count + row.text[column:])[:_LINE]
        else:
            row.text = row.text[:column] + " " * min(count, len(row.text) - column) + row.text[column + count :]

    def _write_coloured(self, run: str) -> None:
        """Text with colours in between."""
        at = 0
        for match in _COLOURS.finditer(run):
            if match.start() > at:
                self._write(run[at : match.start()])
            self._colour(match[1])
            at = match.end()
        if at < len(run):
            self._write(run[at:])

    def _write(self, run: str) -> None:
        if self._hides or self._veiled or self._drawing[self._shift] or not self._wraps or not run.isascii():
            self._veil(run)
            if self._drawing[self._shift]:
                run = run.translate(_DRAWING)
        row = self._row
        if self._now - row.since > _GLANCE and not self._held_back:
            row.fresh, row.since = self._column, self._now
        elif self._column < row.fresh:
            row.fresh = self._column
        if self._column == len(row.text) and self._column + len(run) <= _LINE:  # nearly always
            row.text += run
            row.touched = self._now
            row.dirty = True
            self._column += len(run)
            return
        while run:
            room = _LINE - self._column
            if room <= 0:
                self._out(self._row)
                self._row = _Row()
                self._column = 0
                continue
            piece, run = run[:room], run[room:]
            row, column = self._row, self._column
            length = len(row.text)
            if column == length:
                row.text += piece
            elif column > length:
                row.text += " " * (column - length) + piece
            else:
                self._lose(row, column, column + len(piece))
                row.text = row.text[:column] + piece + row.text[column + len(piece) :]
            row.touched = self._now
            row.dirty = True
            self._column = column + len(piece)

    # --- what is not shown

    def _see_nothing(self, kind: str, text: str, time: float | None = None) -> None:
        """Keep a piece of it; the same one is kept once."""
        text = _ODD.sub(lambda match: "\ufffd" if match[1] else "", text).strip()[:_UNSEEN_PIECE]
        if not _SHOWS.search(text) or (kind, text) in self._unseen_seen:
            return
        if len(text) > self._unseen_left:
            self.full = True
            return
        self._unseen_left -= len(text)
        self._unseen_seen.add((kind, text))
        self.unseen.append(Unseen(self._now if time is None else time, kind, text))

    def _end_string(self) -> None:
        body = "".join(self._string_body)
        if told := of_string(self._string_of, body):
            self._see_nothing(*told)
        if self._string_of == "\x9d":
            self._own.take(body)
            self._set_ink(self._ink)
        self._string_body = []

    def _veil(self, run: str) -> None:
        """Look at what is written, as it was sent."""
        hidden: dict[str, str] = {}
        if self._hides:
            hidden[self._hides] = run
        if self._drawing[self._shift]:
            hidden["drawing characters"] = run
        if not run.isascii() and (shapeless := "".join(INVISIBLE.findall(run))):
            hidden["characters without a shape"] = shapeless
        if not self._wraps and self._column + len(run) > self._width:
            hidden["beyond the edge"] = run[max(0, self._width - self._column) :]
        if self._veiled:
            self._unveil(self._veiled.keys() - hidden.keys())
        for kind, text in hidden.items():
            before = self._veiled.get(kind, "")
            if len(before) < _UNSEEN_PIECE:
                self._veiled[kind] = before + text

    def _unveil(self, kinds: Iterable[str]) -> None:
        for kind in tuple(kinds):
            text = self._veiled.pop(kind)
            if kind == "drawing characters":
                text = text if _DRAWN.search(text) else ""
            elif kind == "characters without a shape":
                text = of_characters(text)
            self._see_nothing(kind, text)

    def _lose(self, row: _Row, start: int, end: int) -> None:
        """These columns are erased or drawn over."""
        if start >= len(row.text):
            return
        loss = row.loss
        if loss is not None and (start == loss.end or end == loss.start):
            # One after the other, to the right or to the left: what was there at its beginning is what is lost.
            loss.start, loss.end = min(start, loss.start), max(end, loss.end)
            return
        self._end_loss(row)
        if self._now - row.since <= _GLANCE or self._held_back:
            row.loss = _Loss(row.text, row.fresh, start, end, self._now)
        elif len(self._stood) < _LINE:
            self._stood.update(_WORD.findall(row.text[start:end]))

    def _wipe(self) -> None:
        """The screen is cleared, or another one is shown: what was written just before has been seen by nobody."""
        self._just.extend(
            Unseen(self._now, "erased at once", row.text[row.fresh :])
            for row in (self._row, *self._aside.values())
            if row.dirty and (self._now - row.since <= _GLANCE or self._held_back)
        )
        for piece in self._just:
            if self._now - piece.time <= _GLANCE and _WORD.search(piece.text) and _LETTER.search(piece.text):
                self._see_nothing(piece.kind, piece.text, piece.time)
        self._just.clear()
        self._clear()

    def _end_loss(self, row: _Row) -> None:
        loss, row.loss = row.loss, None
        if loss is None or len(self._lost) >= _LINE:
            return
        text, start, end = loss.text, max(loss.start, loss.fresh), min(loss.end, len(loss.text))
        if end - start < _LOSS:
            return
        while start > loss.fresh and text[start - 1].isalnum():
            start -= 1
        while end < len(text) and text[end].isalnum():
            end += 1
        self._lost.append(Unseen(loss.time, "erased at once", text[start:end]))

    def _tell_lost(self) -> None:
        if not self._lost:
            return
        shown = self._stood.union(*(_WORD.findall(segment.text) for segment in self.segments))
        for piece in self._lost:
            if any(word not in shown and _LETTER.search(word) for word in _WORD.findall(piece.text)):
                self._see_nothing(piece.kind, piece.text, piece.time)

    def _line_feed(self) -> None:
        if self._veiled:
            self._unveil(self._veiled)
        row = self._row
        if self._now - row.since <= _GLANCE and row.text:
            self._just.append(Unseen(self._now, "erased at once", row.text[row.fresh :]))
        self._out(row)
        if self._aside:
            self._go(self._number + 1, 0)
        else:
            self._row.text = ""
            self._row.since = -1.0
            self._number += 1
            self._column = 0
        if self._number >= self._top + self._height:
            self._top = self._number - self._height + 1

    def _up(self, count: int, *, keep: bool) -> None:
        wraps = min(count, self._column // self._width)  # rows that are still the same long line
        self._column -= wraps * self._width
        if count > wraps:
            self._go(self._number - min(count - wraps, _LAST_ROW), self._column)
        if not keep:
            self._column = 0

    def _go(self, number: int, column: int) -> None:
        """Move to another row: the open one is laid aside, and what lies there is picked up."""
        self._column = column
        number = max(self._top, number)
        if number == self._number:
            return
        if self._row.dirty:
            if len(self._aside) >= _ROWS:
                oldest = next(iter(self._aside))
                self._out(self._aside.pop(oldest))
            self._aside[self._number] = self._row
        self._number = number
        self._row = self._aside.pop(number) if number in self._aside else _Row()
        if self._row.dirty and self._now - self._row.touched >= _STOOD:
            self._out(self._row)

    def _clear(self) -> None:
        """All that is on the screen goes out, top to bottom, and is gone from it."""
        if self._row.dirty:
            self._aside[self._number] = self._row
        for number in sorted(self._aside):
            self._out(self._aside[number])
        self._aside = {}
        self._row = _Row()
        self._number, self._column = self._top, 0

    def _out(self, row: _Row) -> None:
        if row.loss is not None:
            self._end_loss(row)
        if not row.dirty:
            return
        row.dirty = False
        text = row.text.strip()
        if not text.isascii():
            text = _ODD.sub(lambda match: "\ufffd" if match[1] else "", text)
        if "   " in text:
            text = _GAPS.sub("  ", text)
        time = max(row.touched, self._last)
        if self._lines and time - self._lines[0][0] > SEGMENT_SECONDS:
            self._cut()
        if not text or text in self._seen or self.full:
            return
        if len(text) + 1 > self._left:
            self.full = True
            return
        if self._gathered + len(text) > SEGMENT_CHARACTERS:
            self._cut()
        self._left -= len(text) + 1
        self._last = time
        self._lines.append((time, text))
        self._seen.add(text)
        self._gathered += len(text) + 1

    def _cut(self) -> None:
        if self._lines:
            self.segments.append(Segment(tuple(self._lines)))
        self._lines, self._seen, self._gathered = [], set(), 0


def _number(text: str) -> int:
    """A CSI parameter; what is left out or not a number is 0, and none is larger than a screen."""
    return min(int(text), _LAST_ROW) if text.isascii() and text.isdigit() and len(text) < 10 else 0


@dataclass(slots=True)
class CastText:
    """The same out of a cast's bytes, in any pieces: the header line gives the size, "o" and "e" events the output.

    limit: characters kept. cast_limit: bytes read. truncated: one of the two was reached; done: no more need be fed.
    unseen: what a terminal would not have shown.
    A line that is not an event is skipped: the index finds what it can, the store keeps all.
    """

    limit: int = TEXT_LIMIT
    cast_limit: int = CAST_LIMIT
    screen: Screen = field(init=False)
    truncated: bool = field(default=False, init=False)
    _rest: bytearray = field(default_factory=bytearray, init=False)
    _skipping: bool = field(default=False, init=False)
    _read: int = field(default=0, init=False)
    _headed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.screen = Screen(limit=self.limit)

    @property
    def unseen(self) -> list[Unseen]:
        """See Screen."""
        return self.screen.unseen

    @property
    def done(self) -> bool:
        """Whether the limits leave no room, so that reading on is useless."""
        return self.truncated

    def feed(self, data: bytes) -> None:
        """Bytes of the cast, from its first on."""
        if self.truncated:
            return
        self._read += len(data)
        lines = data.split(b"\n")
        last = lines.pop()
        for piece in lines:
            if self._rest:
                self._rest += piece
                piece, self._rest = bytes(self._rest), bytearray()
            if not self._skipping:
                self._line(piece)
            self._skipping = False
        if not self._skipping:
            self._rest += last
            if len(self._rest) > _CAST_LINE:
                self._rest = bytearray()
                self._skipping = True
        self.truncated = self.screen.full or self._read > self.cast_limit

    def finish(self) -> list[Segment]:
        """The end of the cast: all segments, those of what is not shown (`unseen_segments`) behind the others."""
        if self._rest and not self._skipping:
            self._line(bytes(self._rest))
        self._rest = bytearray()
        self.screen.finish()
        self.truncated = self.truncated or self.screen.full
        return [*self.screen.segments, *unseen_segments(self.screen.unseen)]

    def _line(self, line: bytes) -> None:
        match event_of(line):
            case (time, "o" | "e", text):
                self.screen.feed(time, text)
            case (_, "r", size):
                columns, _, rows = size.partition("x")
                if _number(columns) and _number(rows):  # else it names no size, and the terminal stays as it is
                    self.screen.resize(_number(columns), _number(rows))
            case None if not self._headed:
                self._header(line)
        self._headed = True

    def _header(self, line: bytes) -> None:
        try:
            match json.loads(line):
                case {"width": int(width), "height": int(height)}:
                    self.screen.resize(width, height)
        except (ValueError, RecursionError):  # not JSON, or numbers and nesting beyond reason
            return
