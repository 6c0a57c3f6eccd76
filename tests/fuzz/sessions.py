"""Recorded sessions: what a client and the API server really sent each other behind the 101, in the order it came.

A file is a line of JSON, what is known of the session, and then its pieces: a byte for the side that sent it, four for
its size, the bytes. Both directions are reduced to what they mean for comparisons (`Heard`): output in runs, however it
was cut, with the place in the direction's bytes where the frame began that brought it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from k8sproxy.protocol.portforward import PortForward, PortOpened
from k8sproxy.protocol.remotecommand import (
    Closing,
    ErrorData,
    Event,
    Hidden,
    Output,
    Ping,
    RemoteCommand,
    Resize,
    Stdin,
)

CORPUS = Path(__file__).parent.parent / "protocol" / "corpus"
CLIENT, UPSTREAM = b"c", b"u"
Pieces = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Session:
    """facts: kind, by (who spoke), upgrade, subprotocol, tty; and what the two ends said themselves: stdout, stderr
    (size and SHA-256 of each), sizes, exit, typed, or for a port-forward ports, sent, received."""

    name: str
    facts: dict[str, Any]
    pieces: Pieces

    def direction(self, side: bytes) -> bytes:
        return b"".join(data for sender, data in self.pieces if sender == side)

    def reader(self) -> RemoteCommand:
        return RemoteCommand(self.facts["upgrade"], self.facts["subprotocol"], tty=self.facts["tty"])

    def port_reader(self) -> PortForward:
        return PortForward(self.facts["upgrade"], self.facts["subprotocol"])

    def write(self, directory: Path = CORPUS) -> Path:
        path = directory / f"{self.name}.session"
        packed = b"".join(side + len(data).to_bytes(4, "big") + data for side, data in self.pieces)
        path.write_bytes(json.dumps(self.facts, sort_keys=True).encode() + b"\n" + packed)
        return path


def load(path: Path) -> Session:
    head, _, rest = path.read_bytes().partition(b"\n")
    pieces: Pieces = []
    while rest:
        end = 5 + int.from_bytes(rest[1:5], "big")
        pieces.append((rest[:1], rest[5:end]))
        rest = rest[end:]
    return Session(path.stem, json.loads(head), pieces)


def corpus(kind: str) -> list[Session]:
    """All recorded sessions of a kind ("remotecommand", "portforward"), in the order of their names."""
    sessions = [load(path) for path in sorted(CORPUS.glob("*.session"))]
    return [session for session in sessions if session.facts["kind"] == kind]


@dataclass
class Heard:
    """What one direction's events say, however its bytes were cut. runs: (what, the frame's place, bytes) for output
    and errors. said: all other events in their order, with their frame's place where they have one."""

    runs: list[tuple[str, int, bytearray]] = field(default_factory=list)
    said: list[tuple[object, ...]] = field(default_factory=list)
    typed: int = 0
    given: int = 0

    def add(self, events: Iterable[Event], size: int) -> None:
        """The events of one call, which was given so many bytes."""
        for event in events:
            if isinstance(event, Output):
                assert event.data, "output without any"
                self._run(f"output {event.channel}", event.start, event.data)
            elif isinstance(event, ErrorData):
                self._run("error", event.start, event.data)
            elif isinstance(event, Hidden):
                self.said.append(("hidden", event.data))
            elif isinstance(event, Resize):
                self.said.append(("resize", event.width, event.height))
            elif isinstance(event, Stdin):
                self.typed += event.size
            elif isinstance(event, Ping):
                self.said.append(("ping", event.reply))
            else:
                assert isinstance(event, Closing)
                self.said.append(("closing", event.clean, self.given + event.start))
        self.given += size

    def _run(self, what: str, start: int, data: memoryview) -> None:
        place = self.given + start
        assert 0 <= place <= self.given + start + len(data)
        if self.runs and self.runs[-1][:2] == (what, place):
            self.runs[-1][2].extend(data)
        else:
            self.runs.append((what, place, bytearray(data)))

    def bytes_of(self, what: str) -> bytes:
        return b"".join(data for name, _, data in self.runs if name == what)


def hear(reader: RemoteCommand, pieces: Iterable[tuple[bytes, bytes]]) -> dict[bytes, Heard]:
    """What both sides said. Raises ProtocolError."""
    heard = {CLIENT: Heard(), UPSTREAM: Heard()}
    for side, data in pieces:
        feed = reader.from_client if side == CLIENT else reader.from_upstream
        heard[side].add(feed(memoryview(data)), len(data))
    return heard


def hear_ports(reader: PortForward, pieces: Iterable[tuple[bytes, bytes]]) -> list[PortOpened]:
    """The ports that were opened. Raises ProtocolError."""
    opened: list[PortOpened] = []
    for side, data in pieces:
        feed = reader.from_client if side == CLIENT else reader.from_upstream
        opened += feed(memoryview(data))
    return opened
