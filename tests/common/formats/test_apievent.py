"""API events: the document has the members of Go's Event with their types, and nothing that strict readers refuse."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.common.formats.apievent import EVENT_TYPE, event_document, origin_fragment, request_fragments
from k8sproxy.common.formats.bounds import Truncation
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.request.requestinfo import request_info

ANN = Peer("100.64.0.7", "n7", "laptop.tail1.ts.net.", user_id=12, login_name="ann@example.com")
ROBOT = Peer("100.64.0.8", "n8", "ci.tail1.ts.net.", tags=("tag:ci", "tag:k8s"), user_id=1, login_name="tagged-devices")
INFO = request_info("GET", "/api/v1/namespaces/default/pods?fieldSelector=a%3Db&labelSelector=app")


def document(**rest: Any) -> Any:
    fragments = request_fragments(INFO, "/p?q", {"a": ["1", "2"], "b": []})
    origin = origin_fragment(ANN, "proxy.tail1.ts.net.", "n1", "ann@example.com", ("dev", "ops"))
    return json.loads(event_document("id-1", 1_700_000_000, "kubectl", fragments, origin, **rest))


def test_all_members() -> None:
    assert document(body=b"\x00\xffbody") == {
        "type": EVENT_TYPE,
        "id": "id-1",
        "timestamp": 1_700_000_000,
        "userAgent": "kubectl",
        "request": {
            "method": "GET",
            "path": "/p?q",
            "queryParameters": {"a": ["1", "2"], "b": []},
            "body": base64.b64encode(b"\x00\xffbody").decode(),
        },
        "kubernetes": {
            "IsResourceRequest": True,
            "Path": "/api/v1/namespaces/default/pods",
            "Verb": "list",
            "APIPrefix": "api",
            "APIGroup": "",
            "APIVersion": "v1",
            "Namespace": "default",
            "Resource": "pods",
            "Subresource": "",
            "Name": "",
            "Parts": ["pods"],
            "FieldSelector": "a=b",
            "LabelSelector": "app",
        },
        "source": {"node": "laptop.tail1.ts.net", "nodeID": "n7", "nodeUserID": 12, "nodeUser": "ann@example.com"},
        "destination": {"node": "proxy.tail1.ts.net", "nodeID": "n1"},
        "impersonation": {"user": "ann@example.com", "groups": ["dev", "ops"]},
    }


def test_marks_and_sessions() -> None:
    plain = document()
    assert plain["request"]["body"] == "" and "sessionID" not in plain
    assert not plain["request"].keys() & {"truncated", "redacted"}
    marked = document(truncated=True, redacted=True, session_id="s1")
    assert marked["request"]["truncated"] is True and marked["request"]["redacted"] is True
    assert marked["sessionID"] == "s1"


def test_half_a_character_is_a_question_mark() -> None:
    fragments = request_fragments(INFO, "/\ud800", {"\udc80": ["\udfff"]})
    event = json.loads(event_document("", 0, "\ud83d", fragments, origin_fragment(ANN, "p", "n")).decode())
    assert event["userAgent"] == "?" and event["request"]["path"] == "/?"
    assert event["request"]["queryParameters"] == {"?": ["?"]}


def test_a_tagged_node_has_tags_and_no_user() -> None:
    origin = json.loads("{" + origin_fragment(ROBOT, "proxy", "n1") + "}")
    assert origin == {
        "source": {"node": "ci.tail1.ts.net", "nodeID": "n8", "nodeTags": ["tag:ci", "tag:k8s"]},
        "destination": {"node": "proxy", "nodeID": "n1"},
    }


def test_what_is_cut_of_an_origin_is_told() -> None:
    many = tuple(f"tag:{number:0500}" for number in range(256))
    origin = json.loads("{" + origin_fragment(dataclasses.replace(ROBOT, tags=many), "p", "n", "u" * 5000, many) + "}")
    assert len(json.dumps(origin)) < 40_000
    joined = "\n".join(many).encode()
    cut = {"bytes": len(joined), "sha256": hashlib.sha256(joined).hexdigest()}
    assert origin["source"]["truncated"] == {"nodeTags": cut}
    assert origin["impersonation"]["truncated"]["groups"] == cut
    assert origin["impersonation"]["truncated"]["user"]["bytes"] == 5000
    ann = json.loads("{" + origin_fragment(dataclasses.replace(ANN, login_name="é" * 900), "p", "n") + "}")
    assert ann["source"]["truncated"].keys() == {"nodeUser"}
    assert ann["source"]["nodeUser"].endswith("é…")


def test_what_is_no_resource() -> None:
    info = request_info("GET", "/version")
    fragments = request_fragments(info, "/version", {})
    event = json.loads(event_document("", 0, "", fragments, origin_fragment(ANN, "p", "n")))
    assert event["kubernetes"]["IsResourceRequest"] is False
    assert event["kubernetes"]["Verb"] == "get" and event["kubernetes"]["Parts"] == []
    assert event["request"]["queryParameters"] == {}


@given(st.text(), st.text(), st.binary(), st.dictionaries(st.text(), st.lists(st.text(), max_size=2), max_size=2))
def test_any_text_stays_in_its_place(agent: str, path: str, body: bytes, query: dict[str, list[str]]) -> None:
    fragments = request_fragments(INFO, path, query)
    raw = event_document(agent, 1, agent, fragments, origin_fragment(ANN, path, agent, agent or "x"), body=body)
    event = json.loads(raw.decode())
    assert event["userAgent"] == event["id"] == clean(agent)
    assert event["request"]["path"] == clean(path)
    assert base64.b64decode(event["request"]["body"]) == body
    assert raw.count(b"\n") == 0


def clean(text: str) -> str:
    """What is left where half a character cannot be told."""
    return text.encode("utf-8", "replace").decode()


def test_one_more_member_and_what_was_cut_of_the_agent() -> None:
    cut = Truncation(9000, "ab")
    event = document(extra='"proxy":{"a":1}', agent_cut=cut)
    assert event["proxy"] == {"a": 1}
    assert event["truncated"] == {"userAgent": cut.values()}
