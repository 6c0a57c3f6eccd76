"""What the next characters are drawn with: colours, and the character set. Colours are saved with the cursor."""

from __future__ import annotations

from dataclasses import replace

from recorder.screen.colours import Colours, Ink


class Pen:
    """hides: what keeps its text from being seen, "" where nothing does. draws: lines stand where letters are sent (DEC
    special graphics)."""

    __slots__ = ("_drawing", "_ink", "_own", "_saved", "_shift", "draws", "hides")

    def __init__(self) -> None:
        self.hides = ""
        self.draws = False
        self._ink = Ink()
        self._saved = Ink()
        self._own = Colours()
        self._drawing = [False, False]  # G0, G1
        self._shift = 0

    def colour(self, parameters: str) -> None:
        """Select graphic rendition."""
        self._ink.set(parameters)
        self.hides = self._ink.hides(self._own)

    def plain(self) -> None:
        """A soft reset."""
        self._set(Ink())

    def _set(self, ink: Ink) -> None:
        self._ink = ink
        self.hides = ink.hides(self._own)

    def reset(self) -> None:
        """A full reset."""
        self._own = Colours()
        self._set(Ink())
        self._drawing = [False, False]
        self.draws = False

    def keep(self, *, restore: bool) -> None:
        """Save colours, or restore them (DECSC, DECRC)."""
        if restore:
            self._set(replace(self._saved))
        else:
            self._saved = replace(self._ink)

    def set_own(self, body: str) -> None:
        """The body of an OSC, which may set the terminal's own colours."""
        self._own.take(body)
        self._set(self._ink)

    def shift(self, place: int) -> None:
        """G0 or G1 is used from now on."""
        self._shift = place
        self.draws = self._drawing[place]

    def choose(self, place: int, character: str) -> None:
        """The character set of G0 or G1."""
        self._drawing[place] = character == "0"
        self.draws = self._drawing[self._shift]
