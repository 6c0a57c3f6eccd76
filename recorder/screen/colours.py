"""What a terminal draws with, and when that hides what is drawn: concealed, or in the colour that is behind it. A leaf.

A terminal's own colours are known only as far as output has set them (OSC 4, 10, 11); black and white of the palette
are the same everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

Rgb = tuple[int, int, int]
# Of each part of a colour: how far apart two may be for an eye not to tell them apart.
_NEAR = 8
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_DIGITS = "([0-9a-fA-F]{1,4})"
_SPEC = re.compile(rf"#((?:[0-9a-fA-F]{{3}}){{1,4}})|rgb:{_DIGITS}/{_DIGITS}/{_DIGITS}")
_CUBE = (0, 95, 135, 175, 215, 255)


@dataclass(slots=True)
class Ink:
    """What the next characters are drawn with. fore, back: an index below 16 of the palette, a colour, None for the
    terminal's own."""

    concealed: bool = False
    bold: bool = False
    fore: int | Rgb | None = None
    back: int | Rgb | None = None

    def set(self, parameters: str) -> None:
        """Select graphic rendition (ECMA-48, 8.3.117; xterm's ctlseqs for colours)."""
        for name, value in _steps(parameters):
            if name == "reset":
                self.concealed, self.bold, self.fore, self.back = False, False, None, None
            elif name == "concealed":
                self.concealed = bool(value)
            elif name == "bold":
                self.bold = bool(value)
            elif name == "fore":
                self.fore = value
            else:
                self.back = value

    def hides(self, own: Colours) -> str:
        """What keeps it from being seen, "" where nothing does. own: what the terminal draws with. Whether the two are
        swapped makes no difference."""
        if self.concealed:
            return "concealed"
        fore, back = self.fore, self.back
        if isinstance(fore, int) and self.bold and fore < 8:
            fore += 8  # bold text in one of the first eight colours is drawn in the bright one
        if isinstance(fore, int) and fore == back:
            return "same colour"
        ink, paper = own.of(fore, Colours.FORE), own.of(back, Colours.BACK)
        if ink is not None and paper is not None:
            return "same colour" if _near(ink, paper) else ""
        return "black without a background" if ink is not None and back is None and _near(ink, _BLACK) else ""


class Colours:
    """The colours that a terminal has for its palette and for what is drawn without a colour, as far as they are known:
    output may set them (OSC 4, 10, 11), and of the palette black and white are the same everywhere."""

    FORE: Final = -1
    BACK: Final = -2
    __slots__ = ("_set",)

    def __init__(self) -> None:
        self._set: dict[int, Rgb] = {}

    def of(self, colour: int | Rgb | None, own: int) -> Rgb | None:
        """A colour of an Ink; None where it can't be told. own: FORE or BACK."""
        if isinstance(colour, tuple):
            return colour
        index = own if colour is None else colour
        return self._set.get(index) or {0: _BLACK, 15: _WHITE}.get(index)

    def take(self, body: str) -> None:
        """The body of an OSC."""
        number, *told = body.split(";")
        if number == "4":
            for index, spec in zip(told[::2], told[1::2], strict=False):
                if index.isascii() and index.isdigit() and len(index) < 4 and int(index) < 16:
                    self._take(int(index), spec)
        elif number in ("10", "11"):  # a second value is the next number's
            for place, spec in zip((self.FORE, self.BACK)[number == "11" :], told, strict=False):
                self._take(place, spec)
        elif number == "104":
            for place in [_number(one) for one in told] or list(range(16)):
                self._set.pop(place, None)
        elif number in ("110", "111"):
            self._set.pop(self.FORE if number == "110" else self.BACK, None)

    def _take(self, place: int, spec: str) -> None:
        if (colour := _specified(spec)) is not None:
            self._set[place] = colour


def _near(one: Rgb, other: Rgb) -> bool:
    return all(abs(a - b) <= _NEAR for a, b in zip(one, other, strict=True))


def _specified(spec: str) -> Rgb | None:
    """A colour as X11 writes it: rgb:R/G/B with one to four digits each, or # and three to twelve digits."""
    match = _SPEC.fullmatch(spec.strip())
    if match is None:
        return None
    digits = match[1]
    parts = match.groups()[1:] if digits is None else re.findall(f".{{{len(digits) // 3}}}", digits)
    if digits is not None:  # its digits are the first ones
        red, green, blue = (int(f"{part}0"[:2], 16) for part in parts)
    else:
        red, green, blue = (int(part, 16) * 255 // (16 ** len(part) - 1) for part in parts)
    return red, green, blue


def _indexed(index: int) -> int | Rgb | None:
    if index < 16:
        return index
    if index < 232:
        index -= 16
        return _CUBE[index // 36], _CUBE[index // 6 % 6], _CUBE[index % 6]
    if index < 256:
        grey = 8 + 10 * (index - 232)
        return grey, grey, grey
    return None


Step = tuple[str, int | Rgb | None]


@lru_cache(maxsize=4096)
def _steps(parameters: str) -> tuple[Step, ...]:
    """What a sequence sets, in order."""
    steps: list[Step] = []
    fields = parameters.split(";")
    position = 0
    while position < len(fields):
        parts = fields[position].split(":")
        position += 1
        number = _number(parts[0])
        if number == 0:
            steps.append(("reset", None))
        elif number == 1 or number == 22:
            steps.append(("bold", int(number == 1)))
        elif number == 8 or number == 28:
            steps.append(("concealed", int(number == 8)))
        elif 30 <= number <= 37 or 90 <= number <= 97:
            steps.append(("fore", number - 30 if number < 40 else number - 82))
        elif 40 <= number <= 47 or 100 <= number <= 107:
            steps.append(("back", number - 40 if number < 50 else number - 92))
        elif number == 39 or number == 49:
            steps.append(("fore" if number == 39 else "back", None))
        elif number in (38, 48, 58):
            values = [_number(part) for part in parts[1:]]
            if not values:  # the values stand in fields of their own
                count = {5: 2, 2: 4}.get(_number(fields[position]) if position < len(fields) else 0, 0)
                values = [_number(field) for field in fields[position : position + count]]
                position += count
            if number != 58 and (colour := _colour(values)) is not None:
                steps.append(("fore" if number == 38 else "back", colour))
    return tuple(steps)


def _colour(values: list[int]) -> int | Rgb | None:
    if len(values) >= 2 and values[0] == 5:
        return _indexed(values[1])
    if len(values) >= 4 and values[0] == 2:
        # With colons a colour space may stand before the three.
        red, green, blue = values[2:5] if len(values) >= 5 else values[1:4]
        return min(red, 255), min(green, 255), min(blue, 255)
    return None


def _number(text: str) -> int:
    text = text.lstrip("0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
