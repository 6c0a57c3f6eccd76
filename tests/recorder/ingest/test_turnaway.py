"""recorder/ingest/turnaway.py: each protocol's own refusal, however its bytes are cut."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from k8sproxy.common.errors import Refusal
from recorder.ingest.turnaway import MOST, TurnAway
from tests.recorder.store.storing import run, until

REFUSAL = Refusal(403, "not_a_sender", "not you, böse Maschine\x1b[2J")


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.eof = self.closed = self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.eof = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


def turned_away(pieces: list[bytes]) -> Transport:
    transport: Any = Transport()

    async def main() -> None:
        protocol = TurnAway(REFUSAL)
        protocol.connection_made(transport)
        for piece in pieces:
            protocol.data_received(piece)
        protocol.connection_lost(None)
        await asyncio.sleep(0)

    run(main())
    made: Transport = transport
    return made


def cuts(data: bytes) -> list[list[bytes]]:
    """Whole, byte by byte, and at random places."""
    found = [[data], [data[at : at + 1] for at in range(len(data))]]
    for seed in range(20):
        places = sorted(random.Random(seed).sample(range(1, len(data)), 5))
        found.append([data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)])
    return found


@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_http2(method: str) -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    client.increment_flow_control_window(1000)
    fields = [(":method", method), (":path", "/v2/record"), (":scheme", "http"), (":authority", "x")]
    client.send_headers(1, fields, end_stream=method == "HEAD")
    sent = client.data_to_send()
    for pieces in cuts(sent):
        transport = turned_away(pieces)
        assert transport.eof and not transport.aborted
        events = client.receive_data(transport.written)
        (head,) = [event for event in events if isinstance(event, h2.events.ResponseReceived)]
        fields_: dict[Any, Any] = dict(head.headers)
        assert fields_[":status"] == "403"
        assert fields_["recorder-error"] == "not you, b?se Maschine?[2J"
        (end,) = [event for event in events if isinstance(event, h2.events.ConnectionTerminated)]
        assert end.last_stream_id == 1 and b"not you" in (end.additional_data or b"")
        client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        client.initiate_connection()
        client.send_headers(1, fields, end_stream=method == "HEAD")


@pytest.mark.parametrize(
    ("request_", "body"),
    [(b"HEAD /v2/event HTTP/1.1\r\n", False), (b"POST /record HTTP/1.1\r\n", True), (b"PRI *HTTP/1.1\r\n", True)],
)
def test_http1(request_: bytes, body: bool) -> None:
    for pieces in cuts(request_ + b"Host: x\r\n\r\n"):
        transport = turned_away(pieces)
        head, _, rest = transport.written.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n") and b"Connection: close" in head
        assert b"recorder-error: not you, b?se Maschine?[2J" in head
        assert bool(rest) is body
        assert transport.eof


def test_what_goes_on_and_on_is_reset() -> None:
    assert turned_away([b"POST / HTTP/1.1\r\n", bytes(MOST)]).aborted


def test_http2_without_a_request_is_told_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.turnaway.LAST", 0.0)
    transport: Any = Transport()

    async def main() -> None:
        protocol = TurnAway(REFUSAL)
        protocol.connection_made(transport)
        client = h2.connection.H2Connection()
        client.initiate_connection()
        protocol.data_received(client.data_to_send())
        await until(lambda: transport.closed)
        events = client.receive_data(transport.written)
        (end,) = [event for event in events if isinstance(event, h2.events.ConnectionTerminated)]
        assert end.last_stream_id == 0
        protocol.connection_lost(None)

    run(main())
