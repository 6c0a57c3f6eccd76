"""What the proxy says of itself: no line lost or doubled, no reader of the log that stops the proxy, no secret."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator

import pytest
import structlog
from prometheus_client import generate_latest

from k8sproxy import telemetry
from k8sproxy.telemetry import (
    MAX_FAILED_SERIES,
    MAX_PENDING,
    MAX_SERIES,
    LogWriter,
    RequestLog,
    Telemetry,
    configure_logging,
    encode_fields,
)


class Pipe(io.StringIO):
    """A reader of the log that reads when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()
        self.entered = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.let.wait()
        return super().write(text)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    monkeypatch.setattr(telemetry, "LOG", LogWriter(stream))
    before = structlog.get_config()
    yield stream
    structlog.configure(**before)


def test_every_line_is_written_once() -> None:
    """While the thread takes lines, others are added: the list is never swapped under whoever adds."""
    stream = io.StringIO()
    writer = LogWriter(stream)
    writer.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    flushing = threading.Event()

    def flush() -> None:
        while not flushing.is_set():
            writer.flush()

    flusher = threading.Thread(target=flush)
    flusher.start()
    try:
        for number in range(15_000):
            writer.write(f"{number}\n")
    finally:
        flushing.set()
        flusher.join()
        sys.setswitchinterval(interval)
        writer.stop()
    assert stream.getvalue().split() == [str(number) for number in range(15_000)]
    assert writer.dropped == 0


def test_reader_that_does_not_read_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are dropped and counted past a limit, and the process ends all the same."""
    monkeypatch.setattr(telemetry, "STOP_SECONDS", 0.01)
    pipe = Pipe()
    writer = LogWriter(pipe)
    writer.start()
    writer.write("first\n")
    pipe.entered.wait()
    for _ in range(MAX_PENDING + 5):
        writer.write("x\n")
    assert writer.dropped == 5
    writer.stop()
    pipe.let.set()


def test_reader_that_is_gone() -> None:
    stream = io.StringIO()
    stream.close()
    writer = LogWriter(stream)
    writer.write("x\n")
    assert writer.dropped == 1


@pytest.mark.parametrize("style", ["json", "console"])
def test_tracebacks_hold_no_values(log: io.StringIO, style: str) -> None:
    """A traceback that shows local variables shows heads, and tokens in them."""
    configure_logging("info", style)
    authorization = b"Bearer %s" % "".join(("hunt", "er2")).encode()
    try:
        _ = authorization[100]
    except IndexError:
        structlog.get_logger().exception("request_failed")
    assert "IndexError" in log.getvalue() and "hunter2" not in log.getvalue()


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_levels(log: io.StringIO, level: str) -> None:
    configure_logging(level, "json")
    for name in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger(), name)(name, number=1)
    events = [json.loads(line)["event"] for line in log.getvalue().splitlines()]
    threshold = logging.getLevelNamesMapping()[level.upper()]
    assert events == [
        name for name in ("debug", "info", "warning", "error") if getattr(logging, name.upper()) >= threshold
    ]


@pytest.mark.parametrize("path", ["/api/v1/pods", '/a"b\\c', "/é\n\x1b[31m\u2028", "/%0a"])
@pytest.mark.parametrize("style", ["json", "console"])
def test_line_of_a_request(log: io.StringIO, style: str, path: str) -> None:
    """One line, whatever the client put into it."""
    fields = encode_fields({"peer": 'a"\nb', "groups": ["x"], "user": None})
    RequestLog(style).write("c1", 2, fields, "get", path, 200, 0.0015, 42)
    text = log.getvalue()
    assert text.endswith("\n") and len(text.splitlines()) == 1 and "\x1b" not in text
    if style == "json":
        line = json.loads(text)
        assert line.pop("time").endswith("Z")
        assert line == {
            **{"level": "info", "event": "request", "connection": "c1", "request": 2, "peer": 'a"\nb', "groups": ["x"]},
            **{"user": None, "verb": "get", "path": path, "code": 200, "seconds": 0.0015, "sent": 42},
        }


def test_series_are_bounded() -> None:
    """A resource is any word that a client puts into a path."""
    counters = Telemetry()
    for number in range(MAX_SERIES + 100):
        counters.request("get", f"thing{number}", 200, 0.0, 1, 2)
    assert len(counters._requests) == MAX_SERIES + 1
    assert counters._requests["get", "other", 200] == 100
    assert (counters.bytes_from_clients, counters.bytes_to_clients) == (MAX_SERIES + 100, 2 * (MAX_SERIES + 100))


def test_what_does_not_exist_takes_no_series_from_what_does() -> None:
    counters = Telemetry()
    for number in range(2 * MAX_SERIES):
        counters.request("get", f"thing{number}", 404, 0.0, 0, 0)
    counters.request("get", "pods", 200, 0.0, 0, 0)
    counters.refused("get", "thing", 403, "recorder_unavailable")
    assert len(counters._requests) == MAX_FAILED_SERIES + 3
    assert counters._requests["get", "other", 404] == 2 * MAX_SERIES - MAX_FAILED_SERIES
    assert counters._requests["get", "other", 403] == 1
    assert counters._requests["get", "pods", 200] == 1


def test_text_format() -> None:
    counters = Telemetry()
    counters.request("list", "pods", 200, 60e-6, 0, 10)
    counters.request("list", "pods", 200, 10.0, 0, 10)
    counters.refusal("peer_unknown")
    text = generate_latest(counters.registry).decode()
    assert 'k8sproxy_requests_total{code="200",resource="pods",verb="list"} 2.0' in text
    assert 'k8sproxy_refusals_total{reason="peer_unknown"} 1.0' in text
    assert 'k8sproxy_added_latency_seconds_bucket{le="5e-05"} 0.0' in text
    assert 'k8sproxy_added_latency_seconds_bucket{le="7.5e-05"} 1.0' in text
    assert 'k8sproxy_added_latency_seconds_bucket{le="+Inf"} 2.0' in text
