"""What a session's streams say, in the words that a Session needs: sizes, pongs, output, where the end begins.

One object over the two readers of `protocol/`: remotecommand (exec, attach) and portforward. Their events are sorted
here, so that a Session has no business with protocols.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol.portforward import PortForward, PortOpened
from k8sproxy.protocol.remotecommand import (
    SPDY_PROTOCOLS,
    STDERR,
    UNKNOWN,
    WEBSOCKET_PROTOCOLS,
    Closing,
    ErrorData,
    Event,
    Hidden,
    Output,
    Ping,
    RemoteCommand,
    Resize,
)
from k8sproxy.sessions.facts import Facts

_CHOSEN = {
    "websocket": re.compile(rb"(?i)(?:^|\n)sec-websocket-protocol:[ \t]*([^\r\n]*)"),
    "spdy/3.1": re.compile(rb"(?i)(?:^|\n)x-stream-protocol-version:[ \t]*([^\r\n]*)"),
}
_EXTENSIONS = re.compile(rb"(?i)(?:^|\n)sec-websocket-extensions:")


def readable(kind: str, upgrade: str) -> frozenset[str]:
    """The streaming protocols of exec and attach that can be read; none for an upgrade that is not known."""
    if kind == "portforward":
        return frozenset()
    return {"websocket": WEBSOCKET_PROTOCOLS, "spdy/3.1": SPDY_PROTOCOLS}.get(upgrade, frozenset())


def negotiated(upgrade: str, fields: bytes) -> str:
    """The protocol that upstream has chosen, "" where it names none. fields: its response's field lines.

    Raises ProtocolError where it names two, or an extension of WebSocket: frames would not mean what they say.
    """
    pattern = _CHOSEN.get(upgrade)
    if pattern is None:
        raise ProtocolError("an upgrade that is not known")
    chosen = pattern.findall(fields)
    if len(chosen) > 1 or (upgrade == "websocket" and _EXTENSIONS.search(fields)):
        raise ProtocolError("upstream has chosen more than one streaming protocol, or an extension")
    return chosen[0].strip().decode("latin-1") if chosen else ""


class Said:
    """What a client has said in one piece. sizes: (columns, rows). replies: frames that answer its pings. fault: why
    nothing can be read behind these, "" where it can."""

    __slots__ = ("fault", "replies", "sizes")

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.sizes: list[tuple[int, int]] = []
        self.replies: list[bytes] = []


class Streams:
    """Both directions of one session. Raises ProtocolError for a protocol that is not known, as from_upstream does for
    bytes that can't be read; of a client's the fault is told beside what stands before it.

    Of the last piece from upstream: output: what was written, in its order, as (whether to stderr, views of that
    piece), neighbours of one kind together; output whose stream nobody knows counts as stdout. unknown: whether there
    was such. beside: bytes that reach the client past the output, and that a terminal does not show. first_at: where
    the first frame begins that brought either. end_at: where the
    frame begins that says how the session ended, None where none does; negative where that was in an earlier piece.
    """

    __slots__ = ("_session", "beside", "end_at", "first_at", "output", "unknown")

    def __init__(self, facts: Facts, upgrade: str, subprotocol: str) -> None:
        self.output: Sequence[tuple[bool, list[memoryview]]] = ()
        self.beside: Sequence[bytes] = ()
        self.unknown = False
        self.first_at: int | None = None
        self.end_at: int | None = None
        self._session = RemoteCommand(upgrade, subprotocol, tty=facts.tty)

    @property
    def work(self) -> int:
        """What all the reading so far has cost, in microseconds or thereabouts."""
        return self._session.work

    @property
    def client_run(self) -> int:
        """How many of the client's next bytes cost next to nothing to read."""
        return self._session.client_run

    @property
    def upstream_run(self) -> int:
        """The same of upstream's next bytes."""
        return self._session.upstream_run

    @property
    def unfinished(self) -> int:
        """Bytes at upstream's end so far of a message that is not whole."""
        return self._session.unfinished

    @property
    def undecided(self) -> int:
        """Bytes at their end of a frame that may turn out to end the session: remotecommand.RemoteCommand.undecided."""
        return self._session.undecided

    @property
    def left(self) -> int:
        """Bytes still to come of the payload that upstream's bytes so far end in."""
        return self._session.upstream_run

    def from_client(self, view: memoryview) -> Said | None:
        """What the client has said, None where nothing of interest."""
        said: Said | None = None
        events: list[Event] = []
        try:
            self._session.from_client(view, events)
        except ProtocolError as error:
            said = Said(error.message)
        for event in events:
            if type(event) is Resize:
                said = said or Said()
                said.sizes.append((event.width, event.height))
            elif type(event) is Ping:
                said = said or Said()
                said.replies.append(event.reply)
        return said

    def give_up_client(self, why: str) -> None:
        """Nothing of the client is read any more: remotecommand.RemoteCommand.give_up_client."""
        self._session.give_up_client(why)

    def from_upstream(self, view: memoryview) -> None:
        """Sort what upstream has said into the attributes."""
        output: list[tuple[bool, list[memoryview]]] = []
        beside: list[bytes] = []
        self.output, self.beside = output, beside
        self.end_at = self.first_at = None
        self.unknown = False
        for event in self._session.from_upstream(view):
            if type(event) is Output:
                stderr = event.channel == STDERR
                if event.channel == UNKNOWN:
                    self.unknown = True
                if output and output[-1][0] is stderr:
                    output[-1][1].append(event.data)
                else:
                    output.append((stderr, [event.data]))
            elif type(event) is Hidden:
                beside.append(event.data)
            elif type(event) is ErrorData or type(event) is Closing:
                if self.end_at is None:
                    self.end_at = event.start
                continue
            else:
                continue
            if self.first_at is None:
                self.first_at = event.start

    def farewell(self, status: bytes, message: str, *, held: bool, early: bool, rest: int) -> bytes | None:
        """What ends the session for its client with an error: remotecommand.RemoteCommand.farewell."""
        return self._session.farewell(status, message, held=held, early=early, rest=rest)


class ForwardedPorts:
    """The streams of a port-forward: nothing of them is kept, their ports and bytes are counted.

    connections: by port. What Streams has besides is here too, with nothing in it.
    """

    __slots__ = ("_session", "connections")

    output: Sequence[tuple[bool, list[memoryview]]] = ()
    beside: Sequence[bytes] = ()
    unknown = False
    first_at: int | None = None
    end_at: int | None = None
    unfinished = 0
    undecided = 0
    left = 0

    def __init__(self, upgrade: str, subprotocol: str) -> None:
        self.connections: dict[int, int] = {}
        self._session = PortForward(upgrade, subprotocol)

    @property
    def work(self) -> int:
        """What all the reading so far has cost, in microseconds or thereabouts."""
        return self._session.work

    @property
    def client_run(self) -> int:
        """How many of the client's next bytes cost next to nothing to read."""
        return self._session.client_run

    @property
    def upstream_run(self) -> int:
        """The same of upstream's next bytes."""
        return self._session.upstream_run

    def from_client(self, view: memoryview) -> Said | None:
        """Count; nothing that a client says here is of interest but that it can't be read."""
        try:
            self._opened(self._session.from_client(view))
        except ProtocolError as error:
            return Said(error.message)
        return None

    def from_upstream(self, view: memoryview) -> None:
        """Count."""
        self._opened(self._session.from_upstream(view))

    def _opened(self, events: Sequence[PortOpened]) -> None:
        for event in events:
            self.connections[event.port] = self.connections.get(event.port, 0) + 1

    def give_up_client(self, why: str) -> None:
        """Nothing depends on it."""

    def farewell(self, status: bytes, message: str, *, held: bool, early: bool, rest: int) -> bytes | None:
        """A port-forward has no channel on which its user could be told anything."""
        return None

    def ports(self) -> dict[str, dict[str, int]]:
        """JSON values by port: its connections, bytes from (received) and to (sent) the client."""
        sent, received = self._session.sent, self._session.received
        return {
            str(port): {"connections": count, "received": received.get(port, 0), "sent": sent.get(port, 0)}
            for port, count in self.connections.items()
        }


def open_streams(facts: Facts, upgrade: str, subprotocol: str) -> Streams | ForwardedPorts:
    """The streams of a session. Raises ProtocolError for a protocol that is not known."""
    if facts.kind == "portforward":
        return ForwardedPorts(upgrade, subprotocol)
    return Streams(facts, upgrade, subprotocol)
