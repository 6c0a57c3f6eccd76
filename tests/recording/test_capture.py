"""Capture: when the header goes out, what becomes of output, sizes, gaps and the end; times that never go back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.common.formats.asciicast import CastHeader, decode_output, read_event, read_header
from k8sproxy.recording.capture import HEADER_WAIT, MAX_KEPT, Capture
from tests.strategies import splits

HEADER = CastHeader(timestamp=1_700_000_000, src_node="laptop", src_node_id="n7", session_id="s1")
PLAIN = frozenset("or")
ALL = frozenset("oerm")


def capture(*, tty: bool = True, codes: frozenset[str] = PLAIN) -> Capture:
    return Capture(HEADER, 100.0, tty=tty, event_codes=codes)


def lines(data: bytes) -> list[object]:
    return [json.loads(line) for line in data.splitlines()]


def size(header: object) -> tuple[object, object]:
    assert isinstance(header, dict)
    return header["width"], header["height"]


def test_without_a_tty_the_header_goes_at_once() -> None:
    session = capture(tty=False)
    assert session.due == 100.0
    header = session.deadline(100.0)
    assert size(read_header(header, 10_000)) == (80, 24)
    assert session.due is None
    assert session.deadline(101.0) == b""
    assert lines(session.output(False, [b"hi"], 100.25)) == [[0.25, "o", "hi"]]


def test_without_a_tty_the_first_output_brings_the_header_too() -> None:
    first, second = lines(capture(tty=False).output(False, [b"hi"], 100.25))
    assert size(first) == (80, 24) and second == [0.25, "o", "hi"]


def test_the_header_waits_for_the_size_and_output_for_the_header() -> None:
    session = capture()
    assert session.due == 100.0 + HEADER_WAIT
    assert session.deadline(100.0) == b""
    assert session.output(False, [b"early"], 100.2) == b""
    header, early = lines(session.resize(120, 40, 100.5))
    assert size(header) == (120, 40) and early == [0.2, "o", "early"]
    assert session.due is None
    assert lines(session.output(False, [b"late"], 100.6)) == [[pytest.approx(0.6), "o", "late"]]


def test_a_size_that_does_not_come_is_waited_for_a_second() -> None:
    session = capture()
    session.output(False, [b"early"], 100.2)
    assert session.deadline(100.9) == b""
    header, early = lines(session.deadline(101.0))
    assert size(header) == (80, 24) and early == [0.2, "o", "early"]
    # Behind the header it is an event; the header's own size again is none.
    assert session.resize(80, 24, 102.0) == b""
    assert lines(session.resize(100, 30, 103.0)) == [[3.0, "r", "100x30"]]


def test_output_past_the_deadline_brings_the_header_by_itself() -> None:
    assert size(lines(capture().output(False, [b"x"], 101.5))[0]) == (80, 24)
    assert size(lines(capture().output(False, [], 101.5))[0]) == (80, 24)
    assert size(lines(capture().resize(0, 0, 101.5))[0]) == (80, 24)


def test_what_is_kept_meanwhile_is_bounded() -> None:
    session = capture()
    piece = b"x" * (MAX_KEPT // 4)
    assert [session.output(False, [piece], 100.1) for _ in range(3)] == [b"", b"", b""]
    header, *events = lines(session.output(False, [piece], 100.1))
    assert size(header) == (80, 24) and len(events) == 4


def test_sizes() -> None:
    session = capture()
    session.resize(80, 24, 100.0)
    assert session.resize(80, 24, 100.1) == b""
    assert lines(session.resize(81, 24, 100.1)) == [[0.1, "r", "81x24"]]
    assert session.resize(81, 24, 100.2) == b""
    for odd in ((0, 0), (0, 24), (80, -1), (65536, 24)):
        assert session.resize(*odd, 100.2) == b""
    assert lines(session.resize(80, 24, 100.3)) == [[0.3, "r", "80x24"]]


def test_a_turn_is_one_line() -> None:
    session = capture(tty=False)
    session.deadline(100.0)
    turn = memoryview(b"a\xe6\x97\xa5b")
    assert lines(session.output(False, [turn[:2], turn[2:3], turn[3:]], 101.0)) == [[1.0, "o", "a日b"]]
    assert session.output(False, [b""], 101.0) == b""


def test_views_are_not_kept() -> None:
    session = capture()
    data = bytearray(b"ab\xe6")
    with memoryview(data) as view:
        session.output(False, [view], 100.0)
    data[:] = b"xxx"  # a view kept by anyone would forbid a change of length
    data.clear()
    assert lines(session.resize(1, 1, 100.0))[1] == [0.0, "o", "ab"]


def test_stderr_is_apart_only_where_the_recorder_knows_it() -> None:
    for codes, code in ((PLAIN, "o"), (ALL, "e")):
        session = capture(tty=False, codes=codes)
        session.deadline(100.0)
        assert lines(session.output(True, [b"no"], 101.0)) == [[1.0, code, "no"]]


def test_each_stream_has_its_own_half_character() -> None:
    session = capture(tty=False, codes=ALL)
    session.deadline(100.0)
    assert session.output(False, [b"\xe6"], 101.0) == b""
    assert session.output(True, [b"\xc3"], 101.0) == b""
    assert lines(session.output(False, [b"\x97\xa5"], 101.0)) == [[1.0, "o", "日"]]
    assert lines(session.output(True, [b"\xa9"], 101.0)) == [[1.0, "e", "é"]]


def test_time_never_goes_back() -> None:
    session = capture(tty=False)
    session.deadline(100.0)
    times = [lines(session.output(False, [b"x"], now))[0] for now in (99.0, 102.0, 101.0, 102.5)]
    assert times == [[0.0, "o", "x"], [2.0, "o", "x"], [2.0, "o", "x"], [2.5, "o", "x"]]


def test_a_gap_is_a_marker_where_the_recorder_knows_them() -> None:
    session = capture(tty=False, codes=ALL)
    session.deadline(100.0)
    [marker] = lines(session.gap(123, "the recorder is slow", 101.0))
    assert marker == [1.0, "m", "k8sproxy: 123 bytes of output are missing here: the recorder is slow"]


def test_a_gap_is_shown_dimly_elsewhere_and_ends_half_characters() -> None:
    session = capture(tty=False)
    session.deadline(100.0)
    session.output(False, [b"a\xe6"], 101.0)
    half, notice = lines(session.gap(123, "why", 102.0))
    assert half == [2.0, "o", "\U0010fee6"]
    assert notice == [2.0, "o", "\r\n\x1b[0;2m[k8sproxy: 123 bytes of output are missing here: why]\x1b[0m\r\n"]
    # What comes then does not complete what was there before.
    assert lines(session.output(False, [b"\x97\xa5"], 103.0)) == [[3.0, "o", "\U0010fe97\U0010fea5"]]


def test_the_end_brings_what_is_held() -> None:
    session = capture(codes=ALL)
    session.output(False, [b"a\xe6"], 100.1)
    session.output(True, [b"\xff\xc3"], 100.2)
    header, *events = lines(session.ended(100.5))
    assert size(header) == (80, 24)
    assert events == [
        [0.1, "o", "a"],
        [0.2, "e", "\U0010feff"],
        [0.5, "o", "\U0010fee6"],
        [0.5, "e", "\U0010fec3"],
    ]
    assert session.ended(101.0) == b""


def test_a_session_that_shows_nothing_has_a_header() -> None:
    assert [size(line) for line in lines(capture().ended(100.1))] == [(80, 24)]


@given(st.data())
def test_any_session_is_a_cast_with_all_its_output(data: st.DataObject) -> None:
    outputs = {False: data.draw(st.binary(max_size=60)), True: data.draw(st.binary(max_size=60))}
    todo = [(stderr, piece) for stderr, output in outputs.items() for piece in data.draw(splits(output))]
    session = capture(tty=data.draw(st.booleans()), codes=ALL)
    now, cast = 100.0, session.deadline(100.0)
    for stderr, piece in todo:
        now += data.draw(st.floats(-0.1, 0.6))
        cast += session.output(stderr, [piece], now)
        if data.draw(st.booleans()):
            cast += session.resize(data.draw(st.integers(-1, 3)), 24, now)
        cast += session.deadline(now)
    cast += session.ended(now)
    header, *events = cast.splitlines()
    read_header(header, 10_000)
    parsed = [read_event(event, 10_000) for event in events]
    assert [event[0] for event in parsed] == sorted(event[0] for event in parsed)
    for stderr, output in outputs.items():
        code = "e" if stderr else "o"
        assert decode_output("".join(text for _, kind, text in parsed if kind == code)) == output
