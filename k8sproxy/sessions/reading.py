"""The reading of both sides of a session: what each says, as far as its bytes can be read.

Every session is read, recorded or not, so that one that is ended from outside can be told why in its own protocol. The
two sides are read apart, and upstream's bytes do not depend on the client's. A fault of ours in reading a side counts
as that side's bytes being unreadable; the log has its traceback.
"""

from __future__ import annotations

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.states import State, table
from k8sproxy.sessions import words
from k8sproxy.sessions.facts import Facts
from k8sproxy.sessions.streams import ForwardedPorts, Said, Streams, negotiated, open_streams
from k8sproxy.sessions.tap import ALL

# What users are told of a fault of ours.
OURS = "an internal error of k8sproxy; its log has more"


class Side(State):
    """How the bytes of one side are taken.

    SILENT   protocols have not been switched        -> READ, UNREAD
    READ     its bytes are read beside their way     -> UNREAD
    UNREAD   its bytes go their way unread           -> (final)
    """

    SILENT = "silent"
    READ = "read"
    UNREAD = "unread"


SILENT, READ, UNREAD = Side.SILENT, Side.READ, Side.UNREAD
table({SILENT: (READ, UNREAD), READ: (UNREAD,), UNREAD: ()})


class Reading:
    """Both sides of one session. streams: what was said last; None before `open` and once upstream is UNREAD. ports:
    of a port-forward, also once it is UNREAD."""

    __slots__ = ("_facts", "client", "ports", "streams", "upstream")

    def __init__(self, facts: Facts) -> None:
        self.client = SILENT
        self.upstream = SILENT
        self.streams: Streams | ForwardedPorts | None = None
        self.ports: ForwardedPorts | None = None
        self._facts = facts

    def open(self, upgrade: str, fields: bytes) -> str:
        """The sides have switched protocols. Gives why they can't be read, "" where they can."""
        try:
            streams = open_streams(self._facts, upgrade, negotiated(upgrade, fields))
        except ProtocolError as error:
            return error.message
        self.client, self.upstream = self.client.to(READ), self.upstream.to(READ)
        self.streams = streams
        if isinstance(streams, ForwardedPorts):
            self.ports = streams
        return ""

    def from_client(self, view: memoryview) -> Said | None:
        """What the client has said; None where that is nothing of interest. Behind a fault in it nothing is read."""
        streams = self.streams
        if streams is None or self.client is not READ:
            return None
        try:
            said = streams.from_client(view)
        except Exception:
            words.say_fault(self._facts)
            said = Said(OURS)
        if said is not None and said.fault:
            self.client = self.client.to(UNREAD)
            streams.give_up_client(said.fault)
        return said

    def from_upstream(self, streams: Streams | ForwardedPorts, view: memoryview) -> str:
        """Read what upstream has said into `streams`. Gives why it can't be read, "" where it can."""
        try:
            streams.from_upstream(view)
        except ProtocolError as error:
            return error.message
        except Exception:
            words.say_fault(self._facts)
            return OURS
        return ""

    def give_up(self) -> None:
        """Nothing is read any more. Who has no reading of upstream can't say where the client stands."""
        if self.upstream is not UNREAD:
            self.upstream = self.upstream.to(UNREAD)
        if self.client is not UNREAD:
            self.client = self.client.to(UNREAD)
        self.streams = None

    @property
    def work(self) -> int:
        """What all the reading so far has cost, in microseconds or thereabouts."""
        return self.streams.work if self.streams is not None else 0

    @property
    def client_run(self) -> int:
        """How many of the client's next bytes cost next to nothing to read."""
        return self.streams.client_run if self.streams is not None and self.client is READ else ALL

    @property
    def upstream_run(self) -> int:
        """The same of upstream's next bytes."""
        return self.streams.upstream_run if self.streams is not None else ALL

    @property
    def undecided(self) -> int:
        """Bytes at upstream's end so far of a frame that may turn out to end the session."""
        return self.streams.undecided if self.streams is not None else 0

    def farewell(self, status: bytes, message: str, *, held: bool, early: bool, rest: int) -> bytes | None:
        """What ends the session for its client with an error; None where nothing can be said (remotecommand)."""
        if self.streams is None:
            return None
        try:
            return self.streams.farewell(status, message, held=held, early=early, rest=rest)
        except Exception:
            words.say_fault(self._facts)
            return None
