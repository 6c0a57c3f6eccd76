"""Escape sequences (ECMA-48; xterm's ctlseqs for the rest), read out of output that comes in any pieces. Pure.

Whoever draws reads text and the simple controls, and hands over at an introducer. A sequence that is whole is given
back; one that makes no sense is dropped. Every step consumes input or leaves a state, and a parameter string is kept
only as far as it can matter, so time is linear in the input whatever it holds.
"""

from __future__ import annotations

import re

from k8sproxy.common.states import State, table

PIECE = 64 * 1024  # characters of a string that are kept: of an inline image the beginning is enough
_PARAMETERS = 64  # characters of a CSI's parameters that are kept
_RENDITION = 512  # of those that may turn out to be colours: the thirty numbers that terminals heed
# Characters of an OSC, DCS, APC, PM or SOS that are skipped: an inline image; then it is text again.
_STRING = 1024 * 1024

_CSI_BODY = re.compile("[ -?]*")
_STRING_END = re.compile("[\x07\x18\x1a\x1b\x9c]")
_STRINGS = "\x90\x98\x9d\x9e\x9f"

# ("escape", final, intermediate); ("csi", final, parameters); ("string", introducer, body).
Found = tuple[str, str, str]


class Reading(State):
    """Where in a sequence the output is.

    GROUND    in none: text and simple controls                         -> ESCAPE, CSI, STRING
    ESCAPE    behind ESC                                                -> GROUND, CSI, STRING
    CSI       behind a control sequence introducer, in its parameters   -> GROUND
    STRING    in a string: OSC, DCS, APC, PM or SOS                     -> GROUND, ESCAPE
    """

    GROUND = "ground"
    ESCAPE = "escape"
    CSI = "csi"
    STRING = "string"


GROUND, ESCAPE, CSI, STRING = Reading
table({GROUND: (ESCAPE, CSI, STRING), ESCAPE: (GROUND, CSI, STRING), CSI: (GROUND,), STRING: (GROUND, ESCAPE)})


class Sequences:
    """state: where it is; whoever draws reads on as long as that is GROUND."""

    __slots__ = ("_body", "_intermediate", "_introducer", "_parameters", "_rendition", "_skipped", "state")

    def __init__(self) -> None:
        self.state = GROUND
        self._intermediate = ""
        self._parameters = ""
        self._rendition = ""
        self._introducer = ""
        self._body: list[str] = []
        self._skipped = 0

    def _move(self, state: Reading) -> None:
        self.state = self.state.to(state)

    def escape(self) -> None:
        """ESC came."""
        self._intermediate = ""
        self._move(ESCAPE)

    def introduce(self, character: str) -> None:
        """A C1 control came, as itself or as ESC and a letter (ECMA-48, 5.3). Some begin a sequence."""
        if character == "\x9b":
            self._parameters = self._rendition = ""
            self._move(CSI)
        elif character in _STRINGS:
            self._skipped = 0
            self._introducer, self._body = character, []
            self._move(STRING)

    def read(self, text: str, position: int) -> tuple[int, Found | None]:
        """Read on from a position, where the state is not GROUND. Where it stopped, and a sequence that is whole."""
        if self.state is ESCAPE:
            return self._read_escape(text, position)
        if self.state is CSI:
            return self._read_csi(text, position)
        return self._read_string(text, position)

    def finish(self) -> Found | None:
        """The end of the output: a string that has begun counts."""
        if self.state is not STRING:
            return None
        self._move(GROUND)
        return self._whole_string()

    def _read_escape(self, text: str, position: int) -> tuple[int, Found | None]:
        character = text[position]
        position += 1
        if " " <= character <= "/":
            self._intermediate = character  # the last one is enough to tell what matters here
            return position, None
        if character == "\x1b":
            self._intermediate = ""
            return position, None
        if "@" <= character <= "_" and not self._intermediate:
            self.introduce(chr(ord(character) + 0x40))
            if self.state is not ESCAPE:
                return position, None
            self._move(GROUND)
            return position, ("escape", character, "")
        self._move(GROUND)
        if character < " " and self._intermediate not in ("(", ")"):
            return position - 1, None  # a control within: the sequence is dropped, the control counts
        return position, ("escape", character, self._intermediate)

    def _read_csi(self, text: str, position: int) -> tuple[int, Found | None]:
        body = _CSI_BODY.match(text, position)
        if body and body.end() > position:
            room = _PARAMETERS - len(self._parameters)
            self._parameters += text[position : min(body.end(), position + room)]
            room = _RENDITION - len(self._rendition)
            self._rendition += text[position : min(body.end(), position + room)]
            return body.end(), None
        character = text[position]
        if character == "\x7f":  # nothing to a terminal, wherever it stands
            return position + 1, None
        self._move(GROUND)
        if character < "@" or character > "~":
            return position, None  # not a final byte: the sequence is dropped
        if character == "m" and self._parameters[:1] not in ("?", ">", "<", "="):
            return position + 1, ("csi", character, self._rendition)
        if len(self._parameters) < _PARAMETERS or character == "m":
            return position + 1, ("csi", character, self._parameters)
        return position + 1, None

    def _read_string(self, text: str, position: int) -> tuple[int, Found | None]:
        match = _STRING_END.search(text, position)
        end = match.start() if match else len(text)
        if self._skipped < PIECE:
            self._body.append(text[position:end])
        self._skipped += end - position
        if match is None:
            if self._skipped <= _STRING:
                return end, None
            self._move(GROUND)
            return end, self._whole_string()
        if text[end] == "\x1b":  # the start of ST, or of another sequence
            self._intermediate = ""
            self._move(ESCAPE)
        else:
            self._move(GROUND)
        return match.end(), self._whole_string()

    def _whole_string(self) -> Found:
        body, self._body = "".join(self._body), []
        return "string", self._introducer, body
