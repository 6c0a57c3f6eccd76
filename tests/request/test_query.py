"""Queries are read as Go and Kubernetes read them, and what another reader would take otherwise is told apart.

queries.jsonl holds answers of Go itself, one a line: url.ParseQuery's values (in hexadecimal, name by name), whether it
found fault, and runtime.Convert_Slice_string_To_bool of `tty` (Go 1.26.8, k8s.io/apimachinery v0.36.3), for queries
written by hand and for some hundred put together at random.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.request.classify import SessionKind
from k8sproxy.request.query import MAX_PAIRS, first, pairs, second_reading, switch, values
from k8sproxy.request.requestinfo import request_info

ANSWERS: list[dict[str, Any]] = [
    json.loads(line) for line in Path(__file__).with_name("queries.jsonl").read_text().splitlines()
]
POD = "/api/v1/namespaces/a/pods/web"
PIECES = st.sampled_from(
    ["&", "=", ";", "%", "+", "%41", "%3B", "%26", "%e9", "a", "command", "tty", "é".encode().hex()]
)


def as_hex(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").hex()


def test_there_are_answers() -> None:
    assert len(ANSWERS) > 400
    assert sum(answer["fault"] for answer in ANSWERS) > 100


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: ascii(answer["query"])[:40])
def test_every_query_is_read_as_go_reads_it(answer: dict[str, Any]) -> None:
    query = answer["query"]
    read = values(query, "surrogateescape")
    told = {as_hex(name): [as_hex(value) for value in found] for name, found in read.items()}
    assert told == answer["values"]
    assert (second_reading(query) is not None) == answer["fault"]
    assert switch(read, "tty") is answer["tty"]
    assert "&".join(name + equals + value for name, equals, value, _, _, _ in pairs(query)) == query


@given(st.lists(PIECES, max_size=12).map("".join))
def test_what_has_one_reading_is_read_by_others_just_so(query: str) -> None:
    if second_reading(query) is None:
        for separator in "&", ";":
            if separator == "&" or ";" not in query:
                assert values(query) == parse_qs(query, keep_blank_values=True, errors="replace")
    else:
        assert {name for _, _, _, name, _, read in pairs(query) if read} == set(values(query))


@given(st.text(st.sampled_from("ab=%;+\r\n_. 4fF0é?") | st.characters(codec="utf-8"), max_size=30), st.booleans())
def test_escapes_are_decoded_as_by_the_library(text: str, escaped: bool) -> None:
    """unquote_to_bytes is the oracle; it is too slow for tens of thousands of escapes."""
    text = quote(text, safe="=+_") if escaped else text
    if "&" in text or not text:
        return
    name, _, value = text.partition("=")
    wanted = [unquote_to_bytes(part.replace("+", " ")).decode(errors="replace") for part in (name, value)]
    assert [list(pair[3:5]) for pair in pairs(text)] == [wanted]


def test_a_query_of_too_many_pairs_is_not_read_at_all() -> None:
    most = "a=1" + "&" * (MAX_PAIRS - 2) + "b=2"
    assert most.count("&") + 1 == MAX_PAIRS - 1
    assert values(most) == {"a": ["1"], "b": ["2"]} and second_reading(most) is None
    most += "&c"
    assert first(values(most), "b") == "2" and second_reading(most) is None
    assert values(most + "&") == {}
    assert "10000 parameters" in str(second_reading(most + "&"))


# Each is one command to Go and another to somebody else.
TWO_READINGS = [
    "command=echo&command=harmless;&command=REAL&container=main",
    "command=echo&command=harmless%zz&command=REAL",
    "command=a;command=b",
    "command=a&;",
    "command=a&x%=1",
    "command=a&%4=b",
    "command=%",
    "container=main;tty=1",
    "command=a" + "&" * MAX_PAIRS,
]
SESSIONS = [
    (f"{POD}/exec", SessionKind.EXEC),
    (f"{POD}/attach", SessionKind.ATTACH),
    (f"{POD}/portforward", SessionKind.PORT_FORWARD),
    ("/api/v1/nodes/n1/proxy/exec/a/web/main", SessionKind.NODE_PROXY_EXEC),
    ("/api/v1/nodes/n1/proxy/attach/a/web/uid/main", SessionKind.NODE_PROXY_ATTACH),
]


@pytest.mark.parametrize(("path", "kind"), SESSIONS)
@pytest.mark.parametrize("query", TWO_READINGS, ids=lambda query: query[:40])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_session_with_two_readings_is_refused(path: str, kind: SessionKind, query: str, method: str) -> None:
    for upgrade in ("websocket", "SPDY/3.1", ""):
        with pytest.raises(ProtocolError, match="can be read in two ways") as caught:
            request_info(method, f"{path}?{query}", upgrade)
        assert caught.value.status == 400
        assert request_info(method, f"{path}?command=a%3Bb&command=%25zz&x&&y=", upgrade).session is kind


@pytest.mark.parametrize("query", TWO_READINGS, ids=lambda query: query[:40])
def test_other_requests_may_be_spelled_so(query: str) -> None:
    for path in ("/api/v1/pods", f"{POD}/log", f"{POD}/proxy/x", "/version", "/api/v1/nodes/n1/proxy/metrics"):
        assert request_info("GET", f"{path}?{query}").query == query


@pytest.mark.parametrize(
    ("query", "verb"),
    [
        ("watch=1;", "list"),
        ("watch=%zz&watch=0", "list"),
        ("watch=;&watch=1", "watch"),
        ("w%61tch=1", "watch"),
        ("watch=fal%C5%BFe", "list"),
        ("watch=FALSE", "list"),
        ("watch=f", "watch"),
        ("watch=" + "&" * MAX_PAIRS, "list"),
    ],
)
def test_watch_as_the_api_server_reads_it(query: str, verb: str) -> None:
    assert request_info("GET", f"/api/v1/pods?{query}").verb == verb


@pytest.mark.parametrize("broken", ["", "%", "%4"])
def test_a_line_feed_is_read_as_any_other_character(broken: str) -> None:
    """The quick decoder would read it as the end of a line of quoted-printable."""
    for feed in "\n", "\r", "\r\n", "=\n":
        ((_, _, _, name, value, read),) = pairs(f"a%20b{broken}=x%41{feed}+y{broken}")
        assert (name, value, read) == (f"a b{broken}", f"xA{feed} y{broken}", not broken)
