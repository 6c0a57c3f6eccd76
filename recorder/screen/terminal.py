"""A terminal of lines: output at the cursor, row by row; see the package for how it works."""

from __future__ import annotations

import re

from recorder.screen.hidden import DRAWING, GLANCE, ROWS, SHAPELESS, Hidden, even
from recorder.screen.pen import Pen
from recorder.screen.rows import Row
from recorder.screen.segments import LINE, TEXT_LIMIT, Lines, Segment
from recorder.screen.sequences import GROUND, Sequences
from recorder.screen.unseen import INVISIBLE, Unseen, of_string

_LAST_ROW = 9999  # no cursor address beyond it is believed
_STOOD = 1.0  # seconds that a row must have stood before it is drawn over, to count as seen

_RUN = re.compile("[^\x00-\x1f\x7f-\x9f]*(?:\x1b\\[[0-9;:]{0,48}m[^\x00-\x1f\x7f-\x9f]*)*")
_COLOURS = re.compile("\x1b\\[([0-9;:]{0,48})m")
_GAPS = re.compile(" {3,}")
# Line drawing (DEC special graphics) stands where ` to ~ stand.
_DRAWING = dict.fromkeys(range(0x60, 0x7F), " ")


class Screen:
    """Takes output, gives segments.

    limit: characters that are kept in all (line feeds count). columns, rows: the terminal's size, 0 without one.
    """

    def __init__(self, *, limit: int = TEXT_LIMIT, columns: int = 0, rows: int = 0) -> None:
        self._lines = Lines(limit)
        self._hidden = Hidden()
        self._pen = Pen()
        self._sequences = Sequences()
        self._now = 0.0
        self._held_back = False  # synchronized output: nothing is shown until its end
        self._wraps = True
        self._row = Row()
        self._number = 0  # of the open row, from the first row ever; it only scrolls, so the screen's top moves
        self._top = 0
        self._column = 0
        self._aside: dict[int, Row] = {}
        self.resize(columns, rows)

    @property
    def segments(self) -> list[Segment]:
        """What is done so far; complete after finish()."""
        return self._lines.segments

    @property
    def unseen(self) -> list[Unseen]:
        """What a terminal would not have shown, in the order in which it was found; complete after finish()."""
        return self._hidden.found

    @property
    def full(self) -> bool:
        """Whether a limit was reached, and the rest is thrown away."""
        return self._lines.full or self._hidden.full

    def resize(self, columns: int, rows: int) -> None:
        """The terminal's new size; anything that is not a likely one means that there is no terminal."""
        self._width = columns if 2 <= columns <= LINE else LINE
        self._height = rows if 2 <= rows <= _LAST_ROW else 24

    def feed(self, time: float, text: str) -> None:
        """Output at `time`, seconds from the start; a time before the last one counts as the last one."""
        if self.full:
            return
        self._now = max(self._now, time)
        sequences = self._sequences
        position, end = 0, len(text)
        while position < end:
            if sequences.state is not GROUND:
                position, found = sequences.read(text, position)
                if found is not None:
                    self._act(*found)
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
                self._simple(text[position])
                position += 1

    def finish(self) -> None:
        """The end of the output: what is open goes out."""
        if (found := self._sequences.finish()) is not None:
            self._act(*found)
        self._hidden.unveil(self._now)
        self._clear()
        self._lines.cut()
        self._hidden.finish(self.segments)

    def _simple(self, character: str) -> None:
        """A control that stands for itself, or begins a sequence."""
        if character == "\n" or character in "\x0b\x0c\x84\x85":
            self._line_feed()
        elif character == "\r":
            self._column = (self._column - 1) // self._width * self._width if self._column else 0
        elif character == "\x1b":
            self._sequences.escape()
        elif character == "\b":
            self._column = max(0, self._column - 1)
        elif character == "\t":
            self._column = min(self._column // 8 * 8 + 8, LINE)
        elif character in "\x0e\x0f":
            self._pen.shift(int(character == "\x0e"))
        elif character >= "\x80":
            self._sequences.introduce(character)

    # --- what the sequences do

    def _act(self, kind: str, name: str, detail: str) -> None:
        if kind == "csi":
            self._control(name, detail)
        elif kind == "escape":
            self._escape(name, detail)
        else:
            if told := of_string(name, detail):
                self._hidden.tell(*told, self._now)
            if name == "\x9d":
                self._pen.set_own(detail)

    def _escape(self, character: str, intermediate: str) -> None:
        if intermediate in ("(", ")"):
            self._pen.choose("()".index(intermediate), character)
        elif character == "8" and intermediate == "#":  # all of the screen becomes E
            self._wipe()
        elif character in "78" and not intermediate:
            self._pen.keep(restore=character == "8")
        elif character == "c":
            self._wipe()
            self._pen.reset()
        elif character == "M" and not intermediate:  # reverse index
            self._go(self._number - 1, self._column)
        elif character in "DE" and not intermediate:
            self._line_feed()

    def _control(self, final: str, parameters: str) -> None:
        if parameters[:1] in ("?", ">", "<", "="):
            if final in "hl" and parameters[0] == "?":
                self._mode(parameters[1:].split(";"), final == "h")
            return
        if final == "m":
            self._pen.colour(parameters)
            return
        if final in "su" and not parameters:
            self._pen.keep(restore=final == "u")
        elif final == "p" and parameters == "!":  # soft reset
            self._pen.plain()
        numbers = parameters.split(";")
        first = number(numbers[0])
        count = max(1, first)
        if final == "K":
            self._erase_in_line(first)
        elif final == "C" or final == "a" or final == "b":  # b repeats a character: room, not a word
            self._column = min(self._column + count, LINE)
        elif final == "D":
            self._column = max(0, self._column - count)
        elif final in "G`":
            self._column = self._column // self._width * self._width + min(count, self._width) - 1
        elif final in "Hf":
            column = max(1, number(numbers[1])) if len(numbers) > 1 else 1
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
            self._edit(final, min(count, LINE))
        elif (final in "LMST" and count >= self._height) or (final in "z{" and parameters.endswith("$")):
            self._wipe_in_place()  # all of it is moved out of sight; a rectangle is erased
        elif final == "M":
            self._delete_line()

    def _mode(self, modes: list[str], on: bool) -> None:
        if any(mode in ("47", "1047", "1049") for mode in modes):
            self._wipe()  # the other screen
        if "1048" in modes or "1049" in modes:
            self._pen.keep(restore=not on)
        if "7" in modes:
            self._wraps = on
        if "2026" in modes:
            self._held_back = on

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
            row.text = (row.text[:column] + " " * count + row.text[column:])[:LINE]
        else:
            row.text = row.text[:column] + " " * min(count, len(row.text) - column) + row.text[column + count :]

    def _write_coloured(self, run: str) -> None:
        """Text with colours in between."""
        at = 0
        for match in _COLOURS.finditer(run):
            if match.start() > at:
                self._write(run[at : match.start()])
            self._pen.colour(match[1])
            at = match.end()
        if at < len(run):
            self._write(run[at:])

    def _write(self, run: str) -> None:
        pen = self._pen
        if pen.hides or pen.draws or self._hidden.veiled or not self._wraps or not run.isascii():
            self._veil(run)
            if pen.draws:
                run = run.translate(_DRAWING)
        row = self._row
        if self._now - row.since > GLANCE and not self._held_back:
            row.fresh, row.since = self._column, self._now
        elif self._column < row.fresh:
            row.fresh = self._column
        if self._column == len(row.text) and self._column + len(run) <= LINE:  # nearly always
            row.text += run
            row.touched = self._now
            row.dirty = True
            self._column += len(run)
            return
        while run:
            room = LINE - self._column
            if room <= 0:
                self._out(self._row)
                self._row = Row()
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

    def _veil(self, run: str) -> None:
        """Look at what is written, as it was sent."""
        pen = self._pen
        hidden: dict[str, str] = {}
        if pen.hides:
            hidden[pen.hides] = run
        if pen.draws:
            hidden[DRAWING] = run
        if not run.isascii() and (shapeless := "".join(INVISIBLE.findall(run))):
            hidden[SHAPELESS] = shapeless
        if not self._wraps and self._column + len(run) > self._width:
            hidden["beyond the edge"] = run[max(0, self._width - self._column) :]
        self._hidden.veil(hidden, self._now)

    def _is_unseen(self, row: Row) -> bool:
        """Whether it was written just now, or is not shown yet."""
        return self._now - row.since <= GLANCE or self._held_back

    def _lose(self, row: Row, start: int, end: int) -> None:
        """These columns are erased or drawn over."""
        self._hidden.lose(row, start, end, self._now, unseen=self._is_unseen(row))

    # --- rows

    def _wipe(self) -> None:
        """The screen is cleared, or another one is shown."""
        for row in (self._row, *self._aside.values()):
            if row.dirty and self._is_unseen(row):
                self._hidden.just_written(row, self._now)
        self._hidden.wiped(self._now)
        self._clear()

    def _line_feed(self) -> None:
        self._hidden.unveil(self._now)
        row = self._row
        if self._now - row.since <= GLANCE and row.text:
            self._hidden.just_written(row, self._now)
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
            if len(self._aside) >= ROWS:
                oldest = next(iter(self._aside))
                self._out(self._aside.pop(oldest))
            self._aside[self._number] = self._row
        self._number = number
        self._row = self._aside.pop(number) if number in self._aside else Row()
        if self._row.dirty and self._now - self._row.touched >= _STOOD:
            self._out(self._row)

    def _clear(self) -> None:
        """All that is on the screen goes out, top to bottom, and is gone from it."""
        if self._row.dirty:
            self._aside[self._number] = self._row
        for number in sorted(self._aside):
            self._out(self._aside[number])
        self._aside = {}
        self._row = Row()
        self._number, self._column = self._top, 0

    def _out(self, row: Row) -> None:
        if row.loss is not None:
            self._hidden.end_loss(row)
        if not row.dirty:
            return
        row.dirty = False
        text = even(row.text.strip())
        if "   " in text:
            text = _GAPS.sub("  ", text)
        self._lines.add(row.touched, text, closed=self._hidden.full)


def number(text: str) -> int:
    """A CSI parameter; what is left out or not a number is 0, and none is larger than a screen."""
    return min(int(text), _LAST_ROW) if text.isascii() and text.isdigit() and len(text) < 10 else 0
