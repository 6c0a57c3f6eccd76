"""What the proxy says of itself: a line for each request, series that are bounded."""

from __future__ import annotations

import io
import json

import pytest
from prometheus_client import generate_latest

from k8sproxy import telemetry
from k8sproxy.common.build import is_compiled
from k8sproxy.common.logs import LogWriter
from k8sproxy.telemetry import MAX_FAILED_SERIES, MAX_SERIES, RequestLog, Telemetry, encode_fields


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(telemetry, "LOG", LogWriter(stream))
    return stream


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
    assert f'k8sproxy_build_info{{compiled="{str(is_compiled()).lower()}",python="3.' in text
    assert 'k8sproxy_requests_total{code="200",resource="pods",verb="list"} 2.0' in text
    assert 'k8sproxy_refusals_total{reason="peer_unknown"} 1.0' in text
    assert 'k8sproxy_added_latency_seconds_bucket{le="5e-05"} 0.0' in text
    assert 'k8sproxy_added_latency_seconds_bucket{le="7.5e-05"} 1.0' in text
    assert 'k8sproxy_added_latency_seconds_bucket{le="+Inf"} 2.0' in text
