"""The recorder's answers: a stream of acks, three fields, addresses."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.formats.recorderapi import (
    DECLINES,
    DEFAULT_EVENT_CODES,
    MAX_EVENT_BATCH,
    MAX_MESSAGE,
    MAX_USER,
    AckReader,
    RecorderError,
    printable,
    read_declines,
    read_event_batch,
    read_event_codes,
    read_refusal,
    read_user,
    split_address,
    user_value,
)

# As Go's json.Encoder writes them, as others might, and with members that nobody here knows.
GOOD = [
    (b'{"ack":1}\n', 1),
    (b'{"ack": 12}{"ack":12}{"ack":13}', 13),
    (b' \r\n\t{ "ack" : 7 } ', 7),
    (b"{}\n{}", 0),
    (b'{"ack":0}', 0),
    (b'{"ack":5,"error":""}', 5),
    (b'{"error":null,"ack":5}', 5),
    (b'{"note":"a } brace, a \\" quote, a \\\\","ack":9,"more":[{"x":[1,"]"]}]}', 9),
    ('{"note":"é\u2028","ack":9}'.encode(), 9),
    (b'{"ack":999999999999999999}', 999999999999999999),
    (b'{"ack":1000000000000000000000}', 10**21),
]

BAD = [
    b"x",
    b"[1]",
    b'"ack"',
    b"7",
    b"null",
    b"{]",
    b'{"ack":"7"}',
    b'{"ack":7.0}',
    b'{"ack":-1}',
    b'{"ack":true}',
    b'{"ack":null}',
    b'{"ack":[7]}',
    b'{"ack":07}',
    b'{"ack":7,}',
    b'{"ack":' + b"9" * 5000 + b"}",
    b'{"ack":7}x',
    b'{"ack":7},{"ack":8}',
    b'{"ack":7}{"ack":6}',
    b'{"error":7}',
    b'{"error":{"x":1}}',
    b'{"error":"\xff"}',
    b'{"x":' + b"[" * 100_000,
    b'{"x":' + b"[" * 20 + b"]" * 20 + b"}",
    b'{"x":"' + b"y" * MAX_MESSAGE + b'"}',
    b'{"x":"' + b"y" * MAX_MESSAGE,
]


def whole(data: bytes) -> int:
    return AckReader().receive_data(data)


def in_pieces(data: bytes, cuts: list[int]) -> tuple[AckReader, int]:
    reader = AckReader()
    at = 0
    for cut in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        reader.receive_data(data[at:cut])
        at = cut
    return reader, reader.acked


@pytest.mark.parametrize(("data", "acked"), GOOD)
def test_acks(data: bytes, acked: int) -> None:
    assert whole(data) == acked
    assert in_pieces(data, list(range(len(data))))[1] == acked
    reader = in_pieces(data, [])[0]
    assert reader.at_boundary
    reader.receive_eof()


@pytest.mark.parametrize("data", BAD)
def test_what_is_no_ack(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        whole(data)
    with pytest.raises(ProtocolError):
        in_pieces(data, list(range(min(len(data), 20_000))))


@given(st.data())
def test_any_split_says_the_same(data: st.DataObject) -> None:
    text = b"".join(good for good, _ in GOOD if b"ack" in good)
    text = re.sub(rb'("ack" ?: ?)[0-9]+', rb"\g<1>42", text)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    assert in_pieces(text, cuts)[1] == 42
    with pytest.raises(ProtocolError, match="backwards"):
        in_pieces(text + b'{"ack":41}', cuts)


@given(st.data())
def test_mutated_acks_are_acks_or_an_error(data: st.DataObject) -> None:
    text = bytearray(b'{"ack":10}\n{"ack":11,"note":"x\\"y"}{"error":"full"}')
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5))
    outcomes: list[object] = []
    for where in ([], cuts):
        try:
            outcomes.append(in_pieces(bytes(text), where)[1])
        except (ProtocolError, RecorderError) as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_an_error_is_one_printable_line() -> None:
    for text, shown in [
        ("disk full", "disk full"),
        ("a\nb\x1b[31mc", "a b [31mc"),
        ("x" * 500, "x" * 200 + ".."),
    ]:
        with pytest.raises(RecorderError) as caught:
            whole(json.dumps({"ack": 3, "error": text}).encode())
        assert str(caught.value) == shown
    assert printable("") == ""


def test_acks_before_an_error_count() -> None:
    reader = AckReader()
    with pytest.raises(RecorderError):
        reader.receive_data(b'{"ack":3}{"error":"full"}')
    assert reader.acked == 3


def test_an_end_within_a_message() -> None:
    reader = AckReader()
    reader.receive_data(b'{"ack":3}\n{"a')
    assert not reader.at_boundary
    with pytest.raises(ProtocolError):
        reader.receive_eof()


def test_event_codes() -> None:
    assert read_event_codes(None) == read_event_codes("") == DEFAULT_EVENT_CODES == {"o", "r"}
    assert read_event_codes("o, e, r, m") == {"o", "e", "r", "m"}
    assert read_event_codes("e") == {"o", "r", "e"}
    assert read_event_codes(" e ,, xy, 1, é,\x00," + ",z" * 1000) <= {"o", "r", "e", "z"}


def test_event_batch() -> None:
    assert [read_event_batch(text) for text in (None, "", "x", "-1", "1e3", "٣", "9" * 40)] == [0] * 7
    assert read_event_batch(" 50 ") == 50
    assert read_event_batch("999999") == MAX_EVENT_BATCH


def test_addresses() -> None:
    assert split_address("100.64.0.9:80") == ("100.64.0.9", 80)
    assert split_address("[fd7a:115c:a1e0::9]:80") == ("fd7a:115c:a1e0::9", 80)
    for text in (
        *("", ":80", "100.64.0.9", "100.64.0.9:", "100.64.0.9:0", "100.64.0.9:65536", "100.64.0.9:8o", "100.64.0.9:+8"),
        *("recorder:80", "fd7a:115c:a1e0::9:80", "[100.64.0.9]:80", "[::1:80", "100.64.0.9:٣", "[::1]80"),
    ):
        with pytest.raises(ProtocolError):
            split_address(text)


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        (b'{"error": "disk full"}', None, "disk full"),
        (b'{"message": "disk full"}', "field", "disk full"),
        (b'{"error": 1}', "field", "field"),
        (b'{"error": ""}', "", ""),
        (b'{"error": "cut', "field", "field"),
        (b"[" * 100_000, "field", "field"),
        (b'["error"]', "field", "field"),
        (b"  no place\nsecond line", "field", "no place"),
        (b"\xff\x1b[31m no", None, "\ufffd [31m no"),
        (b"<html>502", "field", "field"),
        (b"", None, ""),
    ],
)
def test_why_a_recorder_refuses(body: bytes, field: str | None, reason: str) -> None:
    assert read_refusal(body, field) == reason


def test_what_a_recorder_declines() -> None:
    for name in DECLINES:
        assert read_declines(name) == read_declines(name, 429) == name
    assert read_declines("another") == read_declines(None) == read_declines(["sender"], 500) == ""
    assert read_declines(None, 429) == read_declines("another", 429) == "sender"


def test_users_are_named_in_a_field() -> None:
    for user in ("ann@example.com", "é /ü", "a%20b", ""):
        assert read_user(user_value(user)) == user
    assert user_value("é" * MAX_USER) == read_user("x" * (MAX_USER + 1)) == read_user(None) == read_user("%ff") == ""
