"""A recording taken away: as it was sent (.cast), as text, as one JSON document.

The text is what was written to the terminal without escape sequences and other controls, in the order in which it
came: what a full-screen program drew stands there as often as it drew it. Lines end in line feeds; a carriage return
alone ends one too, so that every state of a progress bar is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator

from recorder.web.windows import lines

_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,256}[ -/]{0,16}[@-~]"  # CSI (ECMA-48, 5.4)
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\x18\x1a]*(?:\x07|\x1b\\|\x9c|\x18|\x1a)"  # OSC, DCS, ..
    r"|\x1b[ -/]{0,16}[0-Z\\^_`a-~]"  # two characters, or more with intermediates
)
_UNDONE = re.compile(r"(?:\x1b|\x9b|\x9d|\x90|\x98|\x9e|\x9f).*\Z", re.DOTALL)
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\U0010fe80-\U0010feff]")
# Characters of a sequence that may wait for their end. An inline image's is longer; then it is text, and harmless.
_PENDING = 64 * 1024


class PlainText:
    """Text out of output that comes in pieces."""

    def __init__(self) -> None:
        self._pending = ""

    def feed(self, output: str) -> str:
        """The text that is done."""
        text = _SEQUENCE.sub("", self._pending + output)
        self._pending = ""
        undone = _UNDONE.search(text)
        if undone is not None and len(text) - undone.start() <= _PENDING:
            text, self._pending = text[: undone.start()], text[undone.start() :]
        elif text.endswith("\r"):
            text, self._pending = text[:-1], "\r"
        return _clean(text)

    def finish(self) -> str:
        """The rest."""
        text, self._pending = self._pending, ""
        return _clean(text)


def _clean(text: str) -> str:
    text = re.sub("\r+\n", "\n", text).replace("\r", "\n")
    return _CONTROLS.sub(lambda match: "\t" if match[0] == "\t" else "\ufffd" if match[0] >= "\ud800" else "", text)


def output_of(line: bytes) -> str | None:
    """What an event wrote to the terminal, None for a line that is none or no such event."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(event, list) and len(event) == 3 and event[1] in ("o", "e") and isinstance(event[2], str):
        return event[2]
    return None


async def text(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cast text as plain text (UTF-8)."""
    plain = PlainText()
    async for line in lines(pieces):
        output = output_of(line)
        if output is not None and (done := plain.feed(output)):
            yield done.encode()
    if done := plain.finish():
        yield done.encode()


async def document(about: object, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """One JSON document: {"session": about, "header": {..}, "events": [[..], ..]}; lines that are no JSON are left
    out."""
    yield b'{"session":' + json.dumps(about).encode() + b',"header":'
    before = b""
    async for line in lines(pieces):
        try:
            value = json.dumps(json.loads(line), separators=(",", ":"), allow_nan=False).encode()
        except (ValueError, RecursionError):
            value = b"{}" if not before else b""
        if not before:
            yield value + b',"events":[\n'
            before = b"\n"
        elif value:
            yield before.removeprefix(b"\n") + value
            before = b",\n"
    yield b"]}\n" if before else b'{},"events":[]}\n'
