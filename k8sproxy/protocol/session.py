"""What a remotecommand session is made of: its channels, and what is told of it."""

from __future__ import annotations

from typing import NamedTuple

STDIN = 0
STDOUT = 1
STDERR = 2
ERROR = 3
RESIZE = 4
# k8s.io/apimachinery/pkg/util/remotecommand: in v5 [255, channel] ends a channel.
CLOSE = 255
# Of Output: upstream wrote on a stream or channel of which nobody knows what it is for.
UNKNOWN = -1

# What farewell() fills an unfinished frame of WebSocket up with, bytes. Go's servers send frames of 32 KiB; a terminal
# or a file should not get more than a moment's worth of NUL.
MAX_FILLING = 1024 * 1024
# Bytes that the error channel may carry in all: a Status with the exit code has 200, the words of a container runtime
# that can't start a command a few KiB. They are not in the recording, so they are bounded.
MAX_ERROR = 64 * 1024


class Output(NamedTuple):
    """What upstream wrote. channel: STDOUT, STDERR or UNKNOWN. data: never empty, good during the call.

    start: where the frame that it is in began, an index in the call's bytes, negative where that was in an earlier
    call; so in all of these.
    """

    channel: int
    data: "memoryview"  # noqa: UP037  (mypyc looks for a bare builtin among the names of this module)
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
    """Upstream says how the command ended (a Status, or a plain sentence before v4), or a part of that. Without data:
    the error stream has ended, and nothing was said on it."""

    data: "memoryview"  # noqa: UP037  (mypyc looks for a bare builtin among the names of this module)
    start: int


class Hidden(NamedTuple):
    """Bytes from upstream that reach the client beside the output, where Kubernetes' servers send none: the payload of
    a ping, the reason of a close, fields of a header block, a control frame of another kind."""

    data: bytes
    start: int


class Closing(NamedTuple):
    """A side ends the session. clean: as one that has said all. Told once a direction."""

    clean: bool
    start: int


Event = Output | Resize | Stdin | Ping | ErrorData | Hidden | Closing
