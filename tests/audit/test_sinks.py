"""The sinks of a request's account: what is counted, and which line it has."""

from __future__ import annotations

import json

import pytest
import structlog

from k8sproxy.audit import sinks
from k8sproxy.audit.entry import Served
from k8sproxy.audit.sinks import CLIENT_GONE, OwnSink
from k8sproxy.common.errors import Refusal
from k8sproxy.common.logs import LOG
from k8sproxy.telemetry import RequestLog, Telemetry
from tests.audit.test_entry import accounted, asked


class Forwarded:
    """What upstream has answered."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.proxy_seconds = 0.001
        self.received = 3
        self.sent = 5


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []
    monkeypatch.setattr(LOG, "write", written.append)
    return written


def test_what_was_forwarded_is_counted_and_has_a_line(lines: list[str]) -> None:
    entry, _, _ = accounted()
    telemetry = Telemetry()
    entry._trail.sinks = (OwnSink(telemetry, RequestLog("json")),)
    asked(entry, "/api/v1/namespaces/a/pods/web/log")
    entry.end(Forwarded(), 0.25)
    asked(entry)
    entry.end(Forwarded(0), 0.25)
    assert telemetry._requests == {("get", "pods/log", 200): 1, ("list", "pods", CLIENT_GONE): 1}
    assert (telemetry.bytes_from_clients, telemetry.bytes_to_clients) == (6, 10)
    first, second = map(json.loads, lines)
    assert (first["connection"], first["request"], first["code"], first["seconds"]) == ("c1", 1, 200, 0.25)
    assert (second["request"], second["code"], second["sent"]) == (2, CLIENT_GONE, 5)


def test_what_was_lost_before_it_was_understood_is_counted_and_has_a_line(lines: list[str]) -> None:
    entry, _, _ = accounted()
    telemetry = Telemetry()
    entry._trail.sinks = (OwnSink(telemetry, RequestLog("json")),)
    entry.lose()
    asked(entry, "/api/v1/pods?token=secret")
    entry.info = None
    entry.lose()
    entry.lose()
    assert telemetry._requests == {("", "", CLIENT_GONE): 1}
    [line] = map(json.loads, lines)
    assert (line["request"], line["code"], line["path"], line["peer"]) == (1, CLIENT_GONE, "/api/v1/pods", None)


def test_what_the_proxy_serves_itself_is_counted_alone(lines: list[str]) -> None:
    entry, _, _ = accounted()
    telemetry = Telemetry()
    entry._trail.sinks = (OwnSink(telemetry, RequestLog("json")),)
    asked(entry, "/.well-known/k8sproxy/whoami")
    entry.end(Served(7), 0.0)
    assert telemetry._requests == {("get", "", 200): 1} and telemetry.bytes_to_clients == 7
    assert not lines


def test_a_log_without_requests_has_no_line(lines: list[str]) -> None:
    entry, _, _ = accounted()
    entry._trail.sinks = (OwnSink(Telemetry(), RequestLog("json", enabled=False)),)
    asked(entry)
    entry.end(Forwarded(), 0.25)
    assert not lines


def test_refusals_and_cuts_are_counted_by_cause_and_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    entry, _, _ = accounted()
    telemetry = Telemetry()
    entry._trail.sinks = (OwnSink(telemetry, RequestLog("json", enabled=False)),)
    monkeypatch.setattr(sinks, "_log", structlog.get_logger("test"))
    with structlog.testing.capture_logs() as logged:
        asked(entry, "/api/v1/pods?token=secret")
        entry.refuse(Refusal(403, "peer_unknown", "no"))
        entry.refuse(Refusal(400, "bad_request", "no head"))
        asked(entry)
        entry.end(Forwarded(), 0.1, "upstream_broke")
    assert telemetry._requests == {("list", "pods", 403): 1, ("", "", 400): 1, ("list", "pods", 200): 1}
    assert telemetry._refusals == {"peer_unknown": 1, "bad_request": 1, "upstream_broke": 1}
    refused, headless, cut = logged
    assert (refused["event"], refused["cause"], refused["method"]) == ("refused", "peer_unknown", "GET")
    assert (refused["path"], refused["address"], refused["peer"]) == ("/api/v1/pods", "100.64.0.7:0", None)
    assert (headless["cause"], headless["path"]) == ("bad_request", None)
    assert (cut["event"], cut["cause"], cut["request"]) == ("response_cut", "upstream_broke", 2)
    assert {line["log_level"] for line in logged} == {"warning"}
