"""Output that a terminal does not show: what it is. A leaf; `colours.py` tells when colours hide text.

A terminal swallows strings (APC, PM, SOS, DCS and most OSC), draws text concealed or in the colour of what is behind
it, draws lines where letters were sent, has characters without a shape, and shows nobody what is erased in the instant
in which it was written. All of it is output, and somebody who reads or copies the stream has it. `recorder.screen`
finds it while it makes a session's text.

A title (OSC 0, 1, 2) and a working directory (OSC 7) stand in a terminal's frame. They are found by words too, and are
no reason for a mark; so are the questions that editors ask a terminal when they start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# What stands in a terminal's frame; see above.
FRAME_KINDS = frozenset(("title", "directory"))

# Strings that hold nothing but a question or a setting: colours, the prompt's marks, progress, a capability's name.
_HARMLESS_OSC = re.compile(
    r"(?:4|5|1[0-9]|21)(?:;(?:[0-9]{1,3}|\?|rgba?:[0-9a-fA-F/]{1,24}|#[0-9a-fA-F]{3,12}))*"
    r"|10[45](?:;[0-9]{1,3})*|11[0-9]|133;[A-DLNP](?:;[0-9]{1,3})?|9;4;[0-4](?:;[0-9]{1,3})?|22;[a-z_-]{0,24}|"
)
_HARMLESS_DCS = re.compile(r"\$q[ \"'$]?[a-zA-Z]|\+q(?:[0-9a-fA-F]{2}){1,8}(?:;(?:[0-9a-fA-F]{2}){1,8})*|")
_SPACES = re.compile(r"[\x00-\x20\x7f-\x9f]+")
# Tags (U+E0020 to U+E007E) are ASCII again, selectors (U+E0100 to U+E01EF) bytes from 16 on.
INVISIBLE = re.compile("[\U000e0020-\U000e007e]+|[\U000e0100-\U000e01ef]+")
_STRINGS = {"\x90": "DCS", "\x98": "SOS", "\x9d": "OSC", "\x9e": "PM", "\x9f": "APC"}


@dataclass(frozen=True, slots=True)
class Unseen:
    """A piece of it. time: seconds. kind: what hid it, in a word or two."""

    time: float
    kind: str
    text: str

    @property
    def marks(self) -> bool:
        """Whether a session is marked for it."""
        return self.kind not in FRAME_KINDS


def of_string(introducer: str, body: str) -> tuple[str, str] | None:
    """The kind and the text of a string sequence; None where it tells nothing. introducer: the C1 control."""
    kind = _STRINGS[introducer]
    text = _SPACES.sub(" ", body).strip()
    if kind == "OSC":
        if _HARMLESS_OSC.fullmatch(text):
            return None
        number, _, rest = text.partition(";")
        if number in ("0", "1", "2", "7"):
            return ("directory" if number == "7" else "title", rest) if rest.strip() else None
        if number == "8" and text.endswith(";"):
            return None  # the end of a link
        kind = "link" if number == "8" else kind
    elif kind == "DCS" and _HARMLESS_DCS.fullmatch(text):
        return None
    return (kind, text) if text else None


def of_characters(run: str) -> str:
    """What characters without a shape say, "" where there are none."""
    if run.isascii():
        return ""
    parts: list[str] = []
    for match in INVISIBLE.finditer(run):
        codes = [ord(character) for character in match[0]]
        if codes[0] < 0xE0100:
            parts.append("".join(chr(code - 0xE0000) for code in codes))
        elif len(codes) > 1:  # one alone chooses between the shapes of an ideograph
            parts.append(bytes(code - 0xE0100 + 16 for code in codes).decode("utf-8", "replace"))
    return _SPACES.sub(" ", " ".join(parts)).strip()
