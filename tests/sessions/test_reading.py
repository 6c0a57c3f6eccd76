"""The reading of both sides: each can be given up alone, and what is given up stays so."""

from __future__ import annotations

import pytest
import structlog.testing

from k8sproxy.sessions.reading import OURS, READ, SILENT, UNREAD, Reading, Side
from k8sproxy.sessions.streams import Streams
from tests.lives import assert_documented
from tests.protocol.streams import said, typed
from tests.recording.scenes import FACTS

FIELDS = b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n"


def opened() -> Reading:
    reading = Reading(FACTS)
    assert (reading.client, reading.upstream) == (SILENT, SILENT)
    assert reading.open("websocket", FIELDS) == ""
    assert (reading.client, reading.upstream) == (READ, READ)
    return reading


def test_the_states() -> None:
    assert_documented(Side)


def test_a_protocol_that_is_not_known() -> None:
    reading = Reading(FACTS)
    assert "not known" in reading.open("websocket", b"Sec-WebSocket-Protocol: other\r\n")
    reading.give_up()
    assert (reading.client, reading.upstream) == (UNREAD, UNREAD)
    assert (
        reading.from_client(memoryview(b"x")) is None
        and reading.farewell(b"", "", held=False, early=False, rest=0) is None
    )


def test_a_client_that_can_not_be_read_leaves_upstream_to_be_read() -> None:
    reading = opened()
    said_so = reading.from_client(memoryview(b"\xff" * 20))
    assert said_so is not None and said_so.fault
    assert (reading.client, reading.upstream) == (UNREAD, READ)
    assert reading.from_client(memoryview(typed(0, b"x"))) is None
    assert reading.streams is not None
    assert reading.from_upstream(reading.streams, memoryview(said(1, b"hello"))) == ""
    assert [bytes(piece) for _, pieces in reading.streams.output for piece in pieces] == [b"hello"]


def test_a_fault_of_ours_counts_as_bytes_that_can_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> None:
        raise RuntimeError("nobody thought of this")

    reading = opened()
    monkeypatch.setattr(Streams, "from_client", faulty)
    monkeypatch.setattr(Streams, "from_upstream", faulty)
    monkeypatch.setattr(Streams, "farewell", faulty)
    with structlog.testing.capture_logs() as lines:
        said_so = reading.from_client(memoryview(b"x"))
        assert said_so is not None and said_so.fault == OURS
        assert reading.streams is not None and reading.from_upstream(reading.streams, memoryview(b"x")) == OURS
        assert reading.farewell(b"", "", held=False, early=False, rest=0) is None
    assert [line["event"] for line in lines] == ["capture_faulty"] * 3


def test_giving_up_twice() -> None:
    reading = opened()
    reading.give_up()
    reading.give_up()
    assert reading.streams is None and reading.work == 0 == reading.undecided
