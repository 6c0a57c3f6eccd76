"""A Kubernetes remotecommand session (exec, attach) on SPDY/3.1 or WebSocket, read beside the bytes that pass.

A `RemoteCommand` is given both directions' bytes as they come and tells what they mean: output, terminal sizes, pings,
the end. What is typed is counted and never unmasked, decoded or held. `farewell` makes the bytes that end a session in
its middle so that kubectl prints why and exits with an error.

Who could hide output from a recording is the client: it opens the streams and masks what it likes; the framing of what
comes back is the API server's or the kubelet's. Therefore the two directions are read apart, and each fails alone:

- A client's bytes that can't be read are a ProtocolError of from_client, then and on every later call. What came before
  them counts, also where it came in the same call. from_upstream goes on: upstream's framing depends on none of the
  client's bytes. On WebSocket neither does its meaning. On SPDY it is the client that says what a stream is for, so
  output on a stream that was opened behind the fault is UNKNOWN.
- Output on a stream or channel whose meaning is not known, or which only goes the other way, is told as UNKNOWN, never
  passed over. A stream keeps its meaning for the session's life: one that was reset can still carry output.
- A stream of a type that is unknown to the protocol, or a second of one type (the kubelet would write to the last), is
  a ProtocolError: no client does this (client-go's remotecommand/v1.go to v4.go).
- What can carry bytes beside the output, and carries some though Kubernetes' servers send none there, is told as
  Hidden. The error channel is bounded (MAX_ERROR): more on it is UNKNOWN output.
- Servers (wsstream in k8s.io/streaming, on golang.org/x/net) take each of a client's data frames for a message, where
  RFC 6455 has fragments, and so it is here. Text and binary frames are the same to these servers, and here: the Python
  client sends both.
- Terminal sizes are read as Go reads them (sizes.py). One that Go would not take is no fault: sizes end there.
- Behind a client's close frame or GOAWAY these servers read nothing, and so nothing is read here.
"""

from __future__ import annotations

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol.session import (
    CLOSE,
    ERROR,
    MAX_ERROR,
    MAX_FILLING,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    UNKNOWN,
    Closing,
    ErrorData,
    Event,
    Hidden,
    Output,
    Ping,
    Resize,
    Stdin,
)
from k8sproxy.protocol.sessionspdy import SpdySession
from k8sproxy.protocol.sessionwebsocket import WebSocketSession

# What a kubelet speaks at 1.36 (k8s.io/cri-streaming), "" being the first version, unnamed.
SPDY_PROTOCOLS = frozenset(("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", ""))
# The API server's translator speaks v5 alone; the others are the kubelet's, which it passes on.
WEBSOCKET_PROTOCOLS = frozenset(
    (
        *("v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io", ""),
        *("v4.base64.channel.k8s.io", "base64.channel.k8s.io"),
    )
)
# These end with a Status on the error channel, the others with a plain sentence.
_WITH_STATUS = frozenset(("v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"))
__all__ = [
    "CLOSE",
    "ERROR",
    "MAX_ERROR",
    "MAX_FILLING",
    "RESIZE",
    "SPDY_PROTOCOLS",
    "STDERR",
    "STDIN",
    "STDOUT",
    "UNKNOWN",
    "WEBSOCKET_PROTOCOLS",
    "Closing",
    "ErrorData",
    "Event",
    "Hidden",
    "Output",
    "Ping",
    "RemoteCommand",
    "Resize",
    "Stdin",
]


class RemoteCommand:
    """One session. upgrade: "spdy/3.1" or "websocket". subprotocol: the one that upstream chose, "" for none. tty:
    whether the request asked for a terminal; without one servers do not heed sizes, and none is told.

    Raises ProtocolError for an upgrade or a subprotocol that is not known.
    """

    __slots__ = ("_client_failure", "_transport", "_upstream_failure", "_with_status")

    def __init__(self, upgrade: str, subprotocol: str, *, tty: bool) -> None:
        self._client_failure: str | None = None
        self._upstream_failure: str | None = None
        self._with_status = subprotocol in _WITH_STATUS
        self._transport: SpdySession | WebSocketSession
        if upgrade == "spdy/3.1" and subprotocol in SPDY_PROTOCOLS:
            self._transport = SpdySession(subprotocol, tty)
        elif upgrade == "websocket" and subprotocol in WEBSOCKET_PROTOCOLS:
            self._transport = WebSocketSession(subprotocol, tty)
        else:
            raise ProtocolError("a remotecommand protocol that is not known")

    def from_client(self, data: memoryview, into: list[Event] | None = None) -> list[Event]:
        """What the client's next bytes mean: Resize, Stdin, Ping, Closing. Raises ProtocolError, and then always.

        into: a list that the events are put into. Bytes before a fault in the same call mean what they would mean in a
        call of their own, and this is where they are told.
        """
        if self._client_failure is not None:
            raise ProtocolError(self._client_failure)
        events: list[Event] = [] if into is None else into
        try:
            self._transport.from_client(data, events)
        except ProtocolError as error:
            self._client_failure = error.message
            self._transport.client_unreadable = True
            raise
        return events

    def from_upstream(self, data: memoryview) -> list[Event]:
        """What upstream's next bytes mean: Output, ErrorData, Hidden, Closing. Raises ProtocolError, then always."""
        if self._upstream_failure is not None:
            raise ProtocolError(self._upstream_failure)
        try:
            return self._transport.from_upstream(data)
        except ProtocolError as error:
            self._upstream_failure = error.message
            self._transport.unreadable = True
            raise

    def give_up_client(self, why: str) -> None:
        """The client's bytes can't be read, for a reason that lies outside of them."""
        self._client_failure = self._client_failure or why
        self._transport.client_unreadable = True

    @property
    def work(self) -> int:
        """What all the reading so far has cost, in microseconds or thereabouts."""
        return self._transport.work

    @property
    def client_run(self) -> int:
        """How many of the client's next bytes cost next to nothing to read: the rest of a payload."""
        return self._transport.client_run

    @property
    def upstream_run(self) -> int:
        """The same of upstream's next bytes."""
        return self._transport.upstream_run

    @property
    def at_boundary(self) -> bool:
        """Whether upstream's bytes so far end between two frames, so that one could be put in."""
        return self._transport.at_boundary

    @property
    def unfinished(self) -> int:
        """Bytes so far of upstream's message that is not whole yet, all of its frames together; 0 between two."""
        return self._transport.unfinished

    @property
    def undecided(self) -> int:
        """Bytes so far of upstream's unfinished frame, while it may be one that ends the session; else 0. Who may have
        to say a farewell there keeps them back: servers write a SPDY frame's header apart from what it heads."""
        return self._transport.undecided

    def farewell(
        self, status: bytes, message: str, *, held: bool = False, early: bool = False, rest: int = 0
    ) -> bytes | None:
        """The bytes that end the session for the client, behind exactly the upstream bytes given so far.

        status: a Kubernetes Status in JSON; message: the same for protocols before v4. First an unfinished frame is
        filled up with NUL, then the error channel says why, then all of it is closed.
        held: upstream's bytes from the `start` of an ErrorData or Closing on, the first of them, were not passed on.
        early: nor were messages before that, and what was passed on ends between two messages, or so many bytes (rest)
        before the end of a payload.

        None where it can't be said: the last of upstream's bytes that were passed on could not be read, or end within
        a frame that can't be filled, or have closed the session; or the client has no error stream yet. kubectl takes
        a reset for a failure on WebSocket and for success on SPDY, so a SPDY payload is filled up however long it is
        (under 16 MiB); WebSocket's up to MAX_FILLING, and where rest is 0.
        """
        transport = self._transport
        text = status if self._with_status else message.encode()
        if transport.unreadable and not (held or early):
            return None
        return transport.farewell(text, held or early, early, rest)
