"""A recording taken away: as it was sent (.cast), as text, as one JSON document.

The text is what was written to the terminal without escape sequences and other controls, in the order in which it
came: what a full-screen program drew stands there as often as it drew it. Lines end in line feeds; a carriage return
alone ends one too, so that every state of a progress bar is there.

This is work, of seconds for a large recording, on the loop that also acknowledges what is recorded: whoever waits there
gets a turn every TURN bytes.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator

from k8sproxy.common.formats.asciicast import event_of
from recorder.web.windows import TURN, lines

# What is text, up to the next character that does something.
_RUN = re.compile("[^\x00-\x1f\x7f-\x9f]+")
_ODD = re.compile("[\ud800-\udfff\U0010fe80-\U0010feff]")
_STRING_END = re.compile("[\x07\x18\x1a\x1b\x9c]")
_STRINGS = frozenset("\x90\x98\x9d\x9e\x9f")
# Characters of a string sequence (a title, an image) that are left out; one that goes on is text, and harmless.
_MOST_STRING = 1024 * 1024


class PlainText:
    """Text out of output that comes in pieces of any size; a parser of the sequences' outer shape (ECMA-48, 5)."""

    def __init__(self) -> None:
        self._state = self._ground
        self._skipped = 0
        self._return = False  # a carriage return whose line feed may come
        self._fresh = True  # nothing is on this line
        self._text: list[str] = []

    def feed(self, output: str) -> str:
        """The text that is done."""
        position = 0
        while position < len(output):
            position = self._state(output, position)
        return self._taken()

    def finish(self) -> str:
        """The rest."""
        self._end_return()
        return self._taken()

    def _taken(self) -> str:
        text = "".join(self._text)
        self._text.clear()
        return text

    def _end_return(self) -> None:
        if self._return and not self._fresh:
            self._text.append("\n")
            self._fresh = True
        self._return = False

    def _ground(self, output: str, position: int) -> int:
        run = _RUN.match(output, position)
        character = output[position]
        if run is not None or character == "\t":
            self._end_return()
            self._text.append(_ODD.sub("\ufffd", run.group()) if run is not None else "\t")
            self._fresh = False
            return run.end() if run is not None else position + 1
        if character == "\n":
            self._text.append("\n")
            self._return, self._fresh = False, True
        elif character == "\r":
            self._return = True
        elif character == "\x1b":
            self._state = self._escape
        elif character == "\x9b":
            self._state = self._csi
        elif character in _STRINGS:
            self._skipped, self._state = 0, self._string
        return position + 1

    def _escape(self, output: str, position: int) -> int:
        character = output[position]
        if " " <= character <= "/":
            return position + 1  # intermediate: the end is yet to come
        self._state = self._ground
        if character == "[":
            self._state = self._csi
        elif character in "]PX^_":
            self._skipped, self._state = 0, self._string
        elif not "0" <= character <= "~":
            return position  # a control within: the sequence is dropped, the control counts
        return position + 1

    def _csi(self, output: str, position: int) -> int:
        character = output[position]
        if " " <= character <= "?":
            return position + 1
        self._state = self._ground
        return position + 1 if "@" <= character <= "~" else position

    def _string(self, output: str, position: int) -> int:
        end = _STRING_END.search(output, position)
        self._skipped += (end.start() if end is not None else len(output)) - position
        if end is None:
            if self._skipped > _MOST_STRING:
                self._state = self._ground
            return len(output)
        # The string's end is ESC and a backslash, or another sequence has begun: either way ESC has begun one.
        self._state = self._escape if end.group() == "\x1b" else self._ground
        return end.end()


def output_of(line: bytes) -> str | None:
    """What an event wrote to the terminal, None for a line that is none or no such event."""
    event = event_of(line)
    return event[2] if event is not None and event[1] in ("o", "e") else None


async def text(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cast text as plain text (UTF-8)."""
    plain = PlainText()
    async for line in lines(pieces):
        output = output_of(line) or ""
        for start in range(0, len(output), TURN):
            if start:
                await asyncio.sleep(0)
            if done := plain.feed(output[start : start + TURN]):
                yield done.encode()
    if done := plain.finish():
        yield done.encode()


async def document(about: object, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """One JSON document: {"session": about, "header": {..}, "events": [[..], ..]}; lines that are no events are
    left out."""
    yield b'{"session":' + json.dumps(about).encode() + b',"header":'
    before = b""
    async for line in lines(pieces):
        if not before:
            try:
                value = json.dumps(json.loads(line), separators=(",", ":"), allow_nan=False).encode()
            except (ValueError, RecursionError):
                value = b"{}"
            yield value + b',"events":[\n'
            before = b"\n"
        elif event_of(line) is not None:
            yield before.removeprefix(b"\n") + json.dumps(json.loads(line), separators=(",", ":")).encode()
            before = b",\n"
    yield b"]}\n" if before else b'{},"events":[]}\n'
