"""Asciicast v2: headers as Go's CastHeader has them, output that comes back byte for byte, strict readers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.formats.asciicast import (
    MAX_HEADER_LINE,
    CastHeader,
    OutputEncoder,
    are_events,
    bytes_as_text,
    decode_output,
    event_line,
    event_of,
    read_event,
    read_header,
    read_size,
    resize_line,
)
from k8sproxy.common.formats.bounds import Truncation
from tests.strategies import mutations, splits

USER = CastHeader(
    timestamp=1_700_000_000,
    src_node="laptop.tail1.ts.net.",
    src_node_id="n7",
    command="sh -c 'echo \"hi\"'",
    src_node_user_id=12,
    src_node_user="ann@example.com",
    connection_id="c1",
    pod_name="web-0",
    namespace="default",
    container="app",
    session_type="exec",
    cluster="prod",
    impersonated_user="ann@example.com",
    impersonated_groups=("dev",),
    user_agent="kubectl/v1.36",
    session_id="s1",
)
LIMIT = 1 << 20
# Text, cut text, other bytes, the escapes' own range, and pieces long enough for the ways that long ones take.
OUTPUT = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace")),
        st.sampled_from(
            ["\U0010fe80", "\U0010febf", "\U0010fec0", "\U0010feff", "\U0010fe7f", "\U0010ff00", "é日\U0001f600"]
        ).map(str.encode),
        st.sampled_from([b"\xed\xb2\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xf4\x8f\xba", b"\xff"]),
        st.sampled_from([b"x" * 1500, bytes(range(256)) * 8, "日本".encode() * 400, b'\r\n\x1b[0m\\"' * 200]),
        st.integers(1, 1200).map(bytes),  # NUL
    ),
    max_size=8,
).map(b"".join)


def encode(pieces: list[bytes]) -> list[str]:
    """The data of the events, as a reader has it."""
    encoder = OutputEncoder()
    lines = [encoder.line(1.0, "o", piece) for piece in pieces]
    return [read_event(line, LIMIT)[2] if line else "" for line in lines] + [encoder.finish()]


# --- the header ---


def test_header_of_a_user_has_the_names_and_types_of_go() -> None:
    line = USER.line(120, 40)
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    assert json.loads(line) == {
        "version": 2,
        "width": 120,
        "height": 40,
        "timestamp": 1_700_000_000,
        "command": "sh -c 'echo \"hi\"'",
        "srcNode": "laptop.tail1.ts.net",
        "srcNodeID": "n7",
        "srcNodeUserID": 12,
        "srcNodeUser": "ann@example.com",
        "env": {},
        "sshUser": "",
        "localUser": "",
        "connectionID": "c1",
        "kubernetes": {
            "PodName": "web-0",
            "Namespace": "default",
            "Container": "app",
            "SessionType": "exec",
            "Cluster": "prod",
        },
        "impersonation": {"user": "ann@example.com", "groups": ["dev"]},
        "userAgent": "kubectl/v1.36",
        "sessionID": "s1",
    }
    assert read_header(line, LIMIT) == json.loads(line)


def test_header_leaves_out_what_there_is_not() -> None:
    tagged = CastHeader(timestamp=1, src_node="ci", src_node_id="n8", src_node_tags=("tag:ci",), src_node_user="x")
    header = json.loads(tagged.line(80, 24))
    assert header["srcNodeTags"] == ["tag:ci"]
    assert not header.keys() & {"srcNodeUser", "srcNodeUserID", "command", "kubernetes", "impersonation", "userAgent"}


def test_a_header_of_bounded_members_says_nothing_of_it() -> None:
    groups = tuple(f"team-{number}" for number in range(200))
    header = json.loads(dataclasses.replace(USER, impersonated_groups=groups).line(80, 24))
    assert header["impersonation"]["groups"] == list(groups) and "truncated" not in header


@pytest.mark.parametrize("character", ["x", '"', "\x01", "é", "\U0001f600", "\ud800"])
def test_no_member_makes_the_line_longer_than_a_recorder_takes(character: str) -> None:
    """230 groups of 500 bytes, with nobody meaning harm, were refused after the output had been shown."""
    much = character * 70_000
    names: tuple[str, ...] = (
        "src_node",
        "src_node_id",
        "command",
        "src_node_user",
        "connection_id",
        "pod_name",
        "namespace",
    )
    names += ("container", "session_type", "cluster", "impersonated_user", "user_agent", "session_id")
    texts: dict[str, Any] = dict.fromkeys(names, much)
    header = CastHeader(timestamp=1 << 52, src_node_user_id=1 << 62, impersonated_groups=(much[:500],) * 256, **texts)
    tagged = dataclasses.replace(header, src_node_tags=(much[:500],) * 256)
    for made in (header, tagged):
        line = made.line(65535, 65535)
        assert len(line) <= MAX_HEADER_LINE
        read = read_header(line, MAX_HEADER_LINE)
        cuts = read["truncated"]
        assert isinstance(cuts, dict)
        assert cuts["kubernetes.Container"] == {
            "bytes": len(much.encode("utf-8", "replace")),
            "sha256": hashlib.sha256(much.encode("utf-8", "replace")).hexdigest(),
        }
        members = {"command", "impersonation.user", "impersonation.groups", "userAgent", "sessionID", "connectionID"}
        members |= {f"kubernetes.{name}" for name in ("PodName", "Namespace", "Container", "SessionType", "Cluster")}
        assert cuts.keys() == members | {"srcNode", "srcNodeID"} | (
            {"srcNodeTags"} if made.src_node_tags else {"srcNodeUser"}
        )
        assert read["srcNodeTags" if made.src_node_tags else "srcNodeUser"]


def test_what_was_cut_before_is_told_too() -> None:
    header = dataclasses.replace(USER, truncated={"command": Truncation(5, "ab")})
    assert json.loads(header.line(1, 1))["truncated"] == {"command": {"bytes": 5, "sha256": "ab"}}


def test_header_never_holds_half_a_character() -> None:
    header = CastHeader(timestamp=1, src_node="a", src_node_id="n", user_agent="x\udcff", command="\ud83d")
    assert json.loads(header.line(1, 1))["userAgent"] == "x?"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"version":1,"width":1,"height":1}',
        b'{"version":true,"width":1,"height":1}',
        b'{"version":2.0,"width":1,"height":1}',
        b'{"version":2,"width":-1,"height":1}',
        b'{"version":2,"width":1}',
        b'{"version":2,"width":1,"height":65536}',
        b'{"version":2,"width":1,"height":"1"}',
        b'{"version":2,"width":1,"height":1,"timestamp":"x"}',
        b'{"version":2,"width":1,"height":1,"timestamp":-1}',
        b'{"version":2,"width":1,"height":1,"x":NaN}',
        b'{"version":2,"width":1,"height":1,"x":1e999}',
        b'{"version":2,"width":1,"height":1,"x":"\xff"}',
        b'{"version":2,"width":1,"height":1} {}',
        b'\xef\xbb\xbf{"version":2,"width":1,"height":1}',
        b'{"version":2,"width":1,"height":1}'.decode().encode("utf-16"),
        b"9" * 5000,
        b"[" * 100_000,
    ],
)
def test_header_that_is_none(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_header(line, LIMIT)


def test_header_without_a_terminal_as_go_writes_it() -> None:
    line = b'{"version":2,"width":0,"height":0,"timestamp":1,"env":null,"srcNode":"a"}\n'
    assert read_header(line, LIMIT)["env"] is None


# --- events ---


def test_event_line() -> None:
    assert event_line(0.25, "o", 'a"\\\n\x00\x1f\x7f') == b'[0.25,"o","a\\"\\\\\\n\\u0000\\u001f\x7f"]\n'
    assert event_line(3.0000004, "m", "é\udcff") == '[3.0,"m","é?"]\n'.encode()
    assert resize_line(1.0, 120, 40) == b'[1.0,"r","120x40"]\n'


@given(st.text())
@example("".join(map(chr, range(256))))
@example("\\n\\\\u001b\u2028")
def test_any_text_comes_back(text: str) -> None:
    want = text.encode("utf-8", "replace").decode()
    assert read_event(event_line(1.5, "o", text), LIMIT) == (1.5, "o", want)
    assert event_line(1.5, "o", text).count(b"\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b'"o"',
        b'[1,"o"]',
        b'[1,"o","x","y"]',
        b'[true,"o","x"]',
        b'["1","o","x"]',
        b'[-1,"o","x"]',
        b'[1e300,"o","x"]',
        b'[Infinity,"o","x"]',
        b'[1,"oo","x"]',
        b'[1,"","x"]',
        b'[1,"1","x"]',
        b'[1,"\xc3\xa9","x"]',
        b'[1,null,"x"]',
        b'[1,"o",null]',
        b'[1,"o",["x"]]',
        b'[1,"o","\\ud800"]',
        b'[1,"o","\xff"]',
        b'[1,"o","x\ny"]',
        b'[1,"o","x"]]',
        b"[" * 100_000,
    ],
)
def test_event_that_is_none(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_event(line, LIMIT)


def test_lines_are_bounded() -> None:
    line = event_line(1, "o", "x" * 100)
    assert read_event(line, len(line))[2] == "x" * 100
    with pytest.raises(ProtocolError) as caught:
        read_event(line, len(line) - 1)
    assert caught.value.status == 413
    with pytest.raises(ProtocolError):
        read_header(USER.line(1, 1), 10)


@given(st.data())
def test_mutated_lines_are_events_or_protocol_errors(data: st.DataObject) -> None:
    for line, read in ((USER.line(80, 24), read_header), (event_line(1.5, "o", "é\x1b[0m\U0010fe99"), read_event)):
        with contextlib.suppress(ProtocolError):
            read(data.draw(mutations(line)), LIMIT)


@pytest.mark.parametrize("text", ["", "x", "80", "80x", "0x24", "80x0", "65536x1", "1x65536", "80x24 ", "-1x2", "٣x٣"])
def test_size_that_is_none(text: str) -> None:
    with pytest.raises(ProtocolError):
        read_size(text)


def test_size() -> None:
    assert read_size("120x40") == (120, 40)
    assert read_size("65535x1") == (65535, 1)


# --- output ---


@given(st.data())
def test_output_comes_back_exactly_however_it_is_cut(data: st.DataObject) -> None:
    output = data.draw(OUTPUT)
    texts = encode(data.draw(splits(output)))
    assert decode_output("".join(texts)) == output
    assert b"".join(map(decode_output, texts)) == output
    assert "\ufffd" not in "".join(texts) or "\ufffd".encode() in output


@given(st.data())
def test_lines_are_those_of_what_is_fed(data: st.DataObject) -> None:
    """The short ways say the same as the long one."""
    output = data.draw(OUTPUT)
    pieces = data.draw(splits(output))
    encoder = OutputEncoder()
    text = "".join([*map(encoder.feed, pieces), encoder.finish()])
    assert "".join(encode(pieces)) == text or b"\xf4\x8f" in output  # whose bytes may be escaped in two ways


def test_long_runs_of_nul_are_written_as_any_text_is() -> None:
    for output in (bytes(255), bytes(256), b'"' + bytes(300) + b"\n" + bytes(200_000), bytes(256) + b"x" + bytes(1000)):
        for piece in (output, bytearray(output)):
            assert OutputEncoder().line(1.25, "e", piece) == event_line(1.25, "e", output.decode())
    # Beside what is not ASCII they are text like any other.
    assert encode([bytes(300) + "é".encode()]) == ["\0" * 300 + "é", ""]


@pytest.mark.parametrize("character", ["é", "日", "\U0001f600", "\U0010fe80"])
def test_a_character_is_held_back_until_it_is_whole_and_no_longer(character: str) -> None:
    data = character.encode()
    for cut in range(1, len(data)):
        assert encode([b"a" + data[:cut], data[cut:] + b"b"]) in (
            ["a", f"{character}b", ""],
            ["a", f"{OutputEncoder().feed(data)}b", ""],
        )
        # What can't become one is not held for ever.
        held = encode([b"a" + data[:cut], b"b"])
        assert decode_output("".join(held)) == b"a" + data[:cut] + b"b" and held[1].endswith("b")
    assert encode([b"a" + data, b"b"])[1:] == ["b", ""]


@pytest.mark.parametrize("broken", [b"\xff", b"\xc1", b"\x80", b"\xe0\x80", b"\xf4\x90"])
def test_what_can_become_no_character_is_not_held_back(broken: bytes) -> None:
    first, second, rest = encode(["é".encode() + broken, b"b"])
    assert decode_output(first) == "é".encode() + broken and (second, rest) == ("b", "")


@pytest.mark.parametrize(
    "output", [bytes(range(256)) * 16, "é日\U0001f600\U0010fe80".encode() * 3, b"\xed\xb2\x80\xff"]
)
def test_output_byte_by_byte(output: bytes) -> None:
    assert decode_output("".join(encode([output[place : place + 1] for place in range(len(output))]))) == output


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], max_codepoint=0x10FE7F)), st.data())
def test_text_stays_itself_however_it_is_cut(text: str, data: st.DataObject) -> None:
    assert "".join(encode(data.draw(splits(text.encode())))) == text
    long = text * (2000 // max(1, len(text)))
    assert "".join(encode([long.encode()])) == long


def test_a_cut_character_is_whole_in_the_event_that_ends_it() -> None:
    assert encode([b"a\xe6", b"\x97", b"\xa5b"]) == ["a", "", "日b", ""]


def test_bytes_that_are_not_utf8() -> None:
    assert encode([b"a\xffb\x80c"]) == ["a\U0010feffb\U0010fe80c", ""]
    assert encode([b"a\xe6\x97"]) == ["a", "\U0010fee6\U0010fe97"]
    assert encode([b"\xe6", b"a"]) == ["", "\U0010fee6a", ""]


def test_a_character_of_the_range_is_escaped_byte_by_byte() -> None:
    assert encode(["\U0010fe99".encode()]) == ["\U0010fef4\U0010fe8f\U0010feba\U0010fe99", ""]
    assert encode(["\U0010fed9".encode()]) == ["\U0010fef4\U0010fe8f\U0010febb\U0010fe99", ""]
    # Their neighbours are not.
    assert encode(["\U0010fe7f\U0010ff00".encode()]) == ["\U0010fe7f\U0010ff00", ""]


def test_one_broken_byte_leaves_the_text_around_it_readable() -> None:
    text = "日本語の長い出力 " * 500
    texts = encode([text.encode() + b"\xff" + text.encode()])
    assert "".join(texts) == text + "\U0010feff" + text


def test_binary_data_is_exact_and_bounded() -> None:
    output = os.urandom(1 << 16)
    encoder = OutputEncoder()
    text = encoder.feed(memoryview(output)) + encoder.finish()
    assert decode_output(text) == output
    # A control character takes six bytes, the rest at most four.
    assert len(event_line(0.0, "o", text)) < 6 * len(output)


def test_other_writers_text() -> None:
    assert decode_output("é\ufffd\ud800") == "é\ufffd?".encode()
    assert decode_output("\U0010fe7f\ud800") == "\U0010fe7f?".encode()


def test_bytes_as_text_and_back() -> None:
    for data in (b"", b"plain", "日本".encode(), b"a\xff\xe6\x97", b"\xf4\x8f\xba"):
        assert decode_output(bytes_as_text(data)) == data


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (b'[1,"o","a"]', (1.0, "o", "a")),
        (b'[1.5,"x",""]', (1.5, "x", "")),
        (b'[1,"o","a\\ud800b"]', (1.0, "o", "a\ufffdb")),
        (b'[true,"o","a"]', None),
        (b'[-1,"o","a"]', None),
        (b'[1,"oo","a"]', None),
        (b'[1,"o"]', None),
        (b'[1,"o",2]', None),
        (b'{"a":1}', None),
        (b"[" * 100_000, None),
        (b'[1,"o","a', None),
    ],
)
def test_what_a_line_shows(line: bytes, event: tuple[float, str, str] | None) -> None:
    assert event_of(line) == event


def test_lines_that_are_events() -> None:
    short = event_line(1.0, "o", "a") + b'[1,"x","b"]\n' + event_line(2.0, "r", "80x24")
    long = event_line(1.0, "o", "a" * 3000) + short
    for text in (short, long):
        assert are_events(text)
        for broken in (b'[1,"o"]\n', b"\n", b'{"o":1}\n', b'[1,"r","x"]\n', b'["a","o","b"]\n', b'[1,"o","b"\n'):
            assert not are_events(text + broken)
            assert not are_events(broken + text)
    assert are_events(b"")


def test_a_character_that_ends_within_broken_bytes_is_held_back() -> None:
    encoder = OutputEncoder()
    assert encoder.line(0.0, "o", b"\xe6") == b""
    assert encoder.held == b"\xe6"
    assert encoder.line(0.0, "o", b"") == b""
    assert encoder.finish() == "\U0010fee6"
    assert encoder.held == b""
