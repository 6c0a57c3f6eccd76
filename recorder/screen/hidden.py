"""What a terminal would not show of its output, gathered with what hid it.

Text that is erased or drawn over is among it if it stood for less than GLANCE seconds and has a word that is on no
line: a progress bar repeats its words, and who corrects what they type takes longer. Whether it is on no line is known
at the end alone.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping

from recorder.screen.rows import Loss, Row
from recorder.screen.segments import LINE, Segment
from recorder.screen.sequences import PIECE
from recorder.screen.unseen import Unseen, of_characters

UNSEEN_LIMIT = 256 * 1024  # characters of what is not shown, a session
ROWS = 256  # rows laid aside at once: more than any screen has
GLANCE = 0.1  # seconds that text must have stood to have been seen at all
_LOSS = 3  # columns of a row that must be lost for that to be a loss: more than a letter that is corrected

DRAWING, SHAPELESS = "drawing characters", "characters without a shape"
_ERASED = "erased at once"

_WORD = re.compile(r"[^\W_]{4,}")
_LETTER = re.compile(r"[^\W\d_]")
_SHOWS = re.compile(r"[^\W_]")
# Words of letters that no frame is drawn with.
_DRAWN = re.compile("[a-z]*(?:[b-ioprsyz][a-z]*){3}")
# Bytes that were not UTF-8 (see k8sproxy.common.formats.asciicast), lone surrogates and characters without width must
# neither hide nor break a word.
_ODD = re.compile(r"[\xad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]|([\ud800-\udfff\U0010fe80-\U0010feff])")


def even(text: str) -> str:
    """Without characters that have no width, and with a mark for each that is no character."""
    return text if text.isascii() else _ODD.sub(lambda match: "\ufffd" if match[1] else "", text)


class Hidden:
    """found: in the order in which it was found; complete after `finish`. full: the limit was reached. veiled: whether
    text is being hidden just now."""

    def __init__(self) -> None:
        self.found: list[Unseen] = []
        self.full = False
        self._left = UNSEEN_LIMIT
        self._seen: set[tuple[str, str]] = set()
        self._veiled: dict[str, str] = {}  # what hides -> the text, until text that it does not hide, or a line feed
        self._lost: list[Unseen] = []  # erased at once
        self._just: deque[Unseen] = deque(maxlen=ROWS)  # lines that went out as soon as they were written
        self._stood: set[str] = set()  # words that were erased after they had been seen

    def tell(self, kind: str, text: str, time: float) -> None:
        """Keep a piece of it; the same one is kept once."""
        text = even(text).strip()[:PIECE]
        if not _SHOWS.search(text) or (kind, text) in self._seen:
            return
        if len(text) > self._left:
            self.full = True
            return
        self._left -= len(text)
        self._seen.add((kind, text))
        self.found.append(Unseen(time, kind, text))

    # -- text that is hidden while it is written

    @property
    def veiled(self) -> bool:
        """See above."""
        return bool(self._veiled)

    def veil(self, hidden: Mapping[str, str], now: float) -> None:
        """Of text that is written: what hides it, and what of it. What is not hidden any more is told."""
        if self._veiled:
            self._unveil(self._veiled.keys() - hidden.keys(), now)
        for kind, text in hidden.items():
            before = self._veiled.get(kind, "")
            if len(before) < PIECE:
                self._veiled[kind] = before + text

    def unveil(self, now: float) -> None:
        """A line feed, or the end: what was hidden so far is one piece."""
        if self._veiled:
            self._unveil(self._veiled, now)

    def _unveil(self, kinds: Iterable[str], now: float) -> None:
        for kind in tuple(kinds):
            text = self._veiled.pop(kind)
            if kind == DRAWING:
                text = text if _DRAWN.search(text) else ""
            elif kind == SHAPELESS:
                text = of_characters(text)
            self.tell(kind, text, now)

    # -- text that is erased, or drawn over

    def lose(self, row: Row, start: int, end: int, now: float, *, unseen: bool) -> None:
        """These columns are erased or drawn over. unseen: the row was written just now."""
        if start >= len(row.text):
            return
        loss = row.loss
        if loss is not None and (start == loss.end or end == loss.start):
            # One after the other, to the right or to the left: what was there at its beginning is what is lost.
            loss.start, loss.end = min(start, loss.start), max(end, loss.end)
            return
        self.end_loss(row)
        if unseen:
            row.loss = Loss(row.text, row.fresh, start, end, now)
        elif len(self._stood) < LINE:
            self._stood.update(_WORD.findall(row.text[start:end]))

    def end_loss(self, row: Row) -> None:
        """Nothing more of it is drawn over in one go."""
        loss, row.loss = row.loss, None
        if loss is None or len(self._lost) >= LINE:
            return
        text, start, end = loss.text, max(loss.start, loss.fresh), min(loss.end, len(loss.text))
        if end - start < _LOSS:
            return
        while start > loss.fresh and text[start - 1].isalnum():
            start -= 1
        while end < len(text) and text[end].isalnum():
            end += 1
        self._lost.append(Unseen(loss.time, _ERASED, text[start:end]))

    def just_written(self, row: Row, now: float) -> None:
        """It goes out, or from the screen, in the instant in which it was written."""
        self._just.append(Unseen(now, _ERASED, row.text[row.fresh :]))

    def wiped(self, now: float) -> None:
        """The screen is cleared, or another one is shown: what was written just before has been seen by nobody."""
        for piece in self._just:
            if now - piece.time <= GLANCE and _WORD.search(piece.text) and _LETTER.search(piece.text):
                self.tell(piece.kind, piece.text, piece.time)
        self._just.clear()

    def finish(self, segments: Iterable[Segment]) -> None:
        """The end. segments: all that was shown."""
        if not self._lost:
            return
        shown = self._stood.union(*(_WORD.findall(segment.text) for segment in segments))
        for piece in self._lost:
            if any(word not in shown and _LETTER.search(word) for word in _WORD.findall(piece.text)):
                self.tell(piece.kind, piece.text, piece.time)
