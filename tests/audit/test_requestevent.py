"""What is collected of a request, and its document: framing taken off, bounds kept, secrets out."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.audit import requestevent
from k8sproxy.audit.requestevent import MAX_CHUNKS, BodyKeeper, RequestEvent, told_agent
from k8sproxy.audit.shares import Pot
from k8sproxy.common.formats.apievent import origin_fragment
from k8sproxy.common.formats.asciicast import MAX_TEXT
from k8sproxy.common.formats.recorderapi import MAX_EVENTS
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.request.requestinfo import request_info
from tests.strategies import mutations, splits

ORIGIN = origin_fragment(Peer("100.64.0.7", "n7", "laptop."), "proxy.", "n1")
SECRETS = "/api/v1/namespaces/a/secrets"


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x;ext\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\nTrailer: x\r\n\r\n"


def document(method: str, target: str, body: BodyKeeper | None = None, **rest: Any) -> Any:
    return json.loads(RequestEvent(request_info(method, target), ORIGIN, 1.9, body=body, **rest).document("e1"))


@given(st.data())
def test_a_body_is_kept_however_it_comes(data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.binary(max_size=20), max_size=5))
    body = b"".join(pieces)
    for is_chunked, wire in ((False, body), (True, chunked(pieces))):
        limit = data.draw(st.integers(0, 60))
        keeper = BodyKeeper(limit, chunked=is_chunked)
        for piece in data.draw(splits(wire)):
            with memoryview(bytearray(piece)) as view:
                keeper.feed(view)
        assert keeper.body() == body[:limit]
        assert keeper.truncated is (len(body) > limit)


@given(st.data())
def test_what_is_kept_is_bounded_whatever_comes(data: st.DataObject) -> None:
    wire = data.draw(mutations(chunked([b"a" * 30, b"b" * 300])))
    keeper = BodyKeeper(64, chunked=True)
    keeper.feed(wire)
    assert len(keeper.body()) <= 64
    many = BodyKeeper(64, chunked=True)
    many.feed(b"1\r\na\r\n" * 1000)
    assert many.size <= 64 * 2 + 1024 and many.body() == b"a" * 64 and many.truncated


def test_a_body_of_very_many_chunks_is_cut() -> None:
    keeper = BodyKeeper(chunked=True)
    keeper.feed(b"1\r\na\r\n" * (MAX_CHUNKS + 10) + b"0\r\n\r\n")
    assert keeper.body() == b"a" * MAX_CHUNKS and keeper.truncated


@pytest.mark.parametrize("wire", [b"5\r\nab", b"5\r\nabcde", b"5", b"zz\r\n", b"5\r\nabcde\r\n"])
def test_a_chunked_body_that_does_not_end_is_cut(wire: bytes) -> None:
    keeper = BodyKeeper(chunked=True)
    keeper.feed(wire)
    assert b"abcde".startswith(keeper.body()) and keeper.truncated


def test_a_body_that_did_not_begin() -> None:
    keeper = BodyKeeper(chunked=True)
    assert keeper.body() == b"" and not keeper.truncated


def test_a_body_that_was_dropped() -> None:
    keeper = BodyKeeper()
    keeper.drop()
    assert not keeper.truncated
    keeper = BodyKeeper()
    keeper.feed(b"abc")
    keeper.drop()
    keeper.feed(b"def")
    assert (keeper.size, keeper.body(), keeper.truncated) == (0, b"", True)


def test_document() -> None:
    keeper = BodyKeeper()
    keeper.feed(b'{"kind": "Pod"}')
    event = document("POST", "/api/v1/namespaces/a/pods?dryRun=All", keeper, user_agent="kubectl", session_id="s1")
    assert event["id"] == "e1" and event["timestamp"] == 1 and event["userAgent"] == "kubectl"
    assert base64.b64decode(event["request"]["body"]) == b'{"kind": "Pod"}'
    assert event["request"]["path"] == "/api/v1/namespaces/a/pods?dryRun=All"
    assert event["request"]["queryParameters"] == {"dryRun": ["All"]}
    assert event["sessionID"] == "s1" and "redacted" not in event["request"]


def test_secrets_do_not_get_into_documents() -> None:
    keeper = BodyKeeper()
    keeper.feed(json.dumps({"kind": "Secret", "data": {"password": "aHVudGVyMg=="}}).encode())
    request = document("POST", SECRETS + "?token=hunter2", keeper)["request"]
    assert request["redacted"] is True
    assert request["path"] == SECRETS + "?token=REDACTED" and request["queryParameters"] == {"token": ["REDACTED"]}
    assert json.loads(base64.b64decode(request["body"]))["data"] == {"password": "REDACTED"}


def test_a_cut_body_of_a_secret_is_told_as_cut_and_redacted() -> None:
    keeper = BodyKeeper(18)  # what is left can be read by itself
    keeper.feed(b'{"kind": "Secret"} {"data":{"password":"aHVudGVyMg=="}}')
    request = document("PUT", SECRETS + "/x", keeper)["request"]
    assert (request["body"], request["truncated"], request["redacted"]) == ("", True, True)


def test_a_fault_in_redaction_costs_the_body_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> tuple[bytes, bool]:
        raise RuntimeError("a fault")

    monkeypatch.setattr(requestevent, "redact_body", broken)
    keeper = BodyKeeper()
    keeper.feed(b'{"data":1}')
    request = document("POST", SECRETS, keeper)["request"]
    assert request["body"] == "" and request["redacted"] is True


def test_user_agents() -> None:
    assert told_agent("é".encode()) == ("é", None)
    agent, cut = told_agent(b"x" * 5000)
    event = document("GET", "/version", user_agent=agent, agent_cut=cut, extra='"portForward":{}')
    assert len(event["userAgent"].encode()) == MAX_TEXT
    assert event["truncated"] == {"userAgent": {"bytes": 5000, "sha256": hashlib.sha256(b"x" * 5000).hexdigest()}}
    assert event["portForward"] == {} and "truncated" not in event["request"]


def test_an_event_is_never_longer_than_a_recorder_takes() -> None:
    """Every 1 of a Secret's list becomes "REDACTED": one event would be refused for ever, and others behind it."""
    body = b'{"data":[' + b"1," * (2 << 20) + b"1]}"
    keeper = BodyKeeper(8 << 20)
    keeper.feed(body)
    made = RequestEvent(request_info("POST", SECRETS), ORIGIN, 1.9, body=keeper).document("e1")
    assert len(made) < MAX_EVENTS
    assert json.loads(made)["request"]["body"] == "" and json.loads(made)["request"]["truncated"] is True


def test_paths_are_told_as_urls() -> None:
    path = "/api/v1/namespaces/a/services/web/proxy/a%20b/%C3%A9"
    for _ in range(2):
        assert document("GET", path)["request"]["path"] == path
    assert document("GET", path)["kubernetes"]["Path"].endswith("/a b/é")
    long = "/api/v1/namespaces/a/pods?command=" + "x" * 1000
    assert document("GET", long)["request"]["path"] == long


def test_lines_that_differ_in_method_or_query_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requestevent, "_LINES", 2)
    for _ in range(2):
        for method, target in (("GET", "/version"), ("POST", "/version"), ("GET", "/version?a=b")):
            request = document(method, target)["request"]
            assert (request["method"], request["path"]) == (method, target)


def test_nothing_is_taken_out_where_that_is_configured() -> None:
    keeper = BodyKeeper()
    keeper.feed(b'{"data":{"password":"aHVudGVyMg=="}}')
    for redact in (False, True, False):
        request = document("POST", SECRETS + "?token=a%20b", keeper, redact=redact)["request"]
        assert request.get("redacted", False) is redact
        assert request["queryParameters"] == {"token": ["REDACTED" if redact else "a b"]}
        assert (b"aHVudGVyMg" in base64.b64decode(request["body"])) is not redact


def test_bodies_of_requests_that_run_are_bounded_together() -> None:
    budget = Pot(10)
    first, second, third = (BodyKeeper(100, budget=budget) for _ in range(3))
    first.feed(b"12345678")
    second.feed(b"12")
    second.feed(b"3")
    assert (second.body(), second.truncated, budget.left) == (b"", True, 2)
    second.feed(b"4")
    assert second.size == 0
    third.feed(b"12")
    assert (third.body(), third.truncated, budget.left) == (b"12", False, 0)
    for keeper in (first, first, second, third):
        keeper.settle()
    assert budget.left == 10 and first.body() == b"12345678" and not first.truncated
    first.drop()
    assert budget.left == 10
