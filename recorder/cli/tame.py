"""Recorded output, made fit for somebody else's terminal: what draws goes through, what acts does not.

A recording is what a program wrote, and a program may write anything: sequences that a terminal answers as if the
answer had been typed (reports of its state, its title, its colours), that fill the clipboard, name files, send keys
when the mouse moves, or change what the terminal is until it is reset. So this is a list of what may pass: characters,
the plain controls, and the sequences by which programs move, erase, colour and scroll (ECMA-48; xterm's ctlseqs for the
private ones). Everything else is left out, wherever it is cut between two events.
"""

from __future__ import annotations

import re

# Characters of a sequence that is not at its end yet; a longer one is nothing that draws.
_MAX_SEQUENCE = 256
# Characters of an operating system command or the like that are skipped: an inline image. Then it is text again.
_MAX_STRING = 1 << 20

_CONTROLS = frozenset("\x07\x08\t\n\x0b\x0c\r\x0e\x0f")
# Cursor, erasing, editing, scrolling, tabs, repetition, colours, margins, save and restore.
_FINALS = frozenset("@ABCDEFGHIJKLMPSTXZ`abdefgrmsu")
# Two characters: save and restore, index, next line, tab, reverse index, keypad.
_SHORT = frozenset("78DEHM=>")
# Modes that may be set and reset. Private: cursor keys, 132 columns excepted, reverse video, origin, wrap, blinking,
# cursor, the other screen in its three ways. Not: mouse, focus, pasting, and all else by which a terminal speaks.
_PRIVATE_MODES = frozenset(("1", "5", "6", "7", "12", "25", "45", "47", "1047", "1048", "1049", "2026"))
_MODES = frozenset(("4", "20"))
_PARAMETERS = re.compile(r"[0-9;:]{0,128}\Z")
_SHAPE = re.compile(r"([0-?]*)([ -/]*)\Z")
# Character sets, as programs that draw lines name them.
_SETS = frozenset("()*+")
# A byte that was not UTF-8 (k8sproxy.common.formats.asciicast), and half characters.
_ODD = re.compile("[\ud800-\udfff\U0010fe80-\U0010feff]")

# What a recording may have left behind: the other screen, modes, margins, colours, character sets, the cursor. What
# moves the cursor stands behind a save of its place, or the shell would go on in the middle of what is to be read:
# leaving the other screen takes it to where it was saved, also where that is not the one shown; margins take it home.
RESTORE = (
    "\x1b7\x1b[?1049l\x1b[!p\x1b7\x1b[r\x1b8\x1b[?1l\x1b[?5l\x1b[?7h\x1b[?25h\x1b[0m\x1b(B\x0f\x1b>\x1b[?2026l\r\n"
)
# Before a seek: the same, then a clear screen.
CLEAR = "\x1b[!p\x1b[?1049l\x1b[?5l\x1b[?7h\x1b[?25h\x1b[r\x1b[0m\x1b(B\x0f\x1b[H\x1b[2J"


class Tame:
    """One stream of output, in pieces."""

    def __init__(self) -> None:
        self._held = ""
        self._skipped = 0

    def feed(self, text: str) -> str:
        """What may pass of it, and of what was held before."""
        text, self._held = self._held + text, ""
        parts: list[str] = []
        position = 0
        while position < len(text):
            if self._skipped:
                position = self._skip(text, position)
                continue
            character = text[position]
            if character == "\x1b":
                end = self._escape(text, position, parts)
                if end < 0:
                    self._held = text[position:]
                    break
                position = end
                continue
            end = position + 1
            if character >= " " and not "\x7f" <= character <= "\x9f":
                while end < len(text) and text[end] >= " " and not "\x7f" <= text[end] <= "\x9f":
                    end += 1
                parts.append(_ODD.sub("\N{REPLACEMENT CHARACTER}", text[position:end]))
            elif character in _CONTROLS:
                parts.append(character)
            elif character in "\x90\x98\x9d\x9e\x9f":  # DCS, SOS, OSC, PM, APC in eight bits
                self._skipped = 1
            elif character == "\x9b":  # CSI in eight bits
                end = self._csi(text, end, parts)
                if end < 0:
                    self._held = text[position:]
                    break
            position = end
        return "".join(parts)

    def _escape(self, text: str, position: int, parts: list[str]) -> int:
        """A sequence; where it ends, -1 where it goes on in the next piece."""
        if position + 1 >= len(text):
            return -1
        kind = text[position + 1]
        if kind == "[":
            return self._csi(text, position + 2, parts)
        if kind in "]PX^_":
            self._skipped = 1
            return position + 2
        if kind in _SHORT:
            parts.append(text[position : position + 2])
            return position + 2
        if " " <= kind <= "/":
            if position + 2 >= len(text):
                return -1
            if kind in _SETS and text[position + 2] in "0AB":
                parts.append(text[position : position + 3])
            # What follows an unknown intermediate is looked at by itself, unless it ends the sequence.
            return position + 3 if "0" <= text[position + 2] <= "~" else position + 2
        return position + 2 if "0" <= kind <= "~" else position + 1

    def _csi(self, text: str, position: int, parts: list[str]) -> int:
        """A control sequence, from behind what introduces it; see `_escape` for what it gives."""
        end = position
        while end < len(text) and " " <= text[end] <= "?":
            end += 1
            if end - position > _MAX_SEQUENCE:
                return end
        if end >= len(text):
            return -1
        if not "@" <= text[end] <= "~":
            return end  # broken off by something that is looked at by itself
        shape = _SHAPE.match(text[position:end])
        if shape is not None and _passes(shape[1], shape[2], text[end]):
            parts.append("\x1b[" + text[position : end + 1])
        return end + 1

    def _skip(self, text: str, position: int) -> int:
        """Over a string to its end: ST, BEL, CAN or SUB; an escape ends it too."""
        while position < len(text):
            character = text[position]
            self._skipped += 1
            if character in "\x07\x18\x1a\x9c" or self._skipped > _MAX_STRING:
                self._skipped = 0
                return position + 1
            if character == "\x1b":
                self._skipped = 0
                return position
            position += 1
        return position


def _passes(parameters: str, intermediates: str, final: str) -> bool:
    if intermediates:
        return intermediates == " " and final == "q" and parameters.isdigit()  # the cursor's shape
    if final in "hl":
        private = parameters.startswith("?")
        return set(parameters.removeprefix("?").split(";")) <= (_PRIVATE_MODES if private else _MODES)
    if final == "J" and parameters in ("?", "?0", "?1", "?2"):
        return True
    if final not in _FINALS or not _PARAMETERS.match(parameters):
        return False
    # Repetition is bounded by what a screen has; more is only there to keep a terminal busy.
    return final != "b" or len(parameters) <= 4
