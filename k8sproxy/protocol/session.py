"""What a remotecommand session is made of: its channels, what is told of it, and its terminal's sizes.

Sizes are the JSON objects {"Width", "Height"} that Go decodes from the client's stream of them: names in any case,
16 bits each, the last of a name counts. No JSON is a ProtocolError (Go stops reading sizes there), and a size of zero,
which a client sends that does not know its own, tells nothing.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from k8sproxy.errors import ProtocolError

STDIN = 0
STDOUT = 1
STDERR = 2
ERROR = 3
RESIZE = 4
# k8s.io/apimachinery/pkg/util/remotecommand: in v5 [255, channel] ends a channel.
CLOSE = 255

# What farewell() fills an unfinished frame up with, bytes. Go's servers send frames of 32 KiB; a terminal or a file
# should not get more than a moment's worth of NUL.
MAX_FILLING = 1024 * 1024
# A terminal's size in JSON with the blanks before it, bytes: 30 in practice.
MAX_SIZE = 256


class Output(NamedTuple):
    """What the command wrote. channel: STDOUT or STDERR. data: never empty, good during the call.

    start: where the frame that it is in began, an index in the call's bytes, negative where that was in an earlier
    call; so in all of these.
    """

    channel: int
    data: memoryview
    start: int


class Resize(NamedTuple):
    """The client's terminal has another size, in characters; neither is zero."""

    width: int
    height: int


class Stdin(NamedTuple):
    """What was typed in one call, bytes (of base64: about)."""

    size: int


class Ping(NamedTuple):
    """The client asks whether the other side is there. reply: the whole frame that answers it."""

    reply: bytes


class ErrorData(NamedTuple):
    """Upstream says how the command ended (a Status, or a plain sentence before v4), or a part of that."""

    data: memoryview
    start: int


class Closing(NamedTuple):
    """A side ends the session. clean: as one that has said all. Told once a direction."""

    clean: bool
    start: int


Event = Output | Resize | Stdin | Ping | ErrorData | Closing


class Sizes:
    """Reads the client's stream of sizes. Holds one that is unfinished, at most MAX_SIZE bytes.

    work: what that has cost, in microseconds or thereabouts; it only grows."""

    __slots__ = ("_text", "work")

    def __init__(self) -> None:
        self.work = 0
        self._text = b""

    def feed(self, data: bytes, events: list[Event]) -> None:
        text = (self._text + data).lstrip(b" \t\r\n")
        while text:
            if text[:1] != b"{":
                raise ProtocolError("a terminal size that is no JSON object")
            piece, brace, rest = text.partition(b"}")
            if len(piece) > MAX_SIZE:
                raise ProtocolError("a terminal size that is too long")
            if not brace:
                break
            self._size(piece + brace, events)
            text = rest.lstrip(b" \t\r\n")
        self._text = text

    def _size(self, text: bytes, events: list[Event]) -> None:
        self.work += 4
        try:
            pairs: list[tuple[str, object]] = json.loads(text.decode(), object_pairs_hook=list)
        except (ValueError, RecursionError):
            raise ProtocolError("a terminal size that is no JSON") from None
        size = {"width": 0, "height": 0}
        for name, value in pairs:
            name = name.lower()
            if name in size and value is not None:
                if type(value) is not int or not 0 <= value <= 0xFFFF:
                    raise ProtocolError("a terminal size that is no number of 16 bits")
                size[name] = value
        if all(size.values()):
            events.append(Resize(size["width"], size["height"]))


def short(view: memoryview) -> memoryview:
    """A piece of a terminal's size, bounded before it is copied."""
    if len(view) > 2 * MAX_SIZE:
        raise ProtocolError("a terminal size that is too long")
    return view
